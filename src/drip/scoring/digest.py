"""The name of a model's weights: one hash that policies, exported files and scorers compare."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from drip.errors import ModelError


def model_digest(model: nn.Module) -> str:
    r"""SHA-256 of a model's parameters and buffers, 64 hexadecimal characters.

    For every entry of the ``state_dict`` in the order of its name the hash takes the name, a zero
    byte, the shape as decimal numbers joined by ``x``, a zero byte, and the values as
    little-endian float32. So equal weights give equal digests on every device and in every
    precision that float32 holds; the class and the code of the model do not enter.

    Args:
        model: Any module whose state consists of tensors.

    Returns:
        The digest in hexadecimal.

    Raises:
        ModelError: An entry of the state is no tensor, as in torch's quantised modules.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> model_digest(model) == hashlib.sha256(b"weight\x002x2\x00" + bytes(16)).hexdigest()
    True
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            message = f"every state_dict entry must be a tensor, got {type(value).__name__} for {name!r}"
            raise ModelError(f"{message}; take the digest of the float model")
        shape = "x".join(str(size) for size in value.shape)
        digest.update(f"{name}\0{shape}\0".encode())
        values = value.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
