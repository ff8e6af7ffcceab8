"""Building blocks of rules that follow a stream: moving thresholds, rate control, gates, quotas.

Each part can be used alone and has bounded state that can be saved and restored. None of them is a rule.
"""

from drip.rules.parts.gates import DuplicateGate, OutlierGate
from drip.rules.parts.gaussians import ClassGaussians, PopulationGate, held_out_distances
from drip.rules.parts.populations import Population, Populations
from drip.rules.parts.rates import ClassShares, RateController, RunningQuantile, Target

__all__ = [
    "ClassGaussians",
    "ClassShares",
    "DuplicateGate",
    "OutlierGate",
    "Population",
    "PopulationGate",
    "Populations",
    "RateController",
    "RunningQuantile",
    "Target",
    "held_out_distances",
]
