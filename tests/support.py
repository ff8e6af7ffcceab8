"""What several test folders need: tools that a machine may lack."""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType

import pytest


def require_tool(name: str, install: str) -> str:
    """Path of a program; skips with the line that installs it, or fails where DRIP_REQUIRE=1 forbids skips."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is needed for this test: {install}"
        if os.environ.get("DRIP_REQUIRE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def require_module(name: str, install: str) -> ModuleType:
    """A module; skips with the line that installs it, or fails where DRIP_REQUIRE=1 forbids skips."""
    try:
        return importlib.import_module(name)
    except ImportError:
        reason = f"{name} is needed for this test: {install}"
        if os.environ.get("DRIP_REQUIRE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
