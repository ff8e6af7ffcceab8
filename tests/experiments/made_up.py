"""A head-only regime on made-up feature maps: the studies run on it in milliseconds."""

import numpy as np

from experiments.bank import Bank
from experiments.head import HeadRecipe, HeadRegime


def made_up_regime(
    n_rows=600,
    n_classes=5,
    views=("clean",),
    *,
    flatten=False,
    groups=None,
    seed=0,
    epochs=3,
    regime=HeadRegime,
):
    """Maps (n_rows, 8, 2, 2) that are positive and tell the class with errors; later views are noisier."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_rows) % n_classes).astype(np.int64)
    centres = rng.uniform(0, 2, size=(n_classes, 8, 1, 1))
    maps, inputs = [], []
    for number in range(len(views)):
        spread = 0.8 + 0.2 * number
        drawn = centres[labels] + spread * rng.standard_normal((n_rows, 8, 2, 2))
        maps.append(np.maximum(drawn, 0).astype(np.float16))
        wide = maps[-1].astype(np.float32)
        inputs.append(wide.reshape(n_rows, -1) if flatten else wide.mean((2, 3)))
    bank = Bank(tuple(views), tuple(maps), tuple(inputs), flatten)
    sizes = rng.integers(50, 150, n_rows)
    recipe = HeadRecipe(epochs=epochs, batch_size=32)
    return regime(labels, sizes, bank, {"dataset": "made up", "n_rows": n_rows}, recipe, groups)
