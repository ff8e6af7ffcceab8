"""Calibrating from a folder and running a stream: the rooms together, and their errors."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from digits import N_PRODUCTION
from torch import nn

from drip.datasets import load_mnist
from drip.errors import InputError, ModelError, PolicyError, SourceError
from drip.media import InputSpec
from drip.models import SmallCNN, load_model
from drip.policy import Policy
from drip.rules import create
from drip.scoring import TorchScorer, model_digest
from drip.sources import FolderSource
from drip.store import RetentionStore
from drip.workflow import ScoreOptions, calibrate_folder, run_stream, scorer_of
from drip.workflow.calibration import first_inputs

SPEC = InputSpec((1, 28, 28))


@contextmanager
def raises_code(kind, code):
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code


@pytest.fixture(scope="module")
def model(digits):
    return load_model("drip.models:SmallCNN", digits.weights)


@pytest.fixture
def store(tmp_path):
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=2_000_000) as kept:
        yield kept


def test_policy_says_where_it_comes_from(digits, model):
    policy = Policy.load(digits.policy)
    provenance = policy.provenance
    assert provenance.model_digest == model_digest(model)
    assert provenance.layer == "features"
    assert provenance.score["method"] == "gradcam"
    assert provenance.data == str(digits.calibration)
    assert provenance.n_samples == 300
    assert InputSpec.from_json(provenance.input_spec) == SPEC
    assert sum(sum(histogram.counts) for histogram in policy.histograms) == 300


def test_progress_counts_to_the_number_of_files(digits, model):
    seen = []
    calibrate_folder(model, digits.calibration, SPEC, on_progress=lambda *step: seen.append(step))
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.fixture(scope="module")
def scored_digits(model):
    """Observations of 4,000 real digits that the network was not trained on."""
    whole = load_mnist()
    return TorchScorer(model).score(
        whole.inputs(np.arange(len(whole.labels) - 8000, len(whole.labels) - 4000))
    )


@pytest.mark.parametrize("retention", [0.6, 0.3, 0.1])
def test_two_hundred_calibration_samples_hold_the_keep_rate(scored_digits, retention):
    rates = []
    for seed in range(6):  # single draws of 200 differ by more than what is tested
        rows = np.random.default_rng(seed).permutation(len(scored_digits))
        rule = create("drip", retention=retention).calibrate(scored_digits[rows[:200]])
        assert any(window.pooled for window in rule.windows)
        rates.append(rule.decide_many(scored_digits[rows[200:]]).retain.mean())
    assert np.mean(rates) == pytest.approx(retention, abs=0.07)


@pytest.mark.parametrize(
    "options",
    [
        ScoreOptions(heatmap="normalised"),
        ScoreOptions(method="layercam"),
        ScoreOptions(contrast=True),
        ScoreOptions(layer="features.6"),
    ],
)
def test_score_options_travel_with_the_policy(options, digits, model, tmp_path):
    calibrate_folder(model, digits.calibration, SPEC, score=options).save(tmp_path / "p.json")
    policy = Policy.load(tmp_path / "p.json")
    inputs = load_mnist().inputs(range(40))
    np.testing.assert_allclose(
        scorer_of(policy, model).score(inputs).named_scores["drip"],
        options.scorer(model).score(inputs).named_scores["drip"],
        rtol=1e-5,
    )


class FunctionalHead(nn.Module):
    """The ReLU before the head is a function: the layer that is found has a name of two parts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_layer_that_was_found_is_found_again_by_its_name(digits):
    torch.manual_seed(0)
    model = FunctionalHead()
    policy = calibrate_folder(model, digits.calibration, SPEC)
    assert "+" in policy.provenance.layer
    scorer_of(policy, model).score(load_mnist().inputs(range(3)))


def test_run_keeps_what_the_policy_retains(digits, model, store):
    policy = Policy.load(digits.policy)
    tally = run_stream(model, policy, FolderSource(digits.production), store)
    rows = list(store.audit())
    expected = policy.retains(
        np.array([row.scores["drip"] for row in rows]), np.array([row.predicted_class for row in rows])
    )
    assert tally.n_seen == N_PRODUCTION
    assert [row.decision.retain for row in rows] == expected.tolist()
    assert tally.n_retained == len(store) == expected.sum()
    assert store.check().ok


def test_scores_of_the_run_are_those_of_the_scorer(digits, model, store):
    policy = Policy.load(digits.policy)
    run_stream(model, policy, FolderSource(digits.production), store, batch_size=7)
    for row in list(store.audit())[:5]:
        data = (digits.production / row.sample_id).read_bytes()
        alone = scorer_of(policy, model).score(SPEC.prepare(data, "image/png")[None])
        assert row.scores["drip"] == pytest.approx(alone.scores[0], rel=1e-5)
        np.testing.assert_allclose(row.logits, alone.logits[0], rtol=1e-4, atol=1e-5)


def test_run_under_a_new_policy_continues_the_stream(digits, model, store):
    source = FolderSource(digits.production)
    first = Policy.load(digits.policy)
    run_stream(model, first, source, store, batch_size=20, stop=lambda: True)
    second = calibrate_folder(model, digits.calibration, SPEC, retention=0.3)
    tally = run_stream(model, second, FolderSource(digits.production), store)
    assert tally.n_seen == N_PRODUCTION - 20
    digests = [row.policy_digest for row in store.audit()]
    assert digests == [first.digest] * 20 + [second.digest] * (N_PRODUCTION - 20)


