"""Rules for researchers: the contract, decisions as recorded, and each definition written out once."""

from dataclasses import replace
from fractions import Fraction
from inspect import isclass
from math import ceil, erf, exp, floor, log, sqrt

import numpy as np
import pytest

from drip.rules import available, create, extra
from drip.rules.base import complement
from drip.rules.parts import RateController, Target
from drip.rules.parts.gaussians import project
from drip.testing import check_rule, fake_observations
from drip.types import Observations

KEPT = {
    "adaptive-random": "01720842362220380c360059209c1886278014920e02132224",
    "coverage": "b0102c40200204b4ac882c8808c8414100112225a600026248",
    "energy": "861c00408100280418401e094028e3402084802d432922a264",
    "gradient-norm": "083d2080a308020690c67e1d4c87e6522a0810ab3413228244",
    "information-gain": "882d2080a3082206b84c78084487a4122a08108e3011208604",
    "inverse-drip": "60aa0a289a3e0100049086820532219e554208000067304069",
    "least-confidence": "883d2080a3080206984c7a094cc7a7522a0810ae3413228244",
    "lowest-contrast": "883d2290830802069c6cfa0d44c7e6522a0810a3b01222e604",
    "lowest-drip": "8e1c00c001002a0418441c09402ce3602084806d713922a264",
    "margin-window": "84102250000020a0acaaa45d0ac853620436802d860302646c",
    "max-logit-window": "914c85072180f81162032934e008c8418028650c08806d9b12",
    "mixed-margin": "883d2280a3080206984c7a0944c7e6522a0810abb413228244",
    "moderate": "31000800908220d040268f2522c022291c7600c00406140040",
    "reservoir": "0d6a803046046840114697777314aa2208a2541a1993789026",
    "soft-margin": "001d2880a3080606ac8078080c8fe5502a0932a7a400224248",
    "variable-uncertainty": "f0153cc1b95a97beacb160888ca24511421922250624066248",
    "vessal": "883d0080a30006068c446808448745002a0032ad041022c248",
}
"""Which of 200 samples each rule keeps, one bit per sample, as measured before the rules moved to one file."""


def test_every_rule_is_here_and_none_is_offered():
    named = [rule for rule in vars(extra).values() if isclass(rule) and rule.__module__ == extra.__name__]
    assert {rule.name for rule in named if "name" in vars(rule)} | {"mixed-margin"} == set(KEPT)
    assert not set(KEPT) & set(available())


@pytest.mark.parametrize("name", KEPT)
def test_the_contract_holds(name):
    check_rule(lambda: create(name), fake_observations(160, 4, seed=1))


@pytest.mark.parametrize("name", KEPT)
def test_decisions_are_as_recorded(name):
    rule = create(name, retention=0.3).calibrate(fake_observations(400, 4, seed=1))
    retain = rule.decide_many(fake_observations(200, 4, seed=2)).retain
    assert np.packbits(retain).tobytes().hex() == KEPT[name]


def observations(logits, features=None):
    rows = np.array(logits, dtype=np.float64)
    return Observations(rows.argmax(axis=1), rows, {}, features=features)


def wide(n, seed=0, n_classes=4, n_features=100):
    """Observations with more features than are left after the projection."""
    given = fake_observations(n, n_classes, seed)
    features = np.random.default_rng(seed).gamma(1.0, 1.0, (n, n_features)) * (1 + given.classes[:, None])
    return replace(given, features=features)


def doubt(logits):
    second, first = sorted(probabilities(logits))[-2:]
    return 1 - (first - second)


def probabilities(logits):
    return [exp(logit) / sum(map(exp, logits)) for logit in logits]


def with_a_rare_class(n=600, seed=1):
    """One class with few samples, so its window is pooled, and one with equal scores, which never discards."""
    observations = fake_observations(n, 4, seed=seed)
    rare = observations[np.flatnonzero((observations.classes != 2) | (np.arange(n) < 20))]
    scores = np.where(rare.classes == 1, 0.5, rare.scores)
    return replace(rare, named_scores={**rare.named_scores, "drip": scores})


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def doubts(logits):
    ranked = np.sort(softmax(logits), axis=1)
    return 1 - (ranked[:, -1] - ranked[:, -2])


