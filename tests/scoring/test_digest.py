"""The model digest: equal weights give equal digests, and nothing else matters."""

import hashlib
import struct

import pytest
import torch
from torch import nn

from drip.errors import ModelError
from drip.models import SmallCNN
from drip.scoring import model_digest


def test_the_digest_is_the_documented_hash():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight[:] = torch.tensor([[1.5, -2.0]])
        model.bias[:] = 0.25
    data = b"bias\x001\x00" + struct.pack("<f", 0.25) + b"weight\x001x2\x00" + struct.pack("<2f", 1.5, -2.0)
    assert model_digest(model) == hashlib.sha256(data).hexdigest()


def test_any_weight_and_any_buffer_counts():
    torch.manual_seed(0)
    model = SmallCNN(1, 3, width=2)
    digests = {model_digest(model)}
    for entry in model.state_dict().values():
        entry.view(-1)[-1] += 1
        digests.add(model_digest(model))
    assert len(digests) == 1 + len(model.state_dict())


def test_memory_layout_precision_and_mode_do_not_count():
    torch.manual_seed(0)
    model = SmallCNN(3, 3, width=2)
    digest = model_digest(model)
    assert model_digest(model.eval().to(memory_format=torch.channels_last)) == digest
    assert model_digest(model.double()) == digest


def test_a_state_without_tensors_is_rejected():
    class Packed(nn.Module):
        def get_extra_state(self):
            return {"scale": 1.0}

    with pytest.raises(ModelError, match="'_extra_state' is a dict") as caught:
        model_digest(Packed())
    assert caught.value.code == "model-not-loadable"
