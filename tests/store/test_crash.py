"""Two hundred SIGKILLs at random moments lose no acknowledged put and leave a sound store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

N_KILLS = 200


def test_kills_at_random_moments_lose_no_acknowledged_put(tmp_path):
    program = Path(__file__).parent / "crashing.py"
    command = [sys.executable, program, tmp_path, "7", str(N_KILLS)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    kills = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kills) == N_KILLS
    assert [kill for kill in kills if kill["problems"]] == []
    assert sum(bool(kill["last"]) for kill in kills) > N_KILLS / 4  # the kills hit writers at work
    assert any(kill["n_puts"] == 0 for kill in kills)  # and some hit the creation
