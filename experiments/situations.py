"""The situations of the study `situations`: streams with a structure, as devices see them.

A situation has a deployed model with its training set, 200 unlabelled samples to calibrate on, a stream, and a test
set of what matters there. Everything is drawn again for every seed, from one of two pools that share no group:
development runs (seeds from 1000 on) and deciding runs never see the same leaf, speaker or picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from drip.types import FloatArray, IntArray
from experiments.bank import Bank

FIRST_DEVELOPMENT_SEED = 1000
CAMERA = ("camera", "camera-development")
TELEPHONE = ("telephone", "telephone-development")
N_CALIBRATION = 200
_DEVELOPMENT_PART = 1 / 3
_TEST_PART = 0.3
_LONGEST_STREAM = 2_000
TAIL = 100
NEW_SHARE = 0.2
JUNK = 0.3
WRONG = 0.2
UNKNOWN = 0.02
_FREQUENT = 19  # clips of a speaker who may be a known one; the others have at most 14


@dataclass(frozen=True)
class Items:
    """The samples of one data set in all views: item ``starts[view] + row``.

    Attributes:
        banks: One per view; the first is ``clean``.
        labels: True classes of the clean rows, shape (n,).
        groups: Groups of the clean rows, shape (n,).
        scene_rows: Clean row of every frame of the view ``scenes``, shape (n_frames,).
        scenes: Scene of every frame, shape (n_frames,).
    """

    banks: Mapping[str, Bank]
    labels: IntArray
    groups: IntArray
    scene_rows: IntArray
    scenes: IntArray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @property
    def flatten(self) -> bool:
        """Whether the head reads every position."""
        return self.banks["clean"].flatten

    def start(self, view: str) -> int:
        """The first item of a view."""
        names = list(self.banks)
        return sum(self.banks[name].n_rows for name in names[: names.index(view)])

    def inputs(self, items: IntArray) -> NDArray[np.float32]:
        """What the head reads, shape (n, n_features)."""
        return self._take(items, lambda bank: bank.inputs[0])

    def maps(self, items: IntArray) -> NDArray[np.float32]:
        r"""Maps, shape (n, K, \*positions)."""
        return self._take(items, lambda bank: bank.maps[0])

    def _take(self, items: IntArray, part: Callable[[Bank], NDArray[np.floating]]) -> NDArray[np.float32]:
        starts = np.cumsum([0] + [bank.n_rows for bank in self.banks.values()])
        view_of = np.searchsorted(starts, items, side="right") - 1
        arrays = [part(bank) for bank in self.banks.values()]
        found = np.empty((len(items), *arrays[0].shape[1:]), np.float32)
        for number in np.unique(view_of).tolist():
            mine = np.flatnonzero(view_of == number)
            found[mine] = arrays[number][items[mine] - starts[number]]
        return found


@dataclass(frozen=True)
class Scene:
    """One situation in one run.

    Attributes:
        train: Items that train the deployed model, and stay in every training set.
        train_labels: Their labels.
        calibration: Items that calibrate the rules; their labels are not used.
        stream: Arriving items, in order.
        labels: What a labeller says of each; -1 where it gets no class.
        test: Items that are scored.
        test_labels: Their classes.
        known: Classes that the deployed model has.
        marked: Which arrivals are what the situation is about (the new camera, junk), shape (n,).
        metric: ``accuracy``, ``macro_f1`` or ``recall`` (of the class that the deployed model does not know).
    """

    train: IntArray
    train_labels: IntArray
    calibration: IntArray
    stream: IntArray
    labels: IntArray
    test: IntArray
    test_labels: IntArray
    known: IntArray
    marked: NDArray[np.bool_]
    metric: str = "accuracy"


Situation = Callable[[Items, int, np.random.Generator], Scene]
"""Draws a situation: of these items, for a run, with this generator."""


@dataclass(frozen=True)
class Parts:
    """Rows of one run's pool: for the test, and for everything else, both in random order."""

    test: IntArray
    rest: IntArray


def pool(items: Items, seed: int) -> IntArray:
    """Clean rows of the pool that a seed draws from: a third of the groups for development, the others decide."""
    unique = np.unique(items.groups)
    mixed = np.random.default_rng(2026).permutation(unique)
    development = mixed[: round(len(mixed) * _DEVELOPMENT_PART)]
    belongs = np.isin(items.groups, development)
    return np.flatnonzero(belongs == (seed >= FIRST_DEVELOPMENT_SEED))


