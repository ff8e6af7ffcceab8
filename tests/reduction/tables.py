"""Small tables and a check of errors for the tests of this folder."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drip.errors import InputError


@contextmanager
def fails(code="bad-argument", kind=InputError):
    """Expect an error of this type with this code; gives pytest's record of it."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code


@st.composite
def grids(draw, max_rows=24, max_columns=3, n_classes=3, largest=4):
    """Whole numbers, so distances are exact and ties and repeated rows common; at least two classes."""
    n = draw(st.integers(4, max_rows))
    d = draw(st.integers(1, max_columns))
    values = draw(hnp.arrays(np.float64, (n, d), elements=st.integers(-largest, largest).map(float)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, n_classes - 1)))
    labels[:2] = [0, 1]
    return values, labels


def blobs(n, d=4, n_classes=3, seed=0):
    """Overlapping Gaussian classes of sizes 1 : 2 : 3 ..."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / (n_classes * (n_classes + 1) / 2))
    labels[:n_classes] = np.arange(n_classes)
    centres = rng.normal(0, 2, (n_classes, d))
    return centres[labels] + rng.normal(0, 1, (n, d)), labels


def distance(a, b, metric):
    """Distance between two rows, by the definition."""
    gap = [abs(float(x) - float(z)) for x, z in zip(a, b, strict=True)]
    return max(gap) if metric == "chebyshev" else sum(g * g for g in gap) ** 0.5


def orders(sampler, labels):
    """Rows of every class in the order of the ranking."""
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranked = rows[sampler.ranking_[rows] >= 0]
        found.append(ranked[np.argsort(sampler.ranking_[ranked])].tolist())
    return found
