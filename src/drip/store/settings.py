"""What a store remembers besides samples: its settings, the origin of scores, and the progress of a run."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass, fields
from typing import Self, cast

from drip.errors import InputError, StoreError
from drip.files import canonical_json
from drip.store import codec
from drip.store.budget import PUT_FRAMES, Layout
from drip.store.eviction import EVICTIONS, Eviction
from drip.store.records import Origin
from drip.types import Progress

DEFAULT_AUDIT_ROWS = 100_000

_ORIGIN_NAME = "origin "  # begins the names of the rows that hold origins, in the table of the settings
_MAX_ORIGIN_BYTES = 4096
_FIND_ORIGINS = "SELECT name, value FROM settings WHERE substr(name, 1, ?) = ?"

_FIND_PROGRESS = "SELECT cursor, selector_state, digest FROM progress JOIN policies ON policies.id = policy"
_PROGRESS_COLUMNS = ("cursor", "selector_state")
# Texts are compared in blocks of the row, not of the file: smaller than any page, so each changed block
# costs at most two pages.
_BLOCK = 256
# Cursors are padded to a multiple of this, since a row can only be overwritten in place at equal length.
_CURSOR_STEP = 64

Span = tuple[int, int]


# -- settings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of :meth:`drip.store.RetentionStore.open` that the file remembers."""

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
            # bool first: str(True) would be "True", and load() reads "1".
            text = "" if value is None else str(int(value) if isinstance(value, bool) else value)
            cursor.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (column.name, text))


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
    """The given settings; each None is replaced with the saved value, or else with the default.

    Raises:
        InputError: a value outside its range.
        StoreError: a new store without a budget.
    """
    if budget_bytes is None and known is None:
        message = f"{path} does not exist; check the path, or give budget_bytes to create a store"
        raise StoreError(message, code="store-missing")
    for name, number in (
        ("budget_bytes", budget_bytes),
        ("log_bytes", log_bytes),
        ("audit_rows", audit_rows),
    ):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            message = f"{name}={number!r} is not a positive integer"
            raise InputError(message)
    if eviction is not None and eviction not in EVICTIONS:
        message = f"eviction={eviction!r} does not exist; choose one of {', '.join(EVICTIONS)}"
        raise InputError(message)
    base = known or Settings(0, None, "priority", DEFAULT_AUDIT_ROWS, audit_logits=True)
    return Settings(
        budget_bytes=base.budget_bytes if budget_bytes is None else budget_bytes,
        # A new budget recomputes the log's share: one chosen for another budget may not even fit.
        log_bytes=log_bytes if log_bytes is not None or budget_bytes is not None else base.log_bytes,
        eviction=eviction or base.eviction,
        audit_rows=audit_rows or base.audit_rows,
        audit_logits=base.audit_logits if audit_logits is None else audit_logits,
    )


# -- origins -----------------------------------------------------------------------------------------------
# Origins share the table of the settings, because a separate table would change the file format. Nothing
# outside these three functions knows about it.


def encode_origin(origin: Origin) -> str:
    """An origin as JSON.

    Raises:
        InputError: values that JSON does not have, or more than 4096 bytes.

    >>> encode_origin(Origin(("ab12",), {"method": "drip"}))
    '{"model_digests":["ab12"],"score":{"method":"drip"}}'
    """
    try:
        text = canonical_json(
            {
                name: value
                for name, value in asdict(origin).items()
                if value or name not in {"family", "class_names"}
            }
        ).decode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"origin has a value that JSON cannot represent ({error}); use text and finite numbers"
        raise InputError(message) from error
    if len(text) > _MAX_ORIGIN_BYTES:
        message = f"origin has {len(text)} bytes of JSON, more than {_MAX_ORIGIN_BYTES}; shorten it"
        raise InputError(message)
    return text


def write_origin(cursor: sqlite3.Cursor, policy_digest: str, text: str) -> None:
    """Save the text of :func:`encode_origin`, in the current transaction."""
    row = (f"{_ORIGIN_NAME}{policy_digest}", text)
    cursor.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", row)


def read_origins(cursor: sqlite3.Cursor) -> dict[str, Origin]:
    """The saved origins, by policy digest.

    Raises:
        StoreError: an origin is damaged.
    """
    rows = cursor.execute(_FIND_ORIGINS, (len(_ORIGIN_NAME), _ORIGIN_NAME)).fetchall()
    origins = {}
    for name, text in rows:
        digest = name.removeprefix(_ORIGIN_NAME)
        try:
            facts = json.loads(text)
            origins[digest] = Origin(
                tuple(facts.get("model_digests", ())),
                dict(facts.get("score", {})),
                str(facts.get("family", "")),
                tuple(map(str, facts.get("class_names", ()))),
            )
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            message = (
                f"the origin of policy {digest[:12]!r} is damaged ({error}); restore a copy of the store"
            )
            raise StoreError(message, code="store-damaged") from error
    return origins


# -- progress ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """A progress as stored in the file: cursor and rule state as ASCII JSON, and the digest of the policy.

    Progress is saved with every batch and some rule states are large. So the texts keep their length when
    only numbers change, and :meth:`overwrite` writes just the blocks that differ.
    """

    cursor: str
    selector_state: str  # the column's name in the file
    policy_digest: str

    @classmethod
    def of(cls, progress: Progress) -> Self:
        """Encode a progress.

        Raises:
            InputError: a cursor that is not text, or a state that JSON does not have.
        """
        codec.text_bytes("cursor", progress.cursor or "")
        cursor = json.dumps(progress.cursor)
        return cls(
            cursor.ljust(-(-len(cursor) // _CURSOR_STEP) * _CURSOR_STEP),
            codec.steady_json("rule_state", progress.rule_state),
            progress.policy_digest,
        )

    @classmethod
    def stored(cls, cursor: sqlite3.Cursor) -> Self | None:
        """The row in the file, None before the first save."""
        row = cursor.execute(_FIND_PROGRESS).fetchone()
        return None if row is None else cls(*row)

    @property
    def progress(self) -> Progress:
        """The progress that the texts encode.

        Raises:
            StoreError: the texts are damaged.
        """
        try:
            cursor, state = json.loads(self.cursor), json.loads(self.selector_state)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the saved progress is damaged ({error}); run check(), or restore a copy"
            raise StoreError(message, code="store-damaged") from error
        return Progress(cursor, state, self.policy_digest)

    @property
    def n_bytes(self) -> int:
        """Length of both texts."""
        return len(self.cursor) + len(self.selector_state)

    def spans_from(self, old: ProgressRow) -> dict[str, list[Span]] | None:
        """Places of each text that differ from ``old``; None where the row cannot be overwritten in place."""
        if old.policy_digest != self.policy_digest:
            return None
        spans = {}
        for name in _PROGRESS_COLUMNS:
            before, now = getattr(old, name), getattr(self, name)
            # Files migrated from version 2 may have a cursor beyond ASCII: its bytes are not its characters.
            if len(before) != len(now) or not before.isascii():
                return None
            spans[name] = changed_spans(before, now)
        return spans

    def overwrite(self, connection: sqlite3.Connection, spans: dict[str, list[Span]]) -> None:
        """Write the places that :meth:`spans_from` found."""
        # Incremental blob I/O changes only the pages of these places; an UPDATE would rewrite the whole row.
        for name, places in spans.items():
            text = getattr(self, name)
            with connection.blobopen("progress", name, 1) as blob:
                for start, end in places:
                    blob[start:end] = text[start:end].encode()

    def replace(self, cursor: sqlite3.Cursor, policy: int) -> None:
        """Rewrite the whole row."""
        # Not INSERT OR REPLACE: it allocates the new row's pages before it frees the old ones, and in a full
        # store these are not available.
        cursor.execute("DELETE FROM progress")
        cursor.execute("INSERT INTO progress VALUES (1, ?, ?, ?)", (policy, self.cursor, self.selector_state))


def changed_spans(before: str, now: str) -> list[Span]:
    """Start and end of the places where two equally long texts differ, in whole blocks.

    >>> changed_spans("a" * 600, "a" * 300 + "b" * 300)
    [(256, 600)]
    """
    spans: list[Span] = []
    for start in range(0, len(now), _BLOCK):
        end = min(start + _BLOCK, len(now))
        if before[start:end] != now[start:end]:
            # A neighbour of the last block extends it: one write instead of two.
            first = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((first, end))
    return spans


def frames_of(spans: dict[str, list[Span]], layout: Layout) -> int:
    """Upper limit of the pages that writing these places changes."""
    places = [place for each in spans.values() for place in each]
    return PUT_FRAMES + sum(layout.pages_of(end - start) for start, end in places)
