"""The errors a caller may catch: one base class, few types, and a stable code for every kind.

Catch a type if you handle all its errors the same way, and check ``error.code`` if you do not. A
message may be reworded in any release; a code never changes its meaning. :data:`CODES` lists them all, and
the troubleshooting page is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

CODES: Mapping[str, str] = MappingProxyType(
    {
        "audit-empty": "The store has no recorded decisions to replay. Run a stream into it first.",
        "audit-other-model": (
            "The recorded decisions belong to a different model or score from the policy. Calibrate the "
            "policy with the model that ran."
        ),
        "bad-argument": (
            "The function does not accept this argument. The message lists the accepted values."
        ),
        "broker-lost": (
            "The connection to the MQTT broker was lost and could not be restored. Check the broker and "
            "the network, then run the same command again: it continues where it stopped."
        ),
        "broker-refused": (
            "The MQTT broker permanently refused the connection. Check the user, password, certificate, "
            "topic and the broker's access rules."
        ),
        "config-invalid": "The configuration file is not valid TOML, or a value has the wrong type.",
        "config-unknown-key": (
            "The configuration file names a command or option that does not exist. Check the spelling "
            "against `drip COMMAND --help`."
        ),
        "dataset-damaged": "A file of the data set is incomplete or was altered. Download it again.",
        "dataset-missing": (
            "None of the searched folders contains the data set. Set `DRIP_DATA`, or let the loader fetch it "
            "with `download=True`."
        ),
        "download-damaged": (
            "A downloaded file has an unexpected size or checksum. It was removed; run the command again."
        ),
        "download-failed": (
            "A download did not finish. Check the network and run the command again; the download continues."
        ),
        "energy-sensor-missing": (
            "The processor's energy counters cannot be read. Measure on another machine, or pass watts for "
            "an estimate."
        ),
        "error": "An error that has no specific code. The message says what to do.",
        "export-failed": (
            "The graph cannot be written, or ONNX Runtime does not run it. The message states the reason."
        ),
        "export-inexact": (
            "The exported graph does not compute the same values as the original model, so nothing was "
            "written. Please report the model."
        ),
        "export-unsupported": (
            "The model uses an operator, layout or head that cannot be exported exactly. Choose another "
            "layer, or export from PyTorch."
        ),
        "images-invalid": "The images and their labels do not match. The message names the file.",
        "input-spec-invalid": "The input spec is incomplete, or contradicts the model.",
        "labels-invalid": (
            "Labels or class names do not match the data. The message states the expected number."
        ),
        "method-unknown": "No reduction method has this name, or it does not accept these parameters.",
        "model-answers": (
            "This machine gets other results than the known answers in the model file. Another version of ONNX Runtime "
            "may compute them correctly; for an int8 file, see `drip model quantize --weight-bits`."
        ),
        "model-failed": (
            "The model raised an error while it ran on a sample of the usual shape. The message states "
            "the reason."
        ),
        "model-file-damaged": (
            "The model file is incomplete or was altered after it was written. Copy it again."
        ),
        "model-file-plain": (
            "The ONNX file has no DRIP metadata. `drip model export` adds score and decision."
        ),
        "model-file-version": (
            "The model file was written by a newer version of DRIP. Upgrade DRIP on the device."
        ),
        "model-impure": (
            "The model's result for a sample depends on other samples of the batch, on earlier calls, or on chance. "
            "Export it in evaluation mode."
        ),
        "model-layer": (
            "No layer of the model yields a heatmap, or the named layer does not exist. Choose another "
            "layer with `--score layer=NAME`."
        ),
        "model-non-finite": (
            "The model outputs NaN or infinity even for ordinary inputs. Load a valid checkpoint."
        ),
        "model-not-loadable": "The model or its weights cannot be loaded. The message states the reason.",
        "model-outputs": "The model's outputs do not have the expected names, types or shapes.",
        "os-error": (
            "The operating system refused to read or write a file or the output, for example because the "
            "disk is full. The message states the reason."
        ),
        "out-of-memory": "The process ran out of memory. Use a smaller batch or smaller inputs.",
        "package-missing": (
            "An optional package is not installed. The message shows the command that installs it."
        ),
        "path-exists": (
            "The output already exists. Choose another path, or use --overwrite if the command has this option."
        ),
        "path-missing": (
            "A file or folder does not exist, or the path is a folder where a file is expected. Check the path."
        ),
        "path-not-writable": (
            "The output cannot be written: it is a folder, a device, an input of the same command, in a "
            "folder without write permission, or the disk is full."
        ),
        "payload-invalid": (
            "A message in a stream could not be parsed. It becomes a rejected sample in quarantine."
        ),
        "policy-invalid": ("The policy file is unreadable or incomplete. Copy it again, or calibrate again."),
        "policy-missing": "No policy was given and the model file contains none. Run `drip calibrate`.",
        "policy-no-windows": "The policy's rule has no per-class windows, but the caller needs them.",
        "policy-other-classes": (
            "The policy and the model have different numbers of classes. Calibrate with this model."
        ),
        "policy-other-model": (
            "The policy was calibrated for another model: its `model_digest` is not the digest that `drip model check` "
            "shows. New weights or quantisation make another model. Calibrate again."
        ),
        "policy-other-run": "The last run into the store used another policy. Give the policy of that run.",
        "policy-other-score": (
            "The policy was calibrated on another score, layer or input spec. Calibrate again with "
            "this model."
        ),
        "policy-parent-windows": (
            "The windows were fitted before quantisation. Calibrate on the int8 file, or accept them with "
            "`--accept-parent-windows`."
        ),
        "policy-version": "The policy was written by another version of DRIP. Upgrade, or calibrate again.",
        "population-unknown": (
            "The store has no population with this number, or its rule does not look for populations. "
            "`drip populations` lists them."
        ),
        "quantize-data": (
            "There are too few calibration samples, or they do not vary. Give at least 200 varied samples."
        ),
        "quantize-disagrees": (
            "The int8 file decides too differently from its float32 parent, so it was not written."
        ),
        "rule-arguments": "The rule does not accept these arguments.",
        "rule-needs": (
            "The rule reads a score that this model or scorer does not provide. Export the model with that "
            "score, or use a scorer that provides it."
        ),
        "rule-not-calibrated": "The rule was used before calibration. Calibrate it, or load a policy.",
        "rule-state": (
            "The saved state of the rule is damaged or belongs to another version. Use the version that "
            "wrote it, or start with a new store."
        ),
        "rule-unknown": (
            "No rule has this name. Check the spelling, or install the package that provides it."
        ),
        "run-nothing-usable": (
            "No sample of the run could be decoded, scored and kept. `drip store stats` counts the "
            "quarantined samples; `--on-error raise` shows the first reason."
        ),
        "provider-unknown": (
            "The installed ONNX Runtime has no execution provider of this name. The message lists those it has."
        ),
        "sample-non-finite": (
            "The sample contains NaN or infinity, or the model outputs them for it. Check the sensor and the "
            "scale of the input."
        ),
        "sample-rejected": "The store cannot keep this sample: its id, label or text is not valid.",
        "sample-shape": "The sample does not have the size or shape of the input spec.",
        "sample-too-large": "The sample is larger than the store's budget, or than the decoder's limit.",
        "sample-undecodable": (
            "The bytes are corrupt, truncated or of an unknown type. `drip run` quarantines such samples."
        ),
        "sample-unknown": (
            "No kept sample has this key or id, or more than one has it. The sample may have been evicted; use the "
            "key of a sample that the store returns."
        ),
        "score-unavailable": (
            "The model cannot be scored with these options. The message says which option to change."
        ),
        "source-empty": "The source contains no samples. Check the path and the file types.",
        "source-unavailable": "The source cannot be opened or read. Check the path, the permissions and "
        "the network.",
        "source-url": "The URL of the source is malformed or has an unknown scheme or option.",
        "store-budget": "The budget is too small for the store's own records. Give a larger one.",
        "store-busy": (
            "The store is open for writing elsewhere, in another process or in this one. Close it, wait for it "
            "with `timeout_s`, or open the store read-only."
        ),
        "store-closed": "The store is closed, open only for reading, or was opened by another thread.",
        "store-damaged": "The file is damaged. `drip store check` lists what is wrong.",
        "store-disk-full": (
            "The disk is full, or has less than `min_free_bytes` left. Free some space; what was committed is "
            "safe."
        ),
        "store-invalid": "The file is not a DRIP store.",
        "store-io": "The operating system could not read or write the store. The message states the reason.",
        "store-missing": "The store does not exist. Check the path.",
        "store-transaction": (
            "The call is not possible inside a transaction, or an earlier write in the transaction failed "
            "and the whole transaction was rolled back."
        ),
        "store-transaction-full": (
            "The transaction is larger than the store can commit. The pipeline splits the batch in half and retries."
        ),
        "store-version": (
            "The store was written by another version of DRIP. Upgrade DRIP; a store of an older version is "
            "migrated when it is opened for writing."
        ),
        "table-invalid": (
            "The table has missing, non-numeric or inconsistent cells. The message names the row and column."
        ),
        "training-diverged": (
            "The training loss became NaN or infinite. Lower the learning rate, and check the scale of the inputs."
        ),
    }
)
"""Every code with what happened and what to do."""


class DripError(Exception):
    """Base class of every error that drip raises on purpose.

    The message says what is wrong with which thing, then what to do.

    Args:
        message: A sentence that says what is wrong and what to do.
        code: A key of :data:`CODES`; the type's own when not given.
    """

    code: str = "error"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def within(self, where: str) -> Self:
        """The same error, with the name of the sample or file that caused it in front.

        >>> str(InputError("too short").within("clip.wav"))
        'clip.wav: too short'
        """
        return type(self)(f"{where}: {self}", code=self.code)


class InputError(DripError, ValueError):
    """The function does not accept this argument or sample."""

    code = "bad-argument"


class PolicyError(DripError):
    """A policy cannot be read, has an unknown format, or belongs to another model."""

    code = "policy-invalid"


class ModelError(DripError):
    """A model cannot be loaded or scored."""

    code = "model-not-loadable"


class NonFiniteError(ModelError):
    """The model outputs NaN or infinity for this sample; the model itself works."""

    code = "sample-non-finite"


class StoreError(DripError):
    """The store cannot be opened, written or read."""

    code = "store-io"


class SampleTooLargeError(StoreError):
    """A sample does not fit the store's budget, however much is evicted; none of it was written."""

    code = "sample-too-large"


