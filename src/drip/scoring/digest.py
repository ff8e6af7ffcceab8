"""The digest of a model's weights, by which policies and model files recognise the model they belong to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from drip.errors import ModelError


def model_digest(model: nn.Module) -> str:
    r"""SHA-256 of a model's parameters and buffers, 64 hexadecimal characters.

    For every entry of the ``state_dict``, in the order of names, the hash covers the name, a zero byte, the
    shape as decimal numbers joined by ``x``, a zero byte, and the values as little-endian float32. Equal
    weights therefore have equal digests on every device and in every precision that float32 can
    represent. Class and code of the model do not matter.

    A hash of the saved file would be simpler, but two saves of one model differ: the archive contains its
    own file name.

    Args:
        model: Any module whose state consists of tensors.

    Returns:
        The digest in hexadecimal.

    Raises:
        ModelError: An entry of the state is not a tensor, as in torch's quantised modules.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> model_digest(model) == hashlib.sha256(b"weight\x002x2\x00" + bytes(16)).hexdigest()
    True
    """
    digest = hashlib.sha256()
    # Sorted: the order of the state_dict is the order of assignment in __init__, which refactoring may
    # change.
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"the state_dict entry {name!r} is a {type(value).__name__}, not a tensor; take the digest "
                "of the float model before quantisation"
            )
        # The shape is part of the hash: weights of shapes (2, 3) and (3, 2) may have the same bytes.
        shape = "x".join(str(size) for size in value.shape)
        digest.update(f"{name}\0{shape}\0".encode())
        # float32 represents weights in half precision and bfloat16 exactly; only float64 is rounded.
        values = value.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
