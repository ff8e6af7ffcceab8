"""What kind of image it is, from the boxes in it: the category within which images are reduced."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from drip.errors import DripError, InputError
from drip.files import write_atomically
from drip.media import MEDIA_TYPES, InputSpec
from drip.reduction.base import DEFAULT_FRACTION
from drip.reduction.containers import check_number
from drip.reduction.energy import Energy, measure_energy
from drip.reduction.running import Progress, Reduced, ReduceOptions, Subject, reduce_rows, require_free
from drip.types import IntArray
from drip.workflow.features import open_backbone


def image_categories(
    boxes: Sequence[tuple[int, ...]], names: Mapping[int, str], *, min_images: int = 1
) -> list[str]:
    """A category for every image, from the multiset of its boxes' classes.

    The category is the set of classes and whether there is one box or several: ``person + dog, several``. A
    category of fewer than ``min_images`` images goes over into the coarser one of the class with most boxes
    in the image (ties: the lower number), ``mostly person, several``; what is still too small into
    ``others, one`` or ``others, several``. Images without boxes are a category of their own.

    Args:
        boxes: Classes of the boxes of every image.
        names: Names of the classes by number; a number without a name stands for itself.
        min_images: Least images of a category; ``others`` and ``no boxes`` may have fewer.

    >>> image_categories([(0,), (0, 0), (0, 1), (), (0, 2, 2)], {0: "person", 1: "dog"})
    ['person, one', 'person, several', 'dog + person, several', 'no boxes', '2 + person, several']
    >>> image_categories([(0, 0), (0, 0, 1), (0, 0, 2), (3,), (0, 0)], {0: "person"}, min_images=2)[1:4]
    ['mostly person, several', 'mostly person, several', 'others, one']
    """
    levels = [[level(classes, names) for classes in boxes] for level in (_signature, _main, _rest)]
    found = levels[0]
    for coarser in levels[1:]:
        counts = Counter(found)
        found = [
            name if counts[name] >= min_images or name == _NONE else wide
            for name, wide in zip(found, coarser, strict=True)
        ]
    return found


_NONE = "no boxes"


def _signature(classes: tuple[int, ...], names: Mapping[int, str]) -> str:
    if not classes:
        return _NONE
    present = sorted(names.get(number, str(number)) for number in set(classes))
    return f"{' + '.join(present)}, {_amount(classes)}"


def _main(classes: tuple[int, ...], names: Mapping[int, str]) -> str:
    if not classes:
        return _NONE
    counts = Counter(classes)
    most = min(counts, key=lambda number: (-counts[number], number))
    return f"mostly {names.get(most, str(most))}, {_amount(classes)}"


def _rest(classes: tuple[int, ...], names: Mapping[int, str]) -> str:  # noqa: ARG001  # as the other levels
    return f"others, {_amount(classes)}" if classes else _NONE


def _amount(classes: tuple[int, ...]) -> str:
    return "one" if len(classes) == 1 else "several"


Kind = Literal["folders", "yolo", "coco", "plain"]
Box = tuple[int, float, float, float, float]
"""Class, then centre and size as shares of the image's width and height."""

