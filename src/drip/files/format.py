"""Numbers as text: percentages, points, counts, bytes and times, each with its unit; NaN is ``n/a``."""

from __future__ import annotations

from math import floor, isfinite, log10, nan

MISSING = "n/a"
_MINUS = "\u2212"


def ratio(part: float, whole: float) -> float:
    """``part / whole``, NaN when ``whole`` is 0.

    >>> ratio(1, 4), ratio(0, 0)
    (0.25, nan)
    """
    return part / whole if whole else nan


def percent(value: float, digits: int = 1) -> str:
    """A ratio as a percentage.

    >>> percent(0.6143), percent(0.9725, 2), percent(float("nan"))
    ('61.4 %', '97.25 %', 'n/a')
    """
    return f"{100 * value:.{digits}f} %" if isfinite(value) else MISSING


def points(difference: float, *, signed: bool = True) -> str:
    """A difference of two ratios in percentage points, with two digits; a zero has no sign.

    >>> points(0.0123), points(0.0123, signed=False), points(-0.00001), points(float("nan"))
    ('+1.23 points', '1.23 points', '0.00 points', 'n/a')
    """
    if not isfinite(difference):
        return MISSING
    digits = f"{abs(100 * difference):.2f}"
    sign = "" if not signed or float(digits) == 0 else _MINUS if difference < 0 else "+"
    return f"{sign}{digits} points"


def count(number: int) -> str:
    """A count with thousands separated.

    >>> count(12000)
    '12,000'
    """
    return f"{number:,}"


def byte_size(n_bytes: int) -> str:
    """A size in decimal units, three significant digits.

    >>> byte_size(999), byte_size(1_234_567), byte_size(45_600_000), byte_size(7_000_000_000_000)
    ('999 B', '1.23 MB', '45.6 MB', '7.00 TB')
    """
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{n_bytes} B" if unit == "B" else f"{significant(size)} {unit}"
        size /= 1000.0
    return f"{significant(size)} TB"


def seconds(value: float) -> str:
    """A duration in seconds.

    >>> seconds(12.345), seconds(float("nan"))
    ('12.3 s', 'n/a')
    """
    return f"{value:,.1f} s" if isfinite(value) else MISSING


def significant(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, in exponent form only if it is tiny or huge.

    >>> significant(0.041259), significant(12.345), significant(1234.5), significant(0.0)
    ('0.0413', '12.3', '1,234', '0')
    >>> significant(1.5e-9), significant(float("inf"))
    ('1.50e\u221209', 'n/a')
    """
    if not isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = floor(log10(abs(value)))
    if not -5 < magnitude < 9:
        text = f"{value:.{digits - 1}e}"
    else:
        text = f"{value:,.{max(digits - 1 - magnitude, 0)}f}"
    return text.replace("-", _MINUS)
