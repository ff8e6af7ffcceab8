"""A user's own model: made by a named callable, with weights from a file that cannot run code."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from drip.errors import ModelError
from drip.models.efficientnet import EfficientNetB0
from drip.models.mobilenet import MobileNetV2


def load_model(factory: str, weights: str | Path | None) -> nn.Module:
    """The model that ``package.module:factory`` makes, with the weights of a file.

    The current folder is searched for modules, as ``python -m`` does. Weights are read without
    executing code from the file.

    Args:
        factory: Dotted module, a colon, and a callable without arguments that returns the model.
        weights: A file with a ``state_dict``, from ``torch.save``; None keeps the factory's weights.

    Raises:
        ModelError: no such module or callable, a model without weights in memory (the meta device), or a
            file that does not fit the model.
    """
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise ModelError(f"a model as package.module:factory is needed, got {factory!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # the code is the user's: it may raise anything
        raise ModelError(
            f"a callable without arguments is needed at {factory!r}, got {type(error).__name__}: {error}; "
            "check name and folder"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory!r} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        try:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:  # torch's own text advises to run the file's code
            raise ModelError(
                f"a state_dict from torch.save is needed at {weights}, got a file that has more in it than "
                "tensors, or is none; save model.state_dict()"
            ) from error
        except Exception as error:  # torch's reader raises many types on a damaged file
            raise ModelError(
                f"a state_dict that fits {factory!r} is needed at {weights}, got: {error}"
            ) from error
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if values.is_meta:
            raise ModelError(
                f"weights in memory are needed, got a model of {factory!r} with {name!r} on the meta device; "
                "make it without torch.device('meta'), or with to_empty() before its weights are loaded"
            )
    return model.eval()


_FIRST_TRAINED: dict[type[nn.Module], int] = {EfficientNetB0: 5, MobileNetV2: 14}


class Tail(nn.Module):
    """The last feature stages of an image network, average pooling and its classifier.

    Parameters keep their names, so that a tail's ``state_dict`` loads into the network with
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
        """Logits (N, n_classes) of what the frozen stages gave, (N, channels, height, width)."""
        logits: Tensor = self.classifier(adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


def cut_before_last_seven(model: EfficientNetB0 | MobileNetV2) -> tuple[nn.Module, Tail]:
    """The frozen stages and the tail that the paper trains: the network's last seven submodules.

    For EfficientNet-B0 see :func:`freeze_all_but_last_seven`; MobileNetV2's last seven are
    ``features.14`` to ``features.18``, pooling and classifier. The frozen part is in eval mode, also its
    batch normalisation: its output for an input never changes, and may be kept.

    Args:
        model: The network; both parts share its parameters.

    Returns:
        Frozen part and tail; one after the other they are the network.

    References:
        DRIP paper, section IV-B.1.

    >>> _, tail = cut_before_last_seven(MobileNetV2(n_classes=10))
    >>> [name for name, _ in tail.features.named_children()]
    ['14', '15', '16', '17', '18']
    """
    first = _FIRST_TRAINED[type(model)]
    frozen = model.features[:first].eval()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    return frozen, Tail(model.features[first:], model.classifier)
