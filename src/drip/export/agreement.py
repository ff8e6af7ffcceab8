"""How far an int8 file agrees with its float32 parent, and the limits that it may get."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from drip.policy import Policy, class_histograms, windows_to_json
from drip.selectors import WindowSelector, create, from_policy
from drip.thresholds import sort_by_class
from drip.types import BoolArray, FloatArray, JsonObject, Observations

_FEWEST_PAIRS = 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """An int8 file beside its float32 parent, on the same samples.

    Attributes:
        n: Number of samples.
        class_agreement: Share with the same predicted class.
        kappa: Cohen's kappa of the two decisions; see :func:`cohens_kappa`.
        retention_float: Share that the parent retains.
        retention: Share that the int8 file retains.
        score_error: Median of the scores' absolute difference, in units of the parent's mean score.
        score_error_p95: Its 95th percentile.
    """

    n: int
    class_agreement: float
    kappa: float
    retention_float: float
    retention: float
    score_error: float
    score_error_p95: float

    @property
    def retention_shift(self) -> float:
        """Retention of the int8 file minus that of its parent."""
        return self.retention - self.retention_float

    def to_json(self) -> JsonObject:
        """The fields, for metadata and scripts."""
        return asdict(self)


def cohens_kappa(first: BoolArray, second: BoolArray) -> float:
    r"""Agreement of two series of decisions beyond chance.

    .. math:: \kappa = \frac{p_o - p_e}{1 - p_e}, \quad p_e = p_1 p_2 + (1 - p_1)(1 - p_2)

    with p_o the share of equal decisions and p_1, p_2 the shares of true ones. 1 where both are the same
    constant, for which the fraction is not defined.

    References:
        Cohen 1960, A coefficient of agreement for nominal scales.

    >>> cohens_kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    p1, p2 = float(first.mean()), float(second.mean())
    expected = p1 * p2 + (1 - p1) * (1 - p2)
    if expected == 1.0:
        return 1.0
    return float(((first == second).mean() - expected) / (1 - expected))


def compare(
    parent: Observations, retained_by_parent: BoolArray, found: Observations, retained: BoolArray
) -> Agreement:
    """The agreement of observations and decisions on the same samples in the same order."""
    errors = np.abs(found.scores - parent.scores) / (float(np.abs(parent.scores).mean()) or 1.0)
    return Agreement(
        n=len(parent),
        class_agreement=float((found.classes == parent.classes).mean()),
        kappa=cohens_kappa(retained_by_parent, retained),
        retention_float=float(retained_by_parent.mean()),
        retention=float(retained.mean()),
        score_error=float(np.median(errors)),
        score_error_p95=float(np.quantile(errors, 0.95)),
    )


def retained_by(policy: Policy, observations: Observations) -> BoolArray:
    """Decisions of a policy's rule, from its state as it was saved."""
    return from_policy(policy).decide_many(observations).retain


def candidates(policy: Policy, parent: Observations, found: Observations) -> dict[str, Policy]:
    """The policies that an int8 file may get, by name, the parent's first.

    ``parent``: the limits as they are. ``scaled``: every window times the median ratio of the class's
    scores, int8 over float32, on the same samples; it takes out what eight bits change of a score's
    scale, and does not choose a new window. ``refit``: calibrated anew on the int8 scores.

    Args:
        policy: The parent's.
        parent: Observations of the parent.
        found: Observations of the int8 file, of the same samples.
    """
    given = {"parent": policy}
    selector = create(policy.recipe.name, **policy.recipe.params)
    if "windows" in policy.recipe.state and isinstance(selector, WindowSelector):
        given["scaled"] = _scaled(policy, _ratios(parent, found, selector, policy.n_classes))
    selector.calibrate(found)
    given["refit"] = Policy.of(selector, n_classes=policy.n_classes, provenance=policy.provenance)
    scores = selector.score(found) if isinstance(selector, WindowSelector) else found.scores
    histograms = class_histograms(sort_by_class(scores, found.classes, policy.n_classes))
    return {name: replace(one, histograms=histograms) for name, one in given.items()}


def _ratios(
    parent: Observations, found: Observations, selector: WindowSelector, n_classes: int
) -> FloatArray:
    """Median ratio of the scores per class; 1 where fewer than 20 samples tell it."""
    before, after = selector.score(parent), selector.score(found)
    usable = (parent.classes == found.classes) & (before > 0) & (after > 0)
    ratios = np.ones(n_classes)
    for index in range(n_classes):
        rows = usable & (parent.classes == index)
        if rows.sum() >= _FEWEST_PAIRS:
            ratios[index] = np.median(after[rows] / before[rows])
    return ratios


def _scaled(policy: Policy, ratios: FloatArray) -> Policy:
    windows = [
        replace(window, lower=window.lower * ratio, upper=window.upper * ratio, scale=window.scale * ratio)
        for window, ratio in zip(policy.windows, ratios.tolist(), strict=True)
    ]
    state = {**policy.recipe.state, "windows": windows_to_json(windows)}
    return replace(policy, recipe=replace(policy.recipe, state=state))
