"""Where a run stands, as one row whose texts keep their places, so that saving it writes what has changed.

A rule that adapts has a large state, of which a batch changes a small part. Numbers and the
cursor are padded with spaces: the texts of two saves are then equally long and differ where the states do.
SQLite writes the pages of these places only, through its interface for parts of a value; a text of another
length takes the row's place.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Self

from drip.errors import StoreError
from drip.store import codec
from drip.store.budget import PUT_FRAMES, Layout
from drip.types import Progress

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
            codec.steady_json("selector_state", progress.selector_state),
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
