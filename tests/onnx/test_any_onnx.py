"""Any ONNX classifier, exported without torch, gives the score of PyTorch's autograd."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from heads import assert_routes_equal, build, oracle, score_of
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PLAIN, SqueezeNet, lively, noise, plain_onnx
from onnx import TensorProto, helper, numpy_helper
from support import require_data

from drip.errors import ExportError, PolicyError
from drip.media import InputSpec
from drip.onnx import attach_score, check, export_file, model_file_digest, read_metadata
from drip.onnx.files import run_file
from drip.policy import Policy, Provenance

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from drip.onnx import export_file
from drip.onnx.files import run_file
source, path, inputs, out = sys.argv[1:5]
layer = sys.argv[5] if len(sys.argv) > 5 else None
metadata = export_file(source, path, features=True, contrast=True, layer=layer)
np.savez(out, **run_file(open(path, "rb").read(), np.load(inputs)))
print(metadata.score["layer_shape"])
assert sys.modules["torch"] is None
"""


def export_without_torch(folder, data, x, *layer):
    (folder / "plain.onnx").write_bytes(data)
    np.save(folder / "x.npy", x)
    arguments = [folder / "plain.onnx", folder / "model.onnx", folder / "x.npy", folder / "out.npz", *layer]
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as found:
        return {name: found[name] for name in found.files}


def assert_equal_to_oracle(found, model, layer, x):
    maps, logits, activations = oracle(model, layer, x)
    assert_routes_equal(found["logits"], logits)
    assert_routes_equal(found["drip_score"], score_of(maps))
    if "features" in found:
        assert_routes_equal(found["features"], activations.mean(tuple(range(2, activations.ndim))))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_without_torch_the_score_is_that_of_autograd(name, tmp_path):
    make, shape, layer = PLAIN[name]
    torch.manual_seed(0)
    model, x = lively(make()), noise(shape, 6)
    found = export_without_torch(tmp_path, plain_onnx(model, shape), x)
    assert_equal_to_oracle(found, model, layer, x)
    assert not check(tmp_path / "model.onnx").problems


@pytest.mark.slow
def test_trained_squeezenet(tmp_path):
    with np.load(require_data("squeezenet1_1_imagenet.npz")) as weights:
        model = SqueezeNet()
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    model.eval()
    x = noise((3, 224, 224), 3)
    data = plain_onnx(model, (3, 224, 224))
    assert_equal_to_oracle(export_without_torch(tmp_path, data, x), model, "classifier.2", x)
    # what enters the classifier: the join of the last fire module
    join = [node for node in onnx.load(tmp_path / "plain.onnx").graph.node if node.op_type == "Concat"][-1]
    found = export_without_torch(tmp_path, data, x, join.output[0])
    assert_equal_to_oracle(found, model, "features.12", x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flatten_fc", "hardswish_mlp", "tokens"])
def test_heads_of_other_kinds_are_found_in_the_graph(name):
    model, batch, layer = build(name)
    data = plain_onnx(model, batch.shape[1:], free=name != "tokens")
    found = run_file(attach_score(onnx.load_from_string(data)).SerializeToString(), batch)
    assert_equal_to_oracle(found, model, layer, batch)


# -- graphs written by hand ------------------------------------------------------------------------------


def graph_of(nodes, constants, shape, *, opset=17, outputs=("y",), domain="", batch="n"):
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, a, b, name=f"{op}_{b[0]}", **options) for op, a, b, options in nodes],
            "classifier",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "classes"]) for name in outputs],
            [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid(domain, opset)],
        ir_version=8,
    )  # fmt: skip


RNG = np.random.default_rng(3)
CONV, WEIGHT, BIAS = (RNG.normal(size=s).astype(np.float32) for s in ((6, 2, 3, 3), (6, 4), (4,)))
CONSTANTS = {"k": CONV, "w": WEIGHT, "b": BIAS}
BACKBONE = [("Conv", ["image", "k"], ["c"], {}), ("Relu", ["c"], ["a"], {})]
HEAD = [
    ("GlobalAveragePool", ["a"], ["p"], {}), ("Flatten", ["p"], ["f"], {}),
    ("Gemm", ["f", "w", "b"], ["y"], {"alpha": 2.0}),
]  # fmt: skip


