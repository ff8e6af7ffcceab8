"""Bad samples in a run of a model file: quarantined with a clear reason, and no other sample is lost."""

import io
import json
import os
import subprocess

import numpy as np
import pytest
from boards import picture, write_pictures
from device_runs import N_PRODUCTION, audit, start, wait_until
from encoded_samples import png_declaring, sound
from PIL import Image
from support import lacks

from drip.media import InputSpec, encode_npy
from drip.store import RetentionStore

AUDIO = InputSpec((1, 400), sample_rate_hz=16_000)
ARRAYS = InputSpec((3, 8, 8))
N_GOOD = 40
SAMPLES = np.random.default_rng(4).normal(0, 0.2, (N_GOOD, 400))


def jpeg(**options):
    buffer = io.BytesIO()
    Image.fromarray(picture(np.random.default_rng(9))).resize((64, 64)).resize((8, 8)).save(
        buffer, "JPEG", **options
    )
    return buffer.getvalue()


def declaring(data, height, width):
    """The JPEG with other sides in its frame header (SOF0: length, precision, height, width)."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


def without_tables(data):
    """The JPEG whose Huffman tables are of a kind that does not exist."""
    return data.replace(b"\xff\xc4", b"\xff\xf1")


def with_nan(values):
    spoilt = values.astype(np.float32).copy()
    spoilt.reshape(-1)[7] = np.nan
    return spoilt


BAD_PICTURES = {
    "truncated.jpg": (jpeg()[:-40], "the image is truncated or corrupt"),
    "no_tables.jpg": (without_tables(jpeg()), "the image is truncated or corrupt"),
    "bomb.jpg": (declaring(jpeg(), 60_000, 60_000), "3600000000"),
    "bomb.png": (png_declaring(60_000, 60_000), "3600000000"),
    "wide.jpg": (declaring(jpeg(), 8, 16), "the input spec says 8 x 8"),
    "text.jpg": (b"no picture", "not an image/jpeg file"),
}
BAD_SOUNDS = {
    "nan.wav": (sound(with_nan(SAMPLES[0]), subtype="FLOAT"), "NaN or infinity"),
    "short.wav": (sound(SAMPLES[0][:399]), "400"),
    "rate.wav": (sound(SAMPLES[0], rate=8000), "16000"),
    "stereo.wav": (sound(np.stack([SAMPLES[0]] * 2, axis=1)), "channel"),
    "truncated.wav": (sound(SAMPLES[0])[:-100], "truncated"),
    "truncated.flac": (sound(SAMPLES[0], form="FLAC")[:-100], "truncated"),
}
GOOD = np.random.default_rng(5).normal(0, 1, (N_GOOD, 3, 8, 8)).astype(np.float32)
BAD_ARRAYS = {
    "nan.npy": (encode_npy(with_nan(GOOD[0])), "NaN or infinity"),
    "shape.npy": (encode_npy(GOOD[0][:, :7]), "(3, 8, 8)"),
    "truncated.npy": (encode_npy(GOOD[0])[:-8], "bytes"),
}


def sounds(folder):
    folder.mkdir()
    for number, values in enumerate(SAMPLES):
        (folder / f"{number:04}.wav").write_bytes(sound(values))
    return AUDIO


def arrays(folder):
    folder.mkdir()
    for number, values in enumerate(GOOD):
        (folder / f"{number:04}.npy").write_bytes(encode_npy(values))
    return ARRAYS


def pictures(folder):
    write_pictures(folder, N_GOOD, seed=6)
    return InputSpec((3, 8, 8), mean=(0.5,), std=(0.25,))


KINDS = {"pictures": (pictures, BAD_PICTURES), "sounds": (sounds, BAD_SOUNDS), "arrays": (arrays, BAD_ARRAYS)}


@pytest.mark.parametrize("watched", [False, True], ids=["folder", "watched"])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_samples_are_quarantined_by_name_and_all_others_are_decided(kind, watched, drip, tmp_path):
    from known_model import make_model

    make, bad = KINDS[kind]
    folder = tmp_path / "in"
    spec = make(folder)
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    model = make_model(tmp_path / "model.onnx", spec, seed=3)
    expected = {path.name for path in folder.iterdir()} - set(bad)
    policy = tmp_path / "policy.json"
    good = tmp_path / "good"
    make(good)
    assert drip("calibrate", model.path, "--data", good, "--rule", "drip", "--out", policy).code == 0
    options = ["--policy", policy, "--store", tmp_path / "kept.db"]
    if watched:
        options += ["--source", f"watch:{folder}?settle=0.05&poll=0.05"]
        n_quarantined = _run_until_all_are_seen(model.path, options, tmp_path, len(expected) + len(bad))
    else:
        result = drip("run", model.path, *options, "--source", folder, "--json")
        assert result.code == 0, result.err
        n_quarantined = json.loads(result.out)["run"]["n_quarantined"]
    assert n_quarantined == len(bad)
    assert {row.sample_id for row in audit(tmp_path / "kept.db")} == expected
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        reasons = {rejected.sample.id: rejected.reason for rejected in store.quarantined()}
        assert store.check().ok
    assert reasons.keys() == bad.keys()
    for name, (_, word) in bad.items():
        assert word in reasons[name], name


def _run_until_all_are_seen(model, options, folder, n_samples):
    """SIGTERM to a run over a watched folder when it has seen so many; its count of the quarantine."""
    status = folder / "status.json"
    process = start(["run", model, *options, "--status-file", status], folder)
    try:
        wait_until(lambda: status.exists() and json.loads(status.read_text())["n_seen"] >= n_samples, process)
        process.terminate()
        assert process.wait() == 130
    finally:
        process.kill()
        process.communicate()
    return json.loads(status.read_text())["n_quarantined"]


def test_a_run_that_a_full_disk_ended_continues_where_there_is_room_and_has_lost_nothing(
    board, run_options, drip, tmp_path
):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        lacks("mounting a small tmpfs needs root")
    try:
        store = mount / "kept.db"
        run_options[-1] = store
        failed = drip(*run_options, "--shadow", "--batch-size", "8")
        assert failed.code == 1
        assert "disk is full" in failed.err
        before = {row.sample_id for row in audit(store)}
        assert 0 < len(before) < N_PRODUCTION
        subprocess.run(["mount", "-o", "remount,size=8m", mount], check=True)
        assert drip(*run_options, "--shadow").code == 0
        ids = [row.sample_id for row in audit(store)]
        assert before < set(ids)
        assert sorted(ids) == sorted(path.name for path in board.production.iterdir())
        with RetentionStore.open_readonly(store) as kept:
            assert len(list(kept)) == N_PRODUCTION
            assert kept.check().ok
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
