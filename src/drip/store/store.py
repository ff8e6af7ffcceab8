"""RetentionStore: the public face of one SQLite file that keeps samples inside a byte budget.

Checks arguments and hands them on: opening is in ``opening``, writing in ``writer``, reading in ``reading``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from drip.errors import InputError, StoreError
from drip.store import codec
from drip.store.connection import SYNCHRONOUS, Synchronous, explained
from drip.store.eviction import Eviction
from drip.store.opening import OpenFile, open_for_reading, open_for_writing
from drip.store.reading import check
from drip.store.records import (
    AuditRow,
    CheckReport,
    LabelState,
    Origin,
    QuarantinedSample,
    StoredSample,
    StoreStats,
)
from drip.store.settings import Settings, encode_origin
from drip.store.writer import Writer
from drip.types import Decision, Observation, Progress, Sample

_MAX_LABEL = 2**31 - 1
_MAX_TIMEOUT_S = 1e6  # SQLite counts milliseconds in 32 bits


class RetentionStore:
    r"""Keeps samples in one SQLite file inside a byte budget, and an audit of all decisions.

    Made by :meth:`open` for writing and by :meth:`open_readonly` for reading.

    **Durability.** When :meth:`put` returns outside of a :meth:`transaction`, its rows survive a kill and a
    power cut: the write-ahead log is synced before every return. With ``synchronous="normal"`` it is synced
    only at checkpoints, which wears flash less. Then a kill loses nothing, a power cut may lose the last
    puts, and the file stays sound.

    **Budget.** The file, ``-wal`` and ``-shm`` together have at most ``budget_bytes`` at every moment. Each
    has a fixed share, so a transaction must fit the share of the log. A reader that keeps a transaction open
    makes puts wait and then fail, but never breaks the budget.

    **Eviction.** ``"priority"`` evicts the sample with the lowest priority, the oldest first among equals. A
    new sample that is itself the lowest, or for which evicting all lower ones would not free enough, is not
    stored; the audit records it as evicted. ``"fifo"`` evicts the oldest sample.

    **Once.** A decision with the same sample id, content and policy as one in the audit is a redelivery (for
    example after a resume) and is ignored, unless it keeps more than the first one:

    * A sample that was discarded is kept by a later put that says so.
    * A sample that only shadow mode kept becomes retained when the rule retains it.

    The later decision then replaces the earlier one in the audit, and the sample is counted once. Content
    that is already kept and arrives under another id or policy is counted, not stored twice. If only shadow
    mode kept it and the rule now retains it, the kept sample becomes retained; the audit shows both
    decisions as they were.

    **Writers and threads.** A store has one writer; a second one waits for ``timeout_s`` and gets a
    StoreError. Use a store object only in the thread that opened it. Any number of readers may run beside the
    writer, in this process or others.

    >>> import numpy as np, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with RetentionStore.open(f"{folder.name}/kept.drip", budget_bytes=1_000_000) as store:
    ...     observation = Observation(7, np.zeros(10), {"drip": 0.25})
    ...     store.put(Sample("a", b"bytes", "image/png"), observation, Decision(True, 0.5, None, "margin"))
    ...     store.put(Sample("b", b"other", "image/png"), observation, Decision(False, 0.1, None, "margin"))
    ...     [record.sample.id for record in store], store.stats().seen
    (['a'], 2)
    >>> folder.cleanup()
    """

    def __init__(self, file: OpenFile) -> None:
        """Wrap an open file; call :meth:`open` or :meth:`open_readonly` instead."""
        self._path = file.path
        self._connection: sqlite3.Connection | None = file.connection
        self._reader = file.reader
        self._writer = file.writer
        self._close_file = file.close

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        budget_bytes: int | None = None,
        eviction: Eviction | None = None,
        audit_rows: int | None = None,
        audit_logits: bool | None = None,
        synchronous: Synchronous = "full",
        timeout_s: float = 5.0,
        min_free_bytes: int = 0,
        log_bytes: int | None = None,
        policy_digest: str | None = None,
    ) -> Self:
        """Open a store for writing; create it where there is none.

        Budget, eviction and audit settings are remembered in the file. A file of an earlier schema version
        is migrated. With a smaller budget than before, samples are evicted and the file is shrunk before
        this returns.

        Args:
            path: The file.
            budget_bytes: Limit for all files of the store together; required to create one.
            eviction: ``"priority"`` (default) or ``"fifo"``.
            audit_rows: Rows of the audit, default 100 000. Its bytes are limited to a quarter of the file as
                well.
            audit_logits: Keep logits in the audit (float32, default True), so rules that read them can
                be replayed.
            synchronous: ``"full"`` or ``"normal"``, see Durability.
            timeout_s: How long to wait for another writer or for a reader, in seconds.
            min_free_bytes: Refuse to write when the disk has less than this left.
            log_bytes: The log's share of the budget; chosen when left out.
            policy_digest: Digest of the policy that decides, until :meth:`save_progress` names one; by
                default that of the saved progress.

        Raises:
            StoreError: the budget is too small (the message has the minimum), or the file is of another
                program or a newer version, damaged, in use or not writable.
            InputError: an argument outside its range.
        """
        if synchronous not in SYNCHRONOUS:
            message = f"synchronous={synchronous!r} does not exist; choose one of {', '.join(SYNCHRONOUS)}"
            raise InputError(message)
        if min_free_bytes < 0:
            message = f"min_free_bytes={min_free_bytes!r} is negative; use 0 for no limit"
            raise InputError(message)
        _require_timeout(timeout_s)
        codec.require_short("policy_digest", policy_digest or "")
        asked: dict[str, Any] = {
            "budget_bytes": budget_bytes,
            "log_bytes": log_bytes,
            "eviction": eviction,
            "audit_rows": audit_rows,
            "audit_logits": audit_logits,
        }
        place = _resolved(path)
        # SQLite's errors are explained here, once, because any step of opening may raise them.
        with explained(place, "open"):
            file = open_for_writing(
                place, asked, synchronous=synchronous, timeout_s=timeout_s, min_free_bytes=min_free_bytes,
                policy_digest=policy_digest,
            )  # fmt: skip
        return cls(file)

    @classmethod
    def open_readonly(cls, path: str | os.PathLike[str], *, timeout_s: float = 5.0) -> Self:
        """Open an existing store for reading, beside a writer or in a folder that cannot be written.

        Args:
            path: The file.
            timeout_s: How long to wait for a writer, in seconds.

        Raises:
            StoreError: the file does not exist, is damaged, or belongs to another program or schema version.
            InputError: an argument outside its range.
        """
        _require_timeout(timeout_s)
        place = _resolved(path)
        with explained(place, "open"):
            return cls(open_for_reading(place, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the file; the last connection copies the log into it and removes the log."""
        if self._connection is None:
            return
        # First, so a failing close leaves a closed store and not a half-open one.
        self._connection = self._writer = None
        with explained(self._path, "close"):
            self._close_file()

    def __enter__(self) -> Self:
        """The store itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            message = f"{self._path}: the store is closed; open it again"
            raise StoreError(message, code="store-closed")
        return self._connection

    def _open_writer(self) -> Writer:
        self._open_connection()
        if self._writer is None:
            message = f"{self._path}: the store is open for reading only; open it with RetentionStore.open()"
            raise StoreError(message, code="store-closed")
        return self._writer

    # -- writing ---------------------------------------------------------------------------------------

    def put(
        self, sample: Sample, observation: Observation, decision: Decision, *, keep: bool | None = None
    ) -> None:
        """Record a decision in the audit and keep the sample if the decision says so.

        Durable on return; inside a :meth:`transaction` it is durable when the transaction is.

        Args:
            sample: The sample; its id has 1 to 512 bytes.
            observation: What was decided on. If it has a content hash, this must be the SHA-256 of the data.
            decision: The rule's decision, recorded as it is.
            keep: Keep the sample, or not, whatever was decided: shadow mode keeps all. None follows the
                decision.

        Raises:
            InputError: NaN priority, a wrong content hash, an unusable id, text, label or time.
            SampleTooLargeError: the sample with its records can never fit; nothing is evicted for it.
            TransactionFullError: the transaction outgrows the share of the log.
            StoreError: the disk is full or at its floor, or another writer or a reader is in the way for
                ``timeout_s``. Nothing of the put remains, and the store stays usable.
        """
        self._open_writer().put(sample, observation, decision, keep=keep)

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Quarantine a sample that could not be decoded or scored, or that :meth:`put` refused.

        The quarantine has an eighth of the file; the oldest samples make room and are counted. A sample
        larger than that is listed without its data. Content that is already there is counted, not stored
        again.

        Any sample is accepted. An id beyond 512 bytes, a media type beyond 255 and a reason beyond 1024 are
        cut. Metadata become text; pairs beyond 4096 bytes of JSON are left out. The reason ends with a note
        of what was cut. A label or time that is not a number becomes unknown.

        Raises:
            InputError: an id, media type or reason that is not text, or data that is not bytes.
            TransactionFullError: the transaction outgrows the share of the log.
            StoreError: as for :meth:`put`.
        """
        self._open_writer().quarantine(sample, reason)

    def transaction(self) -> AbstractContextManager[None]:
        """Commit the puts, quarantine, labels and progress of the block together, in one sync.

        An exception that leaves the block rolls all of it back. If a write failed half-way and the block
        swallowed its error, the block is rolled back as well, with a StoreError at its end.

        Raises:
            TransactionFullError: from the first write that no longer fits: the block changes more pages than
                the share of the log holds. Leave the block and retry with half of its writes.
            StoreError: another writer holds the store for ``timeout_s``.
        """
        return self._open_writer().transaction()

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run is, in the current transaction.

        The policy digest of the progress is recorded with the puts that follow. If no policy was known
        before, it is also recorded with the earlier puts of this transaction.
        """
        self._open_writer().save_progress(progress)

    def load_progress(self) -> Progress | None:
        """The progress of the last committed transaction, or None in a new store."""
        self._open_connection()
        return self._reader.progress()

    def note_origin(self, policy_digest: str, origin: Origin) -> None:
        """Remember what the scores under a policy were computed from, so a replay can compare it.

        Args:
            policy_digest: Digest of the policy that decides.
            origin: Model and score definition; at most 4096 bytes as JSON.

        Raises:
            InputError: a larger origin, or one that JSON cannot represent; a digest beyond 512 bytes.
            StoreError: the origins of so many policies do not fit the file.
        """
        codec.require_short("policy_digest", policy_digest)
        self._open_writer().note_origin(policy_digest, encode_origin(origin))

    def origins(self) -> dict[str, Origin]:
        """The origins that :meth:`note_origin` remembered, by policy digest."""
        self._open_connection()
        return self._reader.origins()

    def set_label(self, sample: int | str, label: int | None, *, annotator: str = "") -> None:
        """Give a kept sample a human label; it overrides a label that came with the sample.

        Args:
            sample: :attr:`StoredSample.key`, or a sample id that only one kept sample has.
            label: Class index; None removes a human label.
            annotator: Who gave the label, for the record; at most 512 bytes.

        Raises:
            InputError: a label that is not a class index, or an annotator that is not such text.
            StoreError: no kept sample has this key or id, or several have this id.
        """
        writer = self._open_writer()
        codec.require_short("annotator", annotator)
        # bool is an int for Python, but True as a class index is a mistake.
        if label is not None and not (
            isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label <= _MAX_LABEL
        ):
            message = (
                f"label={label!r} is not a class index; use an integer from 0, or None to remove a label"
            )
            raise InputError(message)
        if isinstance(sample, str):
            keys = self._reader.keys_of(sample)
        else:
            keys = [sample] if self._reader.has(sample) else []
        if not keys:
            message = f"no kept sample has the key or id {sample!r}; it may have been evicted"
            raise StoreError(message, code="sample-unknown")
        if len(keys) > 1:
            message = f"{len(keys)} kept samples have the id {sample!r}; label one by its key"
            raise StoreError(message, code="sample-unknown")
        writer.set_label(keys[0], None if label is None else int(label), annotator)

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def budget_bytes(self) -> int:
        """Limit for all files of the store together."""
        return self._settings().budget_bytes

    def __len__(self) -> int:
        """Number of kept samples."""
        self._open_connection()
        return self._reader.count("kept")

    def __iter__(self) -> Iterator[StoredSample]:
        """Kept samples from the oldest to the newest; see :meth:`samples`."""
        return self.samples()

    def samples(
        self,
        *,
        predicted_class: int | None = None,
        label_state: LabelState | str | None = None,
        policy_digest: str | None = None,
    ) -> Iterator[StoredSample]:
        """Kept samples from the oldest to the newest, one in memory at a time.

        The iteration holds no lock. Samples that are put or evicted meanwhile may or may not appear; every
        other sample appears once.

        Args:
            predicted_class: Only samples with this prediction.
            label_state: Only samples in this state.
            policy_digest: Only samples that this policy kept.
        """
        # A generator would report a closed store or a wrong state only at its first step.
        self._open_connection()
        state = None
        if label_state is not None:
            try:
                state = LabelState(label_state)
            except ValueError as error:
                states = ", ".join(LabelState)
                message = f"label_state={label_state!r} does not exist; choose one of {states}"
                raise InputError(message) from error
        return self._reader.samples(
            predicted_class=predicted_class, label_state=state, policy_digest=policy_digest
        )

    def sample(self, key: int) -> StoredSample | None:
        """The kept sample with this key, or None."""
        self._open_connection()
        return self._reader.sample(key)

    def audit(self) -> Iterator[AuditRow]:
        """The recorded decisions, kept or not, from the oldest to the newest."""
        self._open_connection()
        return self._reader.audit()

    def quarantined(self) -> Iterator[QuarantinedSample]:
        """The samples in quarantine, from the oldest to the newest."""
        self._open_connection()
        return self._reader.quarantined()

    def stats(self) -> StoreStats:
        """The store in numbers; fast, except that it counts the rows of audit and quarantine."""
        self._open_connection()
        # The writer's counters include those of its open transaction.
        if self._writer is None:
            counters, dropped = self._reader.committed_counters()
        else:
            counters, dropped = self._writer.counters, self._writer.quarantine_table.dropped
        return self._reader.stats(counters, dropped, self.budget_bytes)

    def discarded_by_reason(self) -> dict[str, int]:
        """Discards in the audit per reason, the most frequent first: how much each gate rejects, for example."""
        self._open_connection()
        return self._reader.discarded_by_reason()

    def check(self) -> CheckReport:
        """Look for damage: SQLite's integrity, references, every hash, counters, budget. Reads everything.

        Raises:
            StoreError: inside a transaction.
        """
        connection = self._open_connection()
        if connection.in_transaction:
            message = "check() cannot run inside a transaction; call it after the block"
            raise StoreError(message, code="store-transaction")
        return check(connection, self._path, self.budget_bytes)

    def _settings(self) -> Settings:
        if self._writer is not None:
            return self._writer.settings
        with explained(self._path, "read"):
            return Settings.load(self._open_connection().cursor())


def _resolved(path: str | os.PathLike[str]) -> Path:
    # SQLite creates log and index beside the file itself, not beside a link to it.
    return Path(path).resolve()


def _require_timeout(timeout_s: float) -> None:
    if not 0 <= timeout_s < _MAX_TIMEOUT_S:
        message = f"timeout_s={timeout_s!r} is not in [0, {_MAX_TIMEOUT_S:.0f}) seconds"
        raise InputError(message)