def by_hand(x):
    """Logits and score of the small graph, in NumPy."""
    a = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(CONV)).relu().double().numpy()
    logits = 2 * a.mean((2, 3)) @ WEIGHT + BIAS
    rows = 2 * WEIGHT.T[logits.argmax(1)]
    return logits, np.maximum((rows[:, :, None, None] * a).sum(1), 0).mean((1, 2)) / (a.shape[2] * a.shape[3])


def assert_by_hand(model, **options):
    x = noise((2, 6, 7), 5)
    found = run_file(attach_score(model, **options).SerializeToString(), x)
    logits, scores = by_hand(x)
    assert_routes_equal(found["logits"], logits)
    assert_routes_equal(found["drip_score"], scores)
    return found


def test_a_small_graph_by_hand():
    assert_by_hand(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7)))


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax"])
def test_a_closing_softmax_is_cut_off(last):
    nodes = [*BACKBONE, *HEAD, (last, ["y"], ["z"], {"axis": 1})]
    model = attach_score(graph_of(nodes, CONSTANTS, (2, 6, 7), outputs=("z",)))
    assert last not in {node.op_type for node in model.graph.node}
    assert_by_hand(graph_of(nodes, CONSTANTS, (2, 6, 7), outputs=("z",)))


@pytest.mark.parametrize(
    ("plumbing", "constants"),
    [
        ([("Cast", ["s"], ["z"], {"to": 1})], {}),
        ([("Reshape", ["s", "sizes"], ["z"], {})], {"sizes": np.array([-1, 4])}),
        ([("Unsqueeze", ["s", "q"], ["u"], {}), ("Squeeze", ["u", "q"], ["z"], {})], {"q": np.array([2])}),
    ],
    ids=["cast", "reshape", "squeeze"],
)  # fmt: skip
def test_a_softmax_is_cut_off_together_with_a_reshape_after_it(plumbing, constants):
    nodes = [*BACKBONE, *HEAD, ("Softmax", ["y"], ["s"], {"axis": 1}), *plumbing]
    assert_by_hand(graph_of(nodes, {**CONSTANTS, **constants}, (2, 6, 7), outputs=("z",)))


def test_a_softmax_with_exchanged_axes_is_rejected():
    nodes = [*BACKBONE, *HEAD, ("Transpose", ["y"], ["t"], {}), ("Softmax", ["t"], ["s"], {"axis": 0})]
    nodes.append(("Transpose", ["s"], ["z"], {}))
    with pytest.raises(ExportError, match="Softmax_s") as error:
        attach_score(graph_of(nodes, CONSTANTS, (2, 6, 7), outputs=("z",)))
    assert error.value.code == "export-unsupported"


@pytest.mark.parametrize("ending", [[], [("Softmax", ["y"], ["z"], {"axis": 1})]], ids=["logits", "softmax"])
def test_logits_of_shape_n_k_1_1_after_a_convolution(ending):
    kernel = np.ascontiguousarray(2 * WEIGHT.T[:, :, None, None])
    nodes = [*BACKBONE, HEAD[0], ("Conv", ["p", "w1", "b"], ["y"], {}), *ending]
    assert_by_hand(
        graph_of(nodes, {"k": CONV, "w1": kernel, "b": BIAS}, (2, 6, 7), outputs=("yz"[len(ending)],))
    )


def test_a_closing_sigmoid_is_rejected():
    nodes = [*BACKBONE, *HEAD, ("Sigmoid", ["y"], ["z"], {})]
    with pytest.raises(ExportError, match="Sigmoid_z") as error:
        attach_score(graph_of(nodes, CONSTANTS, (2, 6, 7), outputs=("z",)))
    assert error.value.code == "export-unsupported"


def test_a_head_with_two_poolings_gives_score_and_contrast():
    nodes = [
        *BACKBONE, HEAD[0], ("MaxPool", ["a"], ["q"], {"kernel_shape": [4, 5]}),
        ("Concat", ["p", "q"], ["both"], {"axis": 1}), ("Flatten", ["both"], ["f"], {}),
        ("Gemm", ["f", "w2", "b"], ["y"], {}),
    ]  # fmt: skip
    weights = RNG.normal(size=(12, 4)).astype(np.float32)
    model = graph_of(nodes, {"k": CONV, "w2": weights, "b": BIAS}, (2, 6, 7))
    x = noise((2, 6, 7), 5)
    found = run_file(attach_score(model, contrast=True).SerializeToString(), x)

    maps = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(CONV)).relu().requires_grad_()
    pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
    logits = pooled @ torch.from_numpy(weights) + torch.from_numpy(BIAS)
    first, second = logits.topk(2).values.T
    for name, end in (("drip_score", first), ("drip_contrast", first - second)):
        (gradient,) = torch.autograd.grad(end.sum(), maps, retain_graph=True)
        weighted = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().mean((1, 2))
        assert_routes_equal(found[name], weighted.detach().numpy())


