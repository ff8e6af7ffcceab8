"""The pages cannot lag: what is generated is up to date, and what they name exists."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pages import DOCS, GENERATED, PAGES, ROOT, name, prose

import drip
from drip.errors import CODES
from drip.rules import RECOMMENDATION

MOST_WORDS = 15_000


def test_generated_pages_are_up_to_date():
    subprocess.run([sys.executable, DOCS / "generate.py", "--check"], check=True)


def test_the_documentation_stays_short():
    pages = [page for page in PAGES if DOCS in page.parents or page.name == "README.md"]
    written = [page for page in pages if not name(page).removeprefix("docs/").startswith(GENERATED)]
    words = {name(page): len(re.findall(r"\S*\w\S*", prose(page))) for page in written}  # no rulers of tables
    assert sum(words.values()) <= MOST_WORDS, words


def test_the_readme_answers_which_rule_as_the_code_does():
    assert RECOMMENDATION in " ".join((ROOT / "README.md").read_text().split())


def test_every_error_code_has_its_place_on_the_troubleshooting_page():
    page = (DOCS / "how-to" / "troubleshooting.md").read_text()
    assert re.findall(r'<a id="([\w-]+)"></a>', page) == list(CODES)


def test_codes_in_the_source_are_those_of_the_list():
    source = "\n".join(path.read_text() for path in Path(drip.__file__).parent.rglob("*.py"))
    used = Counter(re.findall(r"\bcode(?:: str)? ?= ?\"([\w-]+)\"", source))
    assert set(used) <= set(CODES)
    unused = set(CODES) - set(re.findall(r"\"([a-z]+(?:-[a-z]+)*)\"", _without_the_list(source)))
    assert not unused


def _without_the_list(source):
    start = source.index("CODES: Mapping[str, str]")
    return source[:start] + source[source.index('"""Every code with', start) :]


def test_the_architecture_page_names_every_room_and_no_other():
    table = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"^\| `([\w./]+)` \|", table, re.MULTILINE))
    package = Path(drip.__file__).parent
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == rooms


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_functions_that_a_page_names_exist(page):
    names = {"drip.lower", "drip.upper", "drip.known"}  # of the model file
    for dotted in set(re.findall(r"`(drip(?:\.\w+)+)`", page.read_text())) - names:
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = __import__(".".join(parts[:cut]), fromlist=["_"])
            except ImportError:
                continue
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
            break
        else:
            pytest.fail(f"{dotted} does not exist")


def test_the_sizes_of_the_raspberry_pi_page_are_those_of_the_result_file():
    page = (DOCS / "tutorials" / "raspberry-pi.md").read_text()
    (found,) = map(json.loads, (ROOT / "benchmarks/results/install_size.jsonl").read_text().splitlines())
    (disk_mb,) = re.findall(r"about (\d+) MB on disk", page)
    (memory_mib,) = re.findall(r"about (\d+) MiB of memory", page)
    assert int(disk_mb) == pytest.approx(found["installed_mb"], rel=0.1)
    assert int(memory_mib) == pytest.approx(found["resident_mib"]["mnist_small_cnn"]["run"], rel=0.1)
