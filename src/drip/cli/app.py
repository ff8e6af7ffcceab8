"""The commands and how they end: 0 done, 1 error or problems found, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from drip import __version__
from drip.cli import calibrate, demo, model, reduce, replay, run, store
from drip.cli.command import Command
from drip.cli.config import load_config
from drip.cli.output import print_error
from drip.errors import DripError, code_of

app = typer.Typer(
    name="drip",
    help="Decide on the device, sample by sample, what is worth keeping for retraining.",
    epilog="First look: drip demo. Then: drip calibrate, drip run, drip store stats.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's boxes would leave only half of 80 columns for the help texts
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("calibrate")(calibrate.calibrate)
app.command("run")(run.run)
app.command("populations")(store.populations)
app.command("replay")(replay.replay)
app.add_typer(store.app, name="store")
app.add_typer(model.app, name="model")
app.add_typer(reduce.app, name="reduce")
for _group in (app, store.app, model.app, reduce.app):
    for _command in _group.registered_commands:
        _command.cls = Command  # here, so no command can forget it


def _version(value: bool) -> None:  # noqa: FBT001  # the callback's signature is typer's
    if value:
        typer.echo(f"drip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="DRIP_CONFIG",
            help="TOML file with options, one table per command; options on the command line override it.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  # its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decide on the device, sample by sample, what is worth keeping for retraining."""
    if config is not None:
        try:
            context.default_map = load_config(config, context.command)
        except DripError:
            # The help is where a misspelt key can be looked up, so it must not fail on one.
            if not {"-h", "--help"} & set(sys.argv[1:]):
                raise


def main() -> None:
    """Entry point of the command ``drip``."""
    try:
        app(prog_name="drip")  # also for `python -m drip`, whose own name is a path
    except DripError as error:
        print_error(str(error), error.code)
        sys.exit(1)
    except FileNotFoundError as error:
        print_error(f"{error.filename}: does not exist; check the path", code_of(error))
        sys.exit(1)
    except OSError as error:  # such as a full disk to which the output is redirected
        place = "" if error.filename is None else f"{error.filename}: "
        print_error(f"{place}{error.strerror or error}", code_of(error))
        sys.exit(1)
    except UnicodeEncodeError as error:  # the command line has bytes that are not UTF-8
        print_error(f"{error.object!a}: is not UTF-8; choose another name", "bad-argument")
        sys.exit(1)
    except MemoryError as error:
        print_error(f"out of memory ({error}); use a smaller batch or smaller inputs", code_of(error))
        sys.exit(1)