@pytest.mark.parametrize("retention", [0.9, 0.6, 0.3])
def test_inverse_keeps_what_drip_with_the_complement_discards(retention):
    calibration, stream = with_a_rare_class(), fake_observations(500, 4, seed=2)
    inverse = create("inverse-drip", retention=retention).calibrate(calibration)
    drip = create("drip", retention=complement(retention)).calibrate(calibration)
    assert inverse.windows == drip.windows
    kept, other = inverse.decide_many(stream), drip.decide_many(stream)
    never = ~np.array([window.discards for window in drip.windows])[stream.classes]
    assert never.any()
    assert kept.retain.tolist() == (~other.retain | never).tolist()
    assert kept.retain[never].all()
    assert other.retain[never].all()
    assert kept.priority.tolist() == (-other.priority).tolist()
    assert set(kept.reasons) == {"inside-window", "outside-window"}
    assert [word == "inside-window" for word in kept.reasons] == kept.retain.tolist()
    assert not np.signbit(kept.priority[kept.retain & ~never]).any()


def test_the_maximum_logit_window_is_drip_on_the_largest_logit():
    calibration, stream = fake_observations(500, 4, seed=1), fake_observations(300, 4, seed=2)

    def with_logit(observations):
        return replace(observations, named_scores={"drip": np.sort(observations.logits, axis=1)[:, -1]})

    rule = create("max-logit-window", retention=0.7).calibrate(calibration)
    drip = create("drip", retention=0.7).calibrate(with_logit(calibration))
    assert rule.needs == {"logits"}
    assert rule.windows == drip.windows
    assert list(rule.decide_many(stream)) == list(drip.decide_many(with_logit(stream)))


@pytest.mark.parametrize("retention", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("n", [1, 2, 7, 400])
def test_the_margin_window_begins_below_the_hardest_quarter_of_what_is_discarded(retention, n):
    given = fake_observations(n, 3)
    hardest_first = np.argsort([-doubt(row) for row in given.logits])
    share = Fraction(str(retention))
    start, count = floor((1 - share) / 4 * n), max(1, floor(share * n + Fraction(1, 2)))
    decisions = create("margin-window", retention=retention).calibrate(given).decide_many(given)
    assert set(np.flatnonzero(decisions.retain)) == set(hardest_first[start : start + count])
    assert (decisions.priority >= 0).tolist() == decisions.retain.tolist()
    assert set(decisions.reasons) <= {"margin-window", "outside-window"}


def test_energy_is_the_free_energy_of_the_logits():
    given = fake_observations(400, 5)
    expected = [-log(sum(map(exp, row))) for row in given.logits]
    assert create("energy").score(given) == pytest.approx(expected, rel=1e-13)


def test_the_gradient_norm_is_that_of_the_last_layer_by_finite_differences():
    rng = np.random.default_rng(3)
    weights, bias, features = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=(10, 6))
    given = observations(features @ weights.T + bias, features)
    for row, got in enumerate(create("gradient-norm").score(given)):
        label, step = given.classes[row], 1e-6

        def loss(parameters, row=row, label=label):
            logits = parameters.reshape(4, 7) @ np.append(features[row], 1.0)
            return log(sum(map(exp, logits))) - logits[label]

        at = np.column_stack([weights, bias]).ravel()
        steps = step * np.eye(28)
        gradient = [(loss(at + change) - loss(at - change)) / (2 * step) for change in steps]
        assert got == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_moderate_is_the_distance_to_the_median_distance_of_the_class():
    given, stream = wide(400), wide(50, seed=1)
    rule = create("moderate", retention=0.3).calibrate(given)
    score = rule.score(stream)
    features, z = project(given.features), project(stream.features)
    for row, label in enumerate(stream.classes):
        mine = features[given.classes == label]
        distances = [sqrt(((one - mine.mean(axis=0)) ** 2).sum()) for one in mine]
        median = np.median(distances)
        spread = np.median([abs(distance - median) for distance in distances])
        distance = sqrt(((z[row] - mine.mean(axis=0)) ** 2).sum())
        assert score[row] == pytest.approx(-abs(distance - median) / spread, rel=1e-3, abs=1e-4)
    kept = rule.decide_many(given).retain
    assert kept.sum() == 120
    assert rule.score(given)[kept].min() > rule.score(given)[~kept].max()


