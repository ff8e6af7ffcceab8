"""Building blocks of rules that follow a stream: moving thresholds, rate control, gates, quotas.

Each part can be used alone and has bounded state that can be saved and restored. None of them is a rule.
"""

from drip.rules.parts.adaptations import AdaptationLog
from drip.rules.parts.gates import DuplicateGate, OutlierGate
from drip.rules.parts.gaussians import ClassGaussians, PopulationGate, held_out_distances
from drip.rules.parts.rates import ClassShares, RateController, RunningQuantile, Target

__all__ = [
    "AdaptationLog",
    "ClassGaussians",
    "ClassShares",
    "DuplicateGate",
    "OutlierGate",
    "PopulationGate",
    "RateController",
    "RunningQuantile",
    "Target",
    "held_out_distances",
]
