"""Cuts a network into the part that stays frozen and the part that trains: the first runs only once."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from drip.models.efficientnet import EfficientNetB0
from drip.models.mobilenet import MobileNetV2

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
