"""Wheel and sdist are built, installed with the device extra into a clean environment, and used there."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(*command, cwd=None):
    # Without PYTHONPATH and the like, or the checkout would be imported instead of the installed package.
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "DRIP_"))
    }
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=clean
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, built from the sdist as an index would serve it, and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", out, ROOT)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def device(built, tmp_path_factory):
    """A clean environment with the wheel and its extra ``device``."""
    env = tmp_path_factory.mktemp("device") / "env"
    venv.create(env, with_pip=True)
    wheel = f"drip-edge[device] @ {built[0].as_uri()}"
    call(env / "bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return env


def test_wheel_and_sdist_contain_what_they_should(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"drip/py.typed", "drip/files/style.css", "drip/data/t10k-images-idx3-ubyte.gz"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "experiments"))]
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py"} <= members


def test_the_installed_package_runs_on_a_device(device, board, tmp_path):
    drip = device / "bin" / "drip"
    assert call(drip, "--version").startswith("drip ")
    assert call(device / "bin/python", "-m", "drip", "--version").startswith("drip ")
    policy, store = tmp_path / "policy.json", tmp_path / "kept.db"
    options = ["--data", board.calibration, "--rule", "drip", "--keep", "0.6", "--out", policy]
    call(drip, "calibrate", board.bare.path, *options)
    call(drip, "run", board.bare.path, "--policy", policy, "--source", board.production, "--store", store)
    stats = json.loads(call(drip, "store", "stats", store, "--json"))
    assert stats["seen"] == len(list(board.production.iterdir()))
    assert 0 < stats["kept"] < stats["seen"]
    call(drip, "store", "check", store)
    call(drip, "store", "export", store, "--to", tmp_path / "out", "--labels", "predicted")
    assert (
        len([path for path in (tmp_path / "out").rglob("*") if path.suffix in (".jpg", ".png")])
        == stats["kept"]
    )
    script = (
        "import sys\nfrom drip.store import RetentionStore\n"
        f"with RetentionStore.open_readonly({str(store)!r}) as store:\n    print(len(store))\n"
        "assert not {'torch', 'onnx', 'sklearn'} & set(sys.modules)\n"
    )
    assert int(call(device / "bin/python", "-c", script)) == stats["kept"]


def test_the_installed_package_names_missing_extras(device):
    done = subprocess.run(
        [device / "bin" / "drip", "demo"], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 1
    assert "error[package-missing]" in done.stderr
