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
from drip.onnx.files import metadata_of, run_file
from drip.policy import Policy, Provenance

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from drip.onnx import export_file
from drip.onnx.files import metadata_of, run_file
source, path, inputs, out = sys.argv[1:5]
layer = sys.argv[5] if len(sys.argv) > 5 else None
metadata = export_file(source, path, contrast=True, layer=layer)
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


SOFTMAX = [
    ("ReduceMax", ["y"], ["most"], {"axes": [1]}), ("Sub", ["y", "most"], ["below"], {}),
    ("Exp", ["below"], ["e"], {}), ("ReduceSum", ["e", "one"], ["total"], {}), ("Div", ["e", "total"], ["z"], {}),
]  # fmt: skip
LOGARITHM = [
    *SOFTMAX[:-1], ("Log", ["total"], ["log"], {}), ("Sub", ["below", "log"], ["z"], {}),
]  # fmt: skip
SIGMOID = [
    ("Neg", ["y"], ["n"], {}), ("Exp", ["n"], ["e"], {}), ("Add", ["e", "one_"], ["d"], {}),
    ("Reciprocal", ["d"], ["z"], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "closing"),
    [
        ([("Sigmoid", ["y"], ["z"], {})], "sigmoid"), (SOFTMAX, "softmax"), (LOGARITHM, "softmax"),
        (SIGMOID, "sigmoid"), ([("Sub", ["y", "one_"], ["z"], {})], None),
    ],
    ids=["several labels", "softmax spelled out", "its logarithm", "sigmoid spelled out", "a mere shift"],
)  # fmt: skip
def test_whatever_makes_probabilities_of_logits_is_cut_off(ending, closing):
    constants = {**CONSTANTS, "one": np.array([1]), "one_": np.float32(1)}
    model = attach_score(graph_of([*BACKBONE, *HEAD, *ending], constants, (2, 6, 7), outputs=("z",)))
    assert metadata_of(model).score.get("closing") == closing
    x = noise((2, 6, 7), 5)
    logits, scores = by_hand(x)
    found = run_file(model.SerializeToString(), x)
    assert_routes_equal(found["logits"], logits - (closing is None))
    assert_routes_equal(found["drip_score"], scores)


@pytest.mark.parametrize(
    ("ending", "options"),
    [([("Sigmoid", ["y"], ["z"], {})], {}), ([("Identity", ["y"], ["z"], {})], {"closing_softmax": "sigmoid"})],
    ids=["sigmoid", "logit"],
)  # fmt: skip
def test_one_logit_makes_the_two_classes_no_and_yes(ending, options):
    bias = BIAS[:1] - np.float32(np.median(by_hand(3 * noise((2, 6, 7), 20))[0][:, 0]))  # both classes occur
    constants = {**CONSTANTS, "w": WEIGHT[:, :1], "b": bias}
    plain = graph_of([*BACKBONE, *HEAD, *ending], constants, (2, 6, 7), outputs=("z",))
    x = 3 * noise((2, 6, 7), 20)
    model = attach_score(plain, class_names=("no", "yes"), contrast=True, **options)
    found = run_file(model.SerializeToString(), x)

    maps = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(CONV)).relu().requires_grad_()
    z = 2 * maps.mean((2, 3)) @ torch.from_numpy(WEIGHT[:, :1]) + torch.from_numpy(bias)
    both = torch.cat([-z / 2, z / 2], 1)
    assert_routes_equal(found["logits"], both.detach().numpy())
    assert_routes_equal(both.softmax(1)[:, 1].detach().numpy(), z.sigmoid()[:, 0].detach().numpy())
    assert set(found["predicted_class"]) == {0, 1}
    for name, end in (("drip_score", both.amax(1)), ("drip_contrast", both.amax(1) - both.amin(1))):
        (gradient,) = torch.autograd.grad(end.sum(), maps, retain_graph=True)
        weighted = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().mean((1, 2))
        assert_routes_equal(found[name], weighted.detach().numpy())


