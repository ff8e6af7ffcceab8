"""Samples, observations, decisions and expected errors for the store's tests."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from drip.errors import CODES
from drip.types import Decision, Observation, Sample

BUDGET = 1_000_000
LOGITS = np.array([0.5, -1.0, 0.25])


def sample(name="s", data=None, **more):
    return Sample(name, f"data of {name}".encode() if data is None else data, "image/png", **more)


def observation(predicted_class=1, **more):
    return Observation(predicted_class, LOGITS, {"drip": 0.5}, **more)


def keep(priority=0.5):
    return Decision(True, priority, 0.25, "margin")


DROP = Decision(False, 0.5, None, "inside-window")


def put(store, name="s", priority=0.5, data=None, predicted_class=1):
    store.put(sample(name, data), observation(predicted_class), keep(priority))


def names(store):
    return [record.sample.id for record in store]


@contextlib.contextmanager
def refused(kind, code, *parts):
    """Expect an error of this type and code, whose message names each of the parts."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code
    assert code in CODES
    for part in parts:
        assert str(part) in str(caught.value)
