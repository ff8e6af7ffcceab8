"""Windows of long recordings are samples of their own, also after a restart in the middle of a recording."""

import json

import numpy as np
import pytest
from encoded_samples import sound

from drip.media import InputSpec
from drip.sources import FolderSource, RecordingWindows, split_recordings
from drip.testing import check_source

SPEC = InputSpec((1, 400), "crop", sample_rate_hz=16_000, hop=200)
RNG = np.random.default_rng(0)


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, length in (("a.wav", 1_500), ("b.wav", 300), ("d.wav", 1_000)):
        (folder / name).write_bytes(sound(RNG.uniform(-0.9, 0.9, length)))
    (folder / "c.wav").write_bytes(b"not audio")
    return folder


def test_the_contract_of_sources_holds_inside_a_recording(recordings):
    check_source(lambda: RecordingWindows(FolderSource(recordings), SPEC))


def test_ids_and_times_say_where_a_window_begins(recordings):
    source = split_recordings(FolderSource(recordings), SPEC)
    samples = [sample for batch in source.batches(3) for sample in batch]
    starts = [f"a.wav#t={start / 16_000:.9g}" for start in (0, 200, 400, 600, 800, 1_000, 1_100)]
    assert [sample.id for sample in samples[:9]] == [*starts, "b.wav", "c.wav"]
    assert samples[1].time_s - samples[0].time_s == pytest.approx(200 / 16_000, abs=1e-5)
    assert samples[8].data == b"not audio"


def test_a_cursor_of_another_recording_or_of_a_run_without_windows_loses_nothing(recordings):
    whole = [one.id for batch in RecordingWindows(FolderSource(recordings), SPEC).batches(9) for one in batch]
    source = RecordingWindows(FolderSource(recordings), SPEC)
    source.seek(f"window:{json.dumps([3, 'renamed.wav', None])}")
    assert [one.id for batch in source.batches(9) for one in batch] == whole
    plain = FolderSource(recordings)
    next(plain.batches(1))
    source = RecordingWindows(FolderSource(recordings), SPEC)
    source.seek(plain.cursor)
    assert [one.id for batch in source.batches(9) for one in batch] == whole[7:]


def test_an_empty_batch_is_passed_on_and_moves_no_cursor():
    class Quiet:
        cursor = "here"

        def batches(self, _max_samples):
            yield []

    source = RecordingWindows(Quiet(), SPEC)
    assert list(source.batches(3)) == [[]]
    assert source.cursor == "here"


def test_without_a_hop_the_source_stays_as_it_is(recordings):
    source = FolderSource(recordings)
    assert split_recordings(source, InputSpec((1, 400), "crop", sample_rate_hz=16_000)) is source