@pytest.mark.parametrize("last", ["ArgMax", "TopK"])
def test_a_graph_that_ends_with_classes_is_rejected(last):
    inputs = ["y"] if last == "ArgMax" else ["y", "one"]
    constants = {**CONSTANTS, "one": np.array([1])}
    model = graph_of(
        [*BACKBONE, *HEAD, (last, inputs, ["z"], {"axis": 1})], constants, (2, 6, 7), outputs=("z",)
    )
    with pytest.raises(ExportError, match=f"{last}_z") as error:
        attach_score(model)
    assert error.value.code == "export-unsupported"


def test_statistics_pooling_with_a_dead_channel():
    kernel = CONV.copy()
    kernel[:2] = 0  # the deviation of these maps is 0, where its slope is infinite
    nodes = [
        *BACKBONE, ("ReduceMean", ["a"], ["m"], {"axes": [2, 3]}), ("Sub", ["a", "m"], ["d"], {}),
        ("Mul", ["d", "d"], ["dd"], {}), ("ReduceMean", ["dd"], ["v"], {"axes": [2, 3]}), ("Sqrt", ["v"], ["s"], {}),
        ("Concat", ["m", "s"], ["both"], {"axis": 1}), ("Flatten", ["both"], ["f"], {}),
        ("Gemm", ["f", "w2", "b"], ["y"], {}),
    ]  # fmt: skip
    weights = RNG.normal(size=(12, 4)).astype(np.float32)
    model = graph_of(nodes, {"k": kernel, "w2": weights, "b": BIAS}, (2, 6, 7))
    x = noise((2, 6, 7), 5)
    found = run_file(attach_score(model).SerializeToString(), x)

    maps = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(kernel)).relu().requires_grad_()
    both = [maps.mean((2, 3)), maps[:, :2].sum((2, 3)) * 0, maps[:, 2:].var((2, 3), unbiased=False).sqrt()]
    logits = torch.cat(both, 1) @ torch.from_numpy(weights) + torch.from_numpy(BIAS)
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), maps)
    weighted = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().mean((1, 2))
    assert_routes_equal(found["drip_score"], weighted.detach().numpy())


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
    assert_by_hand(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7), opset=opset), contrast=True)


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


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_files_of_other_precision_are_computed_in_float32(kind):
    """As the graph of their weights in float32; the files differ from it by the rounding of their kind alone."""
    to = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(to)
    rounded = {name: np.asarray(value).astype(dtype) for name, value in CONSTANTS.items()}
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name], tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = to
    _cast_inside(model, to)
    x = noise((2, 6, 7), 5)
    found = run_file(attach_score(model).SerializeToString(), x)
    same = {name: value.astype(np.float32) for name, value in rounded.items()}
    wanted = attach_score(graph_of([*BACKBONE, *HEAD], same, (2, 6, 7)))
    for name, value in run_file(wanted.SerializeToString(), x).items():
        assert_routes_equal(found[name].astype(float), value.astype(float))
    assert helper_parent(wanted) != helper_parent(attach_score(model))


def _cast_inside(model, to):
    model.graph.node[-1].input[0] = "cast"
    model.graph.node.insert(4, helper.make_node("Cast", ["f"], ["cast"], to=to))


@pytest.mark.parametrize("kind", ["UINT8", "INT32"])
def test_a_model_of_integers_gets_a_float32_input_that_is_rounded(kind):
    nodes = [("Cast", ["image"], ["g"], {"to": 1}), ("Mul", ["g", "unit"], ["u"], {}), *BACKBONE, *HEAD]
    nodes[2] = ("Conv", ["u", "k"], ["c"], {})
    model = graph_of(nodes, {**CONSTANTS, "unit": np.float32(1 / 255)}, (2, 6, 7))
    model.graph.input[0].type.tensor_type.elem_type = getattr(TensorProto, kind)
    bytes_ = np.random.default_rng(0).integers(0, 256, (5, 2, 6, 7)).astype(np.float32)
    logits, scores = by_hand((bytes_ / 255).astype(np.float32))
    model = attach_score(model)
    for x in (bytes_, bytes_ + np.float32(0.3), bytes_ - np.float32(0.3)):
        found = run_file(model.SerializeToString(), x)
        assert_routes_equal(found["logits"], logits)
        assert_routes_equal(found["drip_score"], scores)
    if kind == "UINT8":
        high = run_file(model.SerializeToString(), np.where(bytes_ == 255, 300, bytes_).astype(np.float32))
        assert_routes_equal(high["logits"], logits)


