"""More networks to export, and their plain ONNX form as torch writes it."""

import io
import logging
import warnings

import numpy as np
import torch
from torch import nn

from drip.models import AudioCNN, MobileNetV2


class Fire(nn.Module):
    def __init__(self, n_in, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 with torchvision's names: the classifier is a convolution before the pooling."""

    def __init__(self, n_classes=1000):
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool,
            Fire(128, 32, 128), Fire(256, 32, 128), pool, Fire(256, 48, 192), Fire(384, 48, 192),
            Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, n_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x):
        return self.classifier(self.features(x)).flatten(1)


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class SmallResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(Residual(3, 8, 1), Residual(8, 16, 2), Residual(16, 24, 2))
        self.fc = nn.Linear(24, 7)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


PLAIN = {
    # network, shape of one input, layer of the oracle
    "mobilenet": (lambda: MobileNetV2(7), (3, 64, 64), "features"),
    "audio": (lambda: AudioCNN(5, n_samples=4000, width=4, hidden=8), (1, 4000), "features"),
    "resnet": (SmallResNet, (3, 24, 20), "features"),
    "squeezenet": (lambda: SqueezeNet(9), (3, 64, 64), "classifier.2"),
}


def lively(model, seed=0):
    """The model in eval mode, with random batch statistics and last layers so that scores differ."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Linear) and module.out_features < 20:
            nn.init.normal_(module.weight, 0, 0.3)
    return model.eval()


def plain_onnx(model, shape, *, opset=18, free=True):
    """Bytes of the model as torch exports it, without a score."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.zeros(2 if free else 1, *shape),), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},) if free else None,
        )  # fmt: skip
    stream = io.BytesIO()
    stream.write(program.model_proto.SerializeToString())
    return stream.getvalue()


def noise(shape, n, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
