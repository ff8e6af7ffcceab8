"""The public API as text: every public name with its signature. `python tests/api.py` rewrites tests/api.txt."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("api.txt")

PUBLIC = (
    "drip",
    "drip.datasets",
    "drip.errors",
    "drip.media",
    "drip.models",
    "drip.onnx",
    "drip.pipeline",
    "drip.policy",
    "drip.reduction",
    "drip.reduction.datasets",
    "drip.rules",
    "drip.rules.extra",
    "drip.scoring",
    "drip.sources",
    "drip.store",
    "drip.testing",
    "drip.training",
    "drip.types",
    "drip.windows",
)
"""Modules whose names a user may rely on; everything else may change without notice."""


def describe() -> str:
    """One line per public name, method and attribute, sorted."""
    lines: list[str] = []
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module_name
        ]
        for name in sorted(names):
            lines += _describe(f"{module_name}.{name}", getattr(module, name))
    return "\n".join(lines) + "\n"


def _describe(path: str, value: object) -> list[str]:
    if not (inspect.isclass(value) or callable(value)):
        return [path]
    lines = [path + _signature(value)]
    if inspect.isclass(value):
        for name, member in sorted(vars(value).items()):
            if name.startswith("_"):
                continue
            inner = getattr(member, "__func__", member)
            lines.append(f"  .{name}" + (_signature(inner) if inspect.isfunction(inner) else ""))
    return lines


def _signature(value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # the address of a default


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
