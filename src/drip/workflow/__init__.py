"""What the commands do: calibrate, run a stream into a store, replay.

Puts the rooms together; decides nothing. Torch is loaded where a PyTorch model is given, and only there:
a board calibrates and runs without it.
"""

from drip.workflow.calibration import calibrate_file, calibrate_folder, calibrated
from drip.workflow.models import FileScorer, ScoreOptions, scorer_of
from drip.workflow.production import RunOptions, RunResult, ShadowSink, run_stream, run_url
from drip.workflow.replaying import ReplayReport, replay
from drip.workflow.status import RunStatus

__all__ = [
    "FileScorer",
    "ReplayReport",
    "RunOptions",
    "RunResult",
    "RunStatus",
    "ScoreOptions",
    "ShadowSink",
    "calibrate_file",
    "calibrate_folder",
    "calibrated",
    "replay",
    "run_stream",
    "run_url",
    "scorer_of",
]
