"""Moderate: keep what is neither typical nor far from its predicted class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from drip.selectors.base import ThresholdSelector, within_float64
from drip.selectors.projected import fixed_order, projected
from drip.selectors.states import numbers, packed, unpacked
from drip.types import FloatArray, JsonObject, Observations


class ModerateSelector(ThresholdSelector):
    r"""Keep the samples whose distance to the centre of their predicted class is nearest to the median.

    With the distance d of the 64 projected features to the class's mean, the priority is
    :math:`-|d - m_c| / s_c`: :math:`m_c` is the median of the class's calibration distances and
    :math:`s_c` the median of :math:`|d - m_c|`, so that classes compare. A class without calibration
    samples takes mean, median and spread of all. State: 64 numbers in single precision and 2 more for every
    class, 380 bytes of text.

    References:
        Xia, Liu, Yu, Shen, Han and Liu (2023), Moderate coreset: a universal method of data selection for
        real-world data-efficient deep learning.
    """

    name: ClassVar[str] = "moderate"

    def __init__(self, retention: float = 0.6) -> None:
        super().__init__(retention)
        self._centres: FloatArray | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The features."""
        return frozenset({"features"})

    def utility(self, observations: Observations) -> FloatArray:
        """Shape (n,): the negative distance to the median, in spreads of the class.

        Raises:
            PolicyError: the rule was not calibrated.
        """
        if self._centres is None:
            raise self._uncalibrated()
        self._check_classes(observations, len(self._centres))
        features, classes = (
            projected(observations, self.name, self._centres.shape[1]),
            observations.classes,
        )
        distances = _lengths(features - self._centres[classes])
        with np.errstate(over="ignore"):
            return within_float64(-np.abs(distances - self._medians[classes]) / self._scales[classes])

    def state(self) -> JsonObject:
        """The limit; centre, median and spread of every class."""
        state = super().state()
        assert self._centres is not None  # noqa: S101  # a limit comes from them
        return {
            **state,
            "n_features": self._centres.shape[1],
            "centres": packed(self._centres),
            "medians": self._medians.tolist(),
            "scales": self._scales.tolist(),
        }

    def _calibrate(self, observations: Observations) -> None:
        n_classes = observations.logits.shape[1]
        self._check_classes(observations, n_classes)
        features, classes = projected(observations, self.name), observations.classes
        order = fixed_order(features, classes)
        features, classes = features[order], classes[order]
        of_all = _centre_median_scale(features, 1.0)
        found = [
            _centre_median_scale(features[classes == label], of_all[2])
            if (classes == label).any()
            else of_all
            for label in range(n_classes)
        ]
        centres, medians, scales = zip(*found, strict=True)
        self._centres, self._medians, self._scales = np.stack(centres), np.array(medians), np.array(scales)
        super()._calibrate(observations)

    def _restore(self, state: JsonObject) -> None:
        centres = unpacked("centres", state["centres"], None, state["n_features"])
        self._medians = numbers("medians", state["medians"], len(centres))
        self._scales = numbers("scales", state["scales"], len(centres))
        if not len(centres) or not (self._scales > 0).all():
            raise ValueError("there must be a centre, a median and a scale above 0 for every class")
        super()._restore(state)
        self._centres = centres


def _centre_median_scale(features: FloatArray, scale: float) -> tuple[FloatArray, float, float]:
    """Mean, median distance and its spread; the given scale where the spread is zero."""
    centre = features.mean(axis=0).astype("<f4").astype(np.float64)  # as a restored state has it
    distances = _lengths(features - centre)
    median = float(np.median(distances))
    return centre, median, float(np.median(np.abs(distances - median))) or scale


def _lengths(rows: FloatArray) -> FloatArray:
    # Row by row: a sum over many rows may round differently for batches of different sizes.
    return np.array([np.sqrt(row @ row) for row in rows], np.float64)