def test_nodes_in_any_order_are_read(tmp_path):
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[index] for index in (4, 1, 3, 0, 2)])
    assert_by_hand(model)
    onnx.save(model, tmp_path / "plain.onnx")
    metadata = export_file(tmp_path / "plain.onnx", tmp_path / "model.onnx")
    assert metadata.parent_digest == model_file_digest(model)
    assert check(tmp_path / "model.onnx").ok


@pytest.mark.parametrize("op", ["Dropout", "RandomNormalLike"])
def test_a_graph_that_draws_random_numbers_is_rejected_with_its_node(op):
    nodes = [*BACKBONE, ("Dropout", ["a", "half", "on"], ["r"], {}), *HEAD]
    if op != "Dropout":
        nodes[2:3] = [(op, ["a"], ["q"], {}), ("Add", ["a", "q"], ["r"], {})]
    nodes[-3] = ("GlobalAveragePool", ["r"], ["p"], {})
    model = graph_of(nodes, {**CONSTANTS, "half": np.float32(0.5), "on": np.array(True)}, (2, 6, 7))
    with pytest.raises(ExportError, match=rf"random numbers in {op}") as error:
        attach_score(model)
    assert error.value.code == "model-impure"


def test_of_several_outputs_the_logits_are_named():
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7), outputs=("y", "f"))
    with pytest.raises(ExportError, match=r"2 outputs; .*--output.*: y \(rows, classes\), f") as error:
        attach_score(model)
    assert error.value.code == "model-outputs"
    assert_by_hand(model, output="y")


def quantised_graph():
    """What a quantiser writes: integers between the layers, and int8 weights; ReLU is part of the rounding."""
    scale = np.float32(0.02)
    weights = np.clip(np.round(WEIGHT / scale), -127, 127).astype(np.int8)
    constants = {
        "k": CONV, "w8": weights, "b": BIAS, "s": scale, "z8": np.int8(0), "zu": np.uint8(0),
        "sp": np.float32(0.004), "zp": np.uint8(3),
    }  # fmt: skip
    pairs = [
        ("QuantizeLinear", ["c", "s", "zu"], ["cq"], {}), ("DequantizeLinear", ["cq", "s", "zu"], ["a"], {}),
        ("GlobalAveragePool", ["a"], ["p0"], {}),
        ("QuantizeLinear", ["p0", "sp", "zp"], ["pq"], {}), ("DequantizeLinear", ["pq", "sp", "zp"], ["p"], {}),
        ("DequantizeLinear", ["w8", "s", "z8"], ["w"], {}),
    ]  # fmt: skip
    return graph_of([BACKBONE[0], *pairs, *HEAD[1:]], constants, (2, 6, 7)), weights * scale


def test_a_file_in_eight_bits_has_the_slope_of_its_clips():
    model, weights = quantised_graph()
    x = noise((2, 6, 7), 30)
    finished = attach_score(model)
    found = run_file(finished.SerializeToString(), x)
    maps = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(CONV)).numpy() / 0.02
    maps = np.clip(np.round(maps), 0, 255) * 0.02
    pooled = maps.mean((2, 3))
    logits = 2 * (np.clip(np.round(pooled / 0.004) + 3, 0, 255) - 3) * 0.004 @ weights + BIAS
    np.testing.assert_allclose(found["logits"], logits, atol=0.02)
    # beyond 252 * 0.004 the pooled value is clipped and has no influence
    rows = 2 * weights.T[found["predicted_class"]] * ((pooled > -0.012) & (pooled < 1.008))
    assert not (pooled < 1.008).all()
    scores = np.maximum((rows[:, :, None, None] * maps).sum(1), 0).mean((1, 2)) / maps[0, 0].size
    np.testing.assert_allclose(found["drip_score"], scores, rtol=1e-4, atol=1e-6)
    assert metadata_of(finished).score["layer"] == "a"
    assert metadata_of(finished).quantization == {"format": "imported", "weight_bits": 8}


