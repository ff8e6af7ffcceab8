"""Every code block of every page runs, in order, with the files that the page takes for granted."""

import shlex
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from pages import PAGES, ROOT, commands, fences, name
from typer.testing import CliRunner

import drip.demo
from drip.cli.app import app
from drip.datasets import load_mnist

KINDS = {"python", "console", "bash", "text", "toml"}
# What a page expects to lie in the current folder before its first block.
EXPECTED = {
    "docs/how-to/choose-a-rule.md": ("model.onnx", "frames", "kept.db"),
    "docs/how-to/export-and-quantise.md": ("drip-demo", "kept-digits"),
    "docs/how-to/read-the-store.md": ("kept.db",),
    "docs/how-to/shadow-and-replay.md": ("drip-demo", "kept-digits"),
    "docs/reference/store.md": ("kept.db",),
}
# The tutorial on the Raspberry Pi has a test of its own, with two machines.
ELSEWHERE = ("docs/tutorials/raspberry-pi.md",)
CHECKED_ONLY = {"make", "pip", "npm", "node", "python"}


def call(command):
    if "--store" in CliRunner().invoke(app, ["replay", "--help"]).output:
        pytest.skip("the command line does not have its new options yet")
    result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """The folder of `drip demo`, made once, from a quarter of the packaged digits."""
    folder = tmp_path_factory.mktemp("demo") / "drip-demo"
    whole = load_mnist()
    part = replace(whole, images=whole.images[-2500:], labels=whole.labels[-2500:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drip.demo, "load_mnist", lambda: part)
        call(f"drip demo --out {folder} --epochs 2")
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, digits):
    """What pages expect, made in a moment from a small model."""
    root = tmp_path_factory.mktemp("workshop")
    demo = root / "drip-demo"
    demo.mkdir()
    shutil.copy(digits.weights, demo / "model.pt")
    shutil.copy(digits.policy, demo / "policy.json")
    model = f"drip.models:SmallCNN --weights {digits.weights}"
    shutil.copytree(digits.calibration, root / "kept-digits")
    shutil.copytree(digits.calibration, root / "frames")
    call(f"drip model export {model} --policy {digits.policy} --contrast --out {root / 'model.onnx'}")
    call(
        f"drip run {model} --policy {digits.policy} --source {digits.calibration} "
        f"--store {root / 'kept.db'} --budget 50MB"
    )
    return root


def put(source, target):
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own export, which a tutorial calls
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if fences(page) and name(page) not in ELSEWHERE], ids=name
)
def test_every_block_of_a_page_runs_in_order(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DRIP_DATA", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    if name(page) in EXPECTED:
        workshop = request.getfixturevalue("workshop")
        for expected in EXPECTED[name(page)]:
            put(workshop / expected, tmp_path / expected)
    scope = {"__name__": "__page__"}
    for kind, text in fences(page):
        assert kind in KINDS, f"a block of kind {kind!r} would go unchecked"
        if kind == "python":
            run_python(text, scope, f"{name(page)}: {text[:60]!r}")
        elif kind == "toml":
            tomllib.loads(text)
        elif kind in ("console", "bash"):
            for line in commands(text):
                run_line(line, tmp_path, request)
    sys.modules.pop("mymodel", None)


def run_python(text, scope, where):
    first = text.partition("\n")[0]
    if first.startswith("# ") and first.endswith(".py"):  # the page says that this is a file
        Path(first.removeprefix("# ")).write_text(text)
    exec(compile(text, where, "exec"), scope)


def run_line(line, folder, request):
    program, *words = shlex.split(line)
    if program == "make":
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
    elif line.startswith("drip demo"):
        put(request.getfixturevalue("demonstration"), folder / "drip-demo")
    elif program == "drip":
        call(line)
    else:
        assert program in CHECKED_ONLY, line
