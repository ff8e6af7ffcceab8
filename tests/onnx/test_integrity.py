"""A file is proved pure before it is written, and a device finds out whether it still computes the same."""

from contextlib import suppress

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from heads import build
from networks import plain_onnx
from onnx import TensorProto, helper, numpy_helper
from support import raises
from torch import nn

from drip.errors import ExportError, ModelError
from drip.onnx import OnnxScorer, attach_score, check, export_file, export_onnx, model_file_digest
from drip.onnx.integrity import KEY, KnownAnswers, file_digest, known_in, rounded
from drip.onnx.metadata import LOWER, UPPER

WINDOWS = frozenset((LOWER, UPPER))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model, batch, layer = build("gap_linear")
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export_onnx(model, None, batch, path, layer=layer)
    return path


@pytest.fixture
def path(original, tmp_path):
    copy = tmp_path / "model.onnx"
    copy.write_bytes(original.read_bytes())
    return copy


def graph_of(*nodes, n_maps=6, shape=(1, 12, 12), **weights):
    """Nodes from ``x`` to the maps ``a``, then global average pooling and a linear layer."""
    r = np.random.default_rng(0)
    weights = {"w": r.normal(size=(n_maps, shape[0], 3, 3)), "v": r.normal(size=(n_maps, 4)), **weights}
    end = [("GlobalAveragePool", ["a"], ["p"]), ("Flatten", ["p"], ["f"]), ("MatMul", ["f", "v"], ["y"])]
    made = [helper.make_node(op, i, o, **(more[0] if more else {})) for op, i, o, *more in [*nodes, *end]]
    graph = helper.make_graph(
        made, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


CONV = ("Conv", ["x", "w"], ["c"], {"pads": [1] * 4})
NORMALISED = ("BatchNormalization", ["c", "one", "zero", "m", "s"], ["n", "m2", "s2"], {"training_mode": 1})
STATE = {"one": np.ones(6), "zero": np.zeros(6), "m": np.zeros(6), "s": np.ones(6)}


# -- purity ----------------------------------------------------------------------------------------------


def test_a_file_that_remembers_is_not_written(tmp_path):
    onnx.save(graph_of(CONV, NORMALISED, ("Relu", ["n"], ["a"]), **STATE), tmp_path / "p.onnx")
    with raises(ExportError, "model-impure"):
        export_file(tmp_path / "p.onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_random_numbers_in_a_graph_are_refused():
    model = graph_of(
        CONV, ("RandomNormalLike", ["c"], ["r"]), ("Add", ["c", "r"], ["s"]), ("Relu", ["s"], ["a"])
    )
    with pytest.raises(ExportError):
        attach_score(model)


def test_rows_that_are_scaled_by_the_batch_run_one_by_one(tmp_path):
    model = graph_of(
        ("ReduceMax", ["x"], ["top"], {"keepdims": 0}), ("Div", ["x", "top"], ["d"]),
        ("Conv", ["d", "w"], ["c"], {"pads": [1] * 4}), ("Relu", ["c"], ["a"]),
    )  # fmt: skip
    onnx.save(attach_score(model), tmp_path / "m.onnx")
    scorer = OnnxScorer(tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(5, 1, 12, 12)).astype(np.float32)
    alone = np.concatenate([scorer.score(row[None]).scores for row in x])
    np.testing.assert_array_equal(scorer.score(x).scores, alone)


# -- inputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "front",
    [
        [("Log", ["x"], ["l"])],
        [("Sqrt", ["x"], ["l"])],
        [("Cast", ["x"], ["i"], {"to": TensorProto.INT64}), ("Gather", ["table", "i"], ["l"])],
        # the logarithm of the odds, defined between 0 and 1 only
        [("Sub", ["1", "x"], ["o"]), ("Div", ["x", "o"], ["q"]), ("Log", ["q"], ["l"])],
    ],
)  # fmt: skip
def test_a_model_whose_inputs_are_no_normal_noise_is_exported_and_runs(front, tmp_path):
    table = np.random.default_rng(2).normal(size=2)
    model = graph_of(
        *front, ("Conv", ["l", "w"], ["c"]), ("Relu", ["c"], ["a"]), table=table, **{"1": np.ones(1)}
    )
    onnx.save(attach_score(model), tmp_path / "m.onnx")
    report = check(tmp_path / "m.onnx")
    assert report.ok
    assert report.known.origin != "noise"
    OnnxScorer(tmp_path / "m.onnx")


def test_a_model_that_gives_nan_for_everything_is_not_written():
    model = graph_of(
        CONV, ("Log", ["minus"], ["l"]), ("Add", ["c", "l"], ["s"]), ("Relu", ["s"], ["a"]), minus=-np.ones(1)
    )
    with raises(ExportError, "model-non-finite"):
        attach_score(model)


def test_samples_of_the_user_prove_the_file_and_are_in_it(tmp_path):
    # the model is defined for samples around 5000 only
    model = graph_of(
        ("Sub", ["x", "low"], ["d"]), ("Log", ["d"], ["l"]), ("Conv", ["l", "w"], ["c"]), ("Relu", ["c"], ["a"]),
        low=np.full(1, 4000.0),
    )  # fmt: skip
    with raises(ExportError, "model-non-finite"):
        attach_score(model)
    samples = np.random.default_rng(3).uniform(4500, 5500, (6, 1, 12, 12)).astype(np.float32)
    onnx.save(attach_score(model, samples=samples), tmp_path / "m.onnx")
    known = check(tmp_path / "m.onnx").known
    assert known.origin == "samples"
    assert np.abs(known.inputs[0] - samples[0]).max() <= 1000 / 255
    OnnxScorer(tmp_path / "m.onnx")


# -- known answers ---------------------------------------------------------------------------------------


def test_known_answers_survive_the_file(path):
    model = onnx.load(path)
    text = {item.key: item.value for item in model.metadata_props}[KEY]
    known = KnownAnswers.parse(
        text, tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
    )
    assert known.to_text() == text
    found = OnnxScorer(path).score(known.inputs)
    np.testing.assert_allclose(found.logits, known.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.scores, known.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [[0.1, 0.3], [-3e38, 3e38], [7.0, 7.0], [1e-40, 2e-40]])
def test_rounding_an_input_twice_changes_nothing_and_stays_in_its_range(values):
    row = np.random.default_rng(0).uniform(0, 1, 500)
    row = (values[0] + row * (values[1] - values[0])).astype(np.float32)
    once = rounded(row)
    np.testing.assert_array_equal(rounded(once), once)
    assert row.min() <= once.min()
    assert once.max() <= row.max()
    assert np.abs(once.astype(float) - row).max() <= (float(row.max()) - float(row.min())) / 500


class _Wrong:
    """A runtime with a wrong kernel: ``spoil`` changes the outputs of a run."""

    real = onnxruntime.InferenceSession
    spoil = staticmethod(lambda values: values)

    def __init__(self, *arguments, **options):
        self._session = self.real(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, names, feed):
        return [self.spoil(v) if v.dtype == np.float32 else v for v in self._session.run(names, feed)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v * np.float32(1.02),
        lambda v: v + (np.arange(len(v)) > 0).reshape(-1, *[1] * (v.ndim - 1)).astype(np.float32),
        np.zeros_like,
        lambda v: np.full_like(v, np.nan),
        lambda v: v[..., ::-1] if v.ndim == 2 else v,
    ],
    ids=["scale", "rows after the first", "zero", "nan", "order"],
)
def test_wrong_kernels_are_found_when_the_file_is_loaded_and_checked(spoil, path, monkeypatch):
    monkeypatch.setattr(_Wrong, "spoil", staticmethod(spoil))
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Wrong)
    with pytest.raises(ModelError) as caught:
        OnnxScorer(path)
    assert caught.value.code in {"model-answers", "model-non-finite"}
    assert not check(path).ok


