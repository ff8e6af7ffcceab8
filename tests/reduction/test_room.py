"""The room opens without torch, finds its methods, and says what it lacks."""

import subprocess
import sys

import pytest

from drip.errors import InputError
from drip.reduction import available, create

FAILS_TO_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == MODULE:
            raise ImportError(name)
sys.meta_path.insert(0, Finder())
"""


def fresh(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_room_opens_where_torch_cannot_be_imported():
    done = fresh(
        f"MODULE = 'torch'\n{FAILS_TO_IMPORT}"
        "from drip.reduction import MaxMin\n"
        "print(MaxMin(n_samples=1).fit([[0.0], [1.0]]).sample_indices_.shape)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1,)"


def test_room_imports_neither_torch_nor_a_drawing_library():
    done = fresh(
        "import sys, drip.reduction\ndrip.reduction.available()\n"
        "assert not {'torch', 'matplotlib', 'gudhi'} & set(sys.modules), sorted(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


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
        f"MODULE = {module!r}\n{FAILS_TO_IMPORT}from drip.errors import DripError\n"
        f"try:\n    {code}\nexcept DripError as error:\n    print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert 'pip install "drip-edge[reduction]"' in done.stdout


def test_every_method_is_found_by_name_and_by_abbreviation():
    found = available()
    assert len(found) >= 10
    for name, method in found.items():
        assert isinstance(create(name), method)
        assert isinstance(create(method.abbreviation, fraction=0.5), method)
    abbreviations = {method.abbreviation for method in found.values()}
    assert abbreviations >= {"SRS", "PRD", "CLC", "MMS", "DES", "PHL", "NRMD", "FES", "RKMEANS"}


def test_method_that_is_defined_elsewhere_is_found_too():
    done = fresh(
        "from drip.reduction import StratifiedRandom, create\n"
        "class Own(StratifiedRandom):\n    name, abbreviation = 'own', 'OWN'\n"
        "assert type(create('own')) is Own and type(create('SRS')) is StratifiedRandom\n"
    )
    assert done.returncode == 0, done.stderr


def test_unknown_method_or_parameter_is_refused():
    with pytest.raises(InputError, match=r"method must be one of cluster-centroids, .*, got 'kennard'"):
        create("kennard")
    with pytest.raises(InputError, match=r"method must be one of .*, got 5"):
        create(5)
    with pytest.raises(InputError, match="'maxmin' does not take these parameters"):
        create("maxmin", share=0.1)
