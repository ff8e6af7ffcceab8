"""Six kinds of heads on small backbones, and an oracle that shares no code with the scorer."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def gap_linear():
    """2-D, global average pooling and one linear layer."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)]
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(*head)), (3, 9, 11), "0"


def flatten_fc():
    """1-D, flatten and two linear layers with ReLU between."""
    layers = [nn.Conv1d(1, 6, 5, stride=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)]
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(6 * 15, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(*head)), (1, 64), "0"


def before_max_pool():
    """2-D, the target before a max pooling that belongs to the head."""
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.SiLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 25, 10), nn.ReLU(), nn.Linear(10, 3)]
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(*head)), (1, 12, 12), "0"


def hardswish_mlp():
    """2-D, average pooling, linear, hardswish, linear, as in MobileNetV3."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.Hardswish(), nn.Linear(16, 5)]
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(*head)), (3, 8, 8), "0"


class _SqueezeHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.SiLU(inplace=True))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.SiLU(), nn.Conv2d(4, 12, 1)
        )
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        x = self.conv(x)
        x = x * torch.sigmoid(self.gate(x))
        return self.classifier(x.mean((2, 3)))


def squeeze_head():
    """2-D, convolution, batch normalisation and squeeze-and-excitation after the target."""
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), _SqueezeHead()), (3, 15, 15), "0"


class _Tokens(nn.Module):
    """A small vision transformer with a class token; blocks written with plain shortcuts."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList(_Block() for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def tokens():
    """Transformer tokens: last block, normalisation and class token after the target."""
    return _Tokens(), (3, 16, 16), "blocks.1"


HEADS = {
    head.__name__: head
    for head in (gap_linear, flatten_fc, before_max_pool, hardswish_mlp, squeeze_head, tokens)
}


def build(name, seed=0):
    """A head's model in eval mode with lively batch statistics, a batch, and the target's name."""
    torch.manual_seed(seed)
    model, shape, layer = HEADS[name]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    batch = np.random.default_rng(seed).normal(size=(6, *shape)).astype(np.float32)
    return model.eval(), batch, layer


def to_maps(activation):
    """Tokens with a class token to (N, K, side, side); anything else unchanged."""
    if activation.dim() == 3 and activation.shape[1] == 17:
        side = 4
        return activation[:, 1:].permute(0, 2, 1).reshape(len(activation), -1, side, side)
    return activation


def oracle(model, layer, batch, method="gradcam", *, rival=False, classes=None):
    """Maps before the ReLU, logits and activations by autograd through the whole model, in float64 sums."""
    kept = []

    def keep(_module, _inputs, output):
        kept.append(output)
        return output.clone()  # a later edit in place must not change A

    handle = model.get_submodule(layer).register_forward_hook(keep)
    x = torch.from_numpy(batch).requires_grad_()
    logits = model(x)
    handle.remove()
    values = logits.detach().numpy()
    best = values.argmax(1) if classes is None else np.asarray(classes)
    rows = torch.arange(len(batch))
    y = logits[rows, best]
    if rival:
        second = np.array([sorted(range(row.size), key=lambda c: (-row[c], c))[1] for row in values])
        y = y - logits[rows, second]
    (gradient,) = torch.autograd.grad(y.sum(), kept[0])
    a = to_maps(kept[0].detach()).double().numpy()
    g = to_maps(gradient).double().numpy()
    axes = tuple(range(2, a.ndim))
    if method == "gradcam":
        maps = (g.mean(axes, keepdims=True) * a).sum(1)
    elif method == "hirescam":
        maps = (g * a).sum(1)
    elif method == "layercam":
        maps = (np.maximum(g, 0) * a).sum(1)
    else:
        denominator = 2 * g**2 + g**3 * a.sum(axes, keepdims=True)
        alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=denominator != 0)
        maps = ((alpha * np.maximum(g, 0)).sum(axes, keepdims=True) * a).sum(1)
    return maps, values, a


def score_of(maps, *, normalised=False):
    """Mean of the rectified maps, min-max normalised first if asked."""
    heat = np.maximum(maps, 0).reshape(len(maps), -1)
    if normalised:
        low, span = heat.min(1, keepdims=True), np.ptp(heat, axis=1, keepdims=True)
        heat = np.divide(heat - low, span, out=np.zeros_like(heat), where=span > 0)
    return heat.mean(1)


def assert_routes_equal(found, expected):
    """A12: at most 1e-5 of the batch's largest value apart."""
    scale = np.abs(expected).max()
    assert scale > 0
    assert np.abs(found - expected).max() <= 1e-5 * scale


class _Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class _AppliedToHidden(nn.Module):
    """Two linear layers with a function of ``forward`` between them, which no module shows."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(8, 6), function, nn.Linear(6, 5)

    def forward(self, pooled):
        return self.last(self.function(self.first(pooled)))


def _mlp(nonlinearity):
    return nn.Sequential(nn.Linear(8, 6), nonlinearity, nn.Linear(6, 5))


SATURATING = {
    "ReLU6": lambda: _mlp(nn.ReLU6()),
    "functional relu6": lambda: _AppliedToHidden(functional.relu6),
    "Hardtanh": lambda: _mlp(nn.Hardtanh(-20.0, 20.0)),
    "clamp of the pooled": lambda: nn.Sequential(_Lambda(lambda a: a.clamp(max=5)), nn.Linear(8, 5)),
    "minimum": lambda: _AppliedToHidden(lambda h: torch.minimum(h.relu(), torch.tensor(9.0))),
    "LeakyReLU": lambda: _mlp(nn.LeakyReLU(1e-6)),
    "GELU": lambda: _mlp(nn.GELU()),
    "LayerNorm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)),
    "clamp of the logits": lambda: nn.Sequential(nn.Linear(8, 5), _Lambda(lambda y: y.clamp(-30, 30))),
}
"""Heads, after pooling, that behave like linear layers and ReLU for ordinary samples only."""


def saturating(name, seed=0):
    """A pooled model with such a head in eval mode, and a batch whose last samples are far brighter."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), SATURATING[name]()).eval()
    batch = np.random.default_rng(seed).normal(size=(6, 3, 7, 7)).astype(np.float32)
    batch[3:] *= 100
    return model, batch


class AttentionPooling(nn.Module):
    """Positions are weighted by a softmax over the output of a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 6, 5), nn.ReLU())
        self.attention = nn.Conv1d(6, 1, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        a = self.features(x)
        return self.fc((a * self.attention(a).softmax(2)).sum(2))


class SharedLinear(nn.Module):
    """One linear layer runs twice in the head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        self.shared, self.fc = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.features(x).mean((2, 3))
        return self.fc(self.shared(self.shared(h).relu()).relu())