def parts(items: Items, rows: IntArray, rng: np.random.Generator) -> Parts:
    """The rows in two parts that share no group."""
    groups = items.groups[rows]
    order = rng.permutation(np.unique(groups))
    sizes = np.array([np.count_nonzero(groups == group) for group in order.tolist()])
    n_test = int(np.searchsorted(np.cumsum(sizes), _TEST_PART * len(rows)))
    in_test = np.isin(groups, order[: max(1, n_test)])
    return Parts(rng.permutation(rows[in_test]), rng.permutation(rows[~in_test]))


def _per_class(labels: IntArray, rows: IntArray, counts: Sequence[int]) -> IntArray:
    """The first so many rows of each class."""
    return np.concatenate([rows[labels[rows] == label][:count] for label, count in enumerate(counts)])


def _plain(items: Items, seed: int, rng: np.random.Generator, per_class: int) -> Scene:
    """A well-mixed stream of clean rows."""
    split = parts(items, pool(items, seed), rng)
    if seed >= FIRST_DEVELOPMENT_SEED:  # half as many rows as in the deciding pool
        per_class = min(per_class, 40)
    train = _per_class(items.labels, split.rest, [per_class] * items.n_classes)
    left = split.rest[~np.isin(split.rest, train)]
    calibration, stream = left[:N_CALIBRATION], left[N_CALIBRATION:][:_LONGEST_STREAM]
    return Scene(
        train,
        items.labels[train],
        calibration,
        stream,
        items.labels[stream],
        split.test,
        items.labels[split.test],
        np.arange(items.n_classes),
        np.zeros(len(stream), np.bool_),
    )


def _shifted(items: Items, scene: Scene, which: NDArray[np.bool_], view: str, *, test: bool) -> Scene:
    """Some arrivals, and the test, in another view."""
    start = items.start(view)
    return replace(
        scene,
        stream=np.where(which, scene.stream + start, scene.stream),
        test=scene.test + start if test else scene.test,
        marked=which,
    )


