"""Int8 files: the score is exact for the quantised graph, decisions agree with float32, errors are clear."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from drip.errors import DripError, ExportError, InputError, PolicyError
from drip.media import InputSpec, encode_npy
from drip.models import load_model
from drip.onnx import OnnxScorer, Settings, check, export_onnx, quantize, read_metadata, set_policy
from drip.onnx.files import write_metadata
from drip.onnx.graph import run_model
from drip.onnx.int8 import plan_int8, write_int8
from drip.onnx.metadata import LOWER, UPPER
from drip.onnx.quantization import candidates, cohens_kappa, fewest, retained_by
from drip.onnx.ranges import corrected, find_ranges, narrowed
from drip.pipeline import observe
from drip.policy import Policy
from drip.rules import create
from drip.sources import FolderSource
from drip.testing import fake_observations
from drip.types import Sample

pytestmark = pytest.mark.slow

SPEC = InputSpec((1, 28, 28))
LENIENT = Settings(n_calibration=48, min_kappa=0.5)


@pytest.fixture(scope="module")
def parent(digits, tmp_path_factory):
    """The digits' model file with its policy."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    model = load_model("drip.models:SmallCNN", digits.weights)
    example = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    export_onnx(model, Policy.load(digits.policy), example, path)
    return path


@pytest.fixture(scope="module")
def written(parent, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return path, quantize(parent, digits.calibration, path, LENIENT)


def inputs_of(folder):
    batches = FolderSource(folder).batches(1000)
    return np.stack([SPEC.prepare(one.data, one.media_type) for batch in batches for one in batch])


def test_an_int8_file_is_smaller_and_agrees_as_its_report_says(parent, written, digits):
    path, report = written
    metadata = read_metadata(path)
    assert metadata == report.metadata
    assert path.stat().st_size < 0.6 * parent.stat().st_size
    assert metadata.parent_digest == read_metadata(parent).parent_digest
    assert metadata.digest not in {read_metadata(parent).digest, metadata.parent_digest}
    details = metadata.quantization
    assert details["source_digest"] == read_metadata(parent).digest
    assert details["held_out"] == report.agreement.to_json()
    assert details["held_out"]["n"] == 150
    assert details["windows"] == report.windows
    assert report.agreement.class_agreement > 0.95
    assert report.agreement.score_error < 0.03
    assert report.agreement.kappa == max(one.kappa for one in report.agreements.values()) >= 0.5
    assert check(path, inputs_of(digits.production)).ok


def test_the_report_is_true_for_the_written_file(parent, written, digits):
    """An independent oracle: decisions by the graph, kappa from the table of counts."""
    path, report = written
    x = inputs_of(digits.calibration)
    found, before = OnnxScorer(path), OnnxScorer(parent)
    ours, theirs = found.score(x), before.score(x)
    held = np.random.default_rng(0).permutation(300)[150:]
    a, b = before.graph_retain[held], found.graph_retain[held]
    table = np.array([[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]], dtype=float) / 150
    expected = table.sum(0) @ table.sum(1)
    assert report.agreement.kappa == pytest.approx((np.trace(table) - expected) / (1 - expected))
    assert report.agreement.retention == pytest.approx(b.mean())
    assert report.agreement.class_agreement == pytest.approx((ours.classes == theirs.classes)[held].mean())
    error = np.abs(ours.scores - theirs.scores)[held] / theirs.scores[held].mean()
    assert report.agreement.score_error == pytest.approx(np.median(error))


def test_the_score_is_exact_for_the_activation_of_the_int8_graph(written, digits):
    path, _ = written
    model = onnx.load(path)
    made_by = {name: node for node in model.graph.node for name in node.output}
    reshape = next(node for node in model.graph.node if node.name.startswith("drip.reshape"))
    assert made_by[reshape.input[0]].op_type == "DequantizeLinear"
    x = inputs_of(digits.production)
    maps, logits, scores = run_model(model, x, [reshape.input[0], "logits", "drip_score"])
    weight = next(
        numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tuple(tensor.dims) == (10, 64)
    )
    assert weight.dtype == np.float32
    heat = np.einsum("nk,nkhw->nhw", weight[logits.argmax(1)].astype(np.float64), maps) / 49
    expected = np.maximum(heat, 0).mean((1, 2))
    assert np.abs(scores - expected).max() <= 1e-5 * expected.max()


def test_convolutions_are_int8_per_channel_and_the_last_layer_is_not(written):
    model = onnx.load(written[0])
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight, scale = (stored[name] for name in made_by[node.input[1]].input[:2])
            assert weight.data_type == TensorProto.INT8
            assert list(scale.dims) == [weight.dims[0]]
        if node.op_type == "Gemm":
            assert stored[node.input[1]].data_type == TensorProto.FLOAT


def test_the_policy_in_the_file_fits_it_and_the_parent_s_does_not(parent, written):
    path, _ = written
    scorer = OnnxScorer(path)
    scorer.require(scorer.policy)
    theirs = read_metadata(parent).policy
    with pytest.raises(PolicyError) as error:
        scorer.require(theirs)
    assert error.value.code == "policy-parent-windows"
    scorer.require(theirs, accept_parent_windows=True)


def test_windows_fitted_on_the_float32_file_are_recognised_as_its_parent_s(parent, written, digits):
    """Policies carry the digest of what they were fitted on: the model, or the float32 file."""
    float_file = OnnxScorer(parent)
    seen = float_file.score(inputs_of(digits.calibration))
    policy = Policy.fit(
        seen.scores, seen.classes, n_classes=10, retention=0.6,
        provenance={"model_digest": float_file.digest, "score": float_file.score_definition},
    )  # fmt: skip
    scorer = OnnxScorer(written[0])
    with pytest.raises(PolicyError) as error:
        scorer.require(policy)
    assert error.value.code == "policy-parent-windows"
    scorer.require(policy, accept_parent_windows=True)


def test_the_same_seed_gives_the_same_file_and_data_may_be_a_function(parent, written, digits, tmp_path):
    def samples():
        return (sample for batch in FolderSource(digits.calibration).batches(7) for sample in batch)

    quantize(parent, samples, tmp_path / "again.onnx", LENIENT)
    assert read_metadata(tmp_path / "again.onnx").digest == read_metadata(written[0]).digest


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": "minmax"},
        {"calibration": "percentile"},
        {"activations": "int8"},
        {"per_channel": False},
        {"weight_bits": 8},
    ],
    ids=str,
)
def test_other_ways_to_quantise_work_too(parent, digits, tmp_path, change):
    report = quantize(parent, digits.calibration, tmp_path / "q.onnx", replace(LENIENT, **change))
    assert report.agreement.class_agreement > 0.9
    assert {key: report.metadata.quantization[key] for key in change} == change


