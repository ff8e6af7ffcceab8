"""What runs on a device needs neither torch nor onnx nor scikit-learn; other rooms name what to install."""

import subprocess
import sys

import pytest

DEVICE_ROOMS = (
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
    "drip.onnx.metadata",
    "drip.onnx.runtime",
    "drip.report",
    "drip.workflow",
    "drip.cli",
)
NEEDED_ELSEWHERE = ("torch", "onnx", "sklearn")
TORCH_ROOMS = ("drip.scoring", "drip.models", "drip.training", "drip.demo")

NOT_INSTALLED = f"""
import sys
sys.modules.update(dict.fromkeys({NEEDED_ELSEWHERE!r}))
"""
# A package can be there and fail to load, for example torch without its shared libraries.
BROKEN = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NEEDED_ELSEWHERE!r}:
            raise ImportError("libtorch.so: cannot open shared object file")
sys.meta_path.insert(0, Finder())
"""
WAYS = pytest.mark.parametrize("prelude", [NOT_INSTALLED, BROKEN], ids=["not-installed", "broken"])


def fresh(code, *arguments):
    """Run code in a fresh interpreter, where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", DEVICE_ROOMS)
def test_a_device_room_can_be_imported_alone(room):
    done = fresh(f"{NOT_INSTALLED}import {room}\n")
    assert done.returncode == 0, done.stderr


@WAYS
def test_device_rooms_work_together(prelude):
    done = fresh(
        prelude
        + "import importlib\n"
        + f"for room in {DEVICE_ROOMS!r}:\n    importlib.import_module(room)\n"
        + "from drip.onnx import ModelMetadata, OnnxScorer\n"
        + "from drip.rules import available\nassert len(available()) >= 8\n"
        + f"assert not any(sys.modules.get(name) for name in {NEEDED_ELSEWHERE!r})\n"
    )
    assert done.returncode == 0, done.stderr


def test_device_rooms_do_not_load_what_happens_to_be_installed():
    done = fresh(
        "import importlib, sys\n"
        f"for room in {DEVICE_ROOMS!r}:\n    importlib.import_module(room)\n"
        f"loaded = sys.modules.keys() & {{*{NEEDED_ELSEWHERE!r}, 'matplotlib'}}\n"
        "assert not loaded, loaded\n"
    )
    assert done.returncode == 0, done.stderr


@WAYS
@pytest.mark.parametrize("room", TORCH_ROOMS)
def test_a_room_that_needs_torch_says_how_to_install_it(room, prelude):
    done = fresh(
        prelude
        + "from drip.errors import DripError\n"
        + f"try:\n    import {room}\nexcept DripError as error:\n    print(error.code, error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("package-missing ")
    assert 'pip install "drip-edge[' in done.stdout


@WAYS
@pytest.mark.parametrize("name", ["attach_score", "check", "export_file", "export_onnx", "set_policy"])
def test_writing_a_model_file_without_onnx_says_how_to_install_it(name, prelude):
    done = fresh(
        prelude
        + "from drip.errors import DripError\n"
        + f"try:\n    from drip.onnx import {name}\n"
        + "except DripError as error:\n    print(error.code, error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("package-missing ")
    assert 'pip install "drip-edge[export]"' in done.stdout


@WAYS
def test_the_demonstration_without_torch_ends_with_one_line(prelude):
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
def test_a_command_that_needs_torch_ends_with_the_command_that_installs_it(arguments, prelude):
    done = fresh(prelude + "from drip.cli import main\nsys.argv[0] = 'drip'\nmain()\n", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error[package-missing]: ")
    assert 'pip install "drip-edge[' in done.stderr
    assert "Traceback" not in done.stderr
