"""The wing imports without the device wing and its packages, finds its methods, and names what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from tables import fails

import drip.reduction
from drip.reduction import available, create


def fails_to_import(*modules):
    """Code after which these modules are not installed."""
    return f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {modules} else find(name, *rest)
"""


def fresh(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


MODULES = sorted(path.stem for path in Path(drip.reduction.__path__[0]).glob("[a-z]*.py"))


@pytest.mark.slow
def test_every_module_but_one_imports_without_torch_and_onnx():
    code = "".join(f"import drip.reduction.{name}\n" for name in MODULES if name != "torch_forgetting")
    done = fresh(
        f"{fails_to_import('torch', 'onnx', 'onnxruntime')}{code}drip.reduction.available()\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'gudhi'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_method_runs_without_torch_and_onnx():
    done = fresh(
        f"{fails_to_import('torch', 'onnx', 'onnxruntime')}from drip.reduction import MaxMin\n"
        "print(MaxMin(n_samples=1).fit([[0.0], [1.0]]).sample_indices_.shape)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1,)"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("imblearn", "import drip.reduction"),
        (
            "gudhi",
            "from drip.reduction import create\n    create('PHL', dimension=0).fit([[0.0], [1.0], [2.0]])",
        ),
    ],
    ids=["imblearn", "gudhi"],
)
def test_missing_package_is_named_with_the_command_that_installs_it(module, code):
    done = fresh(
        f"{fails_to_import(module)}from drip.errors import DripError\n"
        f"try:\n    {code}\nexcept DripError as error:\n    print(error.code, error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("package-missing")
    assert 'pip install "drip-edge[reduction]"' in done.stdout


def test_every_method_is_found_by_name_and_by_abbreviation():
    found = available()
    assert len(found) >= 10
    for name, method in found.items():
        assert isinstance(create(name), method)
        assert isinstance(create(method.abbreviation, fraction=0.5), method)
    abbreviations = {method.abbreviation for method in found.values()}
    assert abbreviations >= {"SRS", "PRD", "CLC", "MMS", "DES", "PHL", "NRMD", "FES", "RKMEANS"}


@pytest.mark.slow
def test_method_that_is_defined_elsewhere_is_found_too():
    done = fresh(
        "from drip.reduction import StratifiedRandom, create\n"
        "class Own(StratifiedRandom):\n    name, abbreviation = 'own', 'OWN'\n"
        "assert type(create('own')) is Own and type(create('SRS')) is StratifiedRandom\n"
    )
    assert done.returncode == 0, done.stderr


def test_unknown_method_or_parameter_is_rejected():
    for name, params in (("kennard", {}), (5, {}), ("maxmin", {"share": 0.1})):
        with fails("method-unknown"):
            create(name, **params)
