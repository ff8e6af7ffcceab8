"""What a rule needs to hold a rate: quantiles of recent scores, a controller, class quotas."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, expm1, inf, isfinite
from typing import Self

import numpy as np

from drip.errors import InputError
from drip.rules.state import count, number, numbers, packed, unpacked
from drip.types import FloatArray, JsonObject
from drip.windows import check_fraction, is_real


class RunningQuantile:
    """The last ``window`` values, in order of arrival and in order of size.

    Args:
        window: Number of values to hold, at least 1.
        values: Initial values, the oldest first; only the last ``window`` are used.

    Complexity: one search and one insertion into a list of ``window`` numbers per value.

    >>> quantile = RunningQuantile(3, [5.0, 1.0, 2.0, 3.0])
    >>> quantile.values, quantile.rank(2.5), quantile.limit(1 / 3)
    ([1.0, 2.0, 3.0], 0.6666666666666666, 3.0)
    """

    def __init__(self, window: int, values: Iterable[float] = ()) -> None:
        if window < 1:
            raise InputError(f"window must be at least 1, got {window!r}")
        self._window = window
        self._slots = list(values)[-window:]
        self._oldest = 0  # slots, not a queue: few bytes of a saved state change per value
        self._ordered = sorted(self._slots)
        if not all(map(isfinite, self._ordered)):
            raise InputError("the values of a running quantile must be finite, got NaN or infinity")

    @classmethod
    def spread(cls, window: int, values: FloatArray) -> Self:
        """A full window of values, evenly spaced over the ranks of a sample.

        Their order is mixed (with a fixed seed), so the first values to leave are not one tail of the sample.

        Args:
            window: Number of values to hold.
            values: The sample, shape (n,), n at least 1.
        """
        taken = np.sort(values)[np.linspace(0, len(values) - 1, window).round().astype(np.int64)]
        mixed = np.random.Generator(np.random.PCG64(0)).permutation(window)
        return cls(window, taken[mixed].tolist())

    def __len__(self) -> int:
        """Number of held values."""
        return len(self._ordered)

    @property
    def values(self) -> list[float]:
        """The values, the oldest first."""
        return self._slots[self._oldest :] + self._slots[: self._oldest]

    @property
    def ordered(self) -> FloatArray:
        """The values in ascending order."""
        return np.array(self._ordered)

    def state(self) -> JsonObject:
        """The values in their slots, and which is the oldest."""
        return {"values": packed(np.array(self._slots), "<f8"), "oldest": self._oldest}

    @classmethod
    def restored(cls, window: int, state: JsonObject, *, n_values: int | None = None) -> Self:
        """Continue from a saved :meth:`state`.

        Args:
            window: Number of values to hold.
            state: What was saved.
            n_values: Expected number of values; None accepts up to ``window``.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged.
        """
        values = unpacked("values", state["values"], n_values, dtype="<f8")
        oldest = count("oldest", state["oldest"])
        if len(values) > window or oldest >= (window if len(values) == window else 1):
            raise ValueError(f"the window holds {window} values, got {len(values)} and oldest={oldest}")
        quantile = cls(window, values.tolist())
        quantile._oldest = oldest
        return quantile

    def add(self, value: float) -> None:
        """Add a finite value; it replaces the oldest when the window is full."""
        if len(self._slots) == self._window:
            del self._ordered[bisect_left(self._ordered, self._slots[self._oldest])]
            self._slots[self._oldest] = value
            self._oldest = (self._oldest + 1) % self._window
        else:
            self._slots.append(value)
        insort(self._ordered, value)

    def rank(self, value: float) -> float:
        """Part of the held values below ``value``, ties counted half; 0.5 without values."""
        if not self._ordered:
            return 0.5
        below = bisect_left(self._ordered, value)
        return 0.5 * (below + bisect_right(self._ordered, value)) / len(self._ordered)

    def limit(self, share: float) -> float:
        """The threshold that ``share`` of the held values reach; infinite for a share of zero.

        Args:
            share: In [0, 1]; the number of values that reach the threshold is rounded half up.
        """
        count = int(share * len(self._ordered) + 0.5)
        return self._ordered[-count] if count else float("inf")


_TIME_CONSTANT = 20
_CREDIT_ARRIVALS = 200
_INTERVAL_ARRIVALS = 200
_LONGEST = 3.0 * _INTERVAL_ARRIVALS
_FIRST = 3
_SECONDS = {"samples_per_hour": 3600.0, "bytes_per_day": 86400.0}


@dataclass(frozen=True)
class Target:
    """The target of a controller; exactly one of the three is set.

    Attributes:
        retention: Keep rate, in (0, 1).
        samples_per_hour: Samples, above 0.
        bytes_per_day: Encoded bytes, above 0.

    Raises:
        InputError: none or several are set, or one is out of range.

    >>> Target(samples_per_hour=60).params
    {'samples_per_hour': 60}
    """

    retention: float | None = None
    samples_per_hour: float | None = None
    bytes_per_day: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers once, at the boundary."""
        if len(self.params) != 1:
            raise InputError(
                f"give exactly one of retention, samples_per_hour and bytes_per_day, got {self.params}",
                code="rule-arguments",
            )
        ((name, value),) = self.params.items()
        if name == "retention":
            check_fraction(name, value)
        elif not is_real(value) or not 0 < value < inf:
            raise InputError(f"{name} must be a number above 0, got {value!r}")

    @property
    def params(self) -> JsonObject:
        """The set target by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class RateController:
    r"""Integral control of the keep rate: says which part of the next arrivals a rule should keep.

    The credit is :math:`c_t = \sum_{i \le t} (r_i - k_i)`: what should have been kept minus what was kept. The
    share for the next arrival is :math:`r + c_t / 20`, clipped to [0, 1], so a constant error of the rule's
    threshold is corrected within a few hundred arrivals. The credit is bounded by 200 arrivals' worth, or one
    sample if that is more: after a pause or a burst the controller does not overcompensate.

    For a target in bytes the credit is in bytes and converted with the mean size of a sample. A single file
    larger than the bound is paid back in full, up to a day's bytes.

    A target per time needs observations with a time. The share is the target divided by the arrivals, both
    per second, from the mean interval (and size) of about the last 200 arrivals. It starts with the median of
    the first three intervals, because a clock may be set after the first sample. A clock that jumps back
    counts as zero time, and a single interval as at most 600 mean ones. A jump therefore at most quadruples
    the mean, and a pause after a burst of up to 270 arrivals still counts in full.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._share = target.retention or 0.5
        self._credit = 0.0
        self._last_time: float | None = None
        self._first: list[float] = []
        self._interval: float | None = None
        self._size: float | None = None

    @property
    def needs_time(self) -> bool:
        """Whether observations need a time."""
        return self._target.retention is None

    @property
    def target_share(self) -> float:
        """The target as a part of the present arrivals, in (0, 1]."""
        return self._share

    def share(self, time_s: float | None = None, n_bytes: int = 0) -> float:
        """The part of arrivals like this one to keep, in [0, 1]; call it once per arrival.

        Args:
            time_s: Time of the observation in seconds; used by targets per time.
            n_bytes: Its encoded size; used by targets in bytes.

        Raises:
            InputError: a target per time, but the observation has no time.
        """
        if self._target.retention is None:
            self._follow(time_s, n_bytes)
        # Added before the decision, so the first arrival may already be kept.
        self._credit = min(self._credit + self._share * self._unit, self._most_credit)
        return min(max(self._share + (self._credit / self._unit - self._share) / _TIME_CONSTANT, 0.0), 1.0)

    def kept(self, n_bytes: int = 0) -> None:
        """Report that the arrival of the last :meth:`share` was kept."""
        per_day = self._target.bytes_per_day
        cost = 1.0 if per_day is None else min(float(n_bytes), per_day)
        # A debt beyond the bound stays until it is paid back: clipping it would give the bytes away.
        least = min(self._credit, -max(self._most_credit, cost))
        self._credit = max(self._credit - cost, least)

    @property
    def _unit(self) -> float:
        """Credit of a sample of mean size: its bytes for a target in bytes, else 1."""
        return 1.0 if self._target.bytes_per_day is None else max(self._size or 0.0, 1.0)

    @property
    def _most_credit(self) -> float:
        return max(_CREDIT_ARRIVALS * self._share, 1.0) * self._unit

    def state(self) -> JsonObject:
        """Share, credit and, for a target per time, the clock."""
        return {
            "share": self._share,
            "credit": self._credit,
            "last_time": self._last_time,
            "first": self._first,
            "interval": self._interval,
            "size": self._size,
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        self._share, self._credit = number("share", state["share"]), number("credit", state["credit"])
        self._last_time, self._interval, self._size = (
            None if state[name] is None else number(name, state[name])
            for name in ("last_time", "interval", "size")
        )
        self._first = numbers("first", state["first"], None).tolist()
        if (len(self._first) == _FIRST) != (self._interval is not None):
            raise ValueError("the mean interval must be set once the first intervals are known")
        if not 0 <= self._share <= 1 or min(self._interval or 0, self._size or 0) < 0:
            raise ValueError("share must be in [0, 1], interval and size at least 0")

    def _follow(self, time_s: float | None, n_bytes: int) -> None:
        """Update the share with the rate of arrivals."""
        if time_s is None:
            raise InputError(
                f"the target {self._target.params} needs samples with a time, but this one has no time",
                code="rule-needs",
            )
        if self._last_time is not None:
            # A clock that jumps back gives a negative interval; zero is the closest true statement.
            self._interval = self._mean_interval(max(time_s - self._last_time, 0.0))
        self._last_time = time_s
        self._size = _smoothed(self._size, float(n_bytes))
        if self._interval:
            ((name, value),) = self._target.params.items()
            per_second = value / _SECONDS[name]
            self._share = min(per_second / self._unit * self._interval, 1.0)

    def _mean_interval(self, elapsed: float) -> float | None:
        if len(self._first) < _FIRST:
            self._first = [*self._first, elapsed]
            return sorted(self._first)[_FIRST // 2] if len(self._first) == _FIRST else None
        longest = _LONGEST * self._interval if self._interval else elapsed
        return _smoothed(self._interval, min(elapsed, longest))


def _smoothed(mean: float | None, value: float) -> float:
    """Exponential moving mean over about 200 arrivals; the first value starts it."""
    return value if mean is None else mean + (value - mean) * -expm1(-1 / _INTERVAL_ARRIVALS)


_MEMORY = 1000


class ClassShares:
    r"""Counts recent arrivals and kept samples of every predicted class, for floors and ceilings.

    Both are weighted by :math:`e^{-a/1000}` with their age a in arrivals. A class is below its floor when it
    is at least one sample short of ``floor`` times the target; it is above its ceiling when it has more than
    ``ceiling`` of all kept samples.

    Args:
        n_classes: Number of classes.
        floor: Part of the target that every class gets, in [0, 1]; 0 for none.
        ceiling: Largest part of the kept samples that one class may have, in (0, 1]; 1 for none.
    """

    def __init__(self, n_classes: int, floor: float = 0.25, ceiling: float = 1.0) -> None:
        if not is_real(floor) or not 0 <= floor <= 1:
            raise InputError(f"floor must be in [0, 1], got {floor!r}")
        if not is_real(ceiling) or not 0 < ceiling <= 1:
            raise InputError(f"ceiling must be in (0, 1], got {ceiling!r}")
        self._floor, self._ceiling = floor, ceiling
        self._arrived = np.zeros(n_classes)
        self._kept = np.zeros(n_classes)

    def arrived(self, predicted_class: int) -> None:
        """Count an arrival of a class."""
        # Forget before counting, so the newest arrival has weight one.
        self._arrived *= exp(-1 / _MEMORY)
        self._kept *= exp(-1 / _MEMORY)
        self._arrived[predicted_class] += 1

    def kept(self, predicted_class: int) -> None:
        """Count a kept sample of a class."""
        self._kept[predicted_class] += 1

    def below_floor(self, predicted_class: int, share: float) -> bool:
        """Whether a class is below its floor at this target."""
        due = self._floor * share * self._arrived[predicted_class] - self._kept[predicted_class]
        return bool(due >= 1)

    def above_ceiling(self, predicted_class: int) -> bool:
        """Whether a class has too large a part of the kept samples; False before there are 20."""
        total = self._kept.sum()
        enough = 20
        return bool(total >= enough and self._kept[predicted_class] > self._ceiling * total)

    def state(self) -> JsonObject:
        """The two counts of every class."""
        return {
            "n_classes": len(self._arrived),
            "arrived": packed(self._arrived, "<f8"),
            "kept": packed(self._kept, "<f8"),
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`."""
        n_classes = count("n_classes", state["n_classes"])
        arrived, kept = (unpacked(name, state[name], n_classes, dtype="<f8") for name in ("arrived", "kept"))
        if (arrived < 0).any() or (kept < 0).any():
            raise ValueError("arrived and kept must be counts, got a negative one")
        self._arrived, self._kept = arrived, kept
