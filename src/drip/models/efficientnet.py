"""EfficientNet-B0 with torchvision's layer names, so its ``state_dict`` files load unchanged."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_STAGES = (
    # expansion, kernel, stride, input channels, output channels, blocks
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
_LAST_CHANNELS = 1280


class StochasticDepth(nn.Module):
    """Drops whole samples of a residual branch in training and scales the others by 1 / (1 - p).

    Args:
        p: Probability of dropping, in [0, 1).

    References:
        Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output, shape unchanged."""
        if not self.training or self.p == 0:
            return x
        shape = (len(x),) + (1,) * (x.dim() - 1)
        kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate in (0, 1) computed from all channels' means.

    Args:
        channels: Channels of the input.
        squeezed: Channels of the bottleneck.

    References:
        Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """The gated input, shape unchanged."""
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * gate


class MBConv(nn.Module):
    """Inverted residual block: expand, depthwise convolution, squeeze and excitation, project.

    Args:
        expansion: Factor of the hidden channels; 1 omits the expanding convolution.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        drop: Probability that training drops the residual branch.
    """

    def __init__(
        self, expansion: int, kernel: int, stride: int, in_channels: int, out_channels: int, drop: float
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_convolution(in_channels, hidden, 1, nn.SiLU(inplace=True)))
        layers += [
            _convolution(hidden, hidden, kernel, nn.SiLU(inplace=True), stride=stride, groups=hidden),
            SqueezeExcitation(hidden, max(1, in_channels // 4)),
            _convolution(hidden, out_channels, 1, None),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, out_channels, height / stride, width / stride), rounded up."""
        branch: Tensor = self.block(x)
        return x + self.stochastic_depth(branch) if self.has_shortcut else branch


class EfficientNetB0(nn.Module):
    """EfficientNet-B0: 5,288,548 parameters at 1000 classes, a 7 x 7 feature map at 224 x 224 pixels.

    Random weights as in torchvision. ``load_state_dict`` reads torchvision's ``efficientnet_b0``
    files; replace the classifier's two tensors first if the number of classes differs.

    Args:
        n_classes: Number of classes, at least 2.
        in_channels: Channels of the image.
        dropout: Probability of dropout before the classifier, in training.
        stochastic_depth: Probability of dropping the last residual branch in training; it grows
            linearly from 0 with the depth.

    References:
        DRIP paper, section IV-B.1; Tan and Le 2019, arXiv:1905.11946.

    >>> sum(p.numel() for p in EfficientNetB0().parameters())
    5288548
    """

    def __init__(
        self,
        n_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [_convolution(in_channels, 32, 3, nn.SiLU(inplace=True), stride=2)]
        n_blocks = sum(stage[-1] for stage in _STAGES)
        index = 0
        for expansion, kernel, stride, stage_in, stage_out, repeats in _STAGES:
            blocks = []
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(
                    MBConv(
                        expansion,
                        kernel,
                        stride if first else 1,
                        stage_in if first else stage_out,
                        stage_out,
                        stochastic_depth * index / n_blocks,
                    )
                )
                index += 1
            stages.append(nn.Sequential(*blocks))
        stages.append(_convolution(_STAGES[-1][4], _LAST_CHANNELS, 1, nn.SiLU(inplace=True)))
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout, inplace=True), nn.Linear(_LAST_CHANNELS, n_classes)
        )
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, n_classes) of images (N, in_channels, height, width), each side at least 32."""
        pooled: Tensor = self.avgpool(self.features(x)).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def freeze_all_but_last_seven(model: EfficientNetB0) -> EfficientNetB0:
    """Freeze all but the last seven submodules of an EfficientNet-B0, as in the paper; returns the model.

    In the order [conv_stem, bn1, blocks.0 to blocks.6, conv_head, bn2, global_pool, classifier] these
    are blocks.4, 5, 6, conv_head, bn2, global_pool and classifier; with torchvision's names
    ``features.5`` to ``features.8``, ``avgpool`` and ``classifier``. Freezing means
    ``requires_grad = False``; batch normalisation in the frozen part still updates its running
    statistics in training mode.

    References:
        DRIP paper, section IV-B.1.

    >>> frozen = freeze_all_but_last_seven(EfficientNetB0(n_classes=10))
    >>> [stage[0].requires_grad for stage in (list(part.parameters()) for part in frozen.features)]
    [False, False, False, False, False, True, True, True, True]
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
    for part in (model.features[5:], model.classifier):
        for parameter in part.parameters():
            parameter.requires_grad = True
    return model


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    activation: nn.Module | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and the activation if given."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
    )
    tail = [] if activation is None else [activation]
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), *tail)


def _initialise(model: nn.Module) -> None:
    """Random weights as torchvision draws them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
