"""Per-class score windows: the densest run of sorted scores (eqs. 6-7) and the histogram peak (Algorithm 1).

Arrays in, windows out. This module does not use models, rules or policy files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil, floor, inf, isfinite
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from drip.errors import InputError, brief
from drip.files import expect_types
from drip.types import BoolArray, FloatArray, IntArray, JsonObject

Method = Literal["min_std", "histogram_peak"]

# The densest run of few scores is dense by chance and holds too few new scores. With 200 calibration samples of nine
# words (Speech Commands), keep rates of 60, 30 and 10 % came out as 74, 40 and 17 % with a minimum of 20, and as
# 64, 33 and 12 % with a minimum of 50.
MIN_CLASS_COUNT = 50
"""A class with fewer calibration scores uses the pooled window, of all classes together (decision A6)."""

TIE_EXCESS = 0.05
"""A window that holds more than the requested fraction plus this consists of ties (decision A6)."""

_RELATIVE_TIE = 1e-12  # two deviations this close differ by rounding only
_MAX_BINS = 100_000  # a far outlier must not make Freedman-Diaconis ask for billions
_N_PARTS = 5
_MANY = 10_000  # above this, one fold estimates the expected discard as well as five


@dataclass(frozen=True, slots=True)
class Window:
    """The closed interval of scores that count as typical for one class: discard when inside (eq. 9).

    A class with too few calibration scores has the pooled window, fitted on the scores of all classes together.
    Everything except ``n`` then describes these scores, not those of the class.

    Attributes:
        lower: Smallest score in the window, L_lower (eq. 6); +inf when the class never discards.
        upper: Largest score in the window, L_upper (eq. 7); -inf when the class never discards.
        n: Number of calibration scores of the class, also when the window is pooled.
        calibration_discard: Part of the scores that the window was fitted on that is inside, in [0, 1].
        expected_discard: Part of new scores expected inside, in [0, 1]: five-fold cross-validation
            (one fold above 10,000 scores), because a window holds fewer of the new scores than of
            those that chose it.
        scale: Standard deviation of the scores that the window was fitted on; the unit of a distance to it.
        never_because: Why the class never discards, or None when it does.
        pooled: Whether the window was fitted on the scores of all classes together.
    """

    lower: float
    upper: float
    n: int
    calibration_discard: float
    expected_discard: float
    scale: float
    never_because: str | None = None
    pooled: bool = False

    @property
    def discards(self) -> bool:
        """False for a class that keeps everything."""
        return self.never_because is None


def window_size(n: int, fraction: float) -> int:
    r"""Number of scores in a window: :math:`w = \max(2, \lfloor pn + 1/2 \rfloor)`.

    ``fraction`` (p) is read as the decimal number that prints, not as the nearest binary one, so
    0.29 of 100 is 29 and halves round up as on paper. Never more than n.

    Args:
        n: Number of scores, at least 1.
        fraction: p, in (0, 1).

    >>> window_size(100, 0.29), window_size(10, 0.25), window_size(3, 0.1)
    (29, 3, 2)
    """
    return min(n, max(2, floor(Fraction(str(fraction)) * n + Fraction(1, 2))))


def window_deviations(ordered: FloatArray, size: int) -> FloatArray:
    r"""Standard deviation of every run of ``size`` neighbours in sorted scores, in O(n).

    The obvious running sum of squares loses all digits when one score is far away or all scores have a large
    offset. Here every window is split at the multiple of ``size`` that it contains, into a suffix of one block
    and a prefix of the next; both are summed as distances from the score at the split. Sums are only added,
    never subtracted, so the relative error stays near machine precision whatever the other scores are.

    Args:
        ordered: Scores in ascending order, float64, shape (n,); squares of their range must not overflow.
        size: Window size w, 2 <= w <= n.

    Returns:
        Population standard deviations, shape (n - w + 1,).

    >>> window_deviations(np.array([0.0, 1.0, 1.0, 3.0]), 2).tolist()
    [0.5, 0.0, 1.0]
    """
    n = len(ordered)
    n_windows = n - size + 1
    n_blocks = -(-n // size)
    padded = np.full(n_blocks * size, ordered[-1])
    padded[:n] = ordered
    blocks = padded.reshape(n_blocks, size)
    # A suffix is measured from the first score of the next block; the last block has no suffix, because no
    # window is split after it.
    prefix = blocks - blocks[:, :1]
    suffix = np.zeros_like(blocks)
    suffix[:-1] = blocks[:-1] - blocks[1:, :1]

    def window_sums(left: FloatArray, right: FloatArray) -> FloatArray:
        suffix_sums = np.cumsum(left[:, ::-1], axis=1)[:, ::-1].ravel()[:n_windows]
        prefix_sums = np.zeros(n_blocks * size + size)
        # Window i = block j, place r: the last `size - r` of block j and the first r of block j + 1.
        np.cumsum(right[:, :-1], axis=1, out=prefix_sums[: n_blocks * size].reshape(n_blocks, size)[:, 1:])
        return suffix_sums + prefix_sums[size : size + n_windows]

    sums = window_sums(suffix, prefix)
    squares = window_sums(np.square(suffix), np.square(prefix))
    means = sums / size
    deviations = np.sqrt(np.maximum(squares / size - means * means, 0.0))
    # A window that is exactly one block does not contain its cut, which may lie far away.
    # Distances from its first score, or the mean of a large offset would round to another score.
    deviations[::size] = prefix[: len(deviations[::size])].std(axis=1)
    return cast("FloatArray", deviations)


def densest_window(ordered: FloatArray, fraction: float) -> tuple[int, int]:
    """First and past-the-end rank of the window with the smallest standard deviation (III-A, 4a-e).

    Deviations that differ by less than 1e-12 of the score range are equal; the first window wins.

    Args:
        ordered: Scores in ascending order, float64, shape (n,), n >= 2.
        fraction: Discard fraction p (the paper's DPW), in (0, 1).

    Returns:
        (start, stop): the window is ``ordered[start:stop]``.

    Complexity: O(n) time and memory.

    References:
        DRIP paper, section III-A step 4, equations 6 and 7; decision A5.

    >>> densest_window(np.array([0.0, 5.0, 5.1, 5.2, 9.0]), 0.6)
    (1, 4)
    """
    size = window_size(len(ordered), fraction)
    scaled, _ = _scaled(ordered)
    deviations = window_deviations(scaled, size)
    tolerance = _RELATIVE_TIE * (scaled[-1] - scaled[0])
    start = int(np.argmax(deviations <= deviations.min() + tolerance))
    return start, start + size


def histogram_peak(ordered: FloatArray, fraction: float) -> tuple[int, int]:
    """Ranks of the scores around the fullest histogram bin (Algorithm 1).

    Bin widths follow the rule of Freedman and Diaconis (at most 100,000 bins). From the
    fullest bin (the first on ties) the range grows by the fuller of its two neighbours (the left on
    ties) until at least ``fraction`` of the scores are inside.

    Args:
        ordered: Scores in ascending order, float64, shape (n,), n >= 2.
        fraction: Discard fraction p, in (0, 1).

    Returns:
        (start, stop): the window is ``ordered[start:stop]``.

    References:
        DRIP paper, Algorithm 1; Freedman and Diaconis (1981), On the histogram as a density estimator.

    >>> histogram_peak(np.array([0.0, 5.0, 5.1, 5.2, 9.0]), 0.6)
    (1, 4)
    """
    n = len(ordered)
    needed = ceil(Fraction(str(fraction)) * n)
    scaled, _ = _scaled(ordered)
    edges = np.searchsorted(scaled, _bin_edges(scaled), side="left")
    edges[0], edges[-1] = 0, n
    counts = np.diff(edges)
    left = right = int(np.argmax(counts))
    while edges[right + 1] - edges[left] < needed:
        left_count = counts[left - 1] if left > 0 else -1
        right_count = counts[right + 1] if right + 1 < len(counts) else -1
        if left_count >= right_count:
            left -= 1
        else:
            right += 1
    return int(edges[left]), int(edges[right + 1])


def _bin_edges(ordered: FloatArray) -> FloatArray:
    n = len(ordered)
    low, high = float(ordered[0]), float(ordered[-1])
    quartile_1, quartile_3 = np.quantile(ordered, [0.25, 0.75])
    width = 2.0 * (quartile_3 - quartile_1) / n ** (1 / 3)
    if width <= 0:  # without spread in the middle half the rule has no answer; Sturges' does
        n_bins = ceil(np.log2(n) + 1)
    elif width * _MAX_BINS <= high - low:
        n_bins = _MAX_BINS
    else:
        n_bins = max(ceil((high - low) / width), 1)
    return np.linspace(low, high, n_bins + 1)


_METHODS = {"min_std": densest_window, "histogram_peak": histogram_peak}


def fit_window(
    ordered: FloatArray,
    fraction: float,
    method: Method = "min_std",
) -> Window:
    """The window of sorted calibration scores, of one class or of all classes together.

    Fewer than two scores have no window, nor have ties so heavy that the densest window would hold more than
    ``fraction`` + 0.05 of the scores: the result then never discards.

    Args:
        ordered: Finite scores in ascending order, float64, shape (n,); n may be 0.
        fraction: Discard fraction p, in (0, 1).
        method: ``min_std`` (section III-A) or ``histogram_peak`` (Algorithm 1).

    References:
        DRIP paper, section III-A step 4; decisions A5 and A6.

    >>> window = fit_window(np.arange(100.0), 0.25)
    >>> window.lower, window.upper, window.calibration_discard
    (0.0, 24.0, 0.25)
    >>> fit_window(np.zeros(100), 0.25).never_because
    'ties: the window would hold 100.0 % of the scores, 25.0 % were asked for'
    """
    n = len(ordered)
    _, scale = mean_and_deviation(ordered)
    if n < 2:
        reason = f"too few calibration scores: {n}, the minimum is 2"
        return Window(inf, -inf, n, 0.0, 0.0, scale, reason)
    lower, upper, held = _ends(ordered, fraction, method)
    # The densest window exceeds its fraction only through ties, a histogram's also through the width of its bins.
    tied = held if method == "min_std" else _ends(ordered, fraction, "min_std")[2]
    if round(tied * n) > (Fraction(str(fraction)) + Fraction(str(TIE_EXCESS))) * n:
        reason = f"ties: the window would hold {tied:.1%} of the scores, {fraction:.1%} were asked for"
        return Window(inf, -inf, n, 0.0, 0.0, scale, reason.replace("%", " %"))
    expected = held
    if n > 2:
        # Ranks are assigned to the parts at random, so no part is a regular grid.
        part = np.random.default_rng(n).permutation(np.arange(n) % _N_PARTS)
        inside = n_fresh = 0
        for left_out in range(min(n, _N_PARTS) if n <= _MANY else 1):
            low, high, _ = _ends(ordered[part != left_out], fraction, method)
            fresh = ordered[part == left_out]
            inside, n_fresh = inside + _count_inside(fresh, low, high), n_fresh + len(fresh)
        expected = inside / n_fresh
    return Window(lower, upper, n, held, expected, scale)


def mean_and_deviation(ordered: FloatArray) -> tuple[float, float]:
    """Mean and population standard deviation of sorted scores; (0, 0) when there are none.

    Equal scores have exactly their value as mean and a deviation of exactly zero, and neither large
    offsets nor squares beyond the range of float64 spoil the digits.

    >>> mean_and_deviation(np.full(30, 0.1))
    (0.1, 0.0)
    """
    if not len(ordered):
        return 0.0, 0.0
    scaled, exponent = _scaled(ordered)
    anchor = scaled[len(scaled) // 2]
    distances = scaled - anchor
    return float(np.ldexp(anchor + distances.mean(), exponent)), float(np.ldexp(distances.std(), exponent))


def _scaled(ordered: FloatArray) -> tuple[FloatArray, int]:
    # A power of two brings the largest magnitude to [0.5, 1): exact, and squares neither overflow nor
    # vanish. What it pushes below the smallest float64 is far below the tie tolerance.
    exponent = int(np.frexp(max(abs(ordered[0]), abs(ordered[-1])))[1])
    return np.ldexp(ordered, -exponent), exponent


def _ends(ordered: FloatArray, fraction: float, method: Method) -> tuple[float, float, float]:
    start, stop = _METHODS[method](ordered, fraction)
    lower, upper = float(ordered[start]), float(ordered[stop - 1])
    return lower, upper, _count_inside(ordered, lower, upper) / len(ordered)


def _count_inside(ordered: FloatArray, lower: float, upper: float) -> int:
    return int(np.searchsorted(ordered, upper, side="right") - np.searchsorted(ordered, lower, side="left"))


def sort_by_class(
    scores: NDArray[np.floating], classes: NDArray[np.integer], n_classes: int
) -> list[FloatArray]:
    """The scores of each class in ascending order, one float64 array per class.

    Args:
        scores: Shape (n,), finite.
        classes: Predicted classes, shape (n,), in [0, n_classes).
        n_classes: Number of classes.

    Raises:
        InputError: shapes differ, a score is NaN or infinite, a class does not exist.

    >>> [part.tolist() for part in sort_by_class(np.array([3.0, 1.0, 2.0]), np.array([0, 0, 1]), 3)]
    [[1.0, 3.0], [2.0], []]
    """
    values, labels = check_scores(scores, classes, n_classes)
    # A stable sort of small integers is a counting sort in NumPy: one pass buckets all classes.
    small = labels.astype(np.uint8 if n_classes <= 256 else np.uint16 if n_classes <= 65_536 else np.int64)
    grouped = values[np.argsort(small, kind="stable")]
    parts = np.split(grouped, np.cumsum(np.bincount(labels, minlength=n_classes))[:-1])
    for part in parts:
        part.sort()
    return parts


def fit_windows(
    parts: Sequence[FloatArray],
    *,
    fraction: float,
    method: Method = "min_std",
    min_class_count: int = MIN_CLASS_COUNT,
) -> tuple[Window, ...]:
    """One :class:`Window` per class.

    A class with fewer than ``min_class_count`` scores has the pooled window. It never discards only if the
    scores of all classes together have no window either.

    Args:
        parts: Sorted scores of each class, from :func:`sort_by_class`.
        fraction: Discard fraction p (the paper's DPW), in (0, 1).
        method: ``min_std`` or ``histogram_peak``.
        min_class_count: A class with fewer scores has the pooled window; at least 0. Below 2 it acts as 2.

    Raises:
        InputError: any of these outside its range.

    References:
        DRIP paper, section III-A step 4f.
    """
    check_fraction("fraction", fraction)
    check_method(method)
    check_count("min_class_count", min_class_count)
    minimum = max(min_class_count, 2)
    pooled: Window | None = None
    windows = []
    for part in parts:
        if len(part) >= minimum:
            windows.append(fit_window(part, fraction, method))
            continue
        # Fitted on all scores, not only on those of the small classes: these may be a handful together.
        pooled = pooled or fit_window(pool(parts), fraction, method)
        windows.append(_of_small_class(pooled, len(part), minimum))
    return tuple(windows)


def pool(parts: Sequence[FloatArray]) -> FloatArray:
    """The scores of all classes together, in ascending order.

    >>> pool([np.array([1.0, 3.0]), np.array([2.0])]).tolist()
    [1.0, 2.0, 3.0]
    """
    return np.sort(np.concatenate(parts))


def _of_small_class(pooled: Window, n: int, minimum: int) -> Window:
    if pooled.discards:
        return replace(pooled, n=n, pooled=True)
    # Nothing is pooled where there is no window: the entry reads like any other that never discards.
    reason = f"too few calibration scores: {n}, the minimum is {minimum}; all classes together: "
    return replace(pooled, n=n, never_because=reason + str(pooled.never_because))


def complement(fraction: float) -> float:
    """One minus the number as printed: 0.3 for 0.7, where 1 - 0.7 is 0.30000000000000004.

    >>> complement(0.7)
    0.3
    """
    return float(1 - Fraction(str(fraction)))


def check_fraction(name: str, value: float) -> None:
    """Check that a fraction is in (0, 1).

    Raises:
        InputError: it is not.
    """
    if not is_real(value) or not 0 < value < 1:
        raise InputError(f"{name} must be in (0, 1), got {value!r}")


def is_real(value: object) -> bool:
    """Whether a value is a number, including NaN and infinity; ``True`` and ``"3"`` are not."""
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)


def check_method(method: str) -> None:
    """Check the name of a window method.

    Raises:
        InputError: it is unknown.
    """
    if not isinstance(method, str) or method not in _METHODS:
        raise InputError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")


def check_count(name: str, value: int) -> None:
    """Check that a value is an integer of at least 0.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name} must be an integer of at least 0, got {value!r}")


def check_scores(
    scores: NDArray[np.floating], classes: NDArray[np.integer], n_classes: int
) -> tuple[FloatArray, IntArray]:
    """The same scores as float64 and classes as int64, after checking them.

    Raises:
        InputError: shapes differ, a score is NaN or infinite, a class does not exist, or fewer than
            two classes.
    """
    if n_classes < 2:
        raise InputError(
            f"n_classes must be at least 2, got {n_classes!r}; a one-class model has nothing to contrast"
        )
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(classes)
    if values.ndim != 1 or labels.shape != values.shape:
        raise InputError(
            f"scores and classes must be one-dimensional and equally long, got shapes {values.shape} and "
            f"{labels.shape}"
        )
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"classes must be integers, got dtype {labels.dtype}; pass predicted class indices")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise InputError(f"scores must be finite, got {values[row]!r} in row {row}; quarantine that sample")
    if labels.size and (labels.min() < 0 or labels.max() >= n_classes):
        raise InputError(
            f"classes must be in [0, {n_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    return values, labels.astype(np.int64, copy=False)


def is_inside(scores: FloatArray, classes: IntArray, lower: FloatArray, upper: FloatArray) -> BoolArray:
    """True where a score lies in the closed window of its class: the sample is typical (eq. 9).

    This is the one place in Python that compares a score with its window. A class that never discards has
    the empty window from +inf to -inf.

    Args:
        scores: Shape (n,).
        classes: Predicted classes, shape (n,), in [0, n_classes).
        lower: Lower end of each class, shape (n_classes,).
        upper: Upper end of each class, shape (n_classes,).

    References:
        DRIP paper, section III-B, equation 9.
    """
    return (scores >= lower[classes]) & (scores <= upper[classes])


def windows_to_json(windows: Sequence[Window]) -> list[JsonObject]:
    """Windows as JSON, for the state of a rule; both ends are null for a class that never discards."""
    return [_window_to_json(window) for window in windows]


def _window_to_json(window: Window) -> JsonObject:
    content = asdict(window)
    if not window.discards:
        content["lower"] = content["upper"] = None
    # Written only where it is true: a policy without pooled windows keeps the digest that it always had.
    if not window.pooled:
        del content["pooled"]
    return content


def windows_from_json(parts: Sequence[JsonObject]) -> tuple[Window, ...]:
    """The windows of :func:`windows_to_json`."""
    if not isinstance(parts, list):
        raise TypeError(f"windows are {brief(parts)}, not a list")
    return tuple(_window(index, part) for index, part in enumerate(parts))


def _window(index: int, part: JsonObject) -> Window:
    keeps_all = part["never_because"] is not None
    name = f"window of class {index}"
    expect_types(
        name,
        part,
        **dict.fromkeys(("lower", "upper"), type(None) if keeps_all else float),
        **dict.fromkeys(("calibration_discard", "expected_discard", "scale"), float),
        n=int,
        never_because=str if keeps_all else type(None),
        **({"pooled": bool} if "pooled" in part else {}),
    )
    numbers = {key: float(part[key]) for key in ("calibration_discard", "expected_discard", "scale")}
    lower, upper = (inf, -inf) if keeps_all else (float(part["lower"]), float(part["upper"]))
    columns: JsonObject = {**part, **numbers, "lower": lower, "upper": upper}
    window = Window(**columns)
    if window.n < 0:
        raise ValueError(f"n of {name} is {window.n}")
    if keeps_all and window.pooled:
        raise ValueError(f"{name} is pooled and never discards")
    if not keeps_all and not -inf < window.lower <= window.upper < inf:
        raise ValueError(f"{name} is {window.lower} to {window.upper}")
    if not all(map(isfinite, numbers.values())):
        raise ValueError(f"{name} has {numbers}, which must be finite")
    return window
