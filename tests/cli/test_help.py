"""The command line says what it can do: help, version, and JSON wherever a command reads."""

import re

import pytest
import typer
from typer.testing import CliRunner

from drip import __version__
from drip.cli.app import app
from drip.rules import available


def commands(path=(), command=None):
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands((*path, name), child)


ALL_COMMANDS = dict(commands())


@pytest.mark.parametrize("path", sorted(ALL_COMMANDS), ids=lambda path: " ".join(path) or "drip")
def test_help_names_every_option_and_every_command(path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    command = ALL_COMMANDS[path]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert all(name in result.output for name in parameter.opts), parameter.opts
            assert parameter.help, parameter.opts
    for name in getattr(command, "commands", {}):
        assert name in result.output
    assert command.help


def test_every_reading_command_prints_json():
    reading = [
        ("calibrate",),
        ("run",),
        ("demo",),
        ("store", "stats"),
        ("store", "check"),
        ("store", "export"),
    ]
    for path in reading:
        options = [name for parameter in ALL_COMMANDS[path].params for name in parameter.opts]
        assert "--json" in options


def test_version_is_printed(drip):
    assert drip("--version").out == f"drip {__version__}\n"


def test_no_command_shows_the_help(drip):
    result = drip()
    assert result.code == 2
    assert "calibrate" in result.out + result.err


def test_the_help_of_calibrate_names_every_rule():
    (rule,) = [option for option in ALL_COMMANDS[("calibrate",)].params if option.name == "rule"]
    own = {name for name, kind in available().items() if kind.__module__.startswith("drip.rules.")}
    assert own <= set(re.split(r"[:;]? | or ", rule.help.replace(",", "")))
