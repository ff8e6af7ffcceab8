"""A put that returned survives a power cut: every write is traced, and unsynced ones are undone."""

from __future__ import annotations

import pytest
from tracing import build_tracer, trace

from drip.store import RetentionStore

STORE = "kept.drip"
SCRIPT = """
import sys
import drip.store.connection as connection
if sys.argv[2] == "off":
    configure = connection.configure_writer
    def without_sync(sqlite, *, synchronous):
        configure(sqlite, synchronous=synchronous)
        sqlite.execute("PRAGMA synchronous = OFF")
    import drip.store.opening
    drip.store.opening.configure_writer = without_sync
from making import DROP, keep, observation, sample
from drip.store import RetentionStore
import os
acknowledged = os.open(sys.argv[1] + "/acks", os.O_WRONLY | os.O_CREAT)
with RetentionStore.open(sys.argv[1] + "/kept.drip", budget_bytes=450_000, audit_rows=1000) as store:
    for i in range(150):
        if i % 10 == 9:
            with store.transaction():
                for j in range(3):
                    store.put(sample(f"s{i}-{j}", bytes([i, j]) * 100), observation(), keep(i / 7 % 1))
        else:
            decision = keep(i / 7 % 1) if i % 3 else DROP
            store.put(sample(f"s{i}", bytes([i]) * (i * 37 % 4000)), observation(), decision)
        os.write(acknowledged, b"%d," % i)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_tracer(tmp_path_factory.mktemp("tracer"))


@pytest.fixture(scope="module")
def steps(library, tmp_path_factory):
    return trace(library, tmp_path_factory.mktemp("full") / "store", SCRIPT, "full")


@pytest.fixture(scope="module")
def unsynced_steps(library, tmp_path_factory):
    return trace(library, tmp_path_factory.mktemp("off") / "store", SCRIPT, "off")


def unsynced_acknowledgements(steps):
    """Acknowledgements that were given while the log had writes that no sync had followed."""
    is_dirty = False
    n_writes = 0
    missing = []
    for step in steps:
        if step.name == f"{STORE}-wal":
            is_dirty = step.kind != "s" and (is_dirty or step.kind == "w")
            n_writes += step.kind == "w"
        elif step.name == "acks":
            if is_dirty or not n_writes:
                missing.append(step.data)
            n_writes = 0
    return missing


def files_after_power_cut(steps):
    """The files with everything dropped that no sync of the same file followed."""
    synced: dict[str, bytes] = {}
    now: dict[str, bytearray] = {}
    for step in steps:
        content = now.setdefault(step.name, bytearray())
        if step.kind == "w":
            content.extend(bytes(max(0, step.offset - len(content))))
            content[step.offset : step.offset + len(step.data)] = step.data
        elif step.kind == "t":
            del content[step.offset :]
        elif step.kind == "s":
            synced[step.name] = bytes(content)
        elif step.kind == "u":
            now.pop(step.name)
            synced.pop(step.name, None)
    return synced


def lost_after_power_cut(steps, folder):
    """What a reopened store lacks of the acknowledged puts, and what its check says."""
    folder.mkdir()
    for name, content in files_after_power_cut(steps).items():
        (folder / name).write_bytes(content)
    acknowledged = b"".join(step.data for step in steps if step.name == "acks").decode().split(",")[:-1]
    with RetentionStore.open(folder / STORE, budget_bytes=450_000) as store:
        audited = {row.sample_id.partition("-")[0] for row in store.audit()}
        problems = store.check().problems
    return {f"s{i}" for i in acknowledged} - audited, problems


def cuts(steps):
    """Places just behind an acknowledgement: every eighth, and the last."""
    places = [index + 1 for index, step in enumerate(steps) if step.name == "acks"]
    return [*places[::8], places[-1]]


def test_every_put_is_synced_before_it_is_acknowledged(steps):
    assert sum(step.name == "acks" for step in steps) == 150
    assert unsynced_acknowledgements(steps) == []


def test_a_missing_sync_is_noticed(unsynced_steps):
    assert len(unsynced_acknowledgements(unsynced_steps)) == 150


def test_a_power_cut_loses_no_acknowledged_put(steps, tmp_path):
    assert any(step.name == STORE and step.kind == "w" for step in steps[len(steps) // 2 :])  # checkpoints
    for place in cuts(steps):
        assert lost_after_power_cut(steps[:place], tmp_path / f"cut{place}") == (set(), ())


def test_a_power_cut_without_syncs_is_noticed(unsynced_steps, tmp_path):
    lost, _ = lost_after_power_cut(unsynced_steps[: cuts(unsynced_steps)[-1]], tmp_path / "cut")
    assert lost


def test_a_power_cut_at_any_sync_leaves_a_sound_store(steps, tmp_path):
    places = [
        index + 1 for index, step in enumerate(steps) if step.kind == "s" and step.name.startswith(STORE)
    ]
    for place in places[::25]:
        _, problems = lost_after_power_cut(steps[:place], tmp_path / f"sync{place}")
        assert problems == ()


def test_the_files_never_outgrow_the_budget(steps):
    sizes: dict[str, int] = {}
    most = 0
    for step in steps:
        if step.name.startswith(STORE):
            if step.kind == "w":
                sizes[step.name] = max(sizes.get(step.name, 0), step.offset + len(step.data))
            elif step.kind == "t":
                sizes[step.name] = step.offset
            elif step.kind == "u":
                sizes.pop(step.name)
            most = max(most, sum(sizes.values()))
    assert 0 < most <= 450_000
