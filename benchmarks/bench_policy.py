"""A million scores in ten classes: `Policy.fit` beside bucketing by class and sorting each class."""

from __future__ import annotations

from statistics import median

import numpy as np
from timing import interleave, parse_arguments, write

from drip import Policy

N_SCORES, N_CLASSES, REPETITIONS = 1_000_000, 10, 15


def main() -> None:
    """Time both, print the ratio, write the raw seconds."""
    arguments = parse_arguments(__doc__)
    rng = np.random.default_rng(0)
    scores, classes = rng.gamma(3.0, 1.0, N_SCORES), rng.integers(0, N_CLASSES, N_SCORES)
    seconds = interleave(
        {
            "bucket and sort": lambda: [np.sort(scores[classes == number]) for number in range(N_CLASSES)],
            "Policy.fit": lambda: Policy.fit(scores, classes, n_classes=N_CLASSES, retention=0.6),
            "Policy.fit, histogram peak": lambda: Policy.fit(
                scores, classes, n_classes=N_CLASSES, retention=0.6, method="histogram_peak"
            ),
        },
        REPETITIONS,
    )
    base = median(seconds["bucket and sort"])
    for name, times in seconds.items():
        print(f"{name:<28}{1e3 * median(times):8.1f} ms  {median(times) / base:.2f}x")
    if not arguments.force:
        write(
            "policy", [{"variant": name, "n": N_SCORES, "seconds": times} for name, times in seconds.items()]
        )


if __name__ == "__main__":
    main()