def one_sign(layer):
    """Weights as training leaves them: one sign dominates in many filters."""
    with torch.no_grad():
        signs = torch.where(torch.rand(len(layer.weight)) < 0.5, -1.0, 1.0)
        layer.weight.abs_().mul_(signs.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    return layer


def conv2d():
    layers = [one_sign(nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1)) for i in range(3)]
    return (1, 12, 12), [one for layer in layers for one in (layer, nn.ReLU())], nn.AdaptiveAvgPool2d(1), 8


def conv1d():
    layers = [one_sign(nn.Conv1d(1 if i == 0 else 8, 8, 5)) for i in range(2)]
    return (1, 60), [one for layer in layers for one in (layer, nn.ReLU())], nn.AdaptiveAvgPool1d(1), 8


def hidden():
    layers = [one_sign(nn.Conv2d(1, 6, 3)), nn.ReLU(), nn.MaxPool2d(2)]
    return (1, 12, 12), layers, nn.Sequential(nn.Flatten(), one_sign(nn.Linear(150, 16)), nn.ReLU()), 16


@pytest.mark.parametrize("change", [{}, {"activations": "int8"}, {"per_channel": False}], ids=str)
@pytest.mark.parametrize("make", [conv2d, conv1d, hidden])
def test_products_of_weights_cannot_saturate_in_sixteen_bits(make, change, tmp_path):
    torch.manual_seed(0)
    shape, body, pool, n_maps = make()
    net = nn.Sequential(*body, pool, nn.Flatten(), nn.Linear(n_maps, 4)).eval()
    r, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for index in range(200):
        np.save(data / f"{index}.npy", r.uniform(0, 1, shape).astype(np.float32) ** 0.3)
    export_onnx(net, None, np.zeros((2, *shape), np.float32) + 0.5, tmp_path / "f.onnx")
    settings = Settings(min_kappa=-1.0, float_layers=0, n_calibration=16, **change)
    quantize(tmp_path / "f.onnx", data, tmp_path / "q.onnx", settings)
    stored = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "q.onnx").graph.initializer]
    weights = [one.astype(int) for one in stored if one.dtype == np.int8 and one.ndim >= 2]
    assert weights
    # vpmaddubsw adds two products of an unsigned activation and a signed weight in sixteen bits
    assert max(2 * 255 * np.abs(one).max() for one in weights) <= 32767
    # the same scale for all would be satisfied by weights of 0
    assert all(np.abs(one).max() >= 60 for one in weights)


