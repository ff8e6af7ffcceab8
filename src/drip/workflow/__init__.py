"""What the commands do: calibrate, run a stream into a store, replay.

Connects the rooms; contains no decision logic. Only PyTorch models load torch: a device calibrates and runs
a model file without it.
"""

from drip.workflow.calibration import calibrate_file, calibrate_folder, calibrated
from drip.workflow.models import FileScorer, ScoreOptions, scorer_of
from drip.workflow.production import (
    RunOptions,
    RunResult,
    ShadowSink,
    answer_population,
    populations_of,
    run_stream,
    run_url,
)
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
    "answer_population",
    "calibrate_file",
    "calibrate_folder",
    "calibrated",
    "populations_of",
    "replay",
    "run_stream",
    "run_url",
    "scorer_of",
]
