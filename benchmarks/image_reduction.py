"""How well reduced image sets represent a COCO subset: distances of features, and classes that keep a box.

``DRIP_DATA=folder python benchmarks/image_reduction.py`` reduces the 126 training images of
``coco254_yolo.zip`` within the categories of their boxes, on the features of MobileNetV2 with ImageNet
weights, by every method with ten seeds, and writes one line per run to ``results/image_reduction.jsonl``. No
detector is trained: 126 images with 71 classes are too few. Nothing is timed, so the machine may be busy.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import write

from drip.reduction.images import ImageSet, coverage_of, labels_of, read_image_set, uncovered
from drip.reduction.running import ReduceOptions, Subject, reduce_rows
from drip.workflow.features import open_backbone

FRACTIONS = (0.1, 0.25, 0.5)
SEEDS = range(10)
METHODS = (
    # method, how categories share the size, whether further images cover all classes
    ("stratified-random", "proportional", False),
    ("maxmin", "proportional", False),
    ("maxmin", "proportional", True),
    ("cluster-centroids", "proportional", False),
    ("protodash", "proportional", False),
    ("distance-entropy", "proportional", False),
    ("matrix-decomposition", "proportional", False),
    ("persistent-homology", "proportional", False),
    ("moderate-coreset", "proportional", False),
    ("representative-kmeans", "proportional", False),
    ("representative-kmeans", "global", False),
)
"""Methods that need no training; ``global`` is the published RKMEANS."""

DATA, WEIGHTS = "coco254_yolo.zip", "mobilenet_v2_imagenet_features.npz"


def main() -> None:
    """Extract the features once, reduce, write."""
    place = Path(os.environ.get("DRIP_DATA", ""))
    missing = [name for name in (DATA, WEIGHTS) if not (place / name).is_file()]
    if not os.environ.get("DRIP_DATA") or missing:
        sys.exit(f"{', '.join(missing)}: not found; set DRIP_DATA to the folder of these files")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(place / DATA).extractall(folder)
        images = read_image_set(Path(folder) / "images" / "train2017")
        backbone = open_backbone(None, place / WEIGHTS)
        names = [image.name for image in images.images]
        features, read, problems = backbone.of_files(images.folder, names, lambda *_: None)
    if problems or len(read) < len(names):
        sys.exit(f"some images cannot be decoded: {problems}")
    records = []
    for fraction in FRACTIONS:
        for method, stratify, cover in METHODS:
            records += [
                one(images, features, method, stratify, fraction, seed, cover=cover) for seed in SEEDS
            ]
            print(fraction, method, stratify, cover)
    write("image_reduction", records)


def one(
    images: ImageSet,
    features: np.ndarray,
    method: str,
    stratify: str,
    fraction: float,
    seed: int,
    *,
    cover: bool,
) -> dict[str, Any]:
    """The numbers of one reduction; infinite distances are null."""
    options = ReduceOptions(method, fraction, stratify=stratify, scale="none", seed=seed)
    labels = labels_of(images, options)
    subject = Subject(title="", data="", rows="images", classes="category")
    further = (lambda rows: uncovered(images, rows)) if cover else None
    found = reduce_rows(features.astype(np.float64), labels, options, subject, further=further)
    coverage = coverage_of(images, found.rows)
    whole = found.report.overall
    numbers = {
        "epsilon_chebyshev": whole.epsilon_chebyshev,
        "epsilon_euclidean": whole.epsilon_euclidean,
        "mean_euclidean": whole.mean_euclidean,
    }
    return {
        "method": method,
        "stratify": stratify,
        "cover": cover,
        "fraction": fraction,
        "seed": seed,
        "n": whole.n,
        "n_kept": whole.n_kept,
        **{name: value if np.isfinite(value) else None for name, value in numbers.items()},
        "n_categories": len(found.report.classes),
        "n_categories_kept": sum(part.n_kept > 0 for part in found.report.classes),
        "n_classes": coverage.n_classes,
        "n_classes_kept": coverage.n_kept,
        "n_boxes": coverage.n_boxes,
        "n_boxes_kept": coverage.n_boxes_kept,
    }


if __name__ == "__main__":
    main()
