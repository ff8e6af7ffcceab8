"""The quarantine: samples that could not be decoded, scored or kept, in a share of the file.

It must accept anything, or one bad sample would stop a run again and again. Data that is too long or unusable
is cut instead of rejected. Works inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass

from drip.errors import InputError
from drip.store import codec
from drip.store.budget import EVICT_FRAMES, Space
from drip.types import Sample

MAX_REASON_BYTES = 1024
MAX_META_BYTES = 4096
MAX_MEDIA_TYPE_BYTES = 255

# The table has no column for Sample.rejected: a rejected sample is marked by this parameter of its media
# type, as in files of earlier versions. The row's reason is the sample's.
_REJECTED = "; error="

_OVERHEAD_BYTES = 160  # of a row and its index entry, besides texts and data
_DROPPED = "SELECT value FROM settings WHERE name = 'quarantine_dropped'"
_INSERT = """INSERT INTO quarantine
    (id, sample_id, content_hash, media_type, reason, true_label, n_bytes, row_bytes, time_s, meta, data)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """A sample with everything cut that is too long or unusable, and a note of it in the reason.

    Attributes:
        sample_id: At most 512 bytes; ``?`` for an empty one.
        media_type: At most 255 bytes.
        reason: At most 1024 bytes and a note of what was cut.
        label: None if it is not an integer of 64 bits.
        time_s: None if it is not a number.
        meta: JSON, at most 4096 bytes; pairs that do not fit are left out.
        data: The data.
    """

    sample_id: str
    media_type: str
    reason: str
    label: int | None
    time_s: float | None
    meta: str | None
    data: bytes

    @classmethod
    def of(cls, sample: Sample, reason: str) -> QuarantineRow:
        """Cut a sample to size.

        Raises:
            InputError: an id, media type or reason that is not text, or data that is not bytes.

        >>> QuarantineRow.of(Sample("a", b"", "image/png", meta={"x": "y" * 5000}), "broken").reason
        'broken [cut: meta, 1 of 1 pairs left out]'
        """
        codec.require_bytes(sample)
        notes: list[str] = []
        sample_id = _cut("id", sample.id, codec.MAX_ID_BYTES, notes) or "?"
        media_type = _cut("media type", sample.media_type, MAX_MEDIA_TYPE_BYTES, notes)
        if sample.rejected is not None:
            marked = f"{media_type}{_REJECTED}{sample.rejected}"
            media_type = _cut("media type", marked, MAX_MEDIA_TYPE_BYTES, [])
        word = _cut("reason", reason, MAX_REASON_BYTES, notes)
        meta = _meta_that_fits(sample, notes)
        label = time_s = None
        # What makes a sample unusable must not keep it out of the quarantine.
        with suppress(InputError):
            label = codec.encode_label(sample)
        with suppress(InputError):
            time_s = codec.encode_time(sample)
        if notes:
            word = f"{word} [cut: {'; '.join(notes)}]"
        return cls(sample_id, media_type, word, label, time_s, meta, sample.data)

    @property
    def text_bytes(self) -> int:
        """Bytes of the row without the data."""
        # Three bytes per character of the id, because most characters need at most three in UTF-8.
        texts = (self.media_type, self.reason, self.meta or "")
        return len(self.sample_id) * 3 + sum(len(text.encode()) for text in texts) + _OVERHEAD_BYTES


def media_type_and_rejection(column: str, reason: str) -> tuple[str, str | None]:
    """Media type and :attr:`Sample.rejected` from a row's media type and reason.

    >>> media_type_and_rejection("application/octet-stream; error=no JSON", "no JSON")
    ('application/octet-stream', 'no JSON')
    >>> media_type_and_rejection("image/png", "truncated")
    ('image/png', None)
    """
    media_type, mark, _ = column.partition(_REJECTED)
    return media_type, reason if mark else None


def _cut(name: str, text: str, n_bytes: int, notes: list[str]) -> str:
    if not isinstance(text, str):
        raise InputError(
            f"the {name} of a sample is {type(text).__name__}, not text; convert it with str()",
            code="sample-rejected",
        )
    # A text with half of a surrogate pair cannot be encoded as UTF-8; escaped, a reader can still see what it
    # was.
    data = text.encode(errors="backslashreplace")
    if len(data) <= n_bytes:
        return data.decode()
    notes.append(f"{name}, {len(data)} bytes")
    return data[:n_bytes].decode(errors="ignore")


def _meta_that_fits(sample: Sample, notes: list[str]) -> str | None:
    pairs: dict[str, str] = {}
    left = MAX_META_BYTES - len("{}")
    for key, value in sample.meta.items():
        pair = {str(key): str(value)}
        n_bytes = len(codec.encode_meta(pair) or "")  # its braces are as long as ", "
        if n_bytes <= left:
            left -= n_bytes
            pairs |= pair
    n_left_out = len(sample.meta) - len(pairs)
    if n_left_out:
        notes.append(f"meta, {n_left_out} of {len(sample.meta)} pairs left out")
    return codec.encode_meta(pairs)


class Quarantine:
    """The table of quarantined samples; keeps itself inside its share by deleting the oldest."""

    def __init__(self, cursor: sqlite3.Cursor, max_bytes: int, max_sample_bytes: int) -> None:
        self._cursor = cursor
        self._max_bytes = max_bytes
        self._max_row_bytes = min(max_bytes, max_sample_bytes)
        self.rows = 0
        self.bytes = 0
        self.dropped = 0

    def load(self) -> None:
        """Count the rows in the file."""
        count = "SELECT count(*), coalesce(sum(row_bytes), 0) FROM quarantine"
        self.rows, self.bytes = self._cursor.execute(count).fetchone()
        self.dropped = int(self._cursor.execute(_DROPPED).fetchone()[0])

    @property
    def is_over(self) -> bool:
        """True when the table is over its share."""
        return self.bytes > self._max_bytes

    def row_bytes(self, sample: QuarantineRow) -> int:
        """Bytes that the row will have; a sample larger than the share is stored without its data."""
        n_bytes = sample.text_bytes + len(sample.data)
        return n_bytes if n_bytes <= self._max_row_bytes else sample.text_bytes

    def add(self, space: Space, sample: QuarantineRow) -> None:
        """Insert a sample; known content is counted instead, and a redelivered sample ignored."""
        # By content and not by id: a corrupt file is delivered again with every restart of some sources.
        digest = codec.sha256(sample.data)
        find = "SELECT id, sample_id FROM quarantine WHERE content_hash = ?"
        rows = self._cursor.execute(find, (digest,)).fetchall()
        if rows:
            if rows[0][1] != sample.sample_id:
                self._cursor.execute(
                    "UPDATE quarantine SET repeats = repeats + 1 WHERE id = ?", (rows[0][0],)
                )
            return
        n_bytes = self.row_bytes(sample)
        while self.rows and self.bytes + n_bytes > self._max_bytes:
            self.drop_oldest(space)
        is_whole = n_bytes == sample.text_bytes + len(sample.data)
        row = (
            # Number of arrival. SQLite's own choice would start again at 1 when the table gets empty, and
            # keys must increase over time.
            self.dropped + self.rows + 1,
            sample.sample_id,
            digest,
            sample.media_type,
            sample.reason,
            sample.label,
            len(sample.data),
            n_bytes,
            sample.time_s,
            sample.meta,
            sample.data if is_whole else None,
        )
        self._cursor.execute(_INSERT, row)
        self.rows += 1
        self.bytes += n_bytes

    def drop_oldest(self, space: Space) -> None:
        """Delete the oldest sample and count it."""
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