@pytest.mark.parametrize("error", [1e-5, -1e-5])
def test_the_last_bits_may_differ(error, path, monkeypatch):
    monkeypatch.setattr(_Wrong, "spoil", staticmethod(lambda v: v * np.float32(1 + error)))
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Wrong)
    OnnxScorer(path)
    assert check(path).ok


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"inputs": "", "ranges": []}', "{" * 9000], ids=list("abcde")
)  # fmt: skip
def test_damaged_known_answers_are_rejected(text, path):
    model = onnx.load(path)
    for item in model.metadata_props:
        if item.key == KEY:
            item.value = text
    onnx.save(model, path)
    with raises(ModelError, "model-file-damaged"):
        OnnxScorer(path)


def test_a_file_without_known_answers_is_accepted(path):
    model = onnx.load(path)
    kept = [item for item in model.metadata_props if item.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, path)
    assert OnnxScorer(path).n_classes == 5
    assert check(path).known is None
    assert check(path).ok
    assert known_in({}, (1,)) is None


# -- digest ----------------------------------------------------------------------------------------------


def altered(model, change):
    change(model)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(m.graph.initializer[0]) * np.float32(1.001),
                                    m.graph.initializer[0].name)
        ),
        lambda m: m.graph.node[0].attribute[0].ints.append(1) if m.graph.node[0].attribute else None,
        lambda m: setattr(m.opset_import[0], "version", m.opset_import[0].version + 1),
    ],
    ids=["weight", "attribute", "operators"],
)  # fmt: skip
def test_an_altered_file_is_not_run(change, path):
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with raises(ModelError, "model-file-damaged"):
        OnnxScorer(path)