class TransactionFullError(StoreError):
    """A transaction is larger than the store can commit at once; none of it was written."""

    code = "store-transaction-full"


class SourceError(DripError):
    """A source cannot be opened or read."""

    code = "source-unavailable"


class ExportError(DripError):
    """A file cannot be written in the requested format."""

    code = "export-failed"


def code_of(error: BaseException) -> str:
    """The code of any exception, for a status file or the command line.

    >>> code_of(StoreError("busy", code="store-busy")), code_of(MemoryError()), code_of(KeyError())
    ('store-busy', 'out-of-memory', 'error')
    """
    if isinstance(error, DripError):
        return error.code
    if isinstance(error, FileNotFoundError):
        return "path-missing"
    if isinstance(error, OSError):
        return "os-error"
    return "out-of-memory" if isinstance(error, MemoryError) else "error"


def brief(value: object) -> str:
    """A value for a message, 60 characters at most.

    >>> brief("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def missing_extra(room: str, package: str, extra: str) -> DripError:
    """The error of a module whose optional package is not installed, with the command that installs it.

    >>> print(missing_extra("drip.scoring", "torch", "torch"))
    drip.scoring needs torch, which cannot be imported; run: pip install "drip-edge[torch]"
    """
    return DripError(
        f'{room} needs {package}, which cannot be imported; run: pip install "drip-edge[{extra}]"',
        code="package-missing",
    )
