"""What a store remembers of how it was opened, so that a later opening need not repeat it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, fields
from typing import Self, cast

from drip.errors import InputError, StoreError
from drip.files import canonical_json
from drip.store import codec
from drip.store.budget import PUT_FRAMES, Layout
from drip.store.eviction import EVICTIONS, Eviction
from drip.types import JsonObject, Progress

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


_CURSOR_STEP = 64
_BLOCK = 256  # of the row, not of the file: below any page
_TEXTS = ("cursor", "selector_state")
_STORED = "SELECT cursor, selector_state, digest FROM progress JOIN policies ON policies.id = policy"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """Cursor and selector's state as ASCII texts of JSON, and the digest of the policy."""

    cursor: str
    selector_state: str
    policy_digest: str

    @classmethod
    def of(cls, progress: Progress) -> Self:
        """The texts of a progress.

        Raises:
            InputError: a cursor that is no text, or a state that is no JSON.
        """
        codec.text_bytes("cursor", progress.cursor or "")
        cursor = json.dumps(progress.cursor)
        return cls(
            cursor.ljust(-(-len(cursor) // _CURSOR_STEP) * _CURSOR_STEP),
            codec.steady_json("selector_state", progress.rule_state),
            progress.policy_digest,
        )

    @classmethod
    def stored(cls, cursor: sqlite3.Cursor) -> Self | None:
        """The texts in the file, None before the first save."""
        row = cursor.execute(_STORED).fetchone()
        return None if row is None else cls(*row)

    @property
    def progress(self) -> Progress:
        """What the texts say.

        Raises:
            StoreError: something has damaged them.
        """
        try:
            cursor, state = json.loads(self.cursor), json.loads(self.selector_state)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the saved progress must be JSON, got damage: {error}; run check(), restore a copy"
            raise StoreError(message) from error
        return Progress(cursor, state, self.policy_digest)

    @property
    def n_bytes(self) -> int:
        """Length of both texts."""
        return len(self.cursor) + len(self.selector_state)

    def spans_from(self, old: ProgressRow) -> dict[str, list[Span]] | None:
        """Places of each text that differ from ``old``'s; None where a length in bytes or the policy does."""
        if old.policy_digest != self.policy_digest:
            return None
        spans = {}
        for name in _TEXTS:
            before, now = getattr(old, name), getattr(self, name)
            if len(before) != len(now) or not before.isascii():  # as a file of version 2 may have it
                return None
            spans[name] = changed_spans(before, now)
        return spans

    def overwrite(self, connection: sqlite3.Connection, spans: dict[str, list[Span]]) -> None:
        """Write the places that :meth:`spans_from` found."""
        for name, places in spans.items():
            text = getattr(self, name)
            with connection.blobopen("progress", name, 1) as blob:
                for start, end in places:
                    blob[start:end] = text[start:end].encode()

    def replace(self, cursor: sqlite3.Cursor, policy: int) -> None:
        """Write the row anew."""
        # Not INSERT OR REPLACE, which takes the new row's pages before it gives up the old one's.
        cursor.execute("DELETE FROM progress")
        cursor.execute("INSERT INTO progress VALUES (1, ?, ?, ?)", (policy, self.cursor, self.selector_state))


def changed_spans(before: str, now: str) -> list[Span]:
    """Start and end of the places in which two equally long texts differ, in whole blocks.

    >>> changed_spans("a" * 600, "a" * 300 + "b" * 300)
    [(256, 600)]
    """
    spans: list[Span] = []
    for start in range(0, len(now), _BLOCK):
        end = min(start + _BLOCK, len(now))
        if before[start:end] != now[start:end]:
            first = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((first, end))
    return spans


def frames_of(spans: dict[str, list[Span]], layout: Layout) -> int:
    """Pages that writing these places changes at most."""
    places = [place for each in spans.values() for place in each]
    return PUT_FRAMES + sum(layout.pages_of(end - start) for start, end in places)