def test_an_old_opset_is_converted():
    assert_by_hand(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7), opset=11))


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 21])
def test_every_opset_from_thirteen(opset):
    assert_by_hand(
        graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7), opset=opset), contrast=True, features=True
    )


def test_weights_that_are_inputs_as_in_old_files():
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    for name, value in CONSTANTS.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    assert_by_hand(model)


def test_a_fixed_batch_is_freed_if_the_graph_allows_it():
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7), batch=1)
    assert attach_score(model).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    fixed = [*BACKBONE, HEAD[0], ("Reshape", ["p", "s"], ["f"], {}), HEAD[2]]
    model = graph_of(fixed, {**CONSTANTS, "s": np.array([1, 6])}, (2, 6, 7), batch=1)
    assert attach_score(model).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert_by_hand(model)


def test_tensors_with_reserved_names_are_renamed():
    nodes = [("Conv", ["image", "k"], ["logits"], {}), ("Relu", ["logits"], ["drip.lower"], {})]
    nodes += [
        ("GlobalAveragePool", ["drip.lower"], ["input"], {}),
        ("Flatten", ["input"], ["f"], {}),
        HEAD[2],
    ]
    model = graph_of(nodes, CONSTANTS, (2, 6, 7))
    assert_by_hand(model)
    assert_by_hand(model, layer="drip.lower")


def test_renaming_avoids_names_that_exist():
    nodes = [("Conv", ["image", "k"], ["features"], {}), ("Relu", ["features"], ["source.features"], {})]
    nodes += [("GlobalAveragePool", ["source.features"], ["p"], {}), HEAD[1]]
    nodes += [
        ("Gemm", ["f", "w", "b"], ["retain"], {"alpha": 2.0}),
        ("Identity", ["retain"], ["source.retain"], {}),
    ]
    assert_by_hand(graph_of(nodes, CONSTANTS, (2, 6, 7), outputs=("source.retain",)))


def test_an_open_image_size_needs_an_input_spec():
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, "h", "w"))
    with pytest.raises(ExportError) as error:
        attach_score(model)
    assert error.value.code == "input-spec-invalid"
    assert_by_hand(model, spec=InputSpec((2, 6, 7)))
    with pytest.raises(ExportError) as error:
        attach_score(model, spec=InputSpec((3, 6, 7)))
    assert error.value.code == "input-spec-invalid"


@pytest.mark.parametrize("declared", [(6, 7, 2), ("h", "w", 2), ("h", "w", "c")], ids=str)
def test_an_input_with_channels_last_gets_them_first_as_in_the_input_spec(declared):
    nodes = [("Transpose", ["image"], ["t"], {"perm": [0, 3, 1, 2]}), *BACKBONE, *HEAD]
    nodes[1] = ("Conv", ["t", "k"], ["c"], {})
    model = graph_of(nodes, CONSTANTS, declared)
    if declared[2] == "c":  # nothing says where the channels are, so the spec is taken literally
        with pytest.raises(ExportError) as error:
            attach_score(model, spec=InputSpec((2, 6, 7)))
        assert error.value.code == "export-unsupported"
        return
    assert_by_hand(model, spec=InputSpec((2, 6, 7)))
    with pytest.raises(ExportError, match=r"\(6, 7, 3\) with channels last") as error:
        attach_score(model, spec=InputSpec((3, 6, 7)))
    assert error.value.code == "input-spec-invalid"


def test_channels_last():
    nodes = [
        *BACKBONE,
        ("Transpose", ["a"], ["t"], {"perm": [0, 2, 3, 1]}),
        ("ReduceMean", ["t"], ["f"], {"axes": [1, 2], "keepdims": 0}),
        ("Gemm", ["f", "w", "b"], ["y"], {"alpha": 2.0}),
    ]
    assert_by_hand(graph_of(nodes, CONSTANTS, (2, 6, 7)))
    assert_by_hand(graph_of(nodes, CONSTANTS, (2, 6, 7)), layer="t", layout="channels_last")


