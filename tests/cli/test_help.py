"""The command line says what it can do: help, version, completion, and JSON wherever a command reads."""

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from drip import __version__
from drip.cli.app import app
from drip.rules import OFFERED, RECOMMENDATION, RECOMMENDED


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


@pytest.mark.parametrize("path", sorted(ALL_COMMANDS), ids=lambda path: " ".join(path) or "drip")
def test_every_command_prints_json(path):
    if hasattr(ALL_COMMANDS[path], "commands"):
        return
    assert "--json" in [name for parameter in ALL_COMMANDS[path].params for name in parameter.opts]


def test_version_is_printed(drip):
    assert drip("--version").out == f"drip {__version__}\n"


def test_no_command_shows_the_help(drip):
    result = drip()
    assert result.code == 2
    assert "calibrate" in result.out + result.err


@pytest.mark.parametrize("path", sorted(ALL_COMMANDS), ids=lambda path: " ".join(path) or "drip")
def test_the_list_of_commands_is_not_cut(path):
    if path:
        assert not ALL_COMMANDS[path].get_short_help_str(limit=68).endswith("...")


def test_calibrate_names_every_offered_rule_and_the_recommended_one():
    (rule,) = [option for option in ALL_COMMANDS[("calibrate",)].params if option.name == "rule"]
    assert rule.default == RECOMMENDED
    assert RECOMMENDATION in rule.help
    assert f"Rules: {', '.join(OFFERED)};" in rule.help


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "drip", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"drip {__version__}\n"


# -- completion ------------------------------------------------------------------------------------------


def complete(words, cwd):
    """What bash would be offered for the last of the words."""
    environment = {**os.environ, "_DRIP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1)
    command = [sys.executable, "-m", "drip"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_has_a_script_for_bash(tmp_path):
    environment = {**os.environ, "_DRIP_COMPLETE": "source_bash"}
    command = [sys.executable, "-m", "drip"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "complete -o default -F _drip_completion drip" in done.stdout
    script = tmp_path / "drip.bash"
    script.write_text(done.stdout)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.slow
def test_completion_offers_commands_options_and_rules(tmp_path):
    assert complete(["drip", "ca"], tmp_path) == ["calibrate"]
    assert {"stats", "check", "export"} == set(complete(["drip", "store", ""], tmp_path))
    assert "--rule-option" in complete(["drip", "calibrate", "--rule"], tmp_path)
    assert complete(["drip", "calibrate", "m.onnx", "--rule", "r"], tmp_path) == ["random"]
    assert complete(["drip", "run", "m.onnx", "--eviction", "f"], tmp_path) == ["fifo"]
