"""Reduces scaled rows and reports size, representativeness and cost: the common part of tables and images."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drip.errors import DripError, InputError
from drip.reduction import (
    BaseReducer,
    ClusterCentroids,
    Representativeness,
    Spread,
    create,
    epsilon_representativeness,
)
from drip.reduction.base import DEFAULT_FRACTION, kept_total
from drip.reduction.energy import Energy, measure_energy
from drip.reduction.neighbours import Metric
from drip.reduction.report import ReducedClass, ReductionReport
from drip.types import FloatArray, IntArray

Scale = Literal["minmax", "standard", "none"]
Progress = Callable[[str, int, int], None]
"""Called with the current stage, the steps done and their total."""

_METRICS: tuple[Metric, ...] = ("chebyshev", "euclidean")


@dataclass(frozen=True, slots=True)
class ReduceOptions:
    """How rows are reduced; sizes as in :class:`drip.reduction.BaseReducer`.

    Attributes:
        method: Name or abbreviation of the method.
        fraction: Part of the rows to keep, in (0, 1]; give one of this, ``n_samples`` and ``epsilon``.
        n_samples: Number of rows to keep.
        epsilon: Largest distance from a row to a kept row of its class, on the scaled features.
        stratify: ``proportional``, ``balanced`` or ``global``.
        min_per_class: Minimum number of rows kept per class.
        metric: ``euclidean`` or ``chebyshev``.
        scale: Scaling of every feature before distances are computed: ``minmax`` to [0, 1], ``standard`` to
            mean 0 and standard deviation 1, or ``none``. A constant feature becomes 0. None means ``minmax``
            for tables and ``none`` for the features of images.
        seed: Random seed for the method.
        jobs: Threads; -1 for all.
        check: Compute the representativeness, which takes longer than some methods.
        watts: Power of one busy core in W, to estimate the energy without a sensor.
    """

    method: str = "maxmin"
    fraction: float | None = None
    n_samples: int | None = None
    epsilon: float | None = None
    stratify: str = "proportional"
    min_per_class: int = 1
    metric: str = "euclidean"
    scale: Scale | None = None
    seed: int | None = 0
    jobs: int = 1
    check: bool = True
    watts: float | None = None

    def reducer(self, progress: Callable[[int, int], None] | None) -> BaseReducer:
        """The method with these parameters.

        Raises:
            InputError: the method does not exist, or does not accept these parameters.
        """
        made = create(
            self.method, fraction=self.fraction, n_samples=self.n_samples, epsilon=self.epsilon,
            stratify=self.stratify, min_per_class=self.min_per_class, metric=self.metric,
            random_state=self.seed, n_jobs=self.jobs, progress=progress,
        )  # fmt: skip
        if isinstance(made, ClusterCentroids):
            made.voting = "hard"  # rows or images are written, and a centroid is neither
        made.check_parameters()
        return made


@dataclass(frozen=True)
class Reduced:
    """Result of a reduction.

    Attributes:
        rows: Kept rows, ascending, int64.
        weights: Number of rows that each kept row represents, shape (n_kept,).
        report: Sizes, representativeness and cost.
    """

    rows: IntArray
    weights: FloatArray
    report: ReductionReport


@dataclass(frozen=True, slots=True)
class Subject:
    """Description of the data in the report.

    Attributes:
        title: Heading.
        data: The table or folder.
        rows: Plural noun for rows.
        classes: Noun for a class.
        features: Description of the features.
        problems: What was omitted, one sentence each.
    """

    title: str
    data: str
    rows: str = "rows"
    classes: str = "class"
    features: str = ""
    problems: Sequence[str] = ()


def reduce_rows(
    values: FloatArray,
    labels: Any,
    options: ReduceOptions,
    subject: Subject,
    *,
    on_progress: Progress | None = None,
    further: Callable[[IntArray], IntArray] | None = None,
) -> Reduced:
    """Choose rows, measure the energy of the method, and measure how well the kept rows represent all.

    Args:
        values: Features, shape (n, d); scaled in place, because a second copy may not fit in memory.
        labels: Labels, shape (n,), or None.
        options: How to reduce.
        subject: Description of the data.
        on_progress: Called during long work.
        further: Gets the rows of the method and returns further rows to keep.

    Raises:
        InputError: the method rejects the parameters or values.
    """
    tell = on_progress or (lambda *_: None)
    scale = options.scale or "minmax"
    scaled = scale_columns(values, scale)
    reducer = options.reducer(lambda done, total: tell("reducing", done, total))
    with measure_energy(watts=options.watts) as energy:
        reducer.fit(scaled, labels)
    rows, weights = reducer.sample_indices_, reducer.sample_weight_
    names, codes = (
        (np.array(["all"]), np.zeros(len(scaled), dtype=np.int64))
        if labels is None
        else np.unique(labels, return_inverse=True)
    )
    added = rows[:0] if further is None else further(rows)
    rows = np.union1d(rows, added)
    counts = np.bincount(codes)
    kept = np.bincount(codes[rows], minlength=len(names))
    if len(added):
        weights = (counts / np.maximum(kept, 1))[codes[rows]]
    spreads: dict[str, Representativeness] = {}
    if options.check:
        tell("checking", 0, 1)
        for metric in _METRICS:
            spreads[metric] = epsilon_representativeness(
                scaled, labels, indices=rows, metric=metric, n_jobs=options.jobs
            )
    keys = [None] if labels is None else names.tolist()
    report = ReductionReport(
        title=subject.title,
        data=subject.data,
        rows=subject.rows,
        class_word=subject.classes,
        method=f"{reducer.name} ({reducer.abbreviation})",
        parameters=_parameters(reducer, options),
        features=f"{subject.features or f'{scaled.shape[1]} columns'}; scaling: {scale}",
        overall=_part(
            "all", len(scaled), len(rows), {name: found.overall for name, found in spreads.items()}
        ),
        classes=tuple(
            _part(str(name), n, n_kept, {metric: found.per_class[key] for metric, found in spreads.items()})
            for name, key, n, n_kept in zip(names, keys, counts.tolist(), kept.tolist(), strict=True)
        ),
        notes=_notes(options, subject, len(scaled), kept, len(added)),
        problems=tuple(subject.problems),
        peak_bytes=peak_bytes(),
        **_cost(energy),
    )
    return Reduced(rows, weights, report)


def scale_columns(values: FloatArray, scale: Scale) -> FloatArray:
    """Scale every column in place to [0, 1], or to mean 0 and deviation 1; constant columns become 0.

    Raises:
        InputError: the scaling is unknown, or the numbers are too large for it.

    >>> scale_columns(np.array([[1.0, 7.0], [3.0, 7.0], [2.0, 7.0]]), "minmax").tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]
    """
    if scale not in ("minmax", "standard", "none"):
        raise InputError(f"scale must be minmax, standard or none, not {scale!r}")
    if scale == "none":
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        if scale == "minmax":
            shift = values.min(axis=0)
            width = values.max(axis=0) - shift
        else:
            shift, width = values.mean(axis=0), values.std(axis=0)
        if not np.isfinite(width).all():
            column = int(np.flatnonzero(~np.isfinite(width))[0])
            raise InputError(
                f"feature {column} has values up to {np.abs(values[:, column]).max():.3g}, which are too "
                "large to scale; omit it or use smaller units",
                code="table-invalid",
            )
    constant = width == 0
    values -= shift
    values /= np.where(constant, 1.0, width)
    values[:, constant] = 0.0
    return values


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that an output does not exist, unless it may be replaced.

    Raises:
        DripError: the file exists.
    """
    if path.exists() and not overwrite:
        raise DripError(
            f"{path}: already exists; choose another path or give --overwrite", code="path-exists"
        )


def peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in KiB on Linux


def _parameters(reducer: BaseReducer, options: ReduceOptions) -> dict[str, Any]:
    """The parameters that determine the result: the seed and all that differ from their default."""
    plain = type(reducer)()
    others = {
        name: value
        for name, value in reducer.get_params(deep=False).items()
        if name not in ("random_state", "n_jobs", "progress") and value != getattr(plain, name)
    }
    return {"random_state": options.seed, **others}


def _part(name: str, n: int, n_kept: int, spreads: Mapping[str, Spread]) -> ReducedClass:
    far, near = spreads.get("chebyshev"), spreads.get("euclidean")
    return ReducedClass(
        name=name,
        n=n,
        n_kept=n_kept,
        epsilon_chebyshev=far.epsilon if far else nan,
        mean_chebyshev=far.mean if far else nan,
        epsilon_euclidean=near.epsilon if near else nan,
        mean_euclidean=near.mean if near else nan,
    )


def _notes(options: ReduceOptions, subject: Subject, n: int, kept: IntArray, n_added: int) -> tuple[str, ...]:
    """Where the sizes differ from the requested ones."""
    notes = []
    if n_added:
        notes.append(f"{n_added} {subject.rows} were added to those of the method, to cover all classes.")
    lost = int((kept == 0).sum())
    if lost:
        notes.append(
            f"{lost} of {len(kept)} classes have no kept {subject.rows}, because stratify=global selects "
            "across all classes."
        )
    asked = options.n_samples
    if asked is None and options.epsilon is None:
        asked = kept_total(n, options.fraction or DEFAULT_FRACTION)
    more = int(kept.sum()) - n_added - (asked or n)
    if more > 0:
        notes.append(
            f"{more} {subject.rows} more than requested are kept, because each of the {len(kept)} classes "
            f"keeps at least {options.min_per_class}."
        )
    return tuple(notes)


def _cost(energy: Energy) -> dict[str, Any]:
    return {
        "seconds": energy.seconds,
        "cpu_seconds": energy.cpu_seconds,
        "joules": energy.joules,
        "energy_source": energy.source,
        "energy_measured": energy.measured,
    }
