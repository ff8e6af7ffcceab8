"""Standard input as a stream: JSON lines, or frames with their lengths in front."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from drip.errors import InputError, SourceError
from drip.sources.messages import (
    HEAD_BYTES,
    MAX_HEADER_BYTES,
    parse_header,
    rejected,
    sample_of,
    sample_of_json,
)
from drip.sources.url import DEFAULT_MAX_BYTES, integer, parse_options, split_url
from drip.types import Sample

_HEARTBEAT_S = 1.0
_CHUNK_BYTES = 2**16


class StdinSource:
    """Samples from a pipe until it ends: one JSON object a line, or frames; ``docs/reference/streams.md`` has both.

    A line or frame that is no sample, is too large, or ends with the stream before it is complete comes as
    a refused sample with its reason, so that it is quarantined and counted. An empty batch comes every
    second in which nothing arrives.

    Delivery: at most once. A pipe has no acknowledgement: what was written into it and not yet committed
    when the process dies is gone. A writer that wants more sends again from its own record: content that
    is known is not stored twice.

    Args:
        form: ``lines`` or ``frames``.
        class_names: Names that labels may be given by, in the order of the logits.
        max_bytes: Largest payload.
        descriptor: File descriptor to read; None takes that of standard input.

    Raises:
        SourceError: an unknown form.
    """

    def __init__(
        self,
        form: str = "lines",
        class_names: Sequence[str] = (),
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        descriptor: int | None = None,
    ) -> None:
        if form not in ("lines", "frames"):
            raise SourceError(f"format must be lines or frames, got {form!r}")
        self._form = form
        self._classes = tuple(class_names)
        self._max_bytes = max_bytes
        self._descriptor = descriptor

    @classmethod
    def from_url(cls, url: str, class_names: Sequence[str] = ()) -> Self:
        """``stdin:?format=frames&max_bytes=1000000``; both options may be left out.

        Raises:
            SourceError: an unknown option or value.
        """
        defaults = {"format": "lines", "max_bytes": str(DEFAULT_MAX_BYTES)}
        options = parse_options(split_url(url).query, defaults, "stdin")
        return cls(options["format"], class_names, max_bytes=integer(options, "max_bytes", 1, 2**31))

    @property
    def cursor(self) -> str | None:
        """None: a pipe cannot seek."""
        return None

    def seek(self, cursor: str) -> None:
        """Nothing: what comes is always new."""

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples, as many as are at hand; an empty one every idle second.

        Raises:
            SourceError: standard input cannot be read.
        """
        parser = (LineParser if self._form == "lines" else FrameParser)(self._max_bytes, self._classes)
        pending: deque[Sample] = deque()
        is_open = True
        while is_open or pending:
            if is_open and len(pending) < max_samples:
                chunk = self._read(0.0 if pending else _HEARTBEAT_S)
                if chunk:
                    pending.extend(parser.feed(chunk))
                    continue
                if chunk is not None:
                    pending.extend(parser.finish())
                    is_open = False
            batch = [pending.popleft() for _ in range(min(max_samples, len(pending)))]
            if batch or is_open:
                yield batch

    def _read(self, wait_s: float) -> bytes | None:
        """What is there, nothing at the end of the stream, None when nothing came in time."""
        try:
            descriptor = sys.stdin.fileno() if self._descriptor is None else self._descriptor
            if not select.select([descriptor], [], [], wait_s)[0]:
                return None
            return os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise SourceError(f"a readable standard input is needed, got: {error}") from error


