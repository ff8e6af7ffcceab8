"""Reduces folders of images by network features, within their class or box category.

An image set is read first (class folders, YOLO, COCO or no labels), because mistakes in it should be found
before the features are computed, which takes longest. The network is passed in: this wing knows no model
format.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from drip.errors import DripError, InputError
from drip.files import write_atomically
from drip.reduction.base import DEFAULT_FRACTION
from drip.reduction.energy import Energy, measure_energy
from drip.reduction.inputs import check_number
from drip.reduction.running import Progress, Reduced, ReduceOptions, Subject, reduce_rows, require_free
from drip.types import IntArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are images, in lower case."""

Kind = Literal["folders", "yolo", "coco", "plain"]
Box = tuple[int, float, float, float, float]
"""Class, then centre and size relative to the image's width and height, as in YOLO files."""

_NAMES_FILE = "classes.txt"
_BOX_NUMBERS = 4
_NO_BOXES = "no boxes"
_MOST_NAMED = 5


class FeatureNetwork(Protocol):
    """A network that computes features of image files; `drip.workflow.features.open_backbone` returns one."""

    @property
    def name(self) -> str:
        """Description for the report."""
        ...

    def of_files(
        self, folder: Path, names: list[str], on_progress: Callable[[int, int], None]
    ) -> tuple[NDArray[np.float32], list[int], list[str]]:
        """Features of the files that can be decoded.

        Args:
            folder: Folder of the images.
            names: Paths below the folder.
            on_progress: Called with the images done and their total.

        Returns:
            Features, shape (n, d); the indices of the n decoded files in ``names``; a sentence for every
            other file.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image.

    Attributes:
        name: Path below the folder, with forward slashes.
        label: Name of its class folder, or empty.
        box_classes: Classes of its boxes, ascending; empty without boxes.
        label_text: Its boxes as lines of a YOLO file; None without a label file or COCO entry.
    """

    name: str
    label: str = ""
    box_classes: tuple[int, ...] = ()
    label_text: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder with their labels.

    Attributes:
        folder: The folder.
        kind: ``folders``, ``yolo``, ``coco`` or ``plain`` (no labels).
        images: Sorted by name.
        class_names: Names of box classes by number, as far as known.
        problems: Images without labels and labels without images, one sentence each.
    """

    folder: Path
    kind: Kind
    images: tuple[LabelledImage, ...]
    class_names: dict[int, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def has_boxes(self) -> bool:
        """True for YOLO and COCO sets."""
        return self.kind in ("yolo", "coco")


def read_image_set(folder: str | Path, annotations: str | Path | None = None) -> ImageSet:
    """Find the images below a folder, and their labels.

    With ``annotations`` it is a COCO set. If text files pair with images by stem, it is a YOLO set: the label
    of ``images/a/b.jpg`` is ``labels/a/b.txt`` (the last folder named ``images`` is replaced), or next to the
    image without such a folder. Otherwise the class of an image is the name of its sub-folder, if it is in
    one. Hidden files and folders are ignored.

    Args:
        folder: The folder.
        annotations: A COCO JSON file of instances.

    Raises:
        InputError: there is no image, two images share a label, a label file is malformed, or images are next
            to class folders.
        DripError: the folder or a file cannot be read.
    """
    place = Path(folder)
    names = _find_images(place)
    if annotations is not None:
        return _coco(place, names, Path(annotations))
    labels = {name: _label_path(place, name) for name in names}
    roots = {_label_root(place, name) for name in names}
    found = {
        path
        for root in roots
        if root.is_dir()
        for path in root.rglob("*.txt")
        if path.name != _NAMES_FILE and path.is_file()  # a pipe would be read forever
    }
    pairs = {name: path for name, path in labels.items() if path in found}
    if pairs:
        return _yolo(place, names, pairs, found - set(pairs.values()), roots)
    if found and any("labels" in root.parts for root in roots):
        raise InputError(
            f"{min(found)}: none of the {len(found)} label files is named after an image; labels must be "
            f"named like {next(iter(labels.values()))}",
            code="images-invalid",
        )
    return _folders(place, names)


def _find_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DripError(f"{folder}: {kind}; give a folder of images", code="path-missing")
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (Path(root) / name).relative_to(folder).as_posix()
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    if not found:
        raise InputError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)})", code="images-invalid")
    for name in found:  # the list of kept images has one name per line
        if len(name.splitlines()) > 1 or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(
                f"{name!a}: the name has a line break or is not UTF-8; rename the file", code="images-invalid"
            )
    return sorted(found)


def _folders(folder: Path, names: list[str]) -> ImageSet:
    parents = {name: PurePosixPath(name).parent.name for name in names}
    loose = [name for name in names if not parents[name]]
    if loose and len(loose) < len(names):
        raise InputError(
            f"{loose[0]}: {len(loose)} images are next to class folders; move them into a class folder or "
            "elsewhere",
            code="images-invalid",
        )
    images = tuple(LabelledImage(name, parents[name]) for name in names)
    return ImageSet(folder, "plain" if loose else "folders", images)


def _label_path(folder: Path, name: str) -> Path:
    return _counterpart((folder / name).absolute()).with_suffix(".txt")


def _label_root(folder: Path, name: str) -> Path:
    """The folder that is searched for labels without an image: not those of sibling folders."""
    above = folder.absolute()
    path = above / name
    inside = [parent for parent in path.parents if parent.name == "images" and above in parent.parents]
    if inside:
        return inside[0].with_name("labels")
    return _counterpart(above) if "images" in above.parts else path.parent


def _counterpart(path: Path) -> Path:
    """The path with the last folder ``images`` replaced by ``labels``; unchanged without one."""
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
            f"{shared}: is the label of {len(twice)} images, {', '.join(twice)}; rename one",
            code="images-invalid",
        )
    images = []
    for name in names:
        text = None
        if name in pairs:
            try:
                text = pairs[name].read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DripError(
                    f"{pairs[name]}: the label cannot be read: {error}", code="images-invalid"
                ) from error
        classes = tuple(sorted(_box_class(line, pairs[name], number) for number, line in _lines(text or "")))
        images.append(LabelledImage(name, "", classes, text))
    missing = [name for name in names if name not in pairs]
    problems = [f"{name}: no label file; treated as an image without boxes" for name in missing]
    problems += [f"{path}: no image of this name; ignored" for path in sorted(alone)]
    return ImageSet(folder, "yolo", tuple(images), _names(roots, folder), tuple(problems))


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _box_class(line: str, path: Path, number: int) -> int:
    cells = line.split()
    try:
        found, values = int(cells[0]), [float(cell) for cell in cells[1:]]
    except ValueError:
        found, values = -1, []
    if found < 0 or len(values) < _BOX_NUMBERS or not all(map(math.isfinite, values)):
        raise InputError(
            f"{path}: line {number} is {line!r}, not a class number and at least 4 numbers",
            code="images-invalid",
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
                f"{path}: the entry {listed} matches {len(same)} images, {', '.join(same)}; rename one",
                code="images-invalid",
            )
        if same:
            entries[entry["id"]] = (same[0], float(entry["width"]), float(entry["height"]))
        else:
            problems.append(f"{listed}: listed in {path.name}, but there is no such image; ignored")
    listed_ids = {entry["id"] for entry in content["images"]}
    strays = sum(note["image_id"] not in listed_ids for note in content["annotations"])
    if strays:
        problems.append(f"{strays} annotations belong to images that {path.name} does not list; ignored")
    boxes: dict[str, list[Box]] = {name: [] for name, _, _ in entries.values()}
    for note in content["annotations"]:
        if note["image_id"] in entries and not note.get("iscrowd"):
            name, width, height = entries[note["image_id"]]
            sides = [float(side) for side in note["bbox"]]
            box = _relative(numbers[note["category_id"]], sides, width, height)
            if box is None:
                problems.append(f"{name}: a box without area; ignored")
            else:
                boxes[name].append(box)
    problems += [f"{name}: not listed in {path.name}; treated as an image without boxes"
                 for name in names if name not in boxes]  # fmt: skip
    images = tuple(
        LabelledImage(name, "", tuple(sorted(box[0] for box in boxes.get(name, []))),
                      _yolo_text(boxes[name]) if name in boxes else None)
        for name in names
    )  # fmt: skip
    named = {  # one line each: they are written to classes.txt
        numbers[entry["id"]]: " ".join(str(entry["name"]).split()) for entry in content["categories"]
    }
    return ImageSet(folder, "coco", images, named, tuple(problems))


def _coco_content(path: Path) -> Any:
    """The content of the file; every entry that is used later is checked here."""
    try:
        content = json.loads(path.read_bytes())
        known = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        wrong = [entry for entry in content["categories"] if not isinstance(entry["id"], int)]
        wrong += [entry for entry in content["images"] if not _is_image(entry)]
        wrong += [note for note in content["annotations"] if not _is_annotation(note, known)]
    except OSError as error:
        raise DripError(f"{path}: cannot be read: {error}", code="images-invalid") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a COCO instances file ({type(error).__name__}: {error})", code="images-invalid"
        ) from error
    if wrong:
        raise InputError(f"{path}: not a COCO instances file: {str(wrong[0])[:80]}", code="images-invalid")
    for part in ("categories", "images"):
        for number, times in Counter(entry["id"] for entry in content[part]).most_common(1):
            if times > 1:
                raise InputError(
                    f"{path}: not a COCO instances file: {times} {part} have the id {number!r}",
                    code="images-invalid",
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
        and len(sides) == _BOX_NUMBERS
        and all(map(math.isfinite, sides))
    )


def _relative(number: int, sides: Sequence[float], width: float, height: float) -> Box | None:
    left, top = max(sides[0], 0.0), max(sides[1], 0.0)
    right, bottom = min(sides[0] + sides[2], width), min(sides[1] + sides[3], height)
    if right <= left or bottom <= top:
        return None
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return (number, *centre, (right - left) / width, (bottom - top) / height)


def _yolo_text(boxes: list[Box]) -> str:
    return "".join(f"{box[0]} {' '.join(f'{side:.6f}' for side in box[1:])}\n" for box in boxes)


def image_categories(
    boxes: Sequence[tuple[int, ...]], names: Mapping[int, str], *, min_images: int = 1
) -> list[str]:
    """A category for every image, from the classes of its boxes.

    The category is the set of classes, and whether there is one box or several: ``person + dog, several``. If
    a category has fewer than ``min_images`` images, they move to the category of the class with most boxes in
    the image (ties: the lower number), ``mostly person, several``; if that is also too small, to ``others,
    one`` or ``others, several``. Images without boxes form a separate category.

    Args:
        boxes: Classes of the boxes of every image.
        names: Names of the classes by number; classes without a name are shown as numbers.
        min_images: Minimum number of images per category, except ``others`` and ``no boxes``.

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
            name if counts[name] >= min_images or name == _NO_BOXES else wide
            for name, wide in zip(found, coarser, strict=True)
        ]
    return found


