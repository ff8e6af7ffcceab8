"""Standard input as a stream: JSON lines, or binary frames that begin with their length."""

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
from drip.sources.url import DEFAULT_MAX_BYTES, integer, parse_options, require_no_fragment, split_url
from drip.types import Sample

_HEARTBEAT_S = 1.0
_CHUNK_BYTES = 2**16


class StdinSource:
    """Samples from a pipe until it ends: one JSON object per line, or binary frames.

    Both formats are described in ``docs/reference/streams.md``.

    A line or frame that cannot be parsed, is too large, or is incomplete at the end of the stream becomes a
    rejected sample, which is quarantined and counted. An empty batch is yielded every second in which nothing
    arrives.

    Delivery: at most once. A pipe has no acknowledgement: data that was written into it and not yet committed
    is lost when the process dies. For a stronger guarantee, the writer must send data again from its own
    record: the store ignores content that it already has.

    Args:
        form: ``lines`` or ``frames``.
        class_names: Names that labels may use, in the order of the logits.
        max_bytes: Largest payload.
        descriptor: File descriptor to read; None reads standard input.

    Raises:
        SourceError: an unknown format.
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
            raise SourceError(f"format must be lines or frames, got {form!r}", code="source-url")
        self._form = form
        self._classes = tuple(class_names)
        self._max_bytes = max_bytes
        self._descriptor = descriptor

    @classmethod
    def from_url(cls, url: str, class_names: Sequence[str] = ()) -> Self:
        """``stdin:?format=frames&max_bytes=1000000``; both options are optional.

        Raises:
            SourceError: an unknown option, value or part.
        """
        defaults = {"format": "lines", "max_bytes": str(DEFAULT_MAX_BYTES)}
        parts = split_url(url)
        require_no_fragment(parts)
        if parts.netloc or parts.path:
            raise SourceError("stdin: names no host or path; write stdin:?format=frames", code="source-url")
        options = parse_options(parts.query, defaults, "stdin")
        return cls(options["format"], class_names, max_bytes=integer(options, "max_bytes", 1, 2**31))

    @property
    def cursor(self) -> str | None:
        """None: a pipe cannot seek."""
        return None

    def seek(self, cursor: str) -> None:
        """Do nothing: a pipe only has new data."""

    def batches(self, max_samples: int) -> Iterator[list[Sample]]:
        """Lists of up to ``max_samples`` samples, as many as have arrived; an empty one every idle second.

        Raises:
            SourceError: standard input cannot be read.
        """
        parser = (LineParser if self._form == "lines" else FrameParser)(self._max_bytes, self._classes)
        pending: deque[Sample] = deque()
        is_open = True
        while is_open or pending:
            if is_open and len(pending) < max_samples:
                # With samples at hand, do not wait for a full batch: a slow stream is decided at once.
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
        """The next bytes, empty at the end of the stream, None if nothing arrives in time."""
        try:
            descriptor = sys.stdin.fileno() if self._descriptor is None else self._descriptor
            if not select.select([descriptor], [], [], wait_s)[0]:
                return None
            return os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise SourceError(f"cannot read standard input: {error}") from error


class LineParser:
    """Splits bytes into JSON lines. Holds at most one line; of a line that is too long, its first bytes."""

    def __init__(self, max_bytes: int, class_names: Sequence[str]) -> None:
        self._max_line = -(-max_bytes // 3) * 4 + MAX_HEADER_BYTES  # base64 encodes 3 bytes as 4
        self._classes = class_names
        self._rest = bytearray()
        self._dropped = 0  # bytes of a line that is too long, beyond its head
        self._count = 0

    def feed(self, chunk: bytes) -> Iterator[Sample]:
        """The samples that are complete with these bytes."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._append(end)
            yield from self._take()
        self._append(rest)

    def finish(self) -> Iterator[Sample]:
        """The last line, which may be complete without a line end."""
        is_cut = bool(self._rest) and not self._dropped
        for sample in self._take():
            if is_cut and sample.rejected is not None:
                reason = f"the stream ended inside a line of {len(sample.data)} bytes: {sample.rejected}"
                yield self._rejected(sample.data, reason)
            else:
                yield sample

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
            yield self._rejected(line, f"the line has {n_bytes} bytes, more than {self._max_line}")
        elif line.strip():
            sample = sample_of_json("", line, class_names=self._classes)
            yield sample if sample.rejected is None else self._rejected(line, sample.rejected)

    def _rejected(self, line: bytes, reason: str) -> Sample:
        return rejected(f"line {self._count}", line, reason)


class FrameParser:
    """Splits bytes into frames: length (4 bytes, big-endian), header length (4 bytes), JSON header, payload.

    The first length counts the bytes after it. Holds at most one frame; of a frame that is too long, its
    first bytes.
    """

    def __init__(self, max_bytes: int, class_names: Sequence[str]) -> None:
        self._max_frame = 4 + MAX_HEADER_BYTES + max_bytes
        self._classes = class_names
        self._rest = bytearray()
        self._skip = 0  # bytes of a frame that is too long, still to come
        self._count = 0

    def feed(self, chunk: bytes) -> Iterator[Sample]:
        """The samples that are complete with these bytes."""
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
                yield self._rejected(head, f"the frame has {n_frame} bytes, more than {self._max_frame}")
            else:
                yield self._sample(bytes(self._rest[4 : 4 + n_frame]))
            self._skip = max(0, 4 + n_frame - len(self._rest))
            del self._rest[: 4 + n_frame]

    def finish(self) -> Iterator[Sample]:
        """The frame that is incomplete at the end of the stream, if there is one."""
        self._count += 1
        if self._skip:
            yield self._rejected(b"", f"the stream ended {self._skip} bytes before the end of a frame")
        elif self._rest:
            n_frame = int.from_bytes(self._rest[:4]) if len(self._rest) >= 4 else "at least 4"
            n_bytes = max(0, len(self._rest) - 4)
            yield self._rejected(
                bytes(self._rest[4:]),
                f"the stream ended inside a frame, after {n_bytes} of {n_frame} bytes",
            )

    def _sample(self, frame: bytes) -> Sample:
        n_header = int.from_bytes(frame[:4])
        if len(frame) < 4 or n_header > min(len(frame) - 4, MAX_HEADER_BYTES):
            return self._rejected(
                frame,
                f"a header of {n_header} bytes does not fit its frame of {len(frame)} bytes",
            )
        text, data = frame[4 : 4 + n_header], frame[4 + n_header :]
        try:
            header = parse_header(text) if text else {}
        except InputError as error:
            return self._rejected(frame, str(error))
        sample = sample_of("", header, data, class_names=self._classes)
        return sample if sample.rejected is None else self._rejected(data, sample.rejected)

    def _rejected(self, data: bytes, reason: str) -> Sample:
        return rejected(f"frame {self._count}", data, reason)
