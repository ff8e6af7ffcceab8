"""RetentionStore: the public face of one SQLite file that keeps samples inside a byte budget.

Opening and reading live here; writing is in ``writer``, the budget in ``budget`` and ``space``.
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
from drip.files import sync_directory
from drip.store import checking, codec, schema
from drip.store.budget import Layout, Space
from drip.store.eviction import Eviction
from drip.store.reading import Reader
from drip.store.records import AuditRow, CheckReport, LabelState, QuarantinedSample, StoredSample, StoreStats
from drip.store.schema import (
    SYNCHRONOUS,
    Synchronous,
    WriterLock,
    configure_writer,
    connect,
    disk_bytes,
    explained,
)
from drip.store.settings import Settings, encode_origin, merge
from drip.store.writer import Writer, require_room
from drip.types import Decision, JsonObject, Observation, Progress, Sample

_MAX_LABEL = 2**31 - 1


class RetentionStore:
    r"""Keeps retained samples in one SQLite file inside a byte budget, and an audit of all decisions.

    **Durability.** When :meth:`put` returns outside of a :meth:`transaction`, its row survives a kill and a
    power cut (write-ahead log, fsync before every return). ``synchronous="normal"`` syncs only at
    checkpoints: less wear on flash; a kill loses nothing, a power cut may lose the last puts, and the file
    stays sound.

    **Budget.** The file, ``-wal`` and ``-shm`` together take at most ``budget_bytes`` at every moment. The
    budget is divided for good between file and log, so a transaction has to fit the log's share, and a
    reader that keeps a transaction open makes puts wait and then fail rather than break the budget.

    **Eviction.** ``"priority"`` drops the lowest priority, then the oldest; a sample that is itself the
    lowest, or for which all lower ones would not make enough room, is not stored but audited as evicted.
    ``"fifo"`` drops the oldest.

    **Once.** A decision with the sample id, content and policy of one in the audit is a redelivery (say,
    after a resume) and is ignored, unless it keeps more: a sample that was discarded is kept by a later put
    that says so, and one that only shadow mode kept becomes retained when the rule retains it. The later
    decision then takes the earlier one's place in the audit, and the sample is seen once. Kept content that
    comes again otherwise is counted, not stored twice; a rule that retains it under another id or policy
    makes content that only shadow mode kept retained, while the audit has both decisions as they were.

    **Writers and threads.** One writer per store; a second one waits for ``timeout_s`` and gets a
    StoreError. A store object is used by the thread that opened it. Readers
    (:meth:`open_readonly`) may run beside the writer, in this process or others.

    Args:
        path: The file; made when it does not exist.
        budget_bytes: What all files of the store may take; needed to make one, remembered afterwards. A
            smaller one than before evicts and shrinks the file before the constructor returns.
        eviction: ``"priority"`` (default) or ``"fifo"``; remembered.
        audit_rows: Rows of the audit, default 100 000; its bytes are capped at a quarter of the file as
            well; remembered.
        audit_logits: Keep logits in the audit (float32, default True), for replays of rules that read
            them; remembered.
        synchronous: ``"full"`` or ``"normal"``, see above.
        timeout_s: How long to wait for another writer or for a reader, in seconds.
        min_free_bytes: Refuse to write when the disk has less than this left.
        log_bytes: The log's share of the budget; chosen when left out; remembered.
        policy_digest: Digest of the policy that decides, until :meth:`save_progress` names one; that of
            the saved progress when left out.
        readonly: Open an existing store for reading only.

    Raises:
        StoreError: budget too small (with the minimum), foreign, newer, damaged or unwritable file.
        InputError: an argument outside its range.

    >>> import numpy as np, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with RetentionStore(f"{folder.name}/kept.drip", budget_bytes=1_000_000) as store:
    ...     observation = Observation(7, np.zeros(10), {"drip": 0.25})
    ...     store.put(Sample("a", b"bytes", "image/png"), observation, Decision(True, 0.5, None, "margin"))
    ...     store.put(Sample("b", b"other", "image/png"), observation, Decision(False, 0.1, None, "margin"))
    ...     [record.sample.id for record in store], store.stats().seen
    (['a'], 2)
    >>> folder.cleanup()
    """

    def __init__(
        self,
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
        readonly: bool = False,
    ) -> None:
        self._path = Path(path).resolve()  # SQLite puts log and index beside the file itself, not a link
        self._writer: Writer | None = None
        self._lock: WriterLock | None = None
        self._connection: sqlite3.Connection | None = None
        if synchronous not in SYNCHRONOUS:
            message = f"synchronous must be one of {SYNCHRONOUS}, got {synchronous!r}"
            raise InputError(message)
        if not 0 <= timeout_s < 1e6:
            message = f"timeout_s must be in [0, 1e6), got {timeout_s!r}"
            raise InputError(message)
        codec.require_short("policy_digest", policy_digest or "")
        if min_free_bytes < 0:
            message = f"min_free_bytes must not be negative, got {min_free_bytes!r}"
            raise InputError(message)
        try:
            with explained(self._path, "open"):
                if readonly:
                    self._open_reader(timeout_s)
                    return
                wanted: dict[str, Any] = {
                    "path": self._path,
                    "budget_bytes": budget_bytes,
                    "log_bytes": log_bytes,
                    "eviction": eviction,
                    "audit_rows": audit_rows,
                    "audit_logits": audit_logits,
                }
                settings, layout = self._open_file(wanted, timeout_s, synchronous)
                self._open_writer(settings, layout, timeout_s, min_free_bytes, policy_digest)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open_readonly(cls, path: str | os.PathLike[str], *, timeout_s: float = 5.0) -> Self:
        """Open an existing store for reading, beside a writer or from a folder that cannot be written."""
        return cls(path, timeout_s=timeout_s, readonly=True)

    # -- opening ---------------------------------------------------------------------------------------

    def _open_file(
        self, wanted: dict[str, Any], timeout_s: float, synchronous: Synchronous
    ) -> tuple[Settings, Layout]:
        if not schema.is_there(self._path):  # refuse bad arguments before anything is made
            settings = merge(None, **wanted)
            Layout.plan(settings.budget_bytes, log_bytes=settings.log_bytes)
        self._lock = WriterLock(self._path, timeout_s)
        connection = self._connection = connect(self._path, mode="rwc", timeout_s=timeout_s)
        configure_writer(connection, synchronous=synchronous)
        version = schema.identify(connection, self._path)
        if version is None:
            settings = merge(None, **wanted)
            layout = Layout.plan(settings.budget_bytes, log_bytes=settings.log_bytes)
            connection.execute(f"PRAGMA page_size = {layout.page_size}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._require_log()
            # A creation that was cut short may have fixed another page size.
            layout = Layout.plan(
                settings.budget_bytes, page_size=self._page_size(), log_bytes=settings.log_bytes
            )
            schema.create(connection, settings.save)
            sync_directory(self._path.parent)
            return settings, layout
        self._require_log()
        schema.migrate(connection, version)
        known = Settings.load(connection.cursor())
        settings = merge(known, **wanted)
        layout = Layout.plan(settings.budget_bytes, page_size=self._page_size(), log_bytes=settings.log_bytes)
        if settings != known:
            if settings.budget_bytes < known.budget_bytes:
                require_room(connection.cursor(), layout, self._path)
            connection.execute("BEGIN IMMEDIATE")
            settings.save(connection.cursor())
            connection.execute("COMMIT")
        return settings, layout

    def _open_writer(
        self,
        settings: Settings,
        layout: Layout,
        timeout_s: float,
        min_free_bytes: int,
        policy_digest: str | None,
    ) -> None:
        connection = self._open_connection()
        self._reader = Reader(connection, self._path)
        if policy_digest is None:
            progress = self._reader.progress()
            policy_digest = "" if progress is None else progress.policy_digest
        space = Space(connection, self._path, layout, timeout_s, min_free_bytes)
        space.apply_limits()
        self._writer = writer = Writer(connection, self._path, space, settings, policy_digest)
        if writer.is_over_budget or disk_bytes(self._path) > layout.budget_bytes:
            writer.shrink()
        if disk_bytes(self._path) > layout.budget_bytes:
            message = (
                f"the files of {self._path} must fit budget_bytes={layout.budget_bytes}, got "
                f"{disk_bytes(self._path)} while a reader holds them; close the readers and open it again"
            )
            raise StoreError(message)

    def _open_reader(self, timeout_s: float) -> None:
        if not self._path.is_file():
            message = f"a store is needed to read from, got no file {self._path}; check the path"
            raise StoreError(message)
        connection = self._connection = connect(self._path, mode="ro", timeout_s=timeout_s)
        try:
            version = schema.identify(connection, self._path)
        except sqlite3.OperationalError as error:
            log = self._path.with_name(self._path.name + "-wal")
            if (
                error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
                or log.exists()
            ):
                raise
            # A cleanly closed store in a folder that cannot be written: SQLite cannot make its index there.
            connection.close()
            connection = self._connection = connect(self._path, mode="immutable", timeout_s=timeout_s)
            version = schema.identify(connection, self._path)
        if version != schema.VERSION:
            message = (
                f"{self._path} must have schema version {schema.VERSION} to be read, got {version}; "
                "open it once for writing, which migrates it"
            )
            raise StoreError(message)
        self._reader = Reader(connection, self._path)

    def _require_log(self) -> None:
        (mode,) = self._open_connection().execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            message = (
                f"the folder of {self._path} must allow a write-ahead log (shared memory), got journal mode "
                f"{mode!r}; choose a local file system"
            )
            raise StoreError(message)

    def _page_size(self) -> int:
        return int(self._open_connection().execute("PRAGMA page_size").fetchone()[0])

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            message = f"the store must be open, got a closed one; open {self._path} again"
            raise StoreError(message)
        return self._connection

    def _open_for_writing(self) -> Writer:
        if self._writer is None:
            self._open_connection()
            message = (
                f"the store must be open for writing, got {self._path} with readonly=True; open it without"
            )
            raise StoreError(message)
        return self._writer

    def close(self) -> None:
        """Close the file; the last connection copies the log into it and removes the log."""
        writer, self._writer = self._writer, None
        connection, self._connection = self._connection, None
        if writer is not None:
            writer.space.close()
        if connection is not None:
            with explained(self._path, "close"):
                connection.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> Self:
        """The store itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    # -- writing ---------------------------------------------------------------------------------------

    def put(
        self, sample: Sample, observation: Observation, decision: Decision, *, keep: bool | None = None
    ) -> None:
        """Record a decision in the audit and, where it says so, keep the sample; durable on return.

        Inside a :meth:`transaction` it is durable when the transaction is.

        Args:
            sample: The sample; its id has 1 to 512 bytes.
            observation: What was decided on. A content hash that it carries must be that of the data.
            decision: The decision; its priority may be infinite.
            keep: What to do, whatever was decided: shadow mode keeps all. None does as decided.

        Raises:
            InputError: NaN priority, a wrong content hash, an unusable id, text, label or time.
            SampleTooLargeError: the sample with all that is recorded of it can never fit; nothing is evicted.
            StoreError: the disk is full or at its floor, another writer or a
                reader is in the way for ``timeout_s``, or the transaction outgrows the log's share. Nothing
                of the put remains, and the store stays usable.
        """
        self._open_for_writing().put(sample, observation, decision, keep=keep)

    def quarantine(self, sample: Sample, reason: str) -> None:
        """Set aside a sample that could not be decoded or scored, or that :meth:`put` refused.

        The quarantine has an eighth of the file; the oldest samples give way and are counted. A sample
        bigger than that is listed without its data. The same content again is counted, not stored.

        Any sample is taken: an id beyond 512 bytes, a media type beyond 255 and a reason beyond 1024 are
        cut, pairs of metadata that do not fit 4096 bytes of JSON are left out, and the reason ends with a
        note of it. Metadata become text; a label or time that is no number becomes unknown.

        Raises:
            InputError: an id or media type that is no text, or data that are not bytes.
            StoreError: the disk is full or at its floor, another writer or a reader is in the way for
                ``timeout_s``, or the transaction outgrows the log's share.
        """
        self._open_for_writing().quarantine(sample, reason)

    def transaction(self) -> AbstractContextManager[None]:
        """Commit the puts, quarantine, labels and progress of the block together, in one sync.

        An exception that leaves the block rolls all of it back; so does one that a put raised half-way
        and the block swallowed, with a StoreError at its end.

        Raises:
            StoreError: another writer holds the store for ``timeout_s``; or, from the put that does not
                fit any more, the block changes more pages than the log's share holds.
        """
        return self._open_for_writing().transaction()

    def save_progress(self, progress: Progress) -> None:
        """Remember where the run stands, in the current transaction.

        Its policy digest is noted with the puts that follow, and with those of this transaction when no
        policy was known before.
        """
        self._open_for_writing().save_progress(progress)

    def load_progress(self) -> Progress | None:
        """The progress of the last committed transaction, or None in a new store."""
        self._open_connection()
        return self._reader.progress()

    def note_origin(self, policy_digest: str, origin: JsonObject) -> None:
        """Remember what the scores under a policy come from, so that a replay can tell whether they fit.

        Args:
            policy_digest: Digest of the policy that decides.
            origin: A few facts as JSON, such as ``model_digests`` and ``score``; 4096 bytes at most.

        Raises:
            InputError: more than that or no JSON, such as NaN; a digest of more than 512 bytes.
            StoreError: the origins of so many policies do not fit the file.
        """
        codec.require_short("policy_digest", policy_digest)
        self._open_for_writing().note_origin(policy_digest, encode_origin(origin))

    def origins(self) -> dict[str, JsonObject]:
        """What :meth:`note_origin` remembered, by policy digest."""
        self._open_connection()
        return self._reader.origins()

    def set_label(self, sample: int | str, label: int | None, *, annotator: str = "") -> None:
        """Give a kept sample a human label; it wins over a label that came with the sample.

        Args:
            sample: :attr:`StoredSample.key`, or a sample id that only one kept sample has.
            label: Class index; None takes a human label back.
            annotator: Who says so, for the record; 512 bytes at most.

        Raises:
            InputError: a label that is no class index, or an annotator that is no such text.
            StoreError: no kept sample of that name, or several.
        """
        writer = self._open_for_writing()
        codec.require_short("annotator", annotator)
        if label is not None and not (
            isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label <= _MAX_LABEL
        ):
            message = "label must be a class index (an integer from 0), or None to take a label back, got "
            raise InputError(f"{message}{label!r}")
        if isinstance(sample, str):
            keys = self._reader.keys_of(sample)
        else:
            keys = [sample] if self._reader.has(sample) else []
        if len(keys) != 1:
            message = (
                f"exactly one kept sample is needed to label, got {len(keys)} for {sample!r}; "
                "use the key of an iterated sample (it may have been evicted)"
            )
            raise StoreError(message)
        writer.set_label(keys[0], None if label is None else int(label), annotator)

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def budget_bytes(self) -> int:
        """What all files of the store may take."""
        return self._reader_settings().budget_bytes

    def __len__(self) -> int:
        """Kept samples."""
        self._open_connection()
        return self._reader.count("kept")

    def __iter__(self) -> Iterator[StoredSample]:
        """Kept samples in the order of age; see :meth:`samples`."""
        return self.samples()

    def samples(
        self,
        *,
        predicted_class: int | None = None,
        label_state: LabelState | str | None = None,
        policy_digest: str | None = None,
    ) -> Iterator[StoredSample]:
        """Kept samples in the order of age, one in memory at a time.

        The iteration holds no lock: what is put or evicted meanwhile may or may not appear, everything else
        appears once.

        Args:
            predicted_class: Only samples with this prediction.
            label_state: Only samples in this state.
            policy_digest: Only samples that this policy kept.
        """
        self._open_connection()
        state = None
        if label_state is not None:
            try:
                state = LabelState(label_state)
            except ValueError as error:
                message = f"label_state must be one of {[str(s) for s in LabelState]}, got {label_state!r}"
                raise InputError(message) from error
        return self._reader.samples(
            predicted_class=predicted_class, label_state=state, policy_digest=policy_digest
        )

    def sample(self, key: int) -> StoredSample | None:
        """The kept sample with this key, or None."""
        self._open_connection()
        return self._reader.sample(key)

    def audit(self) -> Iterator[AuditRow]:
        """The recorded decisions, kept or not, oldest first."""
        self._open_connection()
        return self._reader.audit()

    def quarantined(self) -> Iterator[QuarantinedSample]:
        """The samples in quarantine, oldest first."""
        self._open_connection()
        return self._reader.quarantined()

    def stats(self) -> StoreStats:
        """The store in numbers; cheap but for counting the rows of audit and quarantine."""
        self._open_connection()
        if self._writer is None:
            counters, dropped = self._reader.committed_counters()
        else:
            counters, dropped = self._writer.counters, self._writer.quarantine_shelf.dropped
        return self._reader.stats(counters, dropped, self.budget_bytes)

    def check(self) -> CheckReport:
        """Look for damage: SQLite's integrity, references, every hash, counters, budget; reads everything.

        Raises:
            StoreError: inside a transaction.
        """
        connection = self._open_connection()
        if connection.in_transaction:
            raise StoreError(
                "check() needs a committed state, got an open transaction; call it after the block"
            )
        return checking.check(connection, self._path, self.budget_bytes)

    def _reader_settings(self) -> Settings:
        if self._writer is not None:
            return self._writer.settings
        with explained(self._path, "read"):
            return Settings.load(self._open_connection().cursor())
