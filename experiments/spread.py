"""Two candidates that spread what they keep: a store that evicts, and a threshold.

Both value a sample by how close its call is and by how far it is from what is kept already. The distance is capped:
beyond the cap everything counts as new, so neither chases junk or far outliers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drip.rules.adaptive import AdaptiveMarginRule
from drip.rules.parts.gates import nearest_distances
from drip.rules.parts.gaussians import N_NUMBERS, project
from drip.rules.uncertainty import MarginRule
from drip.types import BoolArray, FloatArray, Observations


def spread_store(calibration: Observations, stream: Observations, count: int) -> BoolArray:
    """What a store of ``count`` holds after the stream: every arrival enters, and the least valuable one leaves.

    The value of a kept sample is u * min(d, cap): u is 1 minus the margin of the softmax, d the distance to the nearest
    other kept sample in 64 projected features, and the cap the median distance of a calibration sample to its nearest
    neighbour. Values change with every arrival, because d does.

    Args:
        calibration: Observations that set the cap.
        stream: Observations in order of arrival, n of them.
        count: Samples that the store holds.

    Returns:
        Which arrivals it holds at the end, shape (n,).
    """
    cap = _cap(calibration)
    closeness = MarginRule().calibrate(calibration).score(stream)
    rows = _sketches(stream)
    ids = np.zeros(count + 1, np.intp)
    kept = np.zeros((count + 1, rows.shape[1]))
    close = np.zeros(count + 1)
    nearest, neighbour = np.full(count + 1, np.inf), np.full(count + 1, -1)
    n = 0
    for arrival, row in enumerate(rows):
        distance = np.sqrt(((kept[:n] - row) ** 2).sum(1))
        nearer = distance < nearest[:n]
        nearest[:n][nearer], neighbour[:n][nearer] = distance[nearer], n
        ids[n], kept[n], close[n] = arrival, row, closeness[arrival]
        nearest[n], neighbour[n] = (distance.min(), distance.argmin()) if n else (np.inf, -1)
        n += 1
        if n <= count:
            continue
        out, last = int(np.argmin(close[:n] * np.minimum(nearest[:n], cap))), n - 1
        n = last
        orphans = np.flatnonzero(neighbour[:last] == out)
        if out != last:
            # The last one moves into the free place.
            for array in (ids, kept, close, nearest, neighbour):
                array[out] = array[last]
            neighbour[:n][neighbour[:n] == last] = out
            if neighbour[last] == out:
                orphans = np.append(orphans, out)
        for orphan in orphans[orphans < n].tolist():
            away = np.sqrt(((kept[:n] - kept[orphan]) ** 2).sum(1))
            away[orphan] = np.inf
            nearest[orphan], neighbour[orphan] = away.min(), away.argmin()
    held = np.zeros(len(rows), np.bool_)
    held[ids[:n]] = True
    return held


class SpreadMarginRule(AdaptiveMarginRule):
    """``adaptive-margin`` whose score is multiplied by the capped distance to the nearest kept sample.

    It has no name of its own: every rule with one is an arm of the other studies.
    """

    def _calibrate(self, observations: Observations) -> None:
        super()._calibrate(observations)
        self._cap = _cap(observations)
        self._kept_rows = np.empty((256, min(N_NUMBERS, self._duplicates.n_features)))
        self._n_kept = 0

    def _choose(self, value: float, label: int, features: FloatArray, share: float) -> Any:
        held = self._kept_rows[: self._n_kept]
        away = float(((held - features[:N_NUMBERS]) ** 2).sum(1).min(initial=np.inf))
        return super()._choose(value * min(np.sqrt(away), self._cap) / self._cap, label, features, share)

    def _note_kept(self, label: int, features: FloatArray, n_bytes: int) -> None:
        super()._note_kept(label, features, n_bytes)
        if self._n_kept == len(self._kept_rows):
            self._kept_rows = np.concatenate([self._kept_rows, np.empty_like(self._kept_rows)])
        self._kept_rows[self._n_kept] = features[:N_NUMBERS]
        self._n_kept += 1


def _cap(calibration: Observations) -> float:
    return float(np.sqrt(np.median(nearest_distances(_sketches(calibration)))))


def _sketches(observations: Observations) -> FloatArray:
    assert observations.features is not None  # noqa: S101  # every scorer of the study gives them
    return project(observations.features, N_NUMBERS)
