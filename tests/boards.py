"""A model file with folders of pictures, as a board has them; no torch."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from drip.media import InputSpec

sys.path.insert(0, str(Path(__file__).parent / "onnx"))

SPEC = InputSpec((3, 8, 8), mean=(0.5,), std=(0.25,))
N_PRODUCTION = 150


def picture(rng):
    """A tinted picture of noise, so all classes are predicted."""
    tint = rng.uniform(0, 255, 3)
    return np.clip(tint + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)


def write_pictures(folder, n, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(n):
        kind, suffix = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
        buffer = io.BytesIO()
        Image.fromarray(picture(rng)).save(buffer, format=kind)
        (folder / f"{number:04}.{suffix}").write_bytes(buffer.getvalue())
    return folder


@pytest.fixture(scope="session")
def board(tmp_path_factory):
    """``model`` knows what it gives; ``bare`` has no policy, ``policy`` was calibrated on 300 pictures."""
    from known_model import make_model

    from drip.onnx import OnnxScorer
    from drip.workflow import calibrate_file

    root = tmp_path_factory.mktemp("board")
    calibration = write_pictures(root / "calibration", 300, seed=1)
    production = write_pictures(root / "production", N_PRODUCTION, seed=2)
    bare = make_model(root / "bare.onnx", SPEC, seed=3)
    policy = calibrate_file(OnnxScorer(bare.path), calibration, rule="drip")
    policy.save(root / "policy.json")
    bounds = ([w.lower for w in policy.windows], [w.upper for w in policy.windows])
    model = make_model(root / "model.onnx", SPEC, seed=3, policy=policy, windows=bounds)
    return SimpleNamespace(
        root=root, model=model, bare=bare, policy=root / "policy.json", calibration=calibration,
        production=production, spec=SPEC,
    )  # fmt: skip


@pytest.fixture
def run_options(board, tmp_path):
    """A run of the board's model file over its folder."""
    return ["run", board.model.path, "--source", board.production, "--store", tmp_path / "kept.db"]
