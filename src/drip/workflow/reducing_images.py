"""Image folders by fewer images: features, categories, the choice, a list of files and a copied tree."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drip.energy import Energy, measure_energy
from drip.errors import DripError, InputError
from drip.files import write_atomically
from drip.media import InputContract
from drip.reduction.checks import check_number
from drip.reduction.sizes import DEFAULT_FRACTION
from drip.types import IntArray
from drip.workflow.box_categories import image_categories
from drip.workflow.image_features import open_backbone
from drip.workflow.image_sets import ImageSet, LabelledImage, read_image_set
from drip.workflow.reducing import Progress, Reduced, ReduceOptions, Subject, reduce_rows, require_free

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What is particular to images.

    Attributes:
        annotations: COCO json file; None for class folders, YOLO or no labels.
        copy_to: Folder to copy the kept images and their labels to; None copies nothing.
        model: Model file or ``package.module:factory``; None for MobileNetV2.
        weights: Its weights.
        contract: How images become inputs of a torch model; as for ImageNet by default.
        min_images: Least images of a category of boxes before it goes over into a coarser one; None for as
            many as must be there for one to be kept.
        cover: Keep further images until every class of boxes has one.
    """

    annotations: Path | None = None
    copy_to: Path | None = None
    model: str | None = None
    weights: Path | None = None
    contract: InputContract | None = None
    min_images: int | None = None
    cover: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which classes of boxes are still there.

    Attributes:
        n_classes: Classes with a box in all images that could be read.
        n_kept: Classes with a box in the kept images.
        lost: The others, by name.
        n_boxes: Boxes in all images that could be read.
        n_boxes_kept: Boxes in the kept images.
    """

    n_classes: int
    n_kept: int
    lost: tuple[str, ...]
    n_boxes: int
    n_boxes_kept: int


@dataclass(frozen=True)
class ReducedImages:
    """Which images are kept.

    Attributes:
        names: Kept images, below the folder, in order.
        reduced: Sizes, representativeness and cost; its rows count the images that could be read.
        coverage: Of the classes of boxes; None without boxes.
    """

    names: tuple[str, ...]
    reduced: Reduced
    coverage: Coverage | None


def reduce_images(
    folder: str | Path,
    out: str | Path,
    options: ReduceOptions,
    images: ImageOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> ReducedImages:
    """Write a list of the images that stand for all, one path below the folder a line; copy them where asked.

    Features are the last maps of a network, averaged over their positions, and not scaled by default. Images
    are reduced within their class folder or, with boxes, within the category of
    :func:`~drip.workflow.box_categories.image_categories`. Images that cannot be decoded are left out of both
    and named, as is what does not pair; nothing is deleted.

    Args:
        folder: The folder.
        out: The file for the list.
        options: How to reduce.
        images: Labels, network and copy.
        overwrite: Replace ``out`` where it exists.
        on_progress: Called on long work.

    Raises:
        InputError: a set that cannot be read, or parameters that the method refuses.
        ModelError: a network that gives no features.
        DripError: a file that cannot be read or written, or exists already.
    """
    how, target = images or ImageOptions(), Path(out)
    require_free(target, overwrite=overwrite)
    if how.copy_to is not None:
        require_empty(how.copy_to)
    options.reducer(None)  # refuses wrong parameters before the features, which take long
    tell = on_progress or (lambda *_: None)
    found = read_image_set(folder, how.annotations)
    if options.n_samples is not None:
        check_number("n_samples", options.n_samples, len(found.images))
    if not found.has_boxes and (how.cover or how.min_images is not None):
        raise InputError(f"boxes are needed to cover or to categorise, got {folder} without; leave this out")
    backbone = open_backbone(how.model, how.weights, how.contract)
    with measure_energy(watts=options.watts) as spent:
        features, read, unreadable = backbone.of_files(
            found.folder,
            [image.name for image in found.images],
            lambda done, n: tell("reading images", done, n),
        )
    if len(read) < 2:
        raise InputError(f"two images that can be read are needed, got {len(read)} of {len(found.images)}")
    kept_set = replace(found, images=tuple(found.images[place] for place in read))
    labels = labels_of(kept_set, options, how.min_images)
    subject = Subject(
        title=f"{found.folder.resolve().name}: fewer images", data=str(folder), rows="images",
        classes={"folders": "class", "plain": "all"}.get(found.kind, "category"),
        features=f"{features.shape[1]} features of {backbone.name}",
        problems=[*unreadable, *found.problems],
    )  # fmt: skip
    reduced = reduce_rows(
        features.astype(np.float64), labels, replace(options, scale=options.scale or "none"), subject,
        on_progress=on_progress,
        further=(lambda rows: uncovered(kept_set, rows)) if how.cover else None,
    )  # fmt: skip
    chosen = [kept_set.images[row] for row in reduced.rows]
    coverage = coverage_of(kept_set, reduced.rows) if found.has_boxes else None
    notes = [*reduced.report.notes, features_text(spent)]
    if coverage is not None:
        notes.append(coverage_text(coverage))
    reduced = replace(reduced, report=replace(reduced.report, notes=tuple(notes)))
    if how.copy_to is not None:
        copy_images(kept_set, chosen, how.copy_to)
    write_atomically(target, "".join(f"{image.name}\n" for image in chosen).encode())
    return ReducedImages(tuple(image.name for image in chosen), reduced, coverage)


def labels_of(images: ImageSet, options: ReduceOptions, min_images: int | None = None) -> np.ndarray | None:
    """Class folder or category of boxes within which images are reduced; None where there is but one."""
    if images.kind == "plain":
        return None
    if images.kind == "folders":
        labels = [image.label for image in images.images]
    else:
        least = _least(len(images.images), options) if min_images is None else min_images
        boxes = [image.box_classes for image in images.images]
        labels = image_categories(boxes, images.class_names, min_images=least)
    return np.array(labels) if len(set(labels)) > 1 else None


def _least(n: int, options: ReduceOptions) -> int:
    if options.epsilon is not None:
        return 2
    if options.n_samples is not None:
        return math.ceil(n / options.n_samples) if options.n_samples > 0 else 1
    fraction = options.fraction or DEFAULT_FRACTION
    return math.ceil(1.0 / fraction) if 0 < fraction <= 1 else 1


def coverage_of(images: ImageSet, rows: IntArray | Sequence[int]) -> Coverage:
    """Which classes of boxes the images of these rows still have."""
    everything = Counter(number for image in images.images for number in image.box_classes)
    kept = Counter(number for row in rows for number in images.images[row].box_classes)
    lost = sorted(set(everything) - set(kept))
    return Coverage(
        n_classes=len(everything),
        n_kept=len(kept),
        lost=tuple(images.class_names.get(number, str(number)) for number in lost),
        n_boxes=everything.total(),
        n_boxes_kept=kept.total(),
    )


def uncovered(images: ImageSet, rows: IntArray) -> IntArray:
    """Further images that give every class of boxes a kept one: again and again that with most such classes.

    Ties: the earlier image. This greedy cover takes at most 1 + ln(classes) times the fewest images.

    References:
        Johnson (1974), Approximation algorithms for combinatorial problems.
    """
    lacking = [set(image.box_classes) for image in images.images]
    lost = set().union(*lacking).difference(*(lacking[row] for row in rows))
    added = []
    while lost:
        most = max(range(len(lacking)), key=lambda row: len(lacking[row] & lost))
        added.append(most)
        lost -= lacking[most]
    return np.array(sorted(added), dtype=np.int64)


def coverage_text(coverage: Coverage) -> str:
    """The coverage as a sentence."""
    text = (
        f"{coverage.n_kept} of {coverage.n_classes} classes and {coverage.n_boxes_kept} of "
        f"{coverage.n_boxes} boxes are in the kept images"
    )
    if not coverage.lost:
        return f"{text}."
    more = len(coverage.lost) - _MOST_NAMED
    named = ", ".join(coverage.lost[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{text}; without: {named}."


def features_text(spent: Energy) -> str:
    """What the features cost, as a sentence."""
    joules = "an unknown energy" if math.isnan(spent.joules) else f"{spent.joules:.3g} J ({spent.source})"
    return (
        f"Reading the images and computing their features took {spent.seconds:.3g} s and {joules}, which is "
        "not in the cost of the choice."
    )


def require_empty(folder: Path) -> None:
    """Refuse to copy into what is not a new or an empty folder.

    Raises:
        DripError: it is not, or its parent is no folder.
    """
    if (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise DripError(f"a new or empty folder is needed for the copy, got {folder}; choose another path")
    if not folder.absolute().parent.is_dir():
        raise DripError(f"a folder is needed for the copy at {folder.absolute().parent}; make it")


def copy_images(images: ImageSet, chosen: Sequence[LabelledImage], target: Path) -> None:
    """Copy images, and their boxes as YOLO files; the folder appears whole or not at all.

    Images of class folders keep their paths. Boxes make a tree of ``images/`` and ``labels/``, with the names
    of the classes in ``classes.txt`` where they are known.

    Raises:
        DripError: a file cannot be copied.
    """
    target = target.absolute()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            tree = Path(temporary) / "tree"
            tree.mkdir()
            for image in chosen:
                place, label = _places(image.name) if images.has_boxes else (image.name, "")
                copy = tree / place
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(images.folder / image.name, copy)
                if images.has_boxes and image.label_text is not None:
                    boxes = tree / label
                    boxes.parent.mkdir(parents=True, exist_ok=True)
                    boxes.write_text(image.label_text, encoding="utf-8")
            if images.has_boxes and images.class_names:
                last = max(images.class_names)
                lines = [images.class_names.get(number, str(number)) for number in range(last + 1)]
                (tree / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            tree.replace(target)
    except OSError as error:
        raise DripError(f"the kept images must be copied to {target}, got: {error}") from error


def _places(name: str) -> tuple[str, str]:
    """Where an image and its label lie in a YOLO tree."""
    parts = name.split("/")
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = [*parts[:last], "labels", *parts[last + 1 :]]
    else:
        parts, labels = ["images", *parts], ["labels", *parts]
    return "/".join(parts), str(Path("/".join(labels)).with_suffix(".txt"))
