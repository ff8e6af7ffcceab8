"""Arguments that several commands share, and how their texts become values."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drip.cli.output import print_error
from drip.errors import DripError, InputError
from drip.media import InputSpec
from drip.windows import complement

if TYPE_CHECKING:
    from torch import nn

    from drip.onnx import OnnxScorer

INTERRUPTED = "interrupted; what was committed is safe, the same command continues"

MAX_THREADS = 256
"""More than any board has cores; the runtime starts as many as it is asked for, and each takes memory."""

MAX_BATCH_SIZE = 1024
"""A batch is decoded and scored as a whole in memory, and nothing of it is committed before its end."""

MAX_BYTES = 16 * 10**12
"""SQLite has 2**32 - 2 pages of 4096 bytes: a larger budget could not be filled."""

_HEATMAPS = ("raw", "normalised")
_CAM_METHODS = ("gradcam", "hirescam", "gradcam++", "layercam")
"""The names in :mod:`drip.scoring`, which cannot be imported where there is no torch."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """A size such as ``500MB``, ``2GB``, ``64MiB`` or ``1000000`` in bytes.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_bytes("1.5kB"), parse_bytes("2MiB"), parse_bytes("7")
    (1500, 2097152, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or (match[3] and not match[2]):
        raise typer.BadParameter(f"a size such as 500MB or 2GiB is needed, got {text!r}")
    number = float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]]
    if not 1 <= number <= MAX_BYTES:
        raise typer.BadParameter(f"a size from 1 byte to {MAX_BYTES // 10**12}TB is needed, got {text!r}")
    return round(number)