def _signature(classes: tuple[int, ...], names: Mapping[int, str]) -> str:
    if not classes:
        return _NO_BOXES
    present = sorted(names.get(number, str(number)) for number in set(classes))
    return f"{' + '.join(present)}, {_amount(classes)}"


def _main(classes: tuple[int, ...], names: Mapping[int, str]) -> str:
    if not classes:
        return _NO_BOXES
    counts = Counter(classes)
    most = min(counts, key=lambda number: (-counts[number], number))
    return f"mostly {names.get(most, str(most))}, {_amount(classes)}"


def _rest(classes: tuple[int, ...], names: Mapping[int, str]) -> str:  # noqa: ARG001  # as the other levels
    return f"others, {_amount(classes)}" if classes else _NO_BOXES


def _amount(classes: tuple[int, ...]) -> str:
    return "one" if len(classes) == 1 else "several"


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Options that only apply to images.

    Attributes:
        annotations: COCO JSON file; None for class folders, YOLO or no labels.
        copy_to: Folder to copy the kept images and their labels to; None copies nothing.
        min_images: Minimum number of images in a category of boxes, see :func:`image_categories`; None is
            the size at which at least one is kept.
        cover: Add images until every box class appears in at least one.
    """

    annotations: Path | None = None
    copy_to: Path | None = None
    min_images: int | None = None
    cover: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which classes of boxes the kept images contain.

    Attributes:
        n_classes: Classes with a box in the decoded images.
        n_kept: Classes with a box in the kept images.
        lost: Names of the other classes.
        n_boxes: Boxes in the decoded images.
        n_boxes_kept: Boxes in the kept images.
    """

    n_classes: int
    n_kept: int
    lost: tuple[str, ...]
    n_boxes: int
    n_boxes_kept: int


