"""The pages cannot lag: their code runs, their commands work, their tables follow from the tree."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import drip
from drip.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_python_block_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DRIP_DATA", raising=False)
    code = "\n".join(blocks(page, "python"))
    exec(compile(code, str(page), "exec"), {"__name__": "__page__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_fenced_block_is_of_a_kind_that_is_checked(page):
    kinds = {kind for kind, _ in FENCE.findall(page.read_text())}
    assert kinds <= {"python", "console", "text"}


@pytest.mark.slow
def test_every_command_of_the_readme_works_after_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DRIP_DATA", raising=False)
    lines = [line for text in blocks(ROOT / "README.md", "console") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("drip ")]
    assert len(commands) >= 5
    for command in ["drip demo --out drip-demo --epochs 1", *commands]:
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile


def test_generated_pages_are_up_to_date():
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=True)


def test_every_relative_link_of_a_page_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_architecture_page_names_every_room_and_no_other():
    table = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"^\| `([\w./]+)` \|", table, re.MULTILINE))
    package = Path(drip.__file__).parent
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == rooms


def test_how_it_works_names_functions_that_exist():
    for name in set(re.findall(r"`(drip(?:\.\w+)+)`", (ROOT / "docs" / "how-it-works.md").read_text())):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = __import__(".".join(parts[:cut]), fromlist=["_"])
            except ImportError:
                continue
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
            break
        else:
            pytest.fail(f"{name} does not exist")
