"""A log of the changes that a rule made to itself."""

from __future__ import annotations

from collections.abc import Iterator

from drip.rules.state import count, number
from drip.types import JsonObject

_LENGTH = 32


class AdaptationLog:
    """The last 32 changes.

    Args:
        kinds: What may change.

    >>> log = AdaptationLog(("limit", "distribution-shift"))
    >>> log.note(7, "limit", 0.5)
    >>> log.last("limit"), log.entries
    (0.5, [{'arrival': 7, 'what': 'limit', 'value': 0.5}])
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._kinds = kinds
        self._slots: list[tuple[int, int, float]] = []  # arrival, number of the kind, value
        self._oldest = 0

    @property
    def entries(self) -> list[JsonObject]:
        """The changes, the oldest first: ``arrival``, ``what`` changed, its new ``value``."""
        return [
            {"arrival": arrival, "what": self._kinds[kind], "value": value}
            for arrival, kind, value in reversed(list(self._newest_first()))
        ]

    def last(self, what: str) -> float:
        """The last value of one kind; 0 without any."""
        wanted = self._kinds.index(what)
        return next((value for _, kind, value in self._newest_first() if kind == wanted), 0.0)

    def note(self, arrival: int, what: str, value: float) -> None:
        """Add a change; when the log is full it replaces the oldest."""
        entry = (arrival, self._kinds.index(what), value)
        if len(self._slots) < _LENGTH:
            self._slots.append(entry)
        else:
            self._slots[self._oldest] = entry
            self._oldest = (self._oldest + 1) % _LENGTH

    def state(self) -> JsonObject:
        """The changes in their slots, empty ones included: a state of constant length costs a store less."""
        slots = [list(slot) for slot in self._slots]
        return {"slots": slots + [[None] * 3] * (_LENGTH - len(slots)), "oldest": self._oldest}

    def restore(self, state: JsonObject) -> None:
        """Continue from a saved :meth:`state`.

        Raises:
            KeyError, TypeError, ValueError: the state is damaged.
        """
        given, empty = state["slots"], [None] * 3
        if not isinstance(given, list) or len(given) != _LENGTH:
            raise TypeError(f"slots must be a list of {_LENGTH}")
        n_slots = given.index(empty) if empty in given else _LENGTH
        if given[n_slots:] != [empty] * (_LENGTH - n_slots):
            raise ValueError("the empty slots must come last")
        slots = [
            (count("arrival", arrival), count("kind", kind), number("value", value))
            for arrival, kind, value in given[:n_slots]
        ]
        oldest = count("oldest", state["oldest"])
        if oldest >= (_LENGTH if n_slots == _LENGTH else 1):
            raise ValueError(f"oldest must be one of {n_slots} slots, got {oldest}")
        if any(kind >= len(self._kinds) for _, kind, _ in slots):
            raise ValueError(f"kinds must be numbers below {len(self._kinds)}")
        self._slots, self._oldest = slots, oldest

    def _newest_first(self) -> Iterator[tuple[int, int, float]]:
        yield from reversed(self._slots[: self._oldest])
        yield from reversed(self._slots[self._oldest :])
