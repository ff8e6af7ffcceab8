"""A user's own model by name, and the cut of an image network into a frozen part and a trained one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from drip.errors import ModelError
from drip.models.efficientnet import EfficientNetB0
from drip.models.mobilenet import MobileNetV2


def load_model(factory: str, weights: str | Path | None) -> nn.Module:
    """The model that ``package.module:factory`` returns, with weights from a file.

    Modules are also searched in the current folder, as with ``python -m``. Reading weights executes no code
    from the file.

    Args:
        factory: Dotted module, a colon, and a callable without arguments that returns the model.
        weights: A file with a ``state_dict``, from ``torch.save``; None keeps the factory's weights.

    Raises:
        ModelError: The module, the callable or the file does not exist, the file does not fit the model,
            or the model has no weights in memory (the meta device).
    """
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise ModelError(f"model {factory!r}: not of the form package.module:factory")
    # An installed command does not search the current folder, but that is where the user's module usually is.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # the code is the user's: it may raise anything
        raise ModelError(
            f"model {factory!r}: cannot be created ({type(error).__name__}: {error}); check the name and "
            "the folder, and that the factory needs no arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {factory!r}: the factory returns a {type(model).__name__}, not a torch.nn.Module"
        )
    if weights is not None:
        load_weights(model, Path(weights), factory)
    # Such a model passes every check of shapes and fails at its first sample with a message about storage.
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if values.is_meta:
            raise ModelError(
                f"model {factory!r}: {name!r} is on the meta device and has no values; build the model without "
                "torch.device('meta'), or call to_empty() before loading its weights"
            )
    return model.eval()


def load_weights(model: nn.Module, weights: Path, name: str) -> None:
    """Load a ``state_dict`` from a file into a model; no code in the file is executed.

    Args:
        model: The model, changed in place.
        weights: The file, from ``torch.save``.
        name: Name of the model in messages.

    Raises:
        ModelError: the file does not exist, is damaged, or does not fit the model.
    """
    if not weights.exists():
        raise ModelError(f"{weights}: does not exist", code="path-missing")
    try:
        # weights_only: a pickle runs code when it is read, and weights are files from strangers.
        state = torch.load(weights, map_location="cpu", weights_only=True)
    # torch's reader raises many exception types for a damaged file, such as a KeyError with one byte as its
    # text, and its message for a pickle advises allowing code execution.
    except Exception as error:
        raise ModelError(
            f"{weights}: cannot be read as a state_dict of tensors; save it with "
            "torch.save(model.state_dict(), path)"
        ) from error
    try:
        model.load_state_dict(state)
    except Exception as error:  # the content of the file may have any type
        # A mismatch lists every tensor of the network.
        reason = shorten(str(error), 300, placeholder=" ...")
        raise ModelError(f"{weights}: does not fit the model {name!r}: {reason}") from error


class Tail(nn.Module):
    """The last feature stages of an image network, average pooling and its classifier.

    Parameters keep their names, so a tail's ``state_dict`` loads into the whole network with
    ``strict=False``.

    Args:
        features: The stages, named as in the network.
        classifier: From pooled features to logits.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of the frozen stages' output, shape (N, channels, height, width)."""
        logits: Tensor = self.classifier(adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


def cut_before_last_seven(model: EfficientNetB0 | MobileNetV2) -> tuple[nn.Module, Tail]:
    """The frozen stages, and the tail that the paper trains: the network's last seven submodules.

    For EfficientNet-B0 see :func:`freeze_all_but_last_seven`; MobileNetV2's last seven are
    ``features.14`` to ``features.18``, pooling and classifier. The frozen part stays in eval mode,
    including its batch normalisation, so its output for an input never changes and can be cached.

    Args:
        model: The network; both parts share its parameters.

    Returns:
        Frozen part and tail; applied in this order they compute the network's logits.

    References:
        DRIP paper, section IV-B.1.

    >>> _, tail = cut_before_last_seven(MobileNetV2(n_classes=10))
    >>> [name for name, _ in tail.features.named_children()]
    ['14', '15', '16', '17', '18']
    """
    first = 5 if isinstance(model, EfficientNetB0) else 14
    frozen = model.features[:first].eval()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    return frozen, Tail(model.features[first:], model.classifier)