def mixed(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """As in the paper: nothing happens."""
    return _plain(items, seed, rng, 40)


def weak(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """The deployed model saw ten labelled samples of each class."""
    return _plain(items, seed, rng, 10)


def new_camera(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """A fifth of the stream comes from another camera (or through a telephone)."""
    scene = _plain(items, seed, rng, 100)
    which = rng.random(len(scene.stream)) < NEW_SHARE
    return _shifted(items, scene, which, _shift(items, seed), test=True)


def camera_from_a_day(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """After a third of the stream, everything comes from another camera."""
    scene = _plain(items, seed, rng, 100)
    which = np.arange(len(scene.stream)) >= len(scene.stream) // 3
    return _shifted(items, scene, which, _shift(items, seed), test=True)


def _shift(items: Items, seed: int) -> str:
    """The shifted view; development runs have another camera, and another telephone."""
    development = seed >= FIRST_DEVELOPMENT_SEED
    return next(pair[development] for pair in (CAMERA, TELEPHONE) if pair[development] in items.banks)


def scenes(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """Each scene is one row in up to 600 jittered frames in a row; the lengths are log-normal, median 8."""
    scene = _plain(items, seed, rng, 15)
    rows_used = np.concatenate([scene.train, scene.calibration, scene.test])
    usable = np.isin(items.scene_rows, pool(items, seed)) & ~np.isin(
        items.groups[items.scene_rows], np.unique(items.groups[rows_used])
    )
    frames = np.flatnonzero(usable)
    order = rng.permutation(np.unique(items.scenes[frames]))
    rank = np.full(items.scenes.max() + 1, -1)
    rank[order] = np.arange(len(order))
    frames = frames[np.argsort(rank[items.scenes[frames]], kind="stable")][: 2 * _LONGEST_STREAM]
    labels = items.labels[items.scene_rows[frames]]
    marked = np.zeros(len(frames), np.bool_)
    return replace(scene, stream=frames + items.start("scenes"), labels=labels, marked=marked)


def long_tail(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """Class frequencies fall geometrically from 1 to 1 / 100, in the training set and in the stream."""
    split = parts(items, pool(items, seed), rng)
    k = items.n_classes
    rank = rng.permutation(k)
    share = float(TAIL) ** (-rank / (k - 1))
    train = _per_class(items.labels, split.rest, np.maximum(1, np.round(100 * share)).astype(int).tolist())
    left = split.rest[~np.isin(split.rest, train)]
    most = np.bincount(items.labels[left], minlength=k).max()
    tail = _per_class(items.labels, left, np.maximum(1, np.round(most * share)).astype(int).tolist())
    tail = rng.permutation(tail)
    n_calibration = min(N_CALIBRATION, len(tail) // 4)
    calibration, stream = tail[:n_calibration], tail[n_calibration:][:_LONGEST_STREAM]
    test = split.test
    return Scene(
        train,
        items.labels[train],
        calibration,
        stream,
        items.labels[stream],
        test,
        items.labels[test],
        np.arange(k),
        np.zeros(len(stream), np.bool_),
        "macro_f1",
    )


def unknown_class(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """One class that the deployed model does not have is 2 % of the stream; labels reveal it."""
    scene = _plain(items, seed, rng, 60)
    new = int(rng.integers(items.n_classes))
    is_new = np.flatnonzero(scene.labels == new)
    n_new = round(UNKNOWN * np.count_nonzero(scene.labels != new) / (1 - UNKNOWN))
    stays = np.ones(len(scene.stream), np.bool_)
    stays[rng.permutation(is_new)[n_new:]] = False
    old = scene.train_labels != new
    calibration = scene.calibration[items.labels[scene.calibration] != new]
    return replace(
        scene,
        train=scene.train[old],
        train_labels=scene.train_labels[old],
        calibration=calibration,
        stream=scene.stream[stays],
        labels=scene.labels[stays],
        known=np.delete(np.arange(items.n_classes), new),
        marked=(scene.labels == new)[stays],
        metric="recall",
    )


def junk(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """Three tenths of the stream are pictures of another data set, which get no label."""
    scene = _plain(items, seed, rng, 20)
    drawn = _foreign(items, seed, rng, len(scene.stream))
    stream = np.concatenate([scene.stream, drawn])
    labels = np.concatenate([scene.labels, np.full(len(drawn), -1)])
    order = rng.permutation(len(stream))[:_LONGEST_STREAM]
    return replace(scene, stream=stream[order], labels=labels[order], marked=labels[order] < 0)


def _foreign(items: Items, seed: int, rng: np.random.Generator, n_stream: int) -> IntArray:
    """Pictures of another data set that make up :data:`JUNK` of a stream with n_stream others."""
    n_junk = round(JUNK * n_stream / (1 - JUNK))
    half = items.banks["foreign"].n_rows // 2
    drawn = rng.permutation(half)[:n_junk] + (half if seed >= FIRST_DEVELOPMENT_SEED else 0)
    return drawn + items.start("foreign")


def _with_junk(base: Situation) -> Situation:
    """A situation with pictures of another data set between its arrivals, which keep their order."""

    def build(items: Items, seed: int, rng: np.random.Generator) -> Scene:
        scene = base(items, seed, rng)
        drawn = _foreign(items, seed, rng, len(scene.stream))
        n, n_own = len(scene.stream) + len(drawn), len(scene.stream)
        is_junk = np.zeros(n, np.bool_)
        is_junk[rng.permutation(n)[: len(drawn)]] = True
        order = np.empty(n, np.int64)
        order[~is_junk], order[is_junk] = np.arange(n_own), np.arange(n_own, n)
        return replace(
            scene,
            stream=np.concatenate([scene.stream, drawn])[order],
            labels=np.concatenate([scene.labels, np.full(len(drawn), -1)])[order],
            marked=np.concatenate([scene.marked, np.zeros(len(drawn), np.bool_)])[order],
        )

    return build


def wrong_labels(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """A fifth of what is labelled gets a wrong class."""
    return _with_wrong_labels(mixed)(items, seed, rng)


def _with_wrong_labels(base: Situation) -> Situation:
    def build(items: Items, seed: int, rng: np.random.Generator) -> Scene:
        scene = base(items, seed, rng)
        wrong = rng.random(len(scene.stream)) < WRONG
        other = (scene.labels + rng.integers(1, items.n_classes, len(scene.labels))) % items.n_classes
        return replace(scene, labels=np.where(wrong, other, scene.labels), marked=wrong)

    return build


def long_tail_from_a_new_camera(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """A long tail; a fifth of its stream, and the test, come from another camera."""
    scene = long_tail(items, seed, rng)
    which = rng.random(len(scene.stream)) < NEW_SHARE
    return _shifted(items, scene, which, _shift(items, seed), test=True)


def new_speakers(items: Items, seed: int, rng: np.random.Generator) -> Scene:
    """The model knows a few speakers with many clips; a fifth of the stream, and the test, are other speakers."""
    rows = pool(items, seed)
    clips = np.bincount(items.groups, minlength=items.groups.max() + 1)
    frequent = clips[items.groups[rows]] >= _FREQUENT
    known, other = rng.permutation(rows[frequent]), rows[~frequent]
    train = _per_class(items.labels, known, [max(10, len(known) // 3 // items.n_classes)] * items.n_classes)
    left = known[~np.isin(known, train)]
    n_calibration = min(N_CALIBRATION, len(left) // 4)
    calibration, old = left[:n_calibration], left[n_calibration:]
    speakers = rng.permutation(np.unique(items.groups[other]))
    in_test = np.isin(items.groups[other], speakers[: len(speakers) // 2])
    new = rng.permutation(other[~in_test])[: round(NEW_SHARE / (1 - NEW_SHARE) * len(old))]
    stream = rng.permutation(np.concatenate([old, new]))
    test = other[in_test]
    return Scene(
        train,
        items.labels[train],
        calibration,
        stream,
        items.labels[stream],
        test,
        items.labels[test],
        np.arange(items.n_classes),
        np.isin(stream, new),
    )


SITUATIONS: Mapping[str, Situation] = MappingProxyType(
    {
        "mixed": mixed,
        "weak": weak,
        "new-camera": new_camera,
        "camera-from-a-day": camera_from_a_day,
        "scenes": scenes,
        "long-tail": long_tail,
        "unknown-class": unknown_class,
        "junk": junk,
        "wrong-labels": wrong_labels,
        "new-speakers": new_speakers,
        "telephone": new_camera,
    }
)
"""Every situation by name."""

PAIRS: Mapping[str, Situation] = MappingProxyType(
    {
        "new-camera+junk": _with_junk(new_camera),
        "new-camera+long-tail": long_tail_from_a_new_camera,
        "scenes+junk": _with_junk(scenes),
        "long-tail+wrong-labels": _with_wrong_labels(long_tail),
    }
)
"""Two at once, only for the rules that may become the default: shown, and decide nothing."""


def build(name: str, items: Items, seed: int) -> Scene:
    """A situation of one run."""
    return {**SITUATIONS, **PAIRS}[name](
        items, seed, np.random.default_rng([seed, zlib.crc32(name.encode())])
    )


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of the head's inputs.

    Attributes:
        weight: Shape (n_classes, n_features).
        bias: Shape (n_classes,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, inputs: NDArray[np.float32]) -> FloatArray:
        """Shape (n, n_classes)."""
        return np.asarray(inputs @ self.weight.T + self.bias, np.float64)


L2 = 1e-2
"""Ridge on the weights of inputs scaled to unit variance on average; chosen on development runs."""


def fit(
    inputs: NDArray[np.float32],
    labels: IntArray,
    n_classes: int,
    start: LinearHead | None = None,
    steps: int = 80,
) -> LinearHead:
    """Multinomial logistic regression with a ridge, by L-BFGS, from a given head or zero weights."""
    mean = inputs.mean(0)
    centred = inputs - mean
    scale = float(np.sqrt((centred**2).mean())) or 1.0
    x = np.ascontiguousarray(centred / scale, np.float32)
    n, d = x.shape
    rows = np.arange(n)

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        weight = flat[: n_classes * d].reshape(n_classes, d).astype(np.float32)
        logits = (x @ weight.T).astype(np.float64) + flat[n_classes * d :]
        logits -= logits.max(1, keepdims=True)
        exponentials = np.exp(logits)
        sums = exponentials.sum(1)
        value = float((np.log(sums) - logits[rows, labels]).mean()) + 0.5 * L2 * float((weight**2).sum())
        slope = exponentials / sums[:, None]
        slope[rows, labels] -= 1
        slope /= n
        gradient = slope.T.astype(np.float32) @ x + L2 * weight
        return value, np.concatenate([gradient.ravel().astype(np.float64), slope.sum(0)])

    flat = np.zeros(n_classes * (d + 1))
    if start is not None:
        flat[: n_classes * d] = (start.weight * scale).ravel()
        flat[n_classes * d :] = start.bias + start.weight @ mean
    found = minimize(
        loss,
        flat,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxcor": 8, "gtol": 1e-5, "ftol": 1e-7},
    ).x
    weight = found[: n_classes * d].reshape(n_classes, d) / scale
    return LinearHead(weight.astype(np.float32), (found[n_classes * d :] - weight @ mean).astype(np.float32))