def test_the_slope_of_several_scales_is_not_known():
    model, _ = quantised_graph()
    scales = numpy_helper.from_array(np.full(6, 0.004, np.float32), "sp")
    zeros = numpy_helper.from_array(np.full(6, 3, np.uint8), "zp")
    for tensor in model.graph.initializer:
        tensor.CopyFrom({"sp": scales, "zp": zeros}.get(tensor.name, tensor))
    with pytest.raises(ExportError, match="one constant scale") as error:
        attach_score(model)
    assert error.value.code == "export-unsupported"


def _second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 2]))


BAD = {
    "two inputs": (_second_input, "export-unsupported", "image of type FLOAT, other of type FLOAT"),
    "text": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8), "export-unsupported", "STRING",
    ),
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
    with pytest.raises(ExportError, match="--softmax sigmoid") as error:
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


# -- models without maps ---------------------------------------------------------------------------------


def without_maps():
    """A multilayer perceptron on a sequence of embeddings, as wake words are."""
    nodes = [
        ("Flatten", ["image"], ["f"], {}), ("Gemm", ["f", "w1"], ["h"], {}), ("Relu", ["h"], ["r"], {}),
        ("Gemm", ["r", "w2", "b"], ["y"], {}), ("Softmax", ["y"], ["z"], {"axis": 1}),
    ]  # fmt: skip
    random = np.random.default_rng(0)
    constants = {
        "w1": random.normal(size=(48, 9)).astype(np.float32),
        "w2": random.normal(size=(9, 4)).astype(np.float32),
        "b": BIAS,
    }
    return graph_of(nodes, constants, (8, 6), outputs=("z",)), constants


def test_a_model_without_maps_serves_the_rules_that_need_none(tmp_path):
    from drip.onnx import OnnxScorer
    from drip.rules import create

    model, constants = without_maps()
    with pytest.raises(ExportError, match="--score layer=none") as error:
        attach_score(model)
    assert error.value.code == "model-layer"
    onnx.save(model, tmp_path / "plain.onnx")
    metadata = export_file(tmp_path / "plain.onnx", tmp_path / "m.onnx", layer="none")
    assert not metadata.has_maps
    assert check(tmp_path / "m.onnx").ok
    scorer, x = OnnxScorer(tmp_path / "m.onnx"), noise((8, 6), 60)
    assert scorer.provides == {"logits", "features"}
    found = scorer.score(x)
    hidden = np.maximum(x.reshape(60, -1) @ constants["w1"], 0)
    np.testing.assert_allclose(found.features, hidden, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logits, hidden @ constants["w2"] + BIAS, rtol=1e-4, atol=1e-3)
    assert not found.named_scores
    assert scorer.graph_retain.all()
    rule = create("margin", retention=0.5)
    rule.calibrate(found)
    assert 10 < sum(decision.retain for decision in rule.decide_many(found)) < 50