def test_the_reservoir_holds_every_subset_of_a_stream_equally_often():
    stream, capacity = fake_observations(6, 3), 2
    counts = np.zeros((6, 6), dtype=np.int64)
    rule = create("reservoir", seed=5)
    n_repeats = 6000
    for _ in range(n_repeats):
        held = []
        for index, decision in enumerate(rule.decide_many(stream)):
            assert decision.retain
            held.append((decision.priority, index))
            held = sorted(held)[-capacity:]
        first, second = sorted(index for _, index in held)
        counts[first, second] += 1
    pairs = counts[np.triu_indices(6, 1)]
    expected = n_repeats / 15
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert chi_square < 36.12  # 14 degrees of freedom, one in a thousand
    assert counts.sum() == n_repeats


@pytest.mark.parametrize("retention", [0.1, 0.5, 0.61])
def test_soft_margin_keeps_by_a_power_of_the_rank(retention):
    given = fake_observations(2000, 3)
    doubts = sorted(map(doubt, given.logits))
    rule = create("soft-margin", retention=retention).calibrate(given)
    stream = fake_observations(300, 3, seed=1)
    got = rule.decide_many(stream).keep_probability
    for row, one in enumerate(map(doubt, stream.logits)):
        rank = sum(other < one for other in doubts) / 2000
        near = [min(max(rank + step, 0.0), 1.0) ** ((1 - retention) / retention) for step in (-0.002, 0.002)]
        assert near[0] - 1e-9 <= got[row] <= near[1] + 1e-9


@pytest.mark.parametrize("retention", [0.05, 0.3, 0.6, 0.95])
def test_coverage_fills_the_strata_alike_without_the_hardest(retention):
    given = fake_observations(2000, 3)
    doubts = np.array([*map(doubt, given.logits)])
    probability = create("coverage", retention=retention).calibrate(given).decide_many(given).keep_probability
    n_hardest = floor(2000 * min(Fraction("0.1"), 1 - Fraction(str(retention))))
    hardest = np.argsort(doubts)[2000 - n_hardest :]
    assert probability[hardest].tolist() == [0.0] * n_hardest
    rest = np.setdiff1d(np.arange(2000), hardest)
    low, high = doubts[rest].min(), doubts[rest].max()
    strata = [min(max(ceil((value - low) / (high - low) * 20 - 1e-9) - 1, 0), 19) for value in doubts[rest]]
    counts = np.bincount(strata, minlength=20)
    expected = counts * [
        probability[rest][np.array(strata) == one].mean() if counts[one] else 0 for one in range(20)
    ]
    assert expected.sum() == pytest.approx(retention * 2000, rel=1e-9)
    quota = expected.max()
    assert expected == pytest.approx(np.minimum(counts, quota), rel=1e-9)


@pytest.mark.parametrize("retention", [0.1, 0.6])
def test_information_gain_is_the_log_determinant_that_a_sample_adds(retention):
    given, stream = wide(600), wide(400, seed=1)
    rule = create("information-gain", retention=retention).calibrate(given)
    decisions = rule.decide_many(stream)

    z, h = project(given.features), doubts(given.logits)
    mean = z.mean(axis=0)
    scale = sqrt(np.mean([(row - mean) @ (row - mean) for row in z]))
    information = np.eye(64)
    for row in np.argsort(-h)[: round(600 * retention)]:
        information += h[row] * np.outer(z[row] - mean, z[row] - mean) / scale**2

    def gain(row, doubt):
        more = information + doubt * np.outer(row, row)
        return np.linalg.slogdet(more)[1] - np.linalg.slogdet(information)[1]

    values = np.sort([gain(row, doubt) for row, doubt in zip((z - mean) / scale, h, strict=True)])
    spread = values[np.linspace(0, 599, 500).round().astype(int)]
    recent = spread[np.random.Generator(np.random.PCG64(0)).permutation(500)].tolist()
    rate = RateController(Target(retention))
    for row, (one, doubt) in enumerate(zip(project(stream.features), doubts(stream.logits), strict=True)):
        value = gain((one - mean) / scale, doubt)
        count = int(rate.share() * 500 + 0.5)
        assert decisions.priority[row] == pytest.approx(np.mean(np.array(recent) < value), abs=0.003)
        kept = count > 0 and value >= sorted(recent)[-count]
        assert decisions.retain[row] == kept
        recent = [*recent[1:], value]
        if kept:
            rate.kept()
            information += doubt * np.outer((one - mean) / scale, (one - mean) / scale)
    assert set(decisions.reasons) == {"information-gain", "below-limit"}


