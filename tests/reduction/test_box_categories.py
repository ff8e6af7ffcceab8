"""Categories of images by their boxes, and the cover of classes, against their definitions."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drip.reduction.images import ImageSet, LabelledImage, coverage_of, image_categories, uncovered

BOXES = st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=12)


@given(BOXES)
def test_without_a_least_size_the_category_is_set_and_amount(boxes):
    found = image_categories(boxes, {0: "person"})
    for first, second in combinations(range(len(boxes)), 2):
        same = set(boxes[first]) == set(boxes[second]) and (len(boxes[first]) > 1) == (len(boxes[second]) > 1)
        assert (found[first] == found[second]) is same


@given(BOXES, st.integers(1, 6))
def test_only_the_last_categories_may_be_small_and_no_order_matters(boxes, least):
    found = image_categories(boxes, {}, min_images=least)
    for name, count in Counter(found).items():
        assert count >= least or name.startswith(("others, ", "no boxes"))
    assert image_categories(boxes[::-1], {}, min_images=least) == found[::-1]
    for classes, name in zip(boxes, found, strict=True):
        assert (name == "no boxes") is (not classes)
        if name.startswith("mostly"):
            number = int(name.split()[1].rstrip(","))
            assert classes.count(number) == max(Counter(classes).values())


@settings(max_examples=60)
@given(BOXES, st.data())
def test_the_cover_brings_every_class_back_and_adds_no_image_in_vain(boxes, data):
    images = ImageSet(Path(), "yolo", tuple(LabelledImage(f"{n}.png", "", c) for n, c in enumerate(boxes)))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(boxes) - 1), min_size=1))))
    added = uncovered(images, rows)
    everything = np.union1d(rows, added)
    assert coverage_of(images, everything).lost == ()
    assert len(everything) == len(rows) + len(added)
    if not coverage_of(images, rows).lost:
        assert not len(added)
    assert len(added) <= len(coverage_of(images, rows).lost)