def parse_rule_options(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a rule, each ``name=value``: a value of JSON, or else text.

    Raises:
        typer.BadParameter: no name, or one that comes twice.

    >>> parse_rule_options(["frozen=true", "samples_per_hour=60", "score=contrast"])
    {'frozen': True, 'samples_per_hour': 60, 'score': 'contrast'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()) or name in found:
            raise typer.BadParameter(f"options of a rule as name=value, each once, are needed, got {text!r}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def parse_rate(text: str) -> float:
    """A number between 0 and 1, neither of them included; an option's parser.

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_rate("0.6")
    0.6
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:  # NaN compares false
        raise typer.BadParameter(f"{text!r} is not a number between 0 and 1; such as 0.6")
    return rate


def keep_rate(context: typer.Context, keep: float | None, dpw: float | None) -> float | None:
    """The keep rate that ``--keep``, or the paper's ``--dpw``, asks for; None when neither was given.

    Args:
        context: The command's, to tell the command line from the configuration file.
        keep: The value of ``--keep``.
        dpw: The value of ``--dpw``, one minus the keep rate.

    Raises:
        typer.BadParameter: both were given.
    """
    if keep is not None and dpw is not None:
        # One may come from the configuration file: the command line wins.
        keep_is_typed, dpw_is_typed = (_is_typed(context, name) for name in ("keep", "dpw"))
        if keep_is_typed == dpw_is_typed:
            raise typer.BadParameter("--keep and --dpw are the same number; give one of them")
        keep, dpw = (keep, None) if keep_is_typed else (None, dpw)
    return keep if dpw is None else complement(dpw)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_input_spec(text: str, default: InputSpec | None = None) -> InputSpec:
    """How samples become inputs: a shape, then any of ``resize=``, ``mean=``, ``std=`` and ``rate=``.

    Args:
        text: Such as ``3x224x224 resize=crop mean=0.485,0.456,0.406 std=0.229,0.224,0.225``.
        default: Gives resize, mean, std and rate where the text does not; :class:`InputSpec`'s own
            defaults when None.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_input_spec("1x16000 rate=16000").sample_rate_hz
    16000
    >>> parse_input_spec("3x96x96 resize=crop mean=0.5").mean
    (0.5,)
    """
    shape, *words = text.split() or [""]
    values = _words(words, ("resize", "mean", "std", "rate"))
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise typer.BadParameter(f"{shape!r} is not a shape; such as 3x96x96 or 1x16000")
    if "rate" in values and not re.fullmatch(r"\d+", values["rate"]):
        raise typer.BadParameter(f"rate={values['rate']} is not a sample rate in Hz; such as rate=16000")
    given: dict[str, Any] = {name: values[name] for name in ("resize",) if name in values}
    given |= {name: _numbers(name, values[name]) for name in ("mean", "std") if name in values}
    given |= {"sample_rate_hz": int(values["rate"])} if "rate" in values else {}
    sides = tuple(int(side) for side in shape.split("x"))
    try:
        return InputSpec(sides, **given) if default is None else replace(default, shape=sides, **given)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def parse_score(text: str) -> dict[str, str]:
    """What a score is computed from: any of the words ``layer=``, ``heatmap=`` and ``method=``.

    A layer whose name has spaces is quoted: ``layer="block 3"``.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_score("layer=features.6 heatmap=normalised")
    {'layer': 'features.6', 'heatmap': 'normalised'}
    """
    try:
        words = shlex.split(text)
    except ValueError as error:  # an open quote
        raise typer.BadParameter(f"{text!r}: {error}") from error
    values = _words(words, ("layer", "heatmap", "method"))
    for name, allowed in (("heatmap", _HEATMAPS), ("method", _CAM_METHODS)):
        if values.get(name, allowed[0]) not in allowed:
            raise typer.BadParameter(f"{name} must be one of {', '.join(allowed)}, not {values[name]!r}")
    return values


def _words(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Words ``name=value``, each name once and one of the given ones."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in names or not equals or not value:
            known = ", ".join(f"{each}=..." for each in names)
            raise typer.BadParameter(f"unknown word {word!r}; known are {known}")
        if name in found:
            raise typer.BadParameter(f"{name} is given twice")
        found[name] = value
    return found


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{name}={text} is not a list of numbers; such as {name}=0.5") from error


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_numbers("0.485,0.456")
    (0.485, 0.456)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"numbers separated by commas are needed, got {text!r}") from error


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes separated by commas or ``x``.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_shape("3x224x224")
    (3, 224, 224)
    """
    try:
        return tuple(int(part) for part in re.split(r"[,x]", text))
    except ValueError as error:
        raise typer.BadParameter(f"sizes such as 3,224,224 are needed, got {text!r}") from error


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once; none for an empty text.

    Raises:
        typer.BadParameter: an empty name, or one that comes twice.

    >>> parse_names("cat, dog")
    ('cat', 'dog')
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(names) or len(set(names)) != len(names):
        raise typer.BadParameter(f"class names separated by commas are needed, each once, got {text!r}")
    return names


def require_writable(path: Path, *inputs: Path | str | None) -> None:
    """Refuse a file that could not be written at the end, before the work begins.

    Args:
        path: The file to write.
        inputs: Files that the command reads, which it must not replace.

    Raises:
        DripError: the path is a folder, a device or an input, or its folder does not exist or cannot be
            written.
    """
    require_file(path)
    if path.exists() and any(given and Path(given).exists() and path.samefile(given) for given in inputs):
        raise DripError(
            f"a file of its own is needed to write, got {path}, which is read; choose another path"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DripError(
            f"a writable folder is needed for {path}, got: {error}; choose another path"
        ) from error


def require_status_path(path: Path | None) -> None:
    """Refuse to replace a file that no run has written.

    Raises:
        DripError: the path is a folder, a device, or a file that is no status of a run.
    """
    from drip.workflow.status import FORMAT

    if path is None:
        return
    require_file(path)
    if not path.exists() or not path.stat().st_size:
        return
    try:
        is_status = json.loads(path.read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        is_status = False
    if not is_status:
        raise DripError(
            f"a new file is needed for the status, got {path} with other content; choose another path"
        )


def require_file(path: Path) -> None:
    """Refuse what cannot be a file, before anything is made beside it.

    Raises:
        DripError: the path is a folder or a device.
    """
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise DripError(f"a file to write is needed, got the {kind} {path}; choose another path")


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Ask whether SIGINT or SIGTERM came; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal API's signature
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    except KeyboardInterrupt:
        print_error(INTERRUPTED)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_model_file(model: str) -> bool:
    """True for the path of a model file, False for a factory of a PyTorch model.

    >>> is_model_file("model.onnx"), is_model_file("package.module:factory")
    (True, False)
    """
    return model.lower().endswith(".onnx")


def load_model_file(path: str, weights: Path | None, threads: int) -> OnnxScorer:
    """The scorer of a model file; no torch is loaded.

    Raises:
        typer.BadParameter: weights beside it.
        DripError: no such file, or no package to run it.
    """
    if weights is not None:
        raise typer.BadParameter("a model file has its weights in it, got --weights; leave them out")
    from drip.onnx import OnnxScorer

    return OnnxScorer(path, threads=threads)


def load_any_model(model: str, weights: Path | None, threads: int) -> nn.Module | OnnxScorer:
    """The model file, or the PyTorch model, that an argument names; torch is loaded for the latter alone."""
    if is_model_file(model):
        return load_model_file(model, weights, threads)
    if threads != 1:
        raise typer.BadParameter("--threads is for model files; set OMP_NUM_THREADS for PyTorch")
    from drip.models import load_model

    return load_model(model, weights)


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A model file *model.onnx* from drip model export; or *package.module:factory*, a callable "
        "without arguments that returns a torch.nn.Module; the current folder is searched.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="File with the model's state_dict (torch.save).", exists=True, dir_okay=False),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        help=f"Threads within one operator of a model file, 1 to {MAX_THREADS}.", min=1, max=MAX_THREADS
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
StoreArgument = Annotated[Path, typer.Argument(help="The store's file.", show_default=False)]
