"""Makes what follows from code and result files: the command line, the benchmarks, error codes.

`python docs/generate.py` rewrites them; `--check` fails when one is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import benchmark_tables
import reduction_benchmarks
import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from typer.core import TyperGroup

from drip import rules
from drip.cli.app import app
from drip.errors import CODES
from drip.onnx import derivatives, prepare, tape

DOCS = Path(__file__).parent


def command_page() -> str:
    """Every command with its help, its examples and its options."""
    commands = [_command(path, command) for path, command in _commands("drip", typer.main.get_command(app))]
    return _template("cli.md.j2", commands=commands).rstrip("\n") + "\n"


def _command(path: str, command: Any) -> dict[str, Any]:
    paragraphs = (command.help or "").split("\f")[0].strip().split("\n\n")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    examples = [text.removeprefix("Example: ") for text in paragraphs if text.startswith("Example: ")]
    return {
        "path": path,
        "help": "\n\n".join(text for text in paragraphs if not text.startswith("Example: ")),
        "usage": " ".join([path, *(_names(parameter)[0] for parameter in arguments), "[OPTIONS]"]),
        "examples": [" ".join(text.split()) for text in examples],
        "rows": [_row(parameter) for parameter in command.params if "--json" not in parameter.opts],
    }


def _row(parameter: Any) -> tuple[str, str, str]:
    """Names, default and meaning of one argument or option."""
    if isinstance(parameter.show_default, str):
        default = parameter.show_default
    elif parameter.required:
        default = "required"
    else:
        is_shown = parameter.default is not None and parameter.default is not False
        default = f"`{parameter.default}`" if is_shown and parameter.default != "" else ""
    meaning = (parameter.help or "").replace("|", "\\|")
    choices = [str(choice) for choice in getattr(parameter.type, "choices", ())]
    if choices:
        meaning += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
    return ", ".join(f"`{name}`" for name in _names(parameter)), default, meaning


def _names(parameter: Any) -> list[str]:
    """The names of an option, or the placeholder of an argument."""
    if parameter.param_type_name == "option":
        return list(parameter.opts)
    return [parameter.metavar or parameter.name.upper()]


def _commands(path: str, command: Any) -> list[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        return [
            pair for name, child in command.commands.items() for pair in _commands(f"{path} {name}", child)
        ]
    return [(path, command)]


def benchmark_page() -> str:
    """Prose from the template, numbers from the raw timings."""
    return _template("benchmarks.md.j2", b=benchmark_tables, r=reduction_benchmarks)


def troubleshooting_page() -> str:
    """Every error code with what to do, and common symptoms."""
    return _template("troubleshooting.md.j2", codes=CODES)


def model_file_page() -> str:
    """The format, with the operators that have a derivative."""
    operators = ", ".join(f"`{name}`" for name in sorted(tape.DERIVATIVES))
    return _template(
        "model-file.md.j2", operators=operators, oldest=prepare.OLDEST, steps=derivatives.MOST_STEPS
    )


def choosing_page() -> str:
    """The answer to "which rule?", from the one place that has it."""
    rows = []
    for name in rules.OFFERED:
        us, _, kb = benchmark_tables.rule_costs()[name]
        reads = ", ".join(sorted(rules.create(name).needs)) or "class"
        rows.append({"name": name, "reads": reads, "us": us, "kb": kb})
    return _template(
        "choose-a-rule.md.j2",
        recommendation=rules.RECOMMENDATION,
        rules=rows,
        b=benchmark_tables,
    )


def _template(name: str, **values: Any) -> str:
    found = Environment(
        loader=FileSystemLoader(DOCS / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,  # noqa: S701  # Markdown, and nothing of it comes from outside
    )
    return found.get_template(name).render(values)


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a page is out of date")
    check = parser.parse_args().check
    pages = {
        "reference/cli.md": command_page(),
        "reference/benchmarks.md": benchmark_page(),
        "reference/model-file.md": model_file_page(),
        "how-to/troubleshooting.md": troubleshooting_page(),
        "how-to/choose-a-rule.md": choosing_page(),
    }
    for name, text in pages.items():
        path = DOCS / name
        if check and (not path.exists() or path.read_text() != text):
            sys.exit(f"{path} is out of date; run: python docs/generate.py")
        if not check:
            path.write_text(text)


if __name__ == "__main__":
    main()
