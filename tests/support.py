"""What several test folders need: tools that a machine may lack, a value with one part replaced."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from drip.errors import DripError


def lacks(reason: str) -> NoReturn:
    """Skip for want of something, or fail where DRIP_REQUIRE=1."""
    if os.environ.get("DRIP_REQUIRE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_tool(name: str, install: str) -> str:
    """Path of a program; skips with the line that installs it, or fails where DRIP_REQUIRE=1."""
    path = shutil.which(name)
    if path is None:
        lacks(f"{name} is needed for this test: {install}")
    return path


def require_module(name: str, install: str) -> ModuleType:
    """A module; skips with the line that installs it, or fails where DRIP_REQUIRE=1."""
    try:
        return importlib.import_module(name)
    except ImportError:
        lacks(f"{name} is needed for this test: {install}")


def require_data(name: str) -> Path:
    """A file or folder below the one that DRIP_DATA names; skips without, or fails where DRIP_REQUIRE=1."""
    place = Path(os.environ.get("DRIP_DATA", "")) / name
    if not (os.environ.get("DRIP_DATA") and place.exists()):
        lacks(f"the data {name} are needed for this test: set DRIP_DATA to the folder that has them")
    return place


@contextmanager
def raises(kind: type[DripError], code: str) -> Iterator[pytest.ExceptionInfo[DripError]]:
    """Expect an error of this type and code; messages may be reworded, codes may not."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"


def replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of nested dicts and lists with another value at a path of keys and indices."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy
