"""Arguments that several commands share, and how their texts become values."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drip.cli.output import print_note
from drip.errors import DripError, InputError
from drip.media import InputSpec
from drip.windows import complement

if TYPE_CHECKING:
    from torch import nn

    from drip.onnx import OnnxScorer

INTERRUPTED = "interrupted; everything committed is safe, the same command continues"

MAX_THREADS = 256
"""More than any device has cores. The runtime starts every requested thread, and each costs memory."""

MAX_BATCH_SIZE = 1024
"""A batch is decoded and scored in memory as a whole, and committed only at its end."""

MAX_BYTES = 16 * 10**12
"""SQLite has at most 2**32 - 2 pages of 4096 bytes: a larger budget could never be filled."""

_HEATMAPS = ("raw", "normalised")
_CAM_METHODS = ("gradcam", "hirescam", "gradcam++", "layercam")
"""The names in :mod:`drip.scoring`, which cannot be imported where there is no torch."""

_LAYOUTS = ("channels_first", "channels_last", "tokens")
"""The names in :mod:`drip.onnx.heads`, which cannot be imported where there is no onnx."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """Parse a size such as ``500MB``, ``2GB``, ``64MiB`` or ``1000000`` into bytes.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_bytes("1.5kB"), parse_bytes("2MiB"), parse_bytes("7")
    (1500, 2097152, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is not a size; write it like 500MB or 2GiB")
    number = float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]]
    if not 1 <= number <= MAX_BYTES:
        raise typer.BadParameter(f"{text!r} is not between 1 byte and {MAX_BYTES // 10**12}TB")
    return round(number)


def parse_rule_options(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a rule, each ``name=value``: the value is JSON where it can be, else text.

    Raises:
        typer.BadParameter: no name, or the same name twice.

    >>> parse_rule_options(["frozen=true", "samples_per_hour=60", "score=contrast"])
    {'frozen': True, 'samples_per_hour': 60, 'score': 'contrast'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise typer.BadParameter(f"--rule-option {text!r}: write it as name=value")
        if name in found:
            raise typer.BadParameter(f"--rule-option {name} is given twice")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def parse_rate(text: str) -> float:
    """Parse a number between 0 and 1, both excluded.

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_rate("0.6")
    0.6
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    # NaN compares false; for a rate below the precision of one minus it nothing would be left.
    if not (0 < rate < 1 and 0 < complement(rate) < 1):
        raise typer.BadParameter(f"{text!r} is not a number between 0 and 1; write it like 0.6")
    return rate


def keep_rate(keep: float | None, dpw: float | None) -> float | None:
    """The keep rate that ``--keep``, or the paper's ``--dpw``, asks for; None when neither was given."""
    return keep if dpw is None else complement(dpw)


def parse_part(text: str) -> float:
    """Parse a number in (0, 1].

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_part("1")
    1.0
    """
    return _number(text, 5e-324, 1, "a number in (0, 1]; write it like 0.1")


def parse_kappa(text: str) -> float:
    """Parse a number from -1 to 1, the range of Cohen's kappa.

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_kappa("0.85")
    0.85
    """
    return _number(text, -1, 1, "a number from -1 to 1; write it like 0.85")


def parse_distance(text: str) -> float:
    """Parse a finite number of at least 0.

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_distance("0.5")
    0.5
    """
    return _number(text, 0, sys.float_info.max, "a number of at least 0; write it like 0.1")


def parse_watts(text: str) -> float:
    """Parse a power from 1 mW to 1 MW, in W.

    Raises:
        typer.BadParameter: anything else, such as NaN.

    >>> parse_watts("8")
    8.0
    """
    return _number(text, 0.001, 1e6, "a power from 0.001 to 1000000 W; write it like 8")


def _number(text: str, low: float, high: float, wanted: str) -> float:
    """A number in [low, high]; the float range of click accepts NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise typer.BadParameter(f"{text!r} is not {wanted}")
    return value


_SPEC_WORDS = {
    "resize": "resize", "shorter": "shorter_side", "interpolation": "interpolation", "fill": "fill",
    "order": "channel_order", "range": "value_range", "mean": "mean", "std": "std", "rate": "sample_rate_hz",
    "resample": "resample", "mix": "mix", "hop": "hop",
}  # fmt: skip
"""The words of an input spec and the fields of :class:`InputSpec`."""

_FLAGS = {"yes": True, "no": False}


def parse_input_spec(text: str, default: InputSpec | None = None) -> InputSpec:
    """How samples become inputs: a shape, then any of the words ``resize=``, ``mean=``, ``std=``, ``rate=`` and so on.

    Args:
        text: Such as ``3x224x224 resize=crop mean=0.485,0.456,0.406 std=0.229,0.224,0.225``.
        default: Provides the shape and every word that the text does not have, except a mean and std for
            another number of channels; :class:`InputSpec`'s own defaults when None.

    Raises:
        typer.BadParameter: anything else, such as a text without a shape where there is no default.

    >>> parse_input_spec("1x16000 rate=16000").sample_rate_hz
    16000
    >>> parse_input_spec("range=0,255 order=bgr", InputSpec((3, 96, 96), "crop")).describe()
    '3x96x96 resize=crop order=bgr range=0,255 mean=0 std=1'
    """
    words = text.split()
    shape = words.pop(0) if words and "=" not in words[0] else ""
    given = _spec_fields(words)
    # Python does not read numbers of more than 4300 digits
    if shape and not re.fullmatch(r"\d{1,40}(x\d{1,40})*", shape):
        raise typer.BadParameter(f"{shape!r} is not a shape; write it like 3x96x96 or 1x16000")
    if not shape and default is None:
        raise typer.BadParameter(f"{text!r} has no shape; begin with one like 3x96x96 or 1x16000")
    sides = tuple(int(side) for side in shape.split("x")) if shape else ()
    if default is not None:
        sides = sides or default.shape
        names = [name for name in ("mean", "std") if len(getattr(default, name)) not in (1, sides[0])]
        inherited = {name: getattr(default, name) for name in _SPEC_WORDS.values() if name not in names}
        given = inherited | given
    try:
        return InputSpec(sides, **given)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _spec_fields(words: Sequence[str]) -> dict[str, Any]:
    """The fields of an input spec that words give."""
    found: dict[str, Any] = {}
    for word, value in _words(words, tuple(_SPEC_WORDS)).items():
        name = _SPEC_WORDS[word]
        if name in {"mean", "std", "value_range"}:
            found[name] = _numbers(word, value)
        elif name in {"sample_rate_hz", "shorter_side", "fill", "hop"}:
            if not re.fullmatch(r"\d{1,20}", value):
                raise typer.BadParameter(f"{word}={value} is not a whole number; write it like {word}=16000")
            found[name] = int(value)
        elif name in {"resample", "mix"}:
            if value not in _FLAGS:
                raise typer.BadParameter(f"{word} must be yes or no, not {value!r}")
            found[name] = _FLAGS[value]
        else:
            found[name] = value
    return found


def check_input_spec(text: str) -> str:
    """The text of an input spec, whose words are right; its shape may still come from a model or a policy.

    Raises:
        typer.BadParameter: a wrong word.
    """
    words = text.split()
    if words and "=" in words[0]:
        _spec_fields(words)
    else:
        parse_input_spec(text)
    return text


def parse_score(text: str, words: Sequence[str] = ("layer", "heatmap", "method")) -> dict[str, str]:
    """What a score is computed from: any of the words ``layer=``, ``heatmap=`` and ``method=``.

    A layer whose name has spaces is quoted: ``layer="block 3"``. A command may have other words.

    Raises:
        typer.BadParameter: anything else.

    >>> parse_score("layer=features.6 heatmap=normalised")
    {'layer': 'features.6', 'heatmap': 'normalised'}
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:  # an open quote
        raise typer.BadParameter(f"{text!r}: {error}") from error
    values = _words(parts, words)
    for name, allowed in (("heatmap", _HEATMAPS), ("method", _CAM_METHODS), ("layout", _LAYOUTS)):
        if values.get(name, allowed[0]) not in allowed:
            raise typer.BadParameter(f"{name} must be one of {', '.join(allowed)}, not {values[name]!r}")
    return values


def _words(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Parse words ``name=value``; each name must be one of the given ones and appear once."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in names or not equals or not value:
            known = ", ".join(f"{each}=..." for each in names)
            raise typer.BadParameter(f"unknown word {word!r}; use {known}")
        if name in found:
            raise typer.BadParameter(f"{name} is given twice")
        found[name] = value
    return found


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{name}={text} is not a list of numbers; write it like {name}=0.5"
        ) from error


def parse_names(text: str) -> tuple[str, ...]:
    """Class names separated by commas, each once; empty for an empty text.

    Raises:
        typer.BadParameter: an empty name, or the same name twice.

    >>> parse_names("cat, dog")
    ('cat', 'dog')
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(names):
        raise typer.BadParameter(f"--class-names {text!r}: a name is empty")
    if len(set(names)) != len(names):
        raise typer.BadParameter(f"--class-names {text!r}: a name is given twice")
    return names


def class_names_of(text: str, file: Path | None) -> tuple[str, ...]:
    """Class names from a list or from a file: a name per line, a JSON list, or a JSON object of names by class.

    Raises:
        typer.BadParameter: both were given, a name is empty, or a name is given twice.
        DripError: the file does not exist.
    """
    if file is None:
        return parse_names(text)
    if text:
        raise typer.BadParameter("--class-names and --labels-file say the same; give only one of them")
    require_files(file)
    content = file.read_text("utf-8-sig", errors="replace")
    names = [line.strip() for line in content.splitlines() if line.strip()]
    if file.suffix.lower() == ".json":
        names = _names_of_json(content, file)
    if not names or not all(names) or len(set(names)) != len(names):
        raise typer.BadParameter(f"--labels-file {file}: must have different names, one per line")
    return tuple(names)


def _names_of_json(content: str, file: Path) -> list[str]:
    try:
        found = json.loads(content)
        found = found.get("id2label", found) if isinstance(found, dict) else found
        if isinstance(found, dict):
            found = [found[key] for key in sorted(found, key=int)]
    except (ValueError, TypeError, RecursionError):
        found = None
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return found
    raise typer.BadParameter(
        f"--labels-file {file}: must be a JSON list of names, or an object of names by class"
    )


def require_inputs(*paths: Path | str | None) -> None:
    """Check that every given file or folder exists, before a package is loaded to read it.

    Raises:
        DripError: ``path-missing``.
    """
    for path in paths:
        if path is not None and not Path(path).exists():
            raise DripError(f"{path}: does not exist; check the path", code="path-missing")


def require_files(*paths: Path | str | None) -> None:
    """Check that every given path is a file. Reading a pipe to which nobody writes would never end.

    Raises:
        DripError: ``path-missing``.
    """
    require_inputs(*paths)
    for path in paths:
        if path is not None and not Path(path).is_file():
            raise DripError(f"{path}: is a {_kind(Path(path))}; give a file", code="path-missing")


def require_writable(path: Path, *inputs: Path | str | None) -> None:
    """Check that a file can be written at the end, before the work begins.

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
            f"cannot write {path}: it is also an input; choose another path", code="path-not-writable"
        )
    if not path.parent.exists():
        raise DripError(
            f"cannot write {path}: the folder {path.parent} does not exist; create it", code="path-missing"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permission bits do not apply to root
            pass
    except OSError as error:
        raise DripError(
            f"cannot write {path}: {error.strerror}; choose another path", code="path-not-writable"
        ) from error


def require_status_path(path: Path | None) -> None:
    """Check that a status file replaces nothing but the status of another run.

    Raises:
        DripError: the path is a folder, a device, or a file with other content.
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
            f"cannot write the status to {path}: it is not a status file; choose another path",
            code="path-not-writable",
        )


def require_file(path: Path) -> None:
    """Check that a path can become a file, before anything is written next to it.

    Raises:
        DripError: the path is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise DripError(
            f"cannot write {path}: it is a {_kind(path)}; choose another path", code="path-not-writable"
        )


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "device or pipe"


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM arrived; a second signal interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal API's signature
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    except KeyboardInterrupt:
        print_note(INTERRUPTED)
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


def load_model_file(
    path: str, weights: Path | None, threads: int, providers: Sequence[str] | None = None
) -> OnnxScorer:
    """The scorer of a model file, without loading torch.

    Raises:
        typer.BadParameter: weights were given too.
        DripError: the file does not exist, or the package that runs it is not installed.
    """
    if weights is not None:
        raise typer.BadParameter("a model file contains its weights; leave out --weights")
    require_files(path)
    from drip.onnx import OnnxScorer

    return OnnxScorer(path, threads=threads, providers=providers or ())


def load_torch_model(
    factory: str, weights: Path | None, threads: int = 1, providers: Sequence[str] | None = None
) -> nn.Module:
    """The PyTorch model that a factory returns.

    Raises:
        typer.BadParameter: a number of threads, or a provider.
        DripError: the factory or the weights do not exist, or torch is not installed.
    """
    if providers:
        raise typer.BadParameter("--provider is for model files; a PyTorch model runs on the CPU")
    if threads != 1:
        raise typer.BadParameter("--threads is for model files; set OMP_NUM_THREADS for PyTorch")
    require_files(weights)
    from drip.models import load_model

    return load_model(factory, weights)


def complete_rule(incomplete: str) -> list[str]:
    """Rule names for shell completion."""
    from drip.rules import available

    return [name for name in sorted(available()) if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Model file such as model.onnx, or package.module:factory, where factory returns a torch.nn.Module; "
        "modules may be in the current folder.",
        show_default=False,
    ),
]
StoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="Store file of a run.", show_default=False)
]
PolicyArgument = Annotated[Path, typer.Argument(metavar="POLICY", help="Policy file.", show_default=False)]
WeightsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the state_dict of a PyTorch model.")
]
KeepOption = Annotated[
    float | None,
    typer.Option(
        parser=parse_rate,
        metavar="RATE",
        help="Keep rate: the part of the stream to keep.",
        show_default="0.6",
    ),
]
DpwOption = Annotated[
    float | None,
    typer.Option(
        parser=parse_rate,
        metavar="RATE",
        help="The paper's DPW: one minus the keep rate. Use instead of --keep.",
    ),
]
InputSpecOption = Annotated[
    InputSpec | None,
    typer.Option(
        parser=parse_input_spec,
        metavar="SPEC",
        help='Input spec of a PyTorch model, such as "3x96x96 resize=crop mean=0.5 std=0.25".',
    ),
]
LabelsFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Class names, one per line or as JSON, instead of --class-names."),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Execution provider of ONNX Runtime, such as CUDAExecutionProvider; repeatable, in order of preference.",
        show_default="CPUExecutionProvider",
    ),
]
ClassNamesOption = Annotated[
    str, typer.Option(metavar="A,B", help="Class names separated by commas, in the order of the logits.")
]
ThreadsOption = Annotated[
    int,
    typer.Option(help=f"Threads for running a model file, 1 to {MAX_THREADS}.", min=1, max=MAX_THREADS),
]
JsonOption = Annotated[
    bool, typer.Option("--json/--no-json", help="Print JSON instead of tables.", show_default=False)
]