class LineParser:
    """Cuts bytes into JSON lines. Holds one line at most; of one that is too long, its head."""

    def __init__(self, max_bytes: int, class_names: Sequence[str]) -> None:
        self._max_line = -(-max_bytes // 3) * 4 + MAX_HEADER_BYTES  # base64 takes four bytes for three
        self._classes = class_names
        self._rest = bytearray()
        self._dropped = 0
        self._count = 0

    def feed(self, chunk: bytes) -> Iterator[Sample]:
        """The samples that these bytes complete."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._append(end)
            yield from self._take()
        self._append(rest)

    def finish(self) -> Iterator[Sample]:
        """The last line, complete or not."""
        line = b"" if self._dropped else bytes(self._rest)
        for sample in self._take():
            error = sample.rejected
            if error is None or not line:
                yield sample
            else:
                yield self._rejected(
                    line,
                    f"a line with its end is needed, got {len(line)} bytes and the stream's end: {error}",
                )

    def _append(self, part: bytes) -> None:
        if self._dropped:
            self._dropped += len(part)
            return
        self._rest += part
        if len(self._rest) > self._max_line:
            self._dropped = len(self._rest) - HEAD_BYTES
            del self._rest[HEAD_BYTES:]

    def _take(self) -> Iterator[Sample]:
        line, n_bytes = bytes(self._rest), len(self._rest) + self._dropped
        is_whole = not self._dropped
        self._rest.clear()
        self._dropped = 0
        self._count += 1
        if not is_whole:
            yield self._rejected(line, f"a line of at most {self._max_line} bytes is needed, got {n_bytes}")
        elif line.strip():
            sample = sample_of_json("", line, class_names=self._classes)
            error = sample.rejected
            yield sample if error is None else self._rejected(line, error)

    def _rejected(self, line: bytes, reason: str) -> Sample:
        return rejected(f"line {self._count}", line, reason)


class FrameParser:
    """Cuts bytes into frames: length (4 bytes, big-endian), header length (4 bytes), JSON header, payload.

    The first length counts what follows it. Holds one frame at most; of one that is too long, its head.
    """

    def __init__(self, max_bytes: int, class_names: Sequence[str]) -> None:
        self._max_frame = 4 + MAX_HEADER_BYTES + max_bytes
        self._classes = class_names
        self._rest = bytearray()
        self._skip = 0
        self._count = 0

    def feed(self, chunk: bytes) -> Iterator[Sample]:
        """The samples that these bytes complete."""
        n_skipped = min(self._skip, len(chunk))
        self._skip -= n_skipped
        self._rest += chunk[n_skipped:]
        while len(self._rest) >= 4:
            n_frame = int.from_bytes(self._rest[:4])
            is_large = n_frame > self._max_frame
            if len(self._rest) < 4 + (HEAD_BYTES if is_large else n_frame):
                return
            self._count += 1
            if is_large:
                head = bytes(self._rest[4 : 4 + HEAD_BYTES])
                yield self._rejected(
                    head, f"a frame of at most {self._max_frame} bytes is needed, got {n_frame}"
                )
            else:
                yield self._sample(bytes(self._rest[4 : 4 + n_frame]))
            self._skip = max(0, 4 + n_frame - len(self._rest))
            del self._rest[: 4 + n_frame]

    def finish(self) -> Iterator[Sample]:
        """A frame that the stream's end has cut, if there is one."""
        self._count += 1
        if self._skip:
            yield self._rejected(b"", f"{self._skip} more bytes of a frame are needed, got the stream's end")
        elif self._rest:
            n_frame = int.from_bytes(self._rest[:4]) if len(self._rest) >= 4 else "at least 4"
            n_bytes = max(0, len(self._rest) - 4)
            yield self._rejected(
                bytes(self._rest[4:]),
                f"a frame of {n_frame} bytes is needed, got {n_bytes} and the stream's end",
            )

    def _sample(self, frame: bytes) -> Sample:
        n_header = int.from_bytes(frame[:4])
        if len(frame) < 4 or n_header > min(len(frame) - 4, MAX_HEADER_BYTES):
            return self._rejected(
                frame,
                f"a header that fits its frame of {len(frame)} bytes is needed, got a length of {n_header}",
            )
        text, data = frame[4 : 4 + n_header], frame[4 + n_header :]
        try:
            header = parse_header(text) if text else {}
        except InputError as error:
            return self._rejected(frame, str(error))
        sample = sample_of("", header, data, class_names=self._classes)
        reason = sample.rejected
        return sample if reason is None else self._rejected(data, reason)

    def _rejected(self, data: bytes, reason: str) -> Sample:
        return rejected(f"frame {self._count}", data, reason)
