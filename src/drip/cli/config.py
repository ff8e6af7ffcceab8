"""A TOML file with options for commands: one table per command, keys are the options' long names.

The file is checked as a whole against the command tree, including the tables of commands that do not run: a
misspelt key must not go unnoticed until a device is in the field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from drip.errors import DripError
from drip.types import JsonObject


def load_config(path: Path, command: Any) -> JsonObject:
    """The options of a file as nested defaults, the ``default_map`` of click.

    Args:
        path: The TOML file.
        command: The root command.

    Raises:
        DripError: ``path-missing``, ``config-invalid`` or ``config-unknown-key``.
    """
    if not path.exists():
        raise DripError(f"{path}: does not exist; check --config or DRIP_CONFIG", code="path-missing")
    if not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise DripError(f"{path}: is a {kind}; give a TOML file", code="config-invalid")
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # Windows editors write the mark
    except (OSError, ValueError) as error:  # a decoding error and a TOML error are both a ValueError
        raise DripError(f"{path}: cannot be read as TOML: {error}", code="config-invalid") from error
    return _group(str(path), "", content, command.commands)


def _group(path: str, name: str, content: JsonObject, commands: dict[str, Any]) -> JsonObject:
    """Defaults of all commands below a group."""
    found = {}
    for key, value in content.items():
        if key not in commands:
            command = f"{name}{key}".replace(".", " ")
            raise _unknown(f"{path}: there is no command drip {command}", key, commands)
        if not isinstance(value, dict):
            raise DripError(
                f"{path}: {name}{key} is a command and needs a table; write [{name}{key}]",
                code="config-invalid",
            )
        child = commands[key]
        if hasattr(child, "commands"):
            found[key] = _group(path, f"{name}{key}.", value, child.commands)
        else:
            found[key] = _command(f"{path}: [{name}{key}]", value, child)
    return found


def _command(where: str, content: JsonObject, command: Any) -> JsonObject:
    """Defaults of one command, by the names of its parameters."""
    options = {
        name.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in parameter.opts
        if name.startswith("--")
    }
    found: JsonObject = {}
    # Parameters are named after what they mean in Python, options after what users read: --format is `layout`.
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in options:
            raise _unknown(f"{where} {key}: the command has no such option", name, options)
        parameter = options[name]
        if parameter.name in found:
            raise DripError(f"{where} {key}: the option is given twice", code="config-invalid")
        found[parameter.name] = _value(f"{where} {key}", value, parameter)
    return found


def _value(where: str, value: Any, parameter: Any) -> Any:
    """The value as click expects a default: text for types that parse text themselves."""
    if parameter.multiple:
        if not isinstance(value, list):
            raise DripError(f"{where}: must be a list", code="config-invalid")
        return [_single(where, each, parameter) for each in value]
    return _single(where, value, parameter)


def _single(where: str, value: Any, parameter: Any) -> Any:
    kind = parameter.type.name  # "int", "int range" or "integer", by the version of click
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if parameter.is_flag:
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind.startswith("int"):
        fits, wanted = is_number and isinstance(value, int), "a whole number"
    elif kind.startswith("float"):
        fits, wanted = is_number, "a number"
    elif hasattr(parameter.type, "func"):  # one of our parsers, such as for a rate or a size
        fits, wanted = isinstance(value, str) or is_number, "text or a number"
        value = str(value)
    else:
        fits, wanted = isinstance(value, str), "text"
    if isinstance(value, str) and "\0" in value:  # no path can have one, and no command line either
        fits, wanted = False, "text without null characters"
    if not fits:
        raise DripError(f"{where}: must be {wanted}", code="config-invalid")
    return value


def _unknown(message: str, name: str, known: Iterable[str]) -> DripError:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
    return DripError(message + hint, code="config-unknown-key")
