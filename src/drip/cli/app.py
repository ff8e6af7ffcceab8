"""The commands and how they end: 0 done, 1 error or problems found, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from drip import __version__
from drip.cli import calibrate, demo, model, reduce, replay, run, store
from drip.cli.output import print_error
from drip.errors import DripError

app = typer.Typer(
    name="drip",
    help="Decide on the device, sample by sample, what is worth keeping for retraining.",
    epilog="First look: drip demo. Then: drip calibrate, drip run, drip store stats.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("calibrate")(calibrate.calibrate)
app.command("run")(run.run)
app.command("replay")(replay.replay)
app.command("reduce")(reduce.reduce)
app.add_typer(store.app, name="store")
app.add_typer(model.app, name="model")


def _version(value: bool) -> None:  # noqa: FBT001  # the callback's signature is typer's
    if value:
        typer.echo(f"drip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decide on the device, sample by sample, what is worth keeping for retraining."""


def main() -> None:
    """Entry point of the command ``drip``."""
    try:
        app()
    except DripError as error:
        print_error(str(error))
        sys.exit(1)
    except OSError as error:  # such as a full disk behind a redirected output
        print_error(f"a file or the output fails, got: {error}")
        sys.exit(1)
    except MemoryError as error:
        print_error(f"more memory is needed than there is, got: {error}; use smaller inputs or batches")
        sys.exit(1)