def test_windows_and_names_of_nodes_may_change(path):
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in WINDOWS:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), tensor.name))
    for index, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"other_{index}", "a comment"
    onnx.save(model, path)
    OnnxScorer(path)


def typed(tensor):
    """The same values in the field of their type instead of as raw bytes."""
    values = numpy_helper.to_array(tensor)
    field = {"f": "float_data", "d": "double_data", "l": "int64_data", "q": "int64_data"}.get(
        values.dtype.char, "int32_data"
    )
    codes = values.view(np.uint16) if values.dtype == np.float16 else values
    codes = codes.astype(int) if values.dtype == bool else codes
    tensor.ClearField("raw_data")
    getattr(tensor, field).extend(codes.reshape(-1).tolist())


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16"]
)
def test_the_digest_without_onnx_is_that_of_onnx(dtype, tmp_path):
    values = np.random.default_rng(0).integers(-3, 4, (3, 5)).astype(dtype)
    model = graph_of(CONV, ("Relu", ["c"], ["a"]))
    model.graph.initializer.append(numpy_helper.from_array(values, "more"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, dtype), "scalar"))
    for is_typed in (False, True):
        if is_typed:
            for tensor in model.graph.initializer:
                typed(tensor)
        onnx.save(model, tmp_path / "m.onnx")
        assert file_digest(tmp_path / "m.onnx", WINDOWS) == model_file_digest(onnx.load(tmp_path / "m.onnx"))


def test_weights_in_another_file_are_read(tmp_path):
    model = graph_of(CONV, ("Relu", ["c"], ["a"]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    assert file_digest(tmp_path / "m.onnx", WINDOWS) == model_file_digest(onnx.load(tmp_path / "m.onnx"))


def test_subgraphs_and_constants_have_the_digest_of_onnx(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = onnx.load_from_string(plain_onnx(net, (1, 9, 9)))
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32)))],
        "b", [], [helper.make_tensor_value_info("k", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    model.graph.node.append(helper.make_node("If", ["cond"], ["z"], then_branch=branch, else_branch=branch))
    onnx.save(model, tmp_path / "m.onnx")
    assert file_digest(tmp_path / "m.onnx", WINDOWS) == model_file_digest(model)


@pytest.mark.parametrize("keep", [0, 1, 17, 200, -1])
def test_a_truncated_file_is_damaged_and_nothing_else(keep, path):
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with raises(ModelError, "model-file-damaged"):
        file_digest(path, WINDOWS)


def test_random_damage_is_always_a_clear_error(path):
    random, data = np.random.default_rng(0), path.read_bytes()
    for _ in range(200):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with suppress(ModelError):  # any other exception fails the test
            file_digest(path, WINDOWS)