def test_weights_that_another_operation_computes():
    nodes = [
        *BACKBONE,
        *HEAD[:2],
        ("Mul", ["w", "two"], ["v"], {}),
        ("MatMul", ["f", "v"], ["m"], {}),
        ("Add", ["m", "b"], ["y"], {}),
    ]
    assert_by_hand(graph_of(nodes, {**CONSTANTS, "two": np.float32(2)}, (2, 6, 7)))


def _sine(model):
    model.graph.node[-1].input[0] = "s"
    model.graph.node.insert(4, helper.make_node("Sin", ["f"], ["s"], name="the_sine"))


def _bypass(model):
    model.graph.node[-1].output[0] = "u"
    model.graph.node.append(helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "column"))
    model.graph.node.append(helper.make_node("Reshape", ["mean", "column"], ["flat"]))
    model.graph.node.append(helper.make_node("Add", ["u", "flat"], ["y"]))


def _half(model):
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16))
    model.graph.node[1].input[0] = "half"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 2]))


BAD = {
    "two inputs": (_second_input, "export-unsupported", "image of type FLOAT, other of type FLOAT"),
    "integers": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 2), "export-unsupported", "UINT8",
    ),
    "half precision inside": (_half, "export-unsupported", "'a' has type float16"),
    "a branch around every activation": (_bypass, "model-layer", "no activation"),
    "an operation without a derivative": (_sine, "export-unsupported", r"Sin \(node 'the_sine'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_model_that_cannot_be_exported_is_rejected_with_the_reason(case):
    change, code, reason = BAD[case]
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    change(model)
    with pytest.raises(ExportError, match=reason) as error:
        attach_score(model)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"layer": "nowhere"}, "model-layer"),
        ({"layer": "f"}, "model-layer"),
        ({"heatmap": "blue"}, "bad-argument"),
        ({"output": "f"}, "model-outputs"),
        ({"class_names": ("a",)}, "labels-invalid"),
        ({"layout": "up"}, "bad-argument"),
        ({"closing_softmax": "no"}, "bad-argument"),
    ],
    ids=str,
)
def test_wrong_arguments_are_rejected(options, code):
    with pytest.raises(ExportError) as error:
        attach_score(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7)), **options)
    assert error.value.code == code


def test_a_single_logit_is_rejected():
    constants = {**CONSTANTS, "w": WEIGHT[:, :1], "b": BIAS[:1]}
    with pytest.raises(ExportError, match="two or more classes") as error:
        attach_score(graph_of([*BACKBONE, *HEAD], constants, (2, 6, 7)))
    assert error.value.code == "export-unsupported"


def test_a_file_whose_output_has_no_declared_shape_is_read(tmp_path):
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "plain.onnx")
    metadata = export_file(tmp_path / "plain.onnx", tmp_path / "model.onnx")
    assert metadata.parent_digest == model_file_digest(model)
    assert check(tmp_path / "model.onnx").ok


def test_a_file_with_a_score_is_not_scored_twice():
    with pytest.raises(ExportError, match="already has a score"):
        attach_score(attach_score(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))))


def test_the_source_is_not_changed():
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    before = model.SerializeToString(deterministic=True)
    finished = attach_score(model)
    assert model.SerializeToString(deterministic=True) == before
    assert helper_parent(finished) == model_file_digest(model)


def helper_parent(model):
    from drip.onnx.files import metadata_of

    return metadata_of(model).parent_digest


# -- ties, NaN, windows ----------------------------------------------------------------------------------


def policy_with(model, windows):
    """A policy with given windows for a plain model."""
    state = [
        {"lower": low, "upper": high, "n": 50, "calibration_discard": 0.4, "expected_discard": 0.4,
         "scale": 1.0, "never_because": None}
        for low, high in windows
    ]  # fmt: skip
    template = Policy.fit(
        np.linspace(0, 1, 50 * len(windows)), np.repeat(np.arange(len(windows)), 50), n_classes=len(windows),
        retention=0.6, provenance=Provenance(model_digest=model_file_digest(model)),
    )  # fmt: skip
    content = template.to_json()
    keys = content["rule"]["state"]["windows"][0]
    content["rule"]["state"]["windows"] = [{key: one.get(key, keys[key]) for key in keys} for one in state]
    return Policy.from_json(content)


