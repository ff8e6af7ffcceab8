"""What a device installs works where torch cannot be imported; the other rooms say how to install it."""

import subprocess
import sys

import pytest

FREE_ROOMS = (
    "drip",
    "drip.errors",
    "drip.types",
    "drip.files",
    "drip.media",
    "drip.windows",
    "drip.policy",
    "drip.rules",
    "drip.rules.chance",
    "drip.pipeline",
    "drip.testing",
    "drip.datasets",
    "drip.sources",
    "drip.store",
    "drip.onnx",
    "drip.report",
    "drip.workflow",
    "drip.cli",
)
TORCH_ROOMS = ("drip.scoring", "drip.models", "drip.training", "drip.demo")

NOT_THERE = """
import sys
sys.modules["torch"] = None
"""
RAISES = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("libtorch.so: cannot open shared object file")
sys.meta_path.insert(0, Finder())
"""
WAYS = pytest.mark.parametrize("prelude", [NOT_THERE, RAISES], ids=["not-installed", "broken"])


def fresh(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@WAYS
def test_every_torch_free_room_opens(prelude):
    done = fresh(
        prelude
        + "import importlib\n"
        + f"for room in {FREE_ROOMS!r}:\n    importlib.import_module(room)\n"
        + "from drip.rules import available\nassert len(available()) >= 10\n"
        + "assert sys.modules.get('torch') is None\n"
    )
    assert done.returncode == 0, done.stderr


def test_torch_free_rooms_do_not_import_torch_where_it_is_installed():
    done = fresh(
        "import importlib, sys\n"
        f"for room in {FREE_ROOMS!r}:\n    importlib.import_module(room)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


@WAYS
@pytest.mark.parametrize("room", TORCH_ROOMS)
def test_room_that_needs_torch_says_how_to_install_it(room, prelude):
    done = fresh(
        prelude
        + "from drip.errors import DripError\n"
        + f"try:\n    import {room}\nexcept DripError as error:\n    print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert 'pip install "drip-edge[' in done.stdout
    assert "needs torch" in done.stdout


@WAYS
def test_the_demonstration_without_torch_is_refused_in_a_line(prelude):
    done = fresh(prelude + "from drip.cli import main\nsys.argv = ['drip', 'demo']\nmain()\n")
    assert done.returncode == 1
    assert "drip.demo needs torch" in done.stderr
    assert "Traceback" not in done.stderr


@WAYS
def test_help_works_without_torch(prelude):
    done = fresh(prelude + "from drip.cli import main\nsys.argv = ['drip', '--help']\nmain()\n")
    assert done.returncode == 0, done.stderr
    assert "calibrate" in done.stdout


@WAYS
@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["calibrate", "m:f", "--data", ".", "--input-spec", "1x2x2"],
        ["run", "m:f", "--policy", __file__, "--source", ".", "--store", "s"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_command_that_needs_torch_ends_with_the_install_line(arguments, prelude):
    done = fresh(prelude + "from drip.cli import main\nsys.argv[0] = 'drip'\nmain()\n", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error[package-missing]: ")
    assert 'pip install "drip-edge[' in done.stderr
    assert "Traceback" not in done.stderr
