"""Model files written by hand from docs/reference/model-file.md, simple enough for NumPy to compute their outputs.

An independent view of the format: nothing here uses the code that writes such files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support import require_module

from drip.media import InputSpec

N_CLASSES = 3
N_MAPS = 4


@dataclass
class KnownModel:
    """A file and its expected outputs: one layer of maps, their mean, a linear head."""

    path: Path
    digest: str
    spec: InputSpec
    first: np.ndarray  # (N_MAPS, channels)
    head: np.ndarray  # (N_CLASSES, N_MAPS)
    bias: np.ndarray

    def maps(self, inputs):
        flat = inputs.astype(np.float64).reshape(*inputs.shape[:2], -1)
        return np.maximum(np.einsum("kc,ncp->nkp", self.first, flat), 0.0)

    def expected(self, inputs):
        """Logits, classes, DRIP scores and contrasts by the equations, in float64."""
        maps = self.maps(inputs)
        logits = maps.mean(axis=2) @ self.head.T + self.bias
        classes = logits.argmax(axis=1)
        weights = self.head[classes] / maps.shape[2]
        scores = np.maximum(np.einsum("nk,nkp->np", weights, maps), 0.0).mean(axis=1)
        order = np.argsort(-logits, axis=1, kind="stable")
        rivals = (self.head[order[:, 0]] - self.head[order[:, 1]]) / maps.shape[2]
        contrasts = np.maximum(np.einsum("nk,nkp->np", rivals, maps), 0.0).mean(axis=1)
        return logits, classes, scores, contrasts


def make_model(
    path: Path,
    spec: InputSpec,
    *,
    seed: int = 0,
    batch: str | int = "N",
    windows: tuple[Any, Any] | None = None,
    policy: Any = None,
    quantization: Any = None,
    parent_digest: str = "b" * 64,
    on_request: bool = False,
    spoil: Any = None,
    change: Any = None,
) -> KnownModel:
    """Write the file; ``spoil`` changes the weights and ``change`` the metadata before it is written."""
    onnx = require_module("onnx", "pip install onnx")
    from drip.onnx import model_file_digest

    helper, kind = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(seed)
    channels, *sides = spec.shape
    ones = (1,) * len(sides)
    axes = list(range(2, 2 + len(sides)))
    axes_below = [axis - 1 for axis in axes]
    weights = {
        "first": rng.normal(size=(N_MAPS, channels)).astype(np.float32),
        "head": (4 * rng.normal(size=(N_CLASSES, N_MAPS))).astype(np.float32),
        "bias": (0.1 * rng.normal(size=N_CLASSES)).astype(np.float32),
    }
    if spoil is not None:
        spoil(weights)
    first, head, bias = weights["first"], weights["head"], weights["bias"]
    lower, upper = windows or (np.full(N_CLASSES, np.inf), np.full(N_CLASSES, -np.inf))
    n_positions = np.array(np.prod(sides), dtype=np.float32)
    constants = {
        "first.weight": first.reshape(N_MAPS, channels, *ones),
        "head.map": (head / n_positions).reshape(N_CLASSES, N_MAPS, *ones),
        "head.weight": head,
        "head.bias": bias,
        "drip.lower": np.asarray(lower, dtype=np.float32),
        "drip.upper": np.asarray(upper, dtype=np.float32),
        "axis": np.array([1]),
        "two": np.array([2]),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "first.weight"], ["conv"]),
        node("Relu", ["conv"], ["maps"]),
        node("ReduceMean", ["maps"], ["features"], axes=axes, keepdims=0),
        node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1),
        node("ArgMax", ["logits"], ["predicted_class"], axis=1, keepdims=0, select_last_index=0),
        node("Conv", ["maps", "head.map"], ["class_maps"]),
        node("Relu", ["class_maps"], ["heatmaps"]),
        node("ReduceMean", ["heatmaps"], ["all_scores"], axes=axes, keepdims=0),
        node("Unsqueeze", ["predicted_class", "axis"], ["column"]),
        node("GatherElements", ["all_scores", "column"], ["score_column"], axis=1),
        node("Squeeze", ["score_column", "axis"], ["drip_score"]),
        node("Gather", ["drip.lower", "predicted_class"], ["lower"]),
        node("Gather", ["drip.upper", "predicted_class"], ["upper"]),
        node("Less", ["drip_score", "lower"], ["below"]),
        node("Greater", ["drip_score", "upper"], ["above"]),
        node("Or", ["below", "above"], ["retain"]),
    ]
    outputs = {
        "logits": (kind.FLOAT, [batch, N_CLASSES]),
        "predicted_class": (kind.INT64, [batch]),
        "drip_score": (kind.FLOAT, [batch]),
        "retain": (kind.BOOL, [batch]),
    }
    if on_request:
        nodes += [
            node("TopK", ["logits", "two"], ["top", "top_classes"], axis=1),
            node("Split", ["top_classes"], ["best", "rival"], axis=1, num_outputs=2),
            node("Squeeze", ["best", "axis"], ["best_class"]),
            node("Squeeze", ["rival", "axis"], ["rival_class"]),
            node("Gather", ["head.weight", "best_class"], ["best_weights"]),
            node("Gather", ["head.weight", "rival_class"], ["rival_weights"]),
            node("Sub", ["best_weights", "rival_weights"], ["difference"]),
            node("Unsqueeze", ["difference", "axes"], ["difference_maps"]),
            node("Mul", ["difference_maps", "maps"], ["products"]),
            node("ReduceSum", ["products", "axis"], ["contrast_map"], keepdims=0),
            node("Relu", ["contrast_map"], ["contrast_heatmap"]),
            node("ReduceMean", ["contrast_heatmap"], ["contrast_sum"], axes=axes_below, keepdims=0),
            node("Div", ["contrast_sum", "n_positions"], ["drip_contrast"]),
        ]
        constants |= {"axes": np.array(axes), "n_positions": n_positions}
        outputs |= {"drip_contrast": (kind.FLOAT, [batch]), "features": (kind.FLOAT, [batch, N_MAPS])}
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("input", kind.FLOAT, [batch, *spec.shape])],
        [helper.make_tensor_value_info(name, *how) for name, how in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if on_request:
        model.opset_import[0].version = 18
        for part in model.graph.node:
            if part.op_type == "ReduceMean":
                part.input.append(_axes_of(onnx, model, part))
    digest = model_file_digest(model)
    content = {
        "format_version": 2,
        "digest": digest,
        "parent_digest": parent_digest,
        "quantization": quantization,
        "score": {
            "name": "drip", "method": "gradcam", "heatmap": "raw", "contrast": False, "layer": "maps",
            "layer_shape": [N_MAPS, *sides],
        },
        "input_spec": spec.to_json(),
        "class_names": ["ant", "bee", "cow"],
        "policy": None if policy is None else policy.to_json(),
        "drip_version": "0.1.0",
    }  # fmt: skip
    if change is not None:
        content = change(content)
    if content is not None:
        helper.set_model_props(model, {"drip": content if isinstance(content, str) else json.dumps(content)})
    onnx.save(model, str(path))
    return KnownModel(path, digest, spec, first.astype(float), head.astype(float), bias.astype(float))


def _axes_of(onnx, model, part):
    """From opset 18 on the axes of a mean are an input."""
    (attribute,) = [a for a in part.attribute if a.name == "axes"]
    part.attribute.remove(attribute)
    name = f"{part.output[0]}.axes"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(list(attribute.ints)), name))
    return name


def write_digest(path):
    """Make a changed file consistent again, as a tool would that knows the format."""
    onnx = require_module("onnx", "pip install onnx")
    from drip.onnx import model_file_digest

    model = onnx.load(str(path))
    content = json.loads(model.metadata_props[0].value)
    content["digest"] = model_file_digest(model)
    model.metadata_props[0].value = json.dumps(content)
    onnx.save(model, str(path))