# -- errors --------------------------------------------------------------------------------------------


def test_policy_of_another_model_is_refused(digits, store):
    torch.manual_seed(1)
    with raises_code(PolicyError, "policy-other-model"):
        run_stream(SmallCNN(), Policy.load(digits.policy), FolderSource(digits.production), store)
    assert store.stats().seen == 0


def test_policy_that_does_not_say_how_to_score_is_refused(model, digits):
    policy = Policy.load(digits.policy)
    bare = replace(policy, provenance=replace(policy.provenance, score={}))
    with raises_code(PolicyError, "policy-invalid"):
        scorer_of(bare, model)


def test_policy_without_an_input_spec_is_refused(model, digits, store):
    policy = Policy.load(digits.policy)
    bare = replace(policy, provenance=replace(policy.provenance, input_spec={}))
    with pytest.raises(InputError):
        run_stream(model, bare, FolderSource(digits.production), store)


def test_policy_of_an_unknown_rule_is_refused(model, digits, store):
    content = json.loads(digits.policy.read_text())
    content["rule"]["name"] = "rule-of-tomorrow"
    with pytest.raises(PolicyError, match="rule-of-tomorrow"):
        run_stream(model, Policy.from_json(content), FolderSource(digits.production), store)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_its_range_is_refused_before_any_work(fraction, model):
    with pytest.raises(InputError, match="retention"):
        calibrate_folder(model, "/nowhere", SPEC, retention=fraction)


def test_unknown_rule_is_refused(model, digits):
    with raises_code(InputError, "rule-unknown"):
        calibrate_folder(model, digits.calibration, SPEC, rule="best")


def test_class_names_of_another_number_are_refused(model, digits):
    with raises_code(InputError, "labels-invalid"):
        calibrate_folder(model, digits.calibration, SPEC, class_names=("a", "b"))


def test_missing_folder_is_refused(model, tmp_path):
    with pytest.raises(SourceError) as caught:
        calibrate_folder(model, tmp_path / "none", SPEC)
    assert caught.value.code == "path-missing"


def test_unknown_layer_is_refused_by_name(model, digits):
    with pytest.raises(ModelError, match="no_such_layer"):
        calibrate_folder(model, digits.calibration, SPEC, score=ScoreOptions(layer="no_such_layer"))


def test_input_spec_of_another_shape_than_the_files_is_refused_with_the_file(model, digits):
    with pytest.raises(InputError, match=r"\d/\d+\.png"):
        calibrate_folder(model, digits.calibration, InputSpec((1, 32, 32)))


def test_input_spec_that_does_not_fit_the_model_is_an_error(model, digits):
    with pytest.raises((InputError, ModelError)):
        calibrate_folder(model, digits.calibration, InputSpec((3, 28, 28)))


@pytest.mark.parametrize(
    ("score", "spec", "error", "code"),
    [
        ({"layer": "nowhere"}, {}, ModelError, None),
        ({"layer_shape": [64, 3, 3]}, {}, PolicyError, "policy-other-score"),
        ({}, {"shape": [3, 28, 28]}, InputError, None),
    ],
)
def test_policy_that_does_not_fit_stops_the_run_before_a_sample_is_touched(
    score, spec, error, code, model, digits, store
):
    policy = Policy.load(digits.policy)
    provenance = replace(
        policy.provenance,
        score={**policy.provenance.score, **score},
        input_spec={**policy.provenance.input_spec, **spec},
    )
    with pytest.raises(error) as caught:
        run_stream(model, replace(policy, provenance=provenance), FolderSource(digits.production), store)
    assert code in (None, caught.value.code)
    assert store.stats().seen == store.stats().quarantined == 0
    assert store.load_progress() is None


def test_histograms_of_a_policy_are_of_the_scores_that_its_windows_are_cut_from(model, digits):
    policy = calibrate_folder(model, digits.calibration, SPEC, rule="max-logit-window")
    drip_policy = Policy.load(digits.policy)
    assert policy.histograms[0].high > 10 * drip_policy.histograms[0].high  # logits, not heatmap means
    with pytest.raises(PolicyError):
        policy.retains(np.zeros(1), np.zeros(1, np.int64))


def test_the_first_inputs_of_a_folder_are_prepared_as_its_samples_are(tmp_path):
    digits, spec = load_mnist(), InputSpec((1, 28, 28))
    for sample in digits.samples(range(5)):
        (tmp_path / f"{sample.id}.png").write_bytes(sample.data)
    files = sorted(tmp_path.iterdir())
    assert first_inputs(tmp_path, spec, 3).shape == (3, 1, 28, 28)
    assert np.allclose(first_inputs(tmp_path, spec)[0], spec.prepare(files[0].read_bytes(), "image/png"))
    files[0].write_bytes(b"no picture")
    with pytest.raises(InputError, match=files[0].name):
        first_inputs(tmp_path, spec)
    for file in files[1:]:
        file.unlink()
    files[0].write_bytes(next(iter(digits.samples([0]))).data)
    with pytest.raises(InputError) as caught:
        first_inputs(tmp_path, spec)
    assert caught.value.code == "source-empty"