_NAMES_FILE = "classes.txt"
_LEAST_NUMBERS = 4


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image.

    Attributes:
        name: Path below the folder, with forward slashes.
        label: Name of its class folder; or empty.
        box_classes: Classes of its boxes, ascending; empty without boxes.
        label_text: Its boxes as lines of a YOLO file; None where it has no label file or entry.
    """

    name: str
    label: str = ""
    box_classes: tuple[int, ...] = ()
    label_text: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """Images of a folder with what is known of them.

    Attributes:
        folder: The folder.
        kind: ``folders``, ``yolo``, ``coco`` or ``plain``, which has no labels.
        images: In the order of their names.
        class_names: Names of box classes by number, as far as known.
        problems: What does not pair, one sentence each.
    """

    folder: Path
    kind: Kind
    images: tuple[LabelledImage, ...]
    class_names: dict[int, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def has_boxes(self) -> bool:
        """True for detection sets."""
        return self.kind in ("yolo", "coco")


def read_image_set(folder: str | Path, annotations: str | Path | None = None) -> ImageSet:
    """Find the images below a folder, and their labels.

    With ``annotations`` it is a COCO set. Else, where text files pair with images by stem, a YOLO set: the
    label of ``images/a/b.jpg`` is ``labels/a/b.txt``, by the last folder named ``images``, or lies beside the
    image where there is none. Else images in sub-folders have the name of their folder as class, and others
    have no label. Hidden files and folders are left out.

    Args:
        folder: The folder.
        annotations: A COCO json file of instances.

    Raises:
        InputError: no image, two images of one stem, a label that is none, images beside class folders.
        DripError: the folder or a file cannot be read.
    """
    place = Path(folder)
    names = _find_images(place)
    if annotations is not None:
        return _coco(place, names, Path(annotations))
    labels = {name: _label_path(place, name) for name in names}
    roots = {_label_root(place, name) for name in names}
    found = {
        path for root in roots if root.is_dir() for path in root.rglob("*.txt") if path.name != _NAMES_FILE
    }
    pairs = {name: path for name, path in labels.items() if path in found}
    if pairs:
        return _yolo(place, names, pairs, found - set(pairs.values()), roots)
    if found and any("labels" in root.parts for root in roots):
        raise InputError(
            f"labels of the stems of the images are needed, got {len(found)} files such as {min(found)} and "
            f"no pair; is it named as its image, such as {next(iter(labels.values()))}?"
        )
    return _folders(place, names)


def _find_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DripError(f"a folder of images is needed, got {folder}; check the path")
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            kind = MEDIA_TYPES.get(Path(name).suffix.lower(), "")
            if kind.startswith("image/") and not name.startswith("."):
                found.append((Path(root) / name).relative_to(folder).as_posix())
    if not found:
        suffixes = ", ".join(suffix for suffix, kind in MEDIA_TYPES.items() if kind.startswith("image/"))
        raise InputError(f"images with the suffixes {suffixes} are needed, got none below {folder}")
    for name in found:
        if len(name.splitlines()) > 1 or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"names of one line in UTF-8 are needed for the list, got {name!a}; rename it")
    return sorted(found)


def _folders(folder: Path, names: list[str]) -> ImageSet:
    parents = {name: PurePosixPath(name).parent.name for name in names}
    loose = [name for name in names if not parents[name]]
    if loose and len(loose) < len(names):
        raise InputError(
            f"images in class folders are needed, got {len(loose)} beside them, such as {loose[0]}; move them"
        )
    images = tuple(LabelledImage(name, parents[name]) for name in names)
    return ImageSet(folder, "plain" if loose else "folders", images)


def _label_path(folder: Path, name: str) -> Path:
    return _counterpart((folder / name).absolute()).with_suffix(".txt")


def _label_root(folder: Path, name: str) -> Path:
    """Where the labels of all images of the folder lie; those of other folders have no business here."""
    above = folder.absolute()
    path = above / name
    inside = [parent for parent in path.parents if parent.name == "images" and above in parent.parents]
    if inside:
        return inside[0].with_name("labels")
    return _counterpart(above) if "images" in above.parts else path.parent


def _counterpart(path: Path) -> Path:
    """The path with ``labels`` in place of the last folder ``images``; itself without one."""
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _yolo(
    folder: Path, names: list[str], pairs: dict[str, Path], alone: set[Path], roots: set[Path]
) -> ImageSet:
    if len(set(pairs.values())) < len(pairs):
        shared = Counter(pairs.values()).most_common(1)[0][0]
        twice = [name for name, path in pairs.items() if path == shared]
        raise InputError(
            f"one image for each label is needed, got {', '.join(twice)} for {shared}; rename one"
        )
    images = []
    for name in names:
        text = None
        if name in pairs:
            try:
                text = pairs[name].read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DripError(f"a readable label is needed at {pairs[name]}, got: {error}") from error
        classes = tuple(sorted(_box_class(line, pairs[name], number) for number, line in _lines(text or "")))
        images.append(LabelledImage(name, "", classes, text))
    missing = [name for name in names if name not in pairs]
    problems = [f"{name}: no label file; counts as an image without boxes" for name in missing]
    problems += [f"{path}: no image of this stem; left out" for path in sorted(alone)]
    return ImageSet(folder, "yolo", tuple(images), _names(roots, folder), tuple(problems))


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _box_class(line: str, path: Path, number: int) -> int:
    cells = line.split()
    try:
        found, values = int(cells[0]), [float(cell) for cell in cells[1:]]
    except ValueError:
        found, values = -1, []
    if found < 0 or len(values) < _LEAST_NUMBERS or not all(map(math.isfinite, values)):
        raise InputError(
            f"lines of a class number and 4 numbers or more are needed in {path}, got {line!r} in line "
            f"{number}"
        )
    return found


def _names(roots: set[Path], folder: Path) -> dict[int, str]:
    for place in (*sorted(roots), *sorted(root.parent for root in roots), folder):
        path = place / _NAMES_FILE
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    return {}


def _coco(folder: Path, names: list[str], path: Path) -> ImageSet:
    content = _coco_content(path)
    numbers = {
        entry["id"]: number
        for number, entry in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    stems: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stems[PurePosixPath(name).stem].append(name)
    problems: list[str] = []
    entries: dict[Any, tuple[str, float, float]] = {}
    for entry in content["images"]:
        listed = PurePosixPath(str(entry["file_name"]))
        same = [listed.as_posix()] if listed.as_posix() in names else stems.get(listed.stem, [])
        if len(same) > 1:
            raise InputError(
                f"one image for each entry is needed, got {', '.join(same)} for {listed}; rename one"
            )
        if same:
            entries[entry["id"]] = (same[0], float(entry["width"]), float(entry["height"]))
        else:
            problems.append(f"{listed}: listed in {path.name}, no such image; left out")
    listed_ids = {entry["id"] for entry in content["images"]}
    strays = sum(note["image_id"] not in listed_ids for note in content["annotations"])
    if strays:
        problems.append(f"{strays} of the annotations: of an image that is not listed; left out")
    boxes: dict[str, list[Box]] = {name: [] for name, _, _ in entries.values()}
    for note in content["annotations"]:
        if note["image_id"] in entries and not note.get("iscrowd"):
            name, width, height = entries[note["image_id"]]
            box = _shares(numbers[note["category_id"]], [float(side) for side in note["bbox"]], width, height)
            if box is None:
                problems.append(f"{name}: a box without area; left out")
            else:
                boxes[name].append(box)
    problems += [f"{name}: not listed in {path.name}; counts as an image without boxes"
                 for name in names if name not in boxes]  # fmt: skip
    images = tuple(
        LabelledImage(name, "", tuple(sorted(box[0] for box in boxes.get(name, []))),
                      _yolo_text(boxes[name]) if name in boxes else None)
        for name in names
    )  # fmt: skip
    named = {  # a name is a line of classes.txt
        numbers[entry["id"]]: " ".join(str(entry["name"]).split()) for entry in content["categories"]
    }
    return ImageSet(folder, "coco", images, named, tuple(problems))


def _coco_content(path: Path) -> Any:
    """The file, checked for what is read of it."""
    try:
        content = json.loads(path.read_bytes())
        known = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        wrong = [entry for entry in content["categories"] if not isinstance(entry["id"], int)]
        wrong += [entry for entry in content["images"] if not _is_image(entry)]
        wrong += [note for note in content["annotations"] if not _is_annotation(note, known)]
    except OSError as error:
        raise DripError(f"a readable file is needed at {path}, got: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"COCO instances are needed in {path}, got {type(error).__name__}: {error}"
        ) from error
    if wrong:
        raise InputError(f"COCO instances are needed in {path}, got {str(wrong[0])[:80]}")
    for part in ("categories", "images"):
        for number, times in Counter(entry["id"] for entry in content[part]).most_common(1):
            if times > 1:
                raise InputError(
                    f"COCO instances are needed in {path}, got {times} {part} of the id {number!r}"
                )
    return content


def _is_image(entry: Any) -> bool:
    sizes = entry["width"] > 0 and entry["height"] > 0
    return bool(isinstance(entry["id"], int | str) and entry["file_name"] and sizes)


def _is_annotation(note: Any, known: dict[Any, str]) -> bool:
    sides = [float(side) for side in note["bbox"]]
    return (
        isinstance(note["image_id"], int | str)
        and note["category_id"] in known
        and len(sides) == _LEAST_NUMBERS
        and all(map(math.isfinite, sides))
    )


def _shares(number: int, sides: Sequence[float], width: float, height: float) -> Box | None:
    left, top = max(sides[0], 0.0), max(sides[1], 0.0)
    right, bottom = min(sides[0] + sides[2], width), min(sides[1] + sides[3], height)
    if right <= left or bottom <= top:
        return None
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return (number, *centre, (right - left) / width, (bottom - top) / height)


def _yolo_text(boxes: list[Box]) -> str:
    return "".join(f"{box[0]} {' '.join(f'{side:.6f}' for side in box[1:])}\n" for box in boxes)


_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What is particular to images.

    Attributes:
        annotations: COCO json file; None for class folders, YOLO or no labels.
        copy_to: Folder to copy the kept images and their labels to; None copies nothing.
        model: Model file or ``package.module:factory``; None for MobileNetV2.
        weights: Its weights.
        spec: How images become inputs of a torch model; as for ImageNet by default.
        min_images: Least images of a category of boxes before it goes over into a coarser one; None for as
            many as must be there for one to be kept.
        cover: Keep further images until every class of boxes has one.
    """

    annotations: Path | None = None
    copy_to: Path | None = None
    model: str | None = None
    weights: Path | None = None
    spec: InputSpec | None = None
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
    :func:`~drip.reduction.images.image_categories`. Images that cannot be decoded are left out of both
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
    backbone = open_backbone(how.model, how.weights, how.spec)
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
