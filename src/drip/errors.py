"""The errors a caller may catch; one base class. No logic lives here but the wording they share."""

from __future__ import annotations


class DripError(Exception):
    """Base class of every error that drip raises on purpose.

    The message says what was expected, what came and what to do about it.
    """


class InputError(DripError, ValueError):
    """An argument or a sample is outside what the function accepts."""


class PolicyError(DripError):
    """A policy cannot be read, is of an unknown format, or belongs to another model."""


class ModelError(DripError):
    """A model cannot be scored: no layer with positions, one logit, weights that are not finite."""


class NonFiniteError(ModelError):
    """A model gives NaN or infinity for this sample; the model itself can be scored."""


class StoreError(DripError):
    """The store cannot take, keep or give what was asked of it."""


class SampleTooLargeError(StoreError):
    """A sample does not fit the store's budget, however much is evicted; nothing of it was written."""


class TransactionFullError(StoreError):
    """A transaction is larger than the store can commit at once; nothing of it was written."""


class StreamError(DripError):
    """A source cannot be opened or read."""


class ExportError(DripError):
    """Something cannot be written in the asked format."""


def brief(value: object) -> str:
    """What a message shows of a value that came in the place of another: 60 characters at most.

    >>> brief("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def missing_extra(room: str, package: str, extra: str) -> DripError:
    """The error of a room whose package is not installed, with the command that installs it.

    >>> print(missing_extra("drip.scoring", "torch", "torch"))
    drip.scoring needs torch, which cannot be imported; run: pip install "drip-edge[torch]"
    """
    return DripError(
        f'{room} needs {package}, which cannot be imported; run: pip install "drip-edge[{extra}]"'
    )
