"""Folders of images with their labels: class folders, YOLO, COCO. Pairs by stem; no pixel is read here."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from drip.errors import DripError, InputError
from drip.media import MEDIA_TYPES

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
