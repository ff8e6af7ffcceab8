"""The store that most tests of this folder write into."""

from __future__ import annotations

import pytest
from making import BUDGET

from drip.store import RetentionStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


@pytest.fixture
def store(path):
    with RetentionStore.open(path, budget_bytes=BUDGET, timeout_s=0.1) as opened:
        yield opened