def test_ties_go_to_the_lowest_class():
    constants = {**CONSTANTS, "w": np.repeat(WEIGHT[:, :1], 4, 1), "b": np.zeros(4, np.float32)}
    model = attach_score(graph_of([*BACKBONE, *HEAD], constants, (2, 6, 7)), contrast=True)
    found = run_file(model.SerializeToString(), noise((2, 6, 7), 5))
    assert (found["predicted_class"] == 0).all()
    assert (found["drip_contrast"] == 0).all()
    constants["b"] = np.array([0, 1, 0, 1], np.float32)
    model = attach_score(graph_of([*BACKBONE, *HEAD], constants, (2, 6, 7)))
    assert (run_file(model.SerializeToString(), noise((2, 6, 7), 5))["predicted_class"] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["one", "all"])
def test_a_sample_that_is_not_finite_is_kept(value, place):
    plain = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    model = attach_score(plain, policy=policy_with(plain, [(0.0, 1e30)] * 4))
    x = noise((2, 6, 7), 3)
    x[1, 0, 2, 3] = value
    if place == "all":
        x[1] = value
    found = run_file(model.SerializeToString(), x)
    assert found["retain"].tolist() == [False, True, False]


def test_a_score_inside_the_window_is_discarded_and_without_a_window_kept():
    plain = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    policy = policy_with(plain, [(0.0, 1e30)] * 4)
    x = noise((2, 6, 7), 50)
    assert not run_file(attach_score(plain, policy=policy).SerializeToString(), x)["retain"].any()
    assert run_file(attach_score(plain).SerializeToString(), x)["retain"].all()


@settings(max_examples=200)
@given(low=st.floats(0, 10), width=st.floats(0, 1e-6), steps=st.integers(-3, 3), from_upper=st.booleans())
def test_float32_windows_decide_every_float32_score_as_the_policy_does(low, width, steps, from_upper):
    from drip.onnx.metadata import rounded_inward

    high = low + width
    score = np.float32(high if from_upper else low)
    for _ in range(abs(steps)):
        score = np.nextafter(score, np.float32(np.inf if steps > 0 else -np.inf))
    lower, upper = rounded_inward(low, high)
    assert lower.dtype == upper.dtype == np.float32
    assert (lower <= score <= upper) == (low <= float(score) <= high)


@pytest.mark.parametrize("value", [1e39, 3.5e38, 1e-46, 5e-324, 0.0, 1e308])
def test_windows_at_the_ends_of_float32(value):
    from drip.onnx.metadata import rounded_inward

    lower, upper = rounded_inward(value, value)
    assert float(lower) >= value >= float(upper)


def test_a_calibration_score_at_the_end_of_its_window_is_inside():
    plain = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    x = noise((2, 6, 7), 1)
    score = float(run_file(attach_score(plain).SerializeToString(), x)["drip_score"][0])
    for window, retained in (
        ((score, score), False), ((score, 1e9), False), ((0.0, score), False),
        ((float(np.nextafter(np.float32(score), np.float32(9e9))), 1e9), True),
    ):  # fmt: skip
        model = attach_score(plain, policy=policy_with(plain, [window] * 4))
        assert bool(run_file(model.SerializeToString(), x)["retain"][0]) == retained


def test_a_policy_of_another_model_is_rejected(tmp_path):
    plain = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    other = graph_of([*BACKBONE, *HEAD], {**CONSTANTS, "b": BIAS + 1}, (2, 6, 7))
    onnx.save(plain, tmp_path / "plain.onnx")
    with pytest.raises(PolicyError) as error:
        export_file(tmp_path / "plain.onnx", tmp_path / "m.onnx", policy=policy_with(other, [(0.0, 1.0)] * 4))
    assert error.value.code == "policy-other-model"
    assert not (tmp_path / "m.onnx").exists()
    export_file(tmp_path / "plain.onnx", tmp_path / "m.onnx", policy=policy_with(plain, [(0.0, 1.0)] * 4))
    assert read_metadata(tmp_path / "m.onnx").policy is not None
