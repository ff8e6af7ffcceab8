"""Runs a script under the preloaded tracer and reads what it did to the files of the store."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import require_tool

_HEADER = struct.Struct("<c15sqq")


@dataclass(frozen=True)
class Step:
    """kind: write, append, truncate, sync or unlink; by their first letters."""

    kind: str
    name: str
    offset: int
    data: bytes


def build_tracer(folder: Path) -> Path:
    gcc = require_tool("gcc", "apt-get install gcc libc6-dev")
    library = folder / "iotrace.so"
    source = Path(__file__).parent / "iotrace.c"
    subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library


def trace(
    library: Path, folder: Path, script: str, *arguments: str, full_flag: Path | None = None
) -> list[Step]:
    """Run ``script`` with ``folder`` as its first argument; the files in it are traced."""
    folder.mkdir()
    log = folder.parent / f"{folder.name}.log"
    environment = dict(
        os.environ, LD_PRELOAD=str(library), DRIP_TRACE_MATCH=f"{folder}/", DRIP_TRACE_LOG=str(log)
    )
    if full_flag is not None:
        environment["DRIP_TRACE_FULL"] = str(full_flag)
    command = [sys.executable, "-c", script, str(folder), *arguments]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent)
    data = log.read_bytes()
    steps = []
    position = 0
    while position < len(data):
        kind, name, offset, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        steps.append(
            Step(kind.decode(), name.rstrip(b"\0").decode(), offset, data[position : position + length])
        )
        position += length
    return steps