def test_float_layers_stay_float_from_the_input_on(parent, digits, tmp_path):
    quantize(parent, digits.calibration, tmp_path / "q.onnx", Settings(float_layers=2, min_kappa=0))
    model = onnx.load(tmp_path / "q.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = [
        "float" if node.input[1] in stored else "int8" for node in model.graph.node if node.op_type == "Conv"
    ]
    assert kinds == ["float", "float", "int8"]


def test_a_file_without_a_policy_is_compared_by_substitute_windows_and_gets_none(parent, digits, tmp_path):
    plain = tmp_path / "plain.onnx"
    model = onnx.load(parent)
    for tensor in model.graph.initializer:
        if tensor.name in {LOWER, UPPER}:
            end = np.inf if tensor.name == LOWER else -np.inf
            tensor.CopyFrom(numpy_helper.from_array(np.full(10, end, np.float32), tensor.name))
    write_metadata(model, replace(read_metadata(parent), policy=None))
    onnx.save(model, plain)
    report = quantize(plain, digits.calibration, tmp_path / "q.onnx", LENIENT)
    assert report.metadata.policy is None
    assert 0.4 < report.agreement.retention_float < 0.9
    assert OnnxScorer(tmp_path / "q.onnx").policy is None
    assert check(tmp_path / "q.onnx").outputs["retain"].all()


def test_rules_without_windows_are_compared_by_their_decisions(parent, digits, tmp_path):
    scorer = OnnxScorer(parent)
    seen = scorer.score(inputs_of(digits.calibration))
    rule = create("margin", retention=0.5).calibrate(seen)
    provenance = read_metadata(parent).policy.provenance
    set_policy(parent, Policy.of(rule, n_classes=10, provenance=provenance), out=tmp_path / "margin.onnx")
    report = quantize(tmp_path / "margin.onnx", digits.calibration, tmp_path / "q.onnx", LENIENT)
    assert set(report.agreements) == {"parent", "refit"}
    assert report.metadata.policy.rule.name == "margin"
    assert report.agreement.kappa > 0.8
    with pytest.raises(ExportError, match="parent, refit") as error:
        quantize(
            tmp_path / "margin.onnx", digits.calibration, tmp_path / "q.onnx",
            Settings(n_calibration=48, min_kappa=0.5, windows="scaled"),
        )  # fmt: skip
    assert error.value.code == "bad-argument"


@pytest.mark.parametrize("float_layers", [0, 1, 2])
def test_optimisation_does_not_change_an_int8_file(parent, digits, tmp_path, float_layers):
    """ONNX Runtime quantises float32 layers that it finds between quantised ones; there must be none."""
    path = tmp_path / "q.onnx"
    settings = Settings(n_calibration=48, float_layers=float_layers, min_kappa=0)
    quantize(parent, digits.calibration, path, settings)
    x = inputs_of(digits.production)
    (exact,) = run_model(onnx.load(path), x, ["drip_score"])
    found = OnnxScorer(path).score(x).scores
    assert np.abs(found - exact).max() <= 0.01 * exact.max()


# -- errors ---------------------------------------------------------------------------------------------