def sketches(observations):
    """Sums over classes of the error times features whose signs are flipped at random."""
    n_classes = observations.logits.shape[1]
    z, p = project(observations.features), softmax(observations.logits)
    flips = np.random.Generator(np.random.PCG64(0)).random((n_classes, z.shape[1]))
    rows = np.zeros(z.shape)
    for row in range(len(z)):
        for label in range(n_classes):
            error = p[row, label] - (label == observations.classes[row])
            rows[row] += error * np.where(flips[label] < 0.5, z[row], -z[row])
    return rows


def test_vessal_keeps_in_proportion_to_the_volume():
    retention = 0.6
    given, stream = wide(700), wide(300, seed=1)
    decisions = create("vessal", retention=retention, seed=3).calibrate(given).decide_many(stream)
    outer = 0.01 * np.eye(64)
    volumes = np.sort([row @ np.linalg.solve(outer, row) for row in sketches(given)])
    spread = volumes[np.linspace(0, 699, 500).round().astype(int)]
    recent = spread[np.random.Generator(np.random.PCG64(0)).permutation(500)].tolist()
    rate = RateController(Target(retention))
    draws = np.random.Generator(np.random.PCG64(3)).random(300)
    for row, gradient in enumerate(sketches(stream)):
        volume = gradient @ np.linalg.solve(outer, gradient)
        recent = [*recent[1:], volume]
        share = rate.share()
        low, high = 0.0, 1e9
        for _ in range(200):  # bisection on the factor
            middle = (low + high) / 2
            low, high = (
                (middle, high) if np.minimum(1, middle * np.array(recent)).mean() < share else (low, middle)
            )
        assert decisions.keep_probability[row] == pytest.approx(min(1, low * volume), rel=1e-5, abs=1e-9)
        assert decisions.retain[row] == (draws[row] < decisions.keep_probability[row])
        if decisions.retain[row]:
            rate.kept()
            outer += np.outer(gradient, gradient)


@pytest.mark.parametrize(("retention", "on_kept"), [(0.1, True), (0.5, True), (0.7, False)])
def test_variable_uncertainty_is_a_moving_threshold_with_noise_and_a_budget(retention, on_kept):
    stream = fake_observations(2000, 3)
    decisions = create("variable-uncertainty", retention=retention, seed=5).decide_many(stream)
    draws = np.random.Generator(np.random.PCG64(5)).random(2000)
    theta, spent = 1.0, 0.0
    for row, certainty in enumerate(softmax(stream.logits).max(axis=1)):
        if spent / 100 < (retention if on_kept else 1 - retention):
            # The noise that lies above certainty / theta, of a normal distribution around 1.
            expected = (1 - erf((certainty / theta - 1) / sqrt(2))) / 2
            theta *= 0.99 if decisions.retain[row] else 1.01
        else:
            expected = 0.0 if on_kept else 1.0
        assert decisions.keep_probability[row] == pytest.approx(expected, abs=1e-12)
        assert decisions.retain[row] == (draws[row] < decisions.keep_probability[row])
        spent = spent * 0.99 + (decisions.retain[row] == on_kept)
    assert set(decisions.reasons) == {"variable-uncertainty", "not-drawn"}
