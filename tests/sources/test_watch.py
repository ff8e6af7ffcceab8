"""A watched folder: only complete files, each once, regardless of names, times and clocks."""

import logging
import os
import random
import subprocess
import sys
import threading
import time
from itertools import count, islice

import pytest

import drip.sources.watch
from drip.errors import SourceError
from drip.media import encode_npy
from drip.pipeline import run
from drip.rules import create
from drip.sources import WatchedFolderSource, open_source
from drip.store import RetentionStore
from drip.testing import check_source, fake_observations


class Clock:
    """A monotonic clock that a test moves; sleeping moves it too."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(drip.sources.watch, "time", made)
    return made


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def drain(batches, n_idle=4):
    """Ids until the source found nothing so many times."""
    ids, idle = [], 0
    while idle < n_idle:
        batch = next(batches)
        idle = 0 if batch else idle + 1
        ids += [sample.id for sample in batch]
    return ids


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("done", ["move:.done", "delete", "keep"])
def test_watched_folder_is_a_source(tmp_path, done):
    folders = (tmp_path / str(number) for number in count())

    class Ended(WatchedFolderSource):
        def batches(self, max_samples):
            n_seen = 0
            for batch in super().batches(max_samples):
                n_seen += len(batch)
                if batch:
                    yield batch
                if n_seen == 5:
                    return

    def opened():
        folder = next(folders)
        write(folder, "a/1.png", "a/2.png", "b/1.wav", "3.npy", "0.png")
        for path in folder.rglob("*.*"):
            os.utime(path, ns=(7, 7))
        return Ended(folder, done=done)

    check_source(opened)


@pytest.mark.usefixtures("clock")
def test_existing_and_later_files_are_moved_after_the_commit(tmp_path):
    write(tmp_path, "cat/1.png", "2.wav", "notes.txt", ".hidden.png", "half.png.part")
    batches = WatchedFolderSource(tmp_path, ["dog", "cat"]).batches(1)
    first = next(batch for batch in batches if batch)
    write(tmp_path, "cat/3.png")
    assert first[0].id in files_in(tmp_path)  # not yet committed
    rest = drain(batches)
    assert sorted([first[0].id, *rest]) == ["2.wav", "cat/1.png", "cat/3.png"]
    assert files_in(tmp_path) == [
        ".done/2.wav", ".done/cat/1.png", ".done/cat/3.png", ".hidden.png", "half.png.part", "notes.txt"
    ]  # fmt: skip
    batches.close()


@pytest.mark.usefixtures("clock")
def test_sample_carries_bytes_type_label_and_time(tmp_path):
    write(tmp_path, "cat/1.png")
    os.utime(tmp_path / "cat/1.png", (5, 1.6e9 + 0.5))
    (sample,) = next(batch for batch in WatchedFolderSource(tmp_path, ["dog", "cat"]).batches(9) if batch)
    assert (sample.data, sample.media_type, sample.label, sample.time_s) == (
        b"cat/1.png", "image/png", 1, 1.6e9 + 0.5,
    )  # fmt: skip


@pytest.mark.usefixtures("clock")
def test_file_that_is_still_being_written_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    batches = WatchedFolderSource(tmp_path, settle_s=1.0, poll_s=0.5).batches(9)
    path.touch()
    assert [next(batches) for _ in range(6)] == [[]] * 6  # empty: the writer has not begun
    for length in range(1, 5):
        with path.open("ab") as file:
            file.write(b"x" * length)
        assert next(batches) == []
    (sample,) = next(batch for batch in batches if batch)
    assert sample.data == b"x" * 10


@pytest.mark.usefixtures("clock")
def test_file_that_changes_between_look_and_read_waits_again(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "b.png")
    source = WatchedFolderSource(tmp_path)
    real = source._ready

    def ready(consumed):
        found = real(consumed)
        if found and not (tmp_path / "b.png").read_bytes().endswith(b"more"):
            (tmp_path / "b.png").write_bytes(b"b and more")
        return found

    monkeypatch.setattr(source, "_ready", ready)
    batches = source.batches(9)
    assert drain(batches) == ["a.png", "b.png"]
    assert (tmp_path / ".done/b.png").read_bytes() == b"b and more"


@pytest.mark.usefixtures("clock")
def test_file_that_is_rewritten_before_the_commit_is_a_new_file(tmp_path):
    write(tmp_path, "a.png")
    batches = WatchedFolderSource(tmp_path, done="delete").batches(9)
    assert next(batch for batch in batches if batch)[0].data == b"a.png"
    (tmp_path / "a.png").write_bytes(b"second")
    assert next(batch for batch in batches if batch)[0].data == b"second"


@pytest.mark.usefixtures("clock")
def test_reused_names_do_not_overwrite_consumed_files(tmp_path):
    batches = WatchedFolderSource(tmp_path).batches(9)
    for content in (b"one", b"two", b"three"):
        (tmp_path / "a.png").write_bytes(content)
        assert drain(batches) == ["a.png"]
    contents = {path.name: path.read_bytes() for path in (tmp_path / ".done").iterdir()}
    assert contents == {"a.png": b"one", "a~1.png": b"two", "a~2.png": b"three"}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("done", ["move:old/er", "delete", "keep"])
def test_consumed_files_are_not_read_again_by_the_next_run(tmp_path, done):
    write(tmp_path, "a.png", "b.png")
    batches = WatchedFolderSource(tmp_path, done=done).batches(1)
    assert sorted(drain(batches)) == ["a.png", "b.png"]
    batches.close()
    write(tmp_path, "0.png")
    os.utime(tmp_path / "0.png", (1, 1))  # earlier by name, and by a clock that jumped back
    again = WatchedFolderSource(tmp_path, done=done)
    again.seek("position of another source")
    assert again.cursor is None
    batches = again.batches(1)
    assert drain(batches) == ["0.png"]
    batches.close()


@pytest.mark.usefixtures("clock")
def test_kept_file_that_is_rewritten_is_read_again(tmp_path):
    write(tmp_path, "a.png")
    batches = WatchedFolderSource(tmp_path, done="keep").batches(1)
    assert drain(batches) == ["a.png"]
    (tmp_path / "a.png").write_bytes(b"new")
    assert drain(batches) == ["a.png"]
    batches.close()


@pytest.mark.usefixtures("clock")
def test_record_of_kept_files_forgets_files_that_vanished(tmp_path):
    write(tmp_path, *(f"{number}.png" for number in range(30)))
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"odd")
    batches = WatchedFolderSource(tmp_path, done="keep").batches(50)
    assert len(drain(batches)) == 31
    batches.close()
    for number in range(29):
        (tmp_path / f"{number}.png").unlink()
    batches = WatchedFolderSource(tmp_path, done="keep").batches(50)
    assert drain(batches) == []
    with drip.sources.watch.ConsumedFiles(tmp_path) as record:
        count_ = record._connection.execute("SELECT count(*) FROM consumed").fetchone()
    assert count_ == (2,)
    batches.close()


def test_damaged_record_of_kept_files_is_an_error(tmp_path):
    (tmp_path / ".drip-consumed").write_bytes(b"no database" * 100)
    with pytest.raises(SourceError, match="remove it to read all files again"):
        next(WatchedFolderSource(tmp_path, done="keep").batches(1))


@pytest.mark.usefixtures("clock")
def test_no_file_is_lost_to_clock_jumps_early_names_or_early_times(tmp_path):
    rng = random.Random(5)
    batches = WatchedFolderSource(tmp_path).batches(3)
    names = [f"{number:03}.png" for number in rng.sample(range(1000), 60)]
    seen = []
    for start in range(0, 60, 6):
        for name in names[start : start + 6]:
            write(tmp_path, name)
            jump = rng.choice([-3e8, 0, 3e8])
            os.utime(tmp_path / name, (jump + 1.7e9, jump + 1.7e9))
        seen += [sample.id for batch in islice(batches, 4) for sample in batch]
    seen += drain(batches)
    assert sorted(seen) == sorted(names)


@pytest.mark.usefixtures("clock")
def test_more_files_than_one_look_remembers_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr(drip.sources.watch, "_WINDOW", 7)
    write(tmp_path, *(f"{number}.png" for number in range(40)))
    source = WatchedFolderSource(tmp_path)
    batches = source.batches(3)
    assert len(drain(batches)) == 40
    assert len(source._pending) <= 7


@pytest.mark.usefixtures("clock")
def test_links_pipes_and_folders_with_suffixes(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "in"
    write(outside, "far.png")
    folder.mkdir()
    (folder / "link.png").symlink_to(outside / "far.png")
    (folder / "dangling.png").symlink_to(outside / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    batches = WatchedFolderSource(folder, done="delete").batches(9)
    assert drain(batches) == ["link.png"]
    assert (outside / "far.png").exists()
    assert not (folder / "link.png").is_symlink()


@pytest.mark.usefixtures("clock")
def test_unreadable_file_is_logged_once_and_read_after_a_change(tmp_path, monkeypatch, caplog):
    write(tmp_path, "a.png", "b.png")
    real, refused = type(tmp_path).open, []

    def open_(path, *arguments):
        if path.name == "a.png" and not refused[1:]:
            refused.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(type(tmp_path), "open", open_)
    caplog.set_level(logging.WARNING)
    batches = WatchedFolderSource(tmp_path).batches(9)
    assert drain(batches, 6) == ["b.png"]
    assert len(caplog.records) == len(refused) == 1
    assert "Permission denied" in caplog.text
    refused.append("enough")
    (tmp_path / "a.png").chmod(0o644)  # a change, after which it is tried again
    assert drain(batches, 6) == ["a.png"]


@pytest.mark.usefixtures("clock")
def test_file_that_vanishes_is_skipped(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "b.png")
    source = WatchedFolderSource(tmp_path)
    real = source._ready

    def ready(consumed):
        found = real(consumed)
        if found:
            (tmp_path / "a.png").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(source, "_ready", ready)
    assert drain(source.batches(9)) == ["b.png"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("done", ["delete", "move:.done", "keep"])
def test_too_large_file_is_rejected_and_never_deleted(tmp_path, done):
    (tmp_path / "a.png").write_bytes(bytes(5000))
    write(tmp_path, "b.png")
    batches = WatchedFolderSource(tmp_path, done=done, max_bytes=4000).batches(9)
    samples = {sample.id: sample for batch in islice(batches, 8) for sample in batch}
    (bad,) = [sample for sample in samples.values() if sample.rejected]
    assert bad.rejected == "the file has 5000 bytes, more than max_bytes=4000"
    assert len(samples) == 2
    assert (tmp_path / ".too-large/a.png").stat().st_size == 5000
    batches.close()


@pytest.mark.usefixtures("clock")
def test_folder_that_vanishes_is_an_error(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    batches = WatchedFolderSource(folder).batches(9)
    assert next(batches) == []
    folder.rmdir()
    with pytest.raises(SourceError, match="cannot list"):
        next(batches)


@pytest.mark.usefixtures("clock")
def test_file_that_cannot_be_moved_is_an_error_and_stays(tmp_path):
    write(tmp_path, "a.png", ".done")
    batches = WatchedFolderSource(tmp_path).batches(9)
    assert [sample.id for sample in next(batch for batch in batches if batch)] == ["a.png"]
    with pytest.raises(SourceError, match=r"a\.png was stored but cannot be moved"):
        next(batches)
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("done=burn", "done must be delete, keep, or move:"),
        ("done=move:", "done must be"),
        ("done=move:../x", "done must be"),
        ("done=move:/x", "done must be"),
        ("done=move:.", "done must be"),
        ("settle=-1", "settle must be"),
        ("poll=5", "poll must be a number from 0.01 to 1"),
        ("pol=5", "watch: has no option 'pol'"),
    ],
)
def test_malformed_url_is_an_error(tmp_path, query, word):
    with pytest.raises(SourceError, match=word) as caught:
        open_source(f"watch:{tmp_path}?{query}")
    assert caught.value.code == "source-url"


def test_folder_that_is_not_writable_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SourceError, match="is not writable") as caught:
        open_source(f"watch:{tmp_path}")
    assert caught.value.code == "source-unavailable"


class Scorer:
    provides = frozenset({"logits", "drip"})

    def score(self, batch):
        return fake_observations(len(batch), 3)


def consume(url, path, n_samples, stop=lambda: False):
    with RetentionStore.open(path, budget_bytes=5_000_000) as store:
        rule = create("keep-all").calibrate(fake_observations(50, 3))
        run(
            open_source(url), Scorer(), rule, store, batch_size=4,
            stop=lambda: stop() or store.stats().seen >= n_samples,
        )  # fmt: skip


@pytest.mark.slow
def test_killed_runs_lose_no_file_and_store_none_twice(tmp_path):
    folder, path = tmp_path / "in", tmp_path / "kept"
    folder.mkdir()
    url = f"watch:{folder}?settle=0.05&poll=0.02"
    code = f"import sys; sys.path[:0] = {sys.path!r}\nimport test_watch\n"
    code += f"test_watch.consume({url!r}, {str(path)!r}, 300)"

    def produce():
        for number in range(300):
            temporary = folder / f".{number}"
            temporary.write_bytes(encode_npy(fake_observations(1, 3, seed=number).logits))
            temporary.rename(folder / f"{number}.npy")
            time.sleep(0.005)

    producer = threading.Thread(target=produce)
    producer.start()
    for limit in (20, 120, None):
        child = subprocess.Popen([sys.executable, "-c", code])
        while limit is not None and len(list(folder.glob(".done/*"))) < limit:
            assert child.poll() is None
            time.sleep(0.01)
        if limit is None:
            assert child.wait() == 0
        else:
            child.kill()
            child.wait()
    producer.join()
    with RetentionStore.open(path) as store:
        assert store.stats().seen == store.stats().kept == 300
        assert sorted(int(record.sample.id[:-4]) for record in store) == list(range(300))


def test_file_of_another_process_is_read_with_the_real_clock(tmp_path):
    batches = open_source(f"watch:{tmp_path}?settle=0.3&poll=0.02").batches(4)
    assert next(batches) == []
    subprocess.run([sys.executable, "-c", f"open({str(tmp_path / 'a.png')!r}, 'w').write('x')"], check=True)
    assert next(batch for batch in batches if batch)[0].data == b"x"
