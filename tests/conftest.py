"""Makes this folder importable, so that tests in its subfolders reach ``support``; fixtures of whole runs."""

import sys
from types import SimpleNamespace

import pytest
from boards import board, run_options  # noqa: F401  # a fixture is used by its name
from hypothesis import Phase, settings

# A mutation run wants to know that a test fails, not the smallest example.
settings.register_profile("mutation", database=None, phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A trained model, its policy, and folders of digits; see ``digits.Digits``."""
    import torch
    from digits import make_digits

    torch.set_num_threads(1)  # tests share their cores
    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def drip(monkeypatch, capsys):
    """Calls the command line in this process: ``drip("run", ...)`` gives code, out and err."""
    from drip.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["drip", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call
