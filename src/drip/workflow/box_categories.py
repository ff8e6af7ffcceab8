"""What kind of image it is, from the boxes in it: the category within which images are reduced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


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
