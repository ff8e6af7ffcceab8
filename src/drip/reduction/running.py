"""A set of rows by fewer of them, with what it cost and how well they stand for all; tables and images alike.

Entered by `drip reduce` alone: it needs scikit-learn, which a board has not.
"""

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
_METRICS: tuple[Metric, ...] = ("chebyshev", "euclidean")
Progress = Callable[[str, int, int], None]
"""Called with what is going on, what is done of it and the whole."""


@dataclass(frozen=True, slots=True)
class ReduceOptions:
    """How rows are reduced; sizes as in :class:`drip.reduction.BaseReducer`.

    Attributes:
        method: Name or abbreviation of the method.
        fraction: Share of the rows to keep, in (0, 1]; one of this, ``n_samples`` and ``epsilon``.
        n_samples: Rows to keep.
        epsilon: Largest distance from a row to a kept row of its class, on the scaled features.
        stratify: ``proportional``, ``balanced`` or ``global``.
        min_per_class: Least rows of a class.
        metric: ``euclidean`` or ``chebyshev``.
        scale: What is done to every feature before distances are taken: ``minmax`` to [0, 1], ``standard``
            to mean 0 and standard deviation 1, or ``none``. A constant feature becomes 0. None is ``minmax``
            for tables and ``none`` for the features of images.
        seed: Seed of the method.
        jobs: Threads; -1 for all.
        check: Compute the representativeness, which takes longer than some methods do.
        watts: Stated power of one busy core, for an estimate where there is no sensor.
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
        """The method with these parameters; of clusters it keeps the rows next to their centroids.

        Raises:
            InputError: no such method, or parameters that it does not take.
        """
        made = create(
            self.method, fraction=self.fraction, n_samples=self.n_samples, epsilon=self.epsilon,
            stratify=self.stratify, min_per_class=self.min_per_class, metric=self.metric,
            random_state=self.seed, n_jobs=self.jobs, progress=progress,
        )  # fmt: skip
        if isinstance(made, ClusterCentroids):
            made.voting = "hard"  # a centroid has no text columns and no image
        made.check_parameters()
        return made


@dataclass(frozen=True)
class Reduced:
    """Which rows are kept.

    Attributes:
        rows: Kept rows, ascending, int64.
        weights: Rows that each stands for, shape (n_kept,).
        report: Sizes, representativeness and cost.
    """

    rows: IntArray
    weights: FloatArray
    report: ReductionReport


@dataclass(frozen=True, slots=True)
class Subject:
    """What is reduced, in words, for the report.

    Attributes:
        title: Heading.
        data: The table or folder.
        rows: What a row is, in the plural.
        classes: What a class is.
        features: Description of the features.
        problems: What was left out, one sentence each.
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
    """Choose rows, count the energy of the choice, and say how well the kept rows stand for all.

    Args:
        values: Features, shape (n, d); scaled in place.
        labels: Labels, shape (n,), or None.
        options: How to reduce.
        subject: What the rows are.
        on_progress: Called on long work.
        further: Rows to keep besides those of the method, which it gets.

    Raises:
        InputError: parameters or values that the method refuses.
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
    """Every column to [0, 1], or to mean 0 and standard deviation 1, in place; constant ones become 0.

    Raises:
        InputError: an unknown scaling, or numbers too large for it.

    >>> scale_columns(np.array([[1.0, 7.0], [3.0, 7.0], [2.0, 7.0]]), "minmax").tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]
    """
    if scale not in ("minmax", "standard", "none"):
        raise InputError(f"scale must be minmax, standard or none, got {scale!r}")
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
                f"numbers that can be scaled are needed, got feature {column} with values up to "
                f"{np.abs(values[:, column]).max():.3g}; leave it out or use smaller units"
            )
    constant = width == 0
    values -= shift
    values /= np.where(constant, 1.0, width)
    values[:, constant] = 0.0
    return values


def require_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file unless it is wanted.

    Raises:
        DripError: the file exists.
    """
    if path.exists() and not overwrite:
        raise DripError(
            f"a new file is needed, got {path}, which exists; choose another path or overwrite it"
        )


def peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _parameters(reducer: BaseReducer, options: ReduceOptions) -> dict[str, Any]:
    """What decides on the result; parameters at their default are left out but for the size and the seed."""
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
    """What of the sizes was not asked for."""
    notes = []
    if n_added:
        notes.append(f"{n_added} {subject.rows} are kept besides those of the method, to cover all classes.")
    lost = int((kept == 0).sum())
    if lost:
        notes.append(
            f"{lost} of {len(kept)} classes have no kept {subject.rows}: one cut over all was asked for."
        )
    asked = options.n_samples
    if asked is None and options.epsilon is None:
        asked = kept_total(n, options.fraction or DEFAULT_FRACTION)
    more = int(kept.sum()) - n_added - (asked or n)
    if more > 0:
        notes.append(
            f"{more} {subject.rows} more than asked are kept, because each of the {len(kept)} "
            f"classes keeps at least {options.min_per_class}."
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
