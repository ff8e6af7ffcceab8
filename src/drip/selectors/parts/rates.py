"""Holding a rate of retention: which share of the arrivals to keep next, from what was kept so far."""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, inf

from drip.errors import InputError
from drip.selectors.states import number, numbers
from drip.thresholds import check_fraction, is_real
from drip.types import JsonObject

_TIME_CONSTANT = 20
_CREDIT_ARRIVALS = 200
_INTERVAL_ARRIVALS = 200
_LONGEST = 3.0 * _INTERVAL_ARRIVALS
_FIRST = 3
_SECONDS = {"samples_per_hour": 3600.0, "bytes_per_day": 86400.0}


@dataclass(frozen=True)
class Target:
    """What a controller aims at; exactly one of the three is set.

    Attributes:
        retention: Share of the arrivals, in (0, 1).
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
        """Check the numbers once, where they come in."""
        if len(self.params) != 1:
            raise InputError(
                f"exactly one of retention, samples_per_hour and bytes_per_day is needed, got {self.params}"
            )
        ((name, value),) = self.params.items()
        if name == "retention":
            check_fraction(name, value)
        elif not is_real(value) or not 0 < value < inf:
            raise InputError(f"{name} must be a number above 0, got {value!r}")

    @property
    def params(self) -> JsonObject:
        """What is set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class RateController:
    r"""Integral control of the share of the next arrivals that a rule should keep.

    With the credit :math:`c_t = \sum_{i \le t} (r_i - k_i)`, what should have been kept minus what was, the
    share for the next arrival is :math:`r + c_t / 20`, cut to [0, 1]. A constant error of the rule's limit
    is so paid back within some hundreds of arrivals. The credit is bounded by what 200 arrivals are worth,
    or by one sample where that is more: a pause or a flood is not made good by keeping everything, or
    nothing, for hours.

    For a target in bytes the credit is in bytes, and counts in the formula as so many samples of mean size.
    A file that takes more than the bound is paid back in full, up to a day's bytes.

    A target per time needs observations with a time. The share is the target over what arrives, both per
    second, from the mean interval (and bytes) of about the last 200 arrivals; it starts with the middle one
    of the first three, as a clock may be set after the first sample. A clock that jumps back counts as no
    time; a single interval counts as at most 600 mean ones. So a jump makes the mean four times as long at
    most, and a pause after a burst of up to 270 arrivals counts in full.

    Args:
        target: What to aim at.
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
        """Whether observations must have a time."""
        return self._target.retention is None

    @property
    def target_share(self) -> float:
        """Share of the arrivals that the target means at present, in (0, 1]."""
        return self._share

    def share(self, time_s: float | None = None, n_bytes: int = 0) -> float:
        """The share of arrivals like this one to keep, in [0, 1]; called once for every arrival.

        Args:
            time_s: Time of the observation in seconds; only a target per time reads it.
            n_bytes: Its encoded size; only a target in bytes reads it.

        Raises:
            InputError: a target per time and no time.
        """
        if self._target.retention is None:
            self._follow(time_s, n_bytes)
        self._credit = min(self._credit + self._share * self._unit, self._most_credit)
        return min(max(self._share + (self._credit / self._unit - self._share) / _TIME_CONSTANT, 0.0), 1.0)

    def kept(self, n_bytes: int = 0) -> None:
        """The arrival of the last :meth:`share` was kept."""
        per_day = self._target.bytes_per_day
        cost = 1.0 if per_day is None else min(float(n_bytes), per_day)
        least = min(self._credit, -max(self._most_credit, cost))
        self._credit = max(self._credit - cost, least)

    @property
    def _unit(self) -> float:
        """What a sample of mean size counts: its bytes for a target in bytes, else 1."""
        return 1.0 if self._target.bytes_per_day is None else max(self._size or 0.0, 1.0)

    @property
    def _most_credit(self) -> float:
        return max(_CREDIT_ARRIVALS * self._share, 1.0) * self._unit

    def state(self) -> JsonObject:
        """Share, credit, and for a target per time the clock."""
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
            raise ValueError("the mean interval must come from the first ones")
        if not 0 <= self._share <= 1 or min(self._interval or 0, self._size or 0) < 0:
            raise ValueError("share must be in [0, 1], interval and size at least 0")

    def _follow(self, time_s: float | None, n_bytes: int) -> None:
        """Bring the share up to date with the rate of arrivals."""
        if time_s is None:
            raise InputError(f"a target of {self._target.params} needs samples with a time, got one without")
        if self._last_time is not None:
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
    """Exponential mean over about the last arrivals; the first value starts it."""
    return value if mean is None else mean + (value - mean) * -expm1(-1 / _INTERVAL_ARRIVALS)