def test_only_rules_that_need_no_map_are_calibrated_for_such_a_model(drip, tmp_path):
    from drip.media import encode_npy

    onnx.save(without_maps()[0], tmp_path / "plain.onnx")
    path, data = tmp_path / "m.onnx", tmp_path / "data"
    result = drip("model", "export", tmp_path / "plain.onnx", "--score", "layer=none", "--out", path)
    assert result.code == 0, result.err
    assert "none: for rules that need no map" in result.out
    data.mkdir()
    for index, row in enumerate(noise((8, 6), 80)):
        (data / f"{index:02}.npy").write_bytes(encode_npy(row))
    policy = tmp_path / "policy.json"
    result = drip("calibrate", path, "--data", data, "--out", policy, "--rule", "drip")
    assert result.error == "rule-needs"
    result = drip("calibrate", path, "--data", data, "--out", policy, "--rule", "margin", "--keep", "0.5")
    assert result.code == 0, result.err
    result = drip("run", path, "--policy", policy, "--source", data, "--store", tmp_path / "s.db")
    assert result.code == 0, result.err
    assert drip("model", "set-policy", path, policy).code == 0
    assert drip("model", "check", path).code == 0
    result = drip("model", "quantize", path, "--data", data)
    assert result.error == "export-unsupported"


@pytest.mark.parametrize("last", ["ReduceMean", "Relu"])
def test_features_of_a_model_without_maps_are_what_its_last_layer_reads(last):
    """None where no linear layer is at the end."""
    model, _ = without_maps()
    end = model.graph.node[3]
    if last == "ReduceMean":
        del model.graph.node[1:]
        model.graph.node[0].CopyFrom(helper.make_node("ReduceMean", ["image"], ["z"], axes=[1], keepdims=0))
        del model.graph.initializer[:]
    else:
        end.output[0] = "before"
        model.graph.node[4].CopyFrom(helper.make_node("Relu", ["before"], ["z"]))
    names = {item.name for item in attach_score(model, layer="none").graph.output}
    assert ("features" in names) == (last == "Relu")


def test_constants_and_branches_of_half_precision_are_widened_too():
    half = TensorProto.FLOAT16
    model = graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = half
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["twice"], [f"out_{op}"])], op, [],
            [helper.make_tensor_value_info(f"out_{op}", half, None)],
        )
        for op in ("Identity", "Neg")
    ]  # fmt: skip
    two = numpy_helper.from_array(np.array(2, np.float16), "two")
    always = numpy_helper.from_array(np.array(True), "always")
    model.graph.initializer.append(always)
    nodes = [
        helper.make_node("Constant", [], ["two"], value=two),
        helper.make_node("Mul", ["c", "two"], ["twice"]),
        helper.make_node("If", ["always"], ["logits"], then_branch=branches[0], else_branch=branches[1]),
    ]
    model.graph.node[1].input[0] = "logits"  # a reserved name, which the subgraphs' reader gets too
    for node in nodes[::-1]:
        model.graph.node.insert(1, node)
    doubled = {"k": 2 * CONV.astype(np.float16).astype(np.float32)}
    rounded = {
        name: np.asarray(value).astype(np.float16).astype(np.float32) for name, value in CONSTANTS.items()
    }
    wanted = attach_score(graph_of([*BACKBONE, *HEAD], rounded | doubled, (2, 6, 7)))
    x = noise((2, 6, 7), 5)
    found = run_file(attach_score(model).SerializeToString(), x)
    for name, value in run_file(wanted.SerializeToString(), x).items():
        assert_routes_equal(found[name].astype(float), value.astype(float))


def test_an_output_that_only_moves_the_input_has_no_logits():
    model = graph_of([("Flatten", ["image"], ["y"], {})], {}, (2, 2, 1))
    with pytest.raises(ExportError) as error:
        attach_score(model)
    assert error.value.code == "model-layer"
    assert metadata_of(attach_score(model, layer="none")).n_classes == 4


def test_a_linear_model_without_a_hidden_layer_has_no_features():
    nodes = [("Gemm", ["image", "w"], ["y"], {})]
    model = attach_score(graph_of(nodes, {"w": WEIGHT}, (6,)), layer="none")
    assert "features" not in {item.name for item in model.graph.output}
    nodes = [("Mul", ["image", "image"], ["y"], {})]
    model = attach_score(graph_of(nodes, {}, (6,)), layer="none")
    assert "features" not in {item.name for item in model.graph.output}
