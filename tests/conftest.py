"""Makes this folder importable, so tests in its subfolders reach ``support``; fixtures of whole runs."""

import re
import sys
from types import SimpleNamespace

import pytest
from boards import board, run_options  # noqa: F401  # a fixture is used by its name
from hypothesis import HealthCheck, Phase, settings

# A busy machine makes examples slow, not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# A mutation run wants to know that a test fails, not the smallest example.
settings.register_profile("mutation", database=None, phases=[Phase.explicit, Phase.generate])
settings.register_profile("quick", database=None, max_examples=5)


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="one case per test function, and no test that is marked slow"
    )


def pytest_configure(config):
    if config.getoption("--quick"):
        settings.load_profile("quick")


LONG = (
    *("test_small_runs", "test_torch_models", "test_interrupted_runs", "test_any_onnx", "test_whole_budget"),
    *("test_crash", "test_adaptive_rules", "test_blocks", "test_measured_pages", "test_raspberry_pi"),
)
"""Files that take longest. They start first, or one of them would run alone at the end."""
UNMEASURED = {"experiments", "test_adaptive_rules"}
"""Folders and files that coverage leaves out: they compute for long, and it would double their time."""
UNMEASURED_CASES = {"test_torch_models"}
"""Files of which coverage leaves out the tests with several cases, for the same reason."""


def pytest_collection_modifyitems(config, items):
    """With ``--quick`` keep the first case of every test function: all rooms, every kind of test, few cases."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    if not config.getoption("--quick"):
        return
    kept, seen = [], set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in seen or item.get_closest_marker("slow"):
            continue
        seen.add(function)
        kept.append(item)
    dropped = [item for item in items if item not in set(kept)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Stop the coverage during tests that are left out of it; almost all that they reach others reach too."""
    coverage = sys.modules.get("coverage")
    measured = coverage and coverage.Coverage.current()
    names = UNMEASURED | (UNMEASURED_CASES if hasattr(item, "callspec") else set())
    if not measured or not names & {item.path.stem, item.path.parent.name}:
        return (yield)
    measured.stop()
    try:
        return (yield)
    finally:
        measured.start()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A trained model, its policy, and folders of digits; see ``digits.Digits``."""
    import torch
    from digits import make_digits

    torch.set_num_threads(1)  # tests share their cores
    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def drip(monkeypatch, capsys):
    """Calls the command line in this process; ``drip("run", ...)`` gives code, error, out and err."""
    from drip.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["drip", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
        captured = capsys.readouterr()
        found = re.search(r"^error\[([a-z0-9-]+)\]: ", captured.err, re.MULTILINE)
        error = found[1] if found else ""
        return SimpleNamespace(code=code, error=error, out=captured.out, err=captured.err)

    return call