def test_an_int8_file_is_not_quantised_again(written, digits, tmp_path):
    with pytest.raises(ExportError, match="already quantised") as error:
        quantize(written[0], digits.calibration, tmp_path / "q.onnx", LENIENT)
    assert error.value.code == "export-unsupported"


def test_too_few_samples_are_rejected(parent, digits, tmp_path):
    with pytest.raises(ExportError, match=r"60 samples .* at least 200") as error:
        quantize(parent, digits.production, tmp_path / "q.onnx", LENIENT)
    assert error.value.code == "quantize-data"


def test_samples_of_another_shape_are_rejected_with_their_id(parent, tmp_path):
    wrong = [Sample(f"s{i}", encode_npy(np.zeros((1, 28, 27))), "application/x-npy") for i in range(200)]
    with pytest.raises(InputError, match=r"s0.*\(1, 28, 28\)"):
        quantize(parent, lambda: wrong, tmp_path / "q.onnx", LENIENT)


def test_equal_scores_are_rejected(parent, tmp_path):
    equal = [Sample(str(i), encode_npy(np.zeros((1, 28, 28))), "application/x-npy") for i in range(200)]
    with pytest.raises(ExportError) as error:
        quantize(parent, lambda: equal, tmp_path / "q.onnx", LENIENT)
    assert error.value.code == "quantize-data"


def test_scores_that_differ_by_rounding_alone_are_rejected_as_equal(parent, digits, tmp_path):
    data = encode_npy(inputs_of(digits.calibration)[0])
    equal = [Sample(str(i), data, "application/x-npy") for i in range(220)]  # the last batch is smaller
    with pytest.raises(ExportError) as error:
        quantize(parent, lambda: equal, tmp_path / "q.onnx", LENIENT)
    assert error.value.code == "quantize-data"


def test_data_that_change_while_they_are_read_are_rejected(parent, digits, tmp_path):
    (everything,) = FolderSource(digits.calibration).batches(1000)
    lengths = iter([300, 300, 299])
    with pytest.raises(ExportError, match="300 samples, then 299") as error:
        quantize(parent, lambda: everything[: next(lengths)], tmp_path / "q.onnx", LENIENT)
    assert error.value.code == "quantize-data"


def test_without_agreement_nothing_is_written_and_the_error_lists_the_attempts(parent, digits, tmp_path):
    with pytest.raises(ExportError, match=r"with 0, .* with 2 leading layers") as error:
        quantize(parent, digits.calibration, tmp_path / "q.onnx", Settings(min_kappa=1.0))
    assert error.value.code == "quantize-disagrees"
    assert not (tmp_path / "q.onnx").exists()


def test_a_missing_folder_is_rejected(parent, tmp_path):
    with pytest.raises(DripError) as caught:
        quantize(parent, tmp_path / "none", tmp_path / "q.onnx")
    assert caught.value.code == "path-missing"


@pytest.mark.parametrize(
    "wrong",
    [{"calibration": "entropy"}, {"activations": "int4"}, {"windows": "new"}, {"n_calibration": 0},
     {"float_layers": -1}, {"min_kappa": 1.5}, {"held_out": 1.0}, {"retention": 0}],
    ids=str,
)  # fmt: skip
def test_settings_outside_their_range_are_rejected(wrong):
    with pytest.raises(DripError, match=next(iter(wrong))):
        Settings(**wrong)


def test_too_many_float_layers_leave_nothing_to_quantise(parent):
    with pytest.raises(ExportError, match="has 3 convolutions"):
        plan_int8(onnx.load(parent), 3)


# -- parts -----------------------------------------------------------------------------------------------


