"""Runs of the experiments' command line at reduced size."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from experiments.__main__ import app

ROOT = Path(__file__).parents[2]


def command(folder, *words):
    """Arguments that run on few rows, with everything written below a folder."""
    options = ["--results", folder / "results"]
    if "--cache" not in words:
        options += ["--cache", folder / "cache"]
    return [sys.executable, "-m", "experiments", "run", "--regime", "head", *map(str, [*words, *options])]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(folder, *words):
    """A run that goes on beside the test, in a process group of its own."""
    return subprocess.Popen(
        command(folder, *words),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder, *words):
    """A run to its end, in this process: a new one would spend seconds on its imports."""
    done = CliRunner().invoke(app, command(folder, *words)[3:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
