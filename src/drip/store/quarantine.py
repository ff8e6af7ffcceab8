"""The shelf for samples that could not be decoded or scored: a share of the file, the oldest give way.

Works inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3

from drip.store import codec
from drip.store.budget import EVICT_FRAMES
from drip.store.space import Space
from drip.types import Sample

_OVERHEAD_BYTES = 160  # of a row and its index entry, beside texts and data
_DROPPED = "SELECT value FROM settings WHERE name = 'quarantine_dropped'"
_INSERT = """INSERT INTO quarantine
    (id, sample_id, content_hash, media_type, reason, true_label, n_bytes, row_bytes, time_s, meta, data)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


class Quarantine:
    """Counts the shelf's bytes and keeps them in its share."""

    def __init__(self, cursor: sqlite3.Cursor, max_bytes: int, max_sample_bytes: int) -> None:
        self._cursor = cursor
        self._max_bytes = max_bytes
        self._max_row_bytes = min(max_bytes, max_sample_bytes)
        self.rows = 0
        self.bytes = 0
        self.dropped = 0

    def load(self) -> None:
        """Count what is in the file."""
        count = "SELECT count(*), coalesce(sum(row_bytes), 0) FROM quarantine"
        self.rows, self.bytes = self._cursor.execute(count).fetchone()
        self.dropped = int(self._cursor.execute(_DROPPED).fetchone()[0])

    @property
    def is_over(self) -> bool:
        """True when the shelf is bigger than its share."""
        return self.bytes > self._max_bytes

    def row_bytes(self, sample: Sample, reason: str, meta: str | None) -> int:
        """What a sample takes on the shelf; a sample beyond the share leaves its data behind."""
        n_texts = len(sample.id) * 3 + len(reason.encode()) + len((meta or "").encode()) + _OVERHEAD_BYTES
        n_bytes = n_texts + len(sample.data)
        return n_bytes if n_bytes <= self._max_row_bytes else n_texts

    def add(self, space: Space, sample: Sample, reason: str, meta: str | None) -> None:
        """Put a sample on the shelf; the same content is counted, the same sample ignored."""
        digest = codec.sha256(sample.data)
        find = "SELECT id, sample_id FROM quarantine WHERE content_hash = ?"
        rows = self._cursor.execute(find, (digest,)).fetchall()
        if rows:
            if rows[0][1] != sample.id:
                self._cursor.execute(
                    "UPDATE quarantine SET repeats = repeats + 1 WHERE id = ?", (rows[0][0],)
                )
            return
        n_bytes = self.row_bytes(sample, reason, meta)
        while self.rows and self.bytes + n_bytes > self._max_bytes:
            self.drop_oldest(space)
        is_whole = n_bytes >= len(sample.data) + _OVERHEAD_BYTES
        row = (
            # The number of the arrival: SQLite's own choice would begin again at 1 on an empty shelf.
            self.dropped + self.rows + 1,
            sample.id,
            digest,
            sample.media_type,
            reason,
            None if sample.label is None else int(sample.label),
            len(sample.data),
            n_bytes,
            None if sample.time_s is None else float(sample.time_s),
            meta,
            sample.data if is_whole else None,
        )
        self._cursor.execute(_INSERT, row)
        self.rows += 1
        self.bytes += n_bytes

    def drop_oldest(self, space: Space) -> None:
        """Give the oldest sample up and count it."""
        find = "SELECT id, row_bytes FROM quarantine ORDER BY id LIMIT 1"
        rows = self._cursor.execute(find).fetchall()
        if not rows:
            return
        key, n_bytes = rows[0]
        n_freed = n_bytes // space.layout.payload_bytes
        space.reserve_frames(EVICT_FRAMES + space.layout.map_pages_of(n_freed))
        self._cursor.execute("DELETE FROM quarantine WHERE id = ?", (key,))
        self.rows -= 1
        self.bytes -= n_bytes
        self.dropped += 1
        save = "UPDATE settings SET value = ? WHERE name = 'quarantine_dropped'"
        self._cursor.execute(save, (str(self.dropped),))