def test_batch_normalisation_is_folded_and_shared_weights_are_copied_before_quantising():
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 2, 3, 3)), "s": rng.uniform(0.5, 2, 4), "b": rng.normal(size=4),
        "m": rng.normal(size=4), "v": rng.uniform(0.5, 2, 4), "h": rng.normal(size=(4, 4)),
        "l": rng.normal(size=(3, 4)), "lb": np.zeros(3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "h"], ["g"]),
        helper.make_node("Gemm", ["g", "l", "lb"], ["logits"], transB=1),
        helper.make_node("MatMul", ["g", "h"], ["drip_score"]),  # reads the weights of a quantised layer
    ]
    outputs = [helper.make_tensor_value_info(n, 1, ["batch", None]) for n in ("logits", "drip_score")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", 1, ["batch", 2, 6, 6])], outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plan = plan_int8(model)
    ops = [node.op_type for node in plan.model.graph.node]
    assert "BatchNormalization" not in ops
    chosen = [node for node in plan.model.graph.node if node.name in plan.nodes]
    others = [node for node in plan.model.graph.node if node.name not in plan.nodes]
    assert {node.op_type for node in chosen} >= {"Conv", "MatMul"}
    assert {"drip_score", "logits"} <= {name for node in others for name in node.output}
    stored = {tensor.name for tensor in plan.model.graph.initializer}
    read = [{name for node in part for name in node.input if name in stored} for part in (chosen, others)]
    assert read[0].isdisjoint(read[1])
    x = rng.normal(size=(5, 2, 6, 6)).astype(np.float32)
    for name in ("logits", "drip_score"):
        np.testing.assert_allclose(
            run_model(plan.model, x, [name])[0], run_model(model, x, [name])[0], rtol=1e-4, atol=1e-4
        )


def test_ranges_cover_the_values_of_a_tensor_for_every_batch_size(parent):
    model = onnx.load(parent)
    x = np.random.default_rng(1).random((20, 1, 28, 28), dtype=np.float32)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    values = run_model(model, x, names)
    found = {
        rows: find_ranges(
            model, names, lambda rows=rows: (x[i : i + rows] for i in range(0, 20, rows)), "minmax"
        )
        for rows in (20, 3)
    }
    for name, array in zip(names, values, strict=True):
        assert found[20][name] == pytest.approx((min(0, array.min()), max(0, array.max())))
        assert found[3][name] == pytest.approx(found[20][name])
    for batches, calibration, code in (
        (list, "mse", "quantize-data"),
        (lambda: [x * np.float32(np.nan)], "minmax", "sample-non-finite"),
        (lambda: [x], "entropy", "bad-argument"),
    ):
        with pytest.raises(ExportError) as error:
            find_ranges(model, names, batches, calibration)
        assert error.value.code == code


@pytest.mark.parametrize("biased", [True, False])
def test_corrected_biases_remove_the_mean_error_of_every_channel(biased):
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(6, 3, 3, 3)), "l": rng.normal(size=(4, 6)), "b": rng.normal(size=6)}
    nodes = [
        helper.make_node("Conv", ["input", "w", *(["b"] if biased else [])], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "l"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", 1, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, ["batch", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    plan = plan_int8(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = rng.random((64, 3, 8, 8), dtype=np.float32)
    # ranges that clip a fifth of the inputs: an error with a large mean
    ranges = find_ranges(plan.model, plan.tensors, lambda: [x], "minmax") | {"input": (0.0, 0.8)}

    def mean_error(corrected_plan):
        written = write_int8(corrected_plan, ranges, x, per_channel=True, activations="uint8", weight_bits=7)
        errors = [run_model(model, x, ["f"])[0] for model in (written, plan.model)]
        return written, np.abs((errors[0] - errors[1]).mean(0)).max()

    written, before = mean_error(plan)
    _, after = mean_error(replace(plan, model=corrected(plan.model, written, lambda: [x[:32], x[32:]])))
    assert before > 0.05
    assert after < 0.1 * before


@pytest.mark.parametrize("low", [0.0, -3.0])
def test_the_mse_range_has_the_smallest_error_of_real_rounding(low):
    values = np.random.default_rng(2).standard_t(4, size=20_000).clip(low, None)
    ends = min(0.0, values.min()), values.max()
    counts, _ = np.histogram(values, 2048, ends)

    def error(inner):
        step = (inner[1] - inner[0]) / 255
        clipped = values.clip(*inner)
        return np.mean((inner[0] + np.round((clipped - inner[0]) / step) * step - values) ** 2)

    chosen = narrowed(counts.astype(float), ends, "mse")
    others = [(ends[0] * f, ends[1] * g) for f in np.linspace(0.05, 1, 20) for g in np.linspace(0.05, 1, 20)]
    assert error(chosen) <= 1.05 * min(map(error, others))
    assert error(chosen) < error(ends)


def test_kappa_of_constants_is_one_only_where_they_are_equal():
    yes, no = np.ones(5, bool), np.zeros(5, bool)
    assert cohens_kappa(yes, yes) == cohens_kappa(no, no) == 1.0
    assert cohens_kappa(yes, no) == 0.0


def test_scaled_windows_follow_a_change_of_scale_exactly(parent, digits):
    scorer = OnnxScorer(parent)
    seen = scorer.score(inputs_of(digits.calibration))
    factors = np.linspace(0.8, 1.3, 10)
    other = replace(seen, named_scores={"drip": seen.scores * factors[seen.classes]})
    policy = Policy.fit(seen.scores, seen.classes, n_classes=10, retention=0.6)
    given = candidates(policy, seen, other)
    before = retained_by(policy, seen)
    inside = np.abs(cohens_kappa(before, retained_by(given["scaled"], other)) - 1)
    assert inside < 0.05  # rounding at the ends of the windows
    assert cohens_kappa(before, retained_by(given["parent"], other)) < 0.8
    assert list(given) == ["parent", "scaled", "refit"]


def test_a_pooled_window_of_a_class_with_few_samples_is_scaled_by_the_ratio_of_all_classes():
    seen = fake_observations(300, 4, seed=1)
    rows = np.flatnonzero((seen.classes != 2) | (np.arange(300) < 30))  # fewer than 20 of class 2
    seen = seen[rows]
    other = replace(seen, named_scores={**seen.named_scores, "drip": seen.scores * 1.5})
    policy = Policy.fit(seen.scores, seen.classes, n_classes=4, retention=0.6)
    assert 0 < policy.windows[2].n < 20
    assert policy.windows[2].pooled
    scaled = candidates(policy, seen, other)["scaled"].windows[2]
    assert scaled.upper == pytest.approx(1.5 * policy.windows[2].upper, rel=1e-12)
    assert scaled.pooled


@pytest.mark.parametrize("n", [1, 2, 3, 10, 53])
def test_the_smallest_number_of_layers_is_found_in_few_trials(n):
    for least in range(n + 1):
        tried = []
        found = fewest(lambda k, tried=tried, least=least: tried.append(k) or k >= least, n)
        assert found == (least if least < n else None)
        assert len(tried) == len(set(tried)) <= 2 + np.log2(n) + 1


def test_quantising_needs_no_torch(parent, digits, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from drip.onnx import quantize, Settings\n"
        f"quantize({str(parent)!r}, {str(digits.calibration)!r}, {str(tmp_path / 'q.onnx')!r},"
        " Settings(n_calibration=8, min_kappa=0.1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_the_command_writes_and_reports(parent, digits, drip, tmp_path):
    out = tmp_path / "int8.onnx"
    arguments = (
        "model",
        "quantize",
        parent,
        "--data",
        digits.calibration,
        "--out",
        out,
        "--min-kappa",
        "0.5",
    )
    result = drip(*arguments)
    assert result.code == 0, result.err
    assert "held-out" in result.out
    result = drip(*arguments, "--json")
    assert json.loads(result.out)["quantization"]["n_calibration"] <= 256
    result = drip("model", "quantize", parent, "--data", digits.production, "--out", out)
    assert result.code == 1
    assert "at least 200" in result.err


def test_the_int8_file_runs_in_production_without_disagreement(written, digits, drip, tmp_path):
    result = drip("run", written[0], "--source", digits.production, "--store", tmp_path / "k.db", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["run"]["n_disagreements"] == 0


def test_calibrating_an_int8_file_on_the_device_gives_windows_that_fit_it(written, digits, drip, tmp_path):
    path = tmp_path / "copy.onnx"
    path.write_bytes(written[0].read_bytes())
    options = ["--data", digits.calibration, "--rule", "drip", "--out", tmp_path / "p.json"]
    assert drip("calibrate", path, *options).code == 0
    assert drip("model", "set-policy", path, tmp_path / "p.json").code == 0
    found = observe(
        (s for batch in FolderSource(digits.production).batches(9) for s in batch), OnnxScorer(path),
        prepare=SPEC.prepare,
    )  # fmt: skip
    assert len(found) == 60
