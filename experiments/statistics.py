"""Paired comparisons over runs: t, Nadeau and Bengio's correction, Wilcoxon, Holm. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, inf, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from drip.errors import InputError
from drip.types import FloatArray

LEVEL = 0.95
MIN_INTERVAL = 5
MIN_WILCOXON = 6
_EXACT = 60


@dataclass(frozen=True)
class Comparison:
    """What n runs say about a mean, usually that of paired differences.

    Attributes:
        n: Runs.
        mean: Their mean.
        sd: Standard deviation with n - 1; NaN for one run.
        half: Half-width of the t-interval around the mean; None below five runs.
        corrected_half: The same for re-splits of one set; None below five runs or without the sizes.
        p: Two-sided p-value of the paired t-test against zero; None below five runs.
        corrected_p: The same with the corrected variance.
        wilcoxon: Two-sided p-value of the signed-rank test; None below six runs.
    """

    n: int
    mean: float
    sd: float
    half: float | None = None
    corrected_half: float | None = None
    p: float | None = None
    corrected_p: float | None = None
    wilcoxon: float | None = None

    @property
    def widest(self) -> float | None:
        """Half-width of the interval that verdicts use: the corrected one where there is one."""
        return self.half if self.corrected_half is None else self.corrected_half

    @property
    def strictest_p(self) -> float | None:
        """The p-value that belongs to :attr:`widest`."""
        return self.p if self.corrected_p is None else self.corrected_p


def compare(values: ArrayLike, test_over_train: float | None = None, level: float = LEVEL) -> Comparison:
    """Mean of one value per run, with its intervals.

    Args:
        values: One paired difference (or measurement) per run, shape (n,).
        test_over_train: n_test / n_train of a run where the runs are random re-splits of one set;
            None where they are independent.
        level: Coverage of the intervals.

    Raises:
        InputError: there are no values, or one is not finite.
    """
    array = _finite(values)
    n, mean = len(array), float(array.mean())
    sd = float(array.std(ddof=1)) if n > 1 else float("nan")
    if n < MIN_INTERVAL:
        return Comparison(n, mean, sd)
    half, p = _student(mean, variance(sd, n), n - 1, level)
    wilcoxon = wilcoxon_p(array) if n >= MIN_WILCOXON else None
    if test_over_train is None:
        return Comparison(n, mean, sd, half, None, p, None, wilcoxon)
    corrected_half, corrected_p = _student(mean, variance(sd, n, test_over_train), n - 1, level)
    return Comparison(n, mean, sd, half, corrected_half, p, corrected_p, wilcoxon)


def variance(sd: float, n: int, test_over_train: float = 0.0) -> float:
    """Variance of the mean of n runs: sd² (1/n + n_test/n_train).

    The second term is for the overlap of the training sets of random re-splits, which makes runs alike.
    Without it an interval is too narrow, and more runs make it narrower without end.

    Args:
        sd: Standard deviation of one run.
        n: Runs.
        test_over_train: n_test / n_train; zero for independent runs.

    References:
        Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003), 239-281.

    >>> variance(2.0, 4), variance(2.0, 4, 0.25)
    (1.0, 2.0)
    """
    return sd * sd * (1.0 / n + test_over_train)


def wilcoxon_p(values: ArrayLike) -> float:
    """Two-sided p-value of the signed-rank test; zeros are dropped, ties share their mean rank.

    Up to 60 runs from the exact distribution over all signs (which holds with ties too), above that from
    the normal approximation with the variance corrected for ties.

    >>> wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    0.03125
    """
    array = _finite(values)
    array = array[array != 0.0]
    n = len(array)
    if not n:
        return 1.0
    ranks = stats.rankdata(np.abs(array))
    doubled = np.rint(2.0 * ranks).astype(np.int64)
    smaller = int(min(doubled[array > 0].sum(), doubled[array < 0].sum()))
    if n <= _EXACT:
        return min(1.0, 2.0 * float(_sign_sums(doubled)[: smaller + 1].sum()))
    spread = sqrt(float((ranks**2).sum()) / 4.0)
    z = (n * (n + 1) / 4.0 - smaller / 2.0) / spread
    return erfc(z / sqrt(2.0))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the given order; None is no test and does not count.

    The i-th smallest of m is multiplied by m - i + 1, and none may be below one that was smaller.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, index) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = floor
    return adjusted


@lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution."""
    return float(stats.t.ppf(probability, freedom))


def _student(mean: float, squared_error: float, freedom: int, level: float) -> tuple[float, float]:
    error = sqrt(squared_error)
    t = abs(mean) / error if error else (inf if mean else 0.0)
    return t_quantile(0.5 + level / 2.0, freedom) * error, float(2.0 * stats.t.sf(t, freedom))


def _sign_sums(doubled_ranks: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    """Probability of every sum of the positive ranks (doubled) when all signs are equally likely."""
    chances = np.zeros(int(doubled_ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled_ranks.tolist():
        chances[rank:] += chances[:-rank]
    return chances / 2.0 ** len(doubled_ranks)


def _finite(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, np.float64).reshape(-1)
    if not array.size or not np.isfinite(array).all():
        raise InputError(f"{array!r}: not one finite value per run; leave out runs without a value")
    return array
