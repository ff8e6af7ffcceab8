"""Building blocks of rules that follow a stream: limits that move, a rate that is held, gates, quotas.

Every part is usable alone and has bounded state that is saved and restored; none of them is a rule.
"""

from drip.selectors.parts.adaptations import AdaptationLog
from drip.selectors.parts.duplicates import DuplicateGate
from drip.selectors.parts.gaussians import ClassGaussians, held_out_distances
from drip.selectors.parts.outliers import OutlierGate
from drip.selectors.parts.populations import PopulationGate
from drip.selectors.parts.quantiles import RunningQuantile
from drip.selectors.parts.quotas import ClassShares
from drip.selectors.parts.rates import RateController, Target

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
