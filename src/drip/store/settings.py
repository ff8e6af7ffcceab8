"""What a store remembers of how it was opened, so that a later opening need not repeat it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Self, cast

from drip.errors import InputError, StoreError
from drip.files import canonical_json
from drip.store.eviction import EVICTIONS, Eviction
from drip.types import JsonObject

DEFAULT_AUDIT_ROWS = 100_000
ORIGIN = "origin "
"""Beginning of the names under which the origins of policies are remembered, beside the settings."""
_MAX_ORIGIN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """The persistent part of the constructor's arguments; see :class:`drip.store.RetentionStore`."""

    budget_bytes: int
    log_bytes: int | None
    eviction: Eviction
    audit_rows: int
    audit_logits: bool

    @classmethod
    def load(cls, cursor: sqlite3.Cursor) -> Self:
        """Read the remembered settings."""
        rows = dict(cursor.execute("SELECT name, value FROM settings").fetchall())
        log_bytes = rows["log_bytes"]
        return cls(
            budget_bytes=int(rows["budget_bytes"]),
            log_bytes=int(log_bytes) if log_bytes else None,
            eviction=cast("Eviction", rows["eviction"]),
            audit_rows=int(rows["audit_rows"]),
            audit_logits=rows["audit_logits"] == "1",
        )

    def save(self, cursor: sqlite3.Cursor) -> None:
        """Remember the settings, in the current transaction."""
        for column in fields(self):
            value = getattr(self, column.name)
            text = "" if value is None else str(int(value) if isinstance(value, bool) else value)
            cursor.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (column.name, text))


def encode_origin(origin: JsonObject) -> str:
    """The origin of a policy as the text that is remembered.

    Raises:
        InputError: no object of JSON, or more than 4096 bytes of it.

    >>> encode_origin({"score": "drip"})
    '{"score":"drip"}'
    """
    try:
        text = canonical_json(dict(origin)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"origin must be an object of JSON with finite numbers, got one where {error}; convert it"
        raise InputError(message) from error
    if len(text) > _MAX_ORIGIN_BYTES:
        message = f"origin must have at most {_MAX_ORIGIN_BYTES} bytes of JSON, got {len(text)}; shorten it"
        raise InputError(message)
    return text


def merge(
    known: Settings | None,
    *,
    path: object,
    budget_bytes: int | None,
    log_bytes: int | None,
    eviction: Eviction | None,
    audit_rows: int | None,
    audit_logits: bool | None,
) -> Settings:
    """The asked settings, filled up from the remembered ones or the defaults.

    Raises:
        InputError: a value outside its range.
        StoreError: a new store without a budget.
    """
    if budget_bytes is None and known is None:
        message = f"budget_bytes is needed to create {path}, got None; say how many bytes it may take on disk"
        raise StoreError(message)
    for name, number in (
        ("budget_bytes", budget_bytes),
        ("log_bytes", log_bytes),
        ("audit_rows", audit_rows),
    ):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            message = f"{name} must be a positive integer, got {number!r}"
            raise InputError(message)
    if eviction is not None and eviction not in EVICTIONS:
        message = f"eviction must be one of {EVICTIONS}, got {eviction!r}"
        raise InputError(message)
    base = known or Settings(0, None, "priority", DEFAULT_AUDIT_ROWS, audit_logits=True)
    return Settings(
        budget_bytes=base.budget_bytes if budget_bytes is None else budget_bytes,
        # A log's share that was chosen for another budget is chosen anew with the budget.
        log_bytes=log_bytes if log_bytes is not None or budget_bytes is not None else base.log_bytes,
        eviction=eviction or base.eviction,
        audit_rows=audit_rows or base.audit_rows,
        audit_logits=base.audit_logits if audit_logits is None else audit_logits,
    )