@dataclass(frozen=True)
class ReducedImages:
    """Result of reducing a folder of images.

    Attributes:
        names: Kept images as paths below the folder, in order.
        reduced: Sizes, representativeness and cost; its rows number the images that could be decoded.
        coverage: Coverage of the classes of boxes; None without boxes.
    """

    names: tuple[str, ...]
    reduced: Reduced
    coverage: Coverage | None


def reduce_images(
    folder: str | Path,
    out: str | Path,
    options: ReduceOptions,
    network: FeatureNetwork,
    images: ImageOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> ReducedImages:
    """Write the list of a representative subset of images, one path below the folder per line.

    Images are compared by the features of the network, within their class folder or, with boxes, within the
    category of :func:`image_categories`. Features are not scaled by default. Images that cannot be decoded
    and unpaired files are ignored and listed in the report. Nothing is deleted.

    Args:
        folder: The folder.
        out: File for the list.
        options: How to reduce.
        network: Computes the features.
        images: Labels, categories and copy.
        overwrite: Replace ``out`` if it exists.
        on_progress: Called during long work.

    Raises:
        InputError: the set cannot be read, or the method rejects the parameters.
        ModelError: the network does not return finite features.
        DripError: a file cannot be read or written, or already exists.
    """
    how, target = images or ImageOptions(), Path(out)
    require_free(target, overwrite=overwrite)
    if how.copy_to is not None:
        require_empty(how.copy_to)
    options.reducer(None)  # rejects wrong parameters before the features are computed, which takes longest
    tell = on_progress or (lambda *_: None)
    found = read_image_set(folder, how.annotations)
    if options.n_samples is not None:
        check_number("--n-samples", options.n_samples, len(found.images))
    if not found.has_boxes and (how.cover or how.min_images is not None):
        raise InputError(
            f"{folder}: has no boxes; leave out --cover and --min-images",
            code="images-invalid",
        )
    with measure_energy(watts=options.watts) as spent:
        features, read, unreadable = network.of_files(
            found.folder,
            [image.name for image in found.images],
            lambda done, n: tell("reading images", done, n),
        )
    if len(read) < 2:
        raise InputError(
            f"{folder}: only {len(read)} of {len(found.images)} images can be decoded; at least 2 are needed",
            code="images-invalid",
        )
    kept_set = replace(found, images=tuple(found.images[place] for place in read))
    labels = labels_of(kept_set, options, how.min_images)
    subject = Subject(
        title=f"Representative subset of {found.folder.resolve().name}", data=str(folder), rows="images",
        classes={"folders": "class", "plain": "all"}.get(found.kind, "category"),
        features=f"{features.shape[1]} features of {network.name}",
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
    """Class folder or category of boxes of every image; None if there is only one."""
    if images.kind == "plain":
        return None
    if images.kind == "folders":
        labels = [image.label for image in images.images]
    else:
        least = _smallest_category(len(images.images), options) if min_images is None else min_images
        boxes = [image.box_classes for image in images.images]
        labels = image_categories(boxes, images.class_names, min_images=least)
    return np.array(labels) if len(set(labels)) > 1 else None


def _smallest_category(n: int, options: ReduceOptions) -> int:
    """Number of images of which a proportional share is one image."""
    if options.epsilon is not None:
        return 2
    if options.n_samples is not None:
        return math.ceil(n / options.n_samples) if options.n_samples > 0 else 1
    fraction = options.fraction or DEFAULT_FRACTION
    return math.ceil(1.0 / fraction) if 0 < fraction <= 1 else 1


def coverage_of(images: ImageSet, rows: IntArray | Sequence[int]) -> Coverage:
    """Which classes of boxes the images of these rows contain."""
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
    """Further images that cover the missing classes of boxes: repeatedly the image with most of them.

    Ties: the earlier image. The greedy cover needs at most 1 + ln(classes) times the minimum number.

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
        f"The kept images contain {coverage.n_kept} of {coverage.n_classes} classes and "
        f"{coverage.n_boxes_kept} of {coverage.n_boxes} boxes"
    )
    if not coverage.lost:
        return f"{text}."
    more = len(coverage.lost) - _MOST_NAMED
    named = ", ".join(coverage.lost[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{text}; missing: {named}."


def features_text(spent: Energy) -> str:
    """The cost of the features as a sentence."""
    joules = "an unknown energy" if math.isnan(spent.joules) else f"{spent.joules:.3g} J ({spent.source})"
    return (
        f"Reading the images and computing their features took {spent.seconds:.3g} s and {joules}; the cost "
        "of the method above does not include it."
    )


def require_empty(folder: Path) -> None:
    """Check that the folder for a copy is new or empty.

    Raises:
        DripError: it is neither, or its parent does not exist.
    """
    if (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise DripError(f"{folder}: is not an empty folder; choose another path", code="path-exists")
    if not folder.absolute().parent.is_dir():
        raise DripError(
            f"{folder.absolute().parent}: does not exist or is not a folder; create it", code="path-missing"
        )


def copy_images(images: ImageSet, chosen: Sequence[LabelledImage], target: Path) -> None:
    """Copy images, and their boxes as YOLO files; the folder appears complete or not at all.

    Images of class folders keep their paths. Images with boxes are copied to ``images/`` and ``labels/``,
    with known names of classes in ``classes.txt``.

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
        raise DripError(
            f"{target}: the kept images cannot be copied: {error}", code="path-not-writable"
        ) from error


def _places(name: str) -> tuple[str, str]:
    """Paths of an image and its label in a YOLO tree."""
    parts = name.split("/")
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = [*parts[:last], "labels", *parts[last + 1 :]]
    else:
        parts, labels = ["images", *parts], ["labels", *parts]
    return "/".join(parts), str(Path("/".join(labels)).with_suffix(".txt"))
