"""The gallery: kept and discarded samples with heatmap, classes, score and place in the window, as HTML."""

from __future__ import annotations

from html import escape
from math import isfinite

from drip.report import figures
from drip.report.model import GalleryItem, RunReport
from drip.report.pictures import image_uri, overlay_uri
from drip.report.quantities import count, significant

_LARGEST_GROUP = 60
"""Cards per group; more would make the page heavy and nobody looks at them."""


def gallery_section(report: RunReport) -> str:
    """Kept and discarded samples side by side with their heatmaps; empty without samples.

    Args:
        report: The numbers of one run; of each group at most the first 60 are drawn.
    """
    if not report.gallery:
        return ""
    groups = []
    for retained, title in ((True, "Kept"), (False, "Discarded")):
        items = [item for item in report.gallery if item.retained is retained]
        cards = "".join(_card(report, item) for item in items[:_LARGEST_GROUP])
        n_wrong = sum(item.wrong for item in items)
        size = f"{count(len(items))} shown, {count(n_wrong)} of them predicted wrong"
        if len(items) > _LARGEST_GROUP:
            size = f"the first {_LARGEST_GROUP} of {count(len(items))}"
        body = f'<div class="cards">{cards}</div>' if items else '<p class="note">None.</p>'
        groups.append(f"<h3>{title} <small>{size}</small></h3>\n{body}\n")
    choice = f"{escape(report.gallery_choice)} " if report.gallery_choice else ""
    return (
        f'<section class="gallery">\n<h2>What the model looked at</h2>\n<p class="lead">{choice}'
        "Left the sample, right its Grad-CAM heatmap for the predicted class, each scaled to its own "
        "maximum. Below: the predicted class and whether it is right; the score as a mark in the range of "
        "that class&rsquo;s calibration scores, its window shaded; the score as a number, and its distance "
        "to the window in standard deviations (&sigma;) of the calibration scores.</p>\n"
        f"{''.join(groups)}</section>"
    )


def _card(report: RunReport, item: GalleryItem) -> str:
    predicted = escape(report.class_name(item.predicted))
    truth = escape(report.class_name(item.label))
    if item.wrong:
        verdict = f'<p class="call"><b>{predicted}</b> <mark>&#10007; true {truth}</mark></p>'
    elif item.label is None:
        verdict = f'<p class="call"><b>{predicted}</b> <span>true class unknown</span></p>'
    else:
        verdict = f'<p class="call"><b>{predicted}</b> <span>&#10003; right</span></p>'
    kind = "card wrong" if item.wrong else "card"
    score = f"{significant(item.score)} <small>{escape(_place(report, item))}</small>"
    return (
        f'<figure class="{kind}"><div class="pair">'
        f'<img class="pixels" alt="sample, predicted {predicted}, true class {truth}" '
        f'src="{image_uri(item.image)}">'
        f'<img alt="its heatmap" src="{overlay_uri(item.image, item.heatmap)}"></div>'
        f'<figcaption>{verdict}{_ruler(report, item)}<p class="score">{score}</p></figcaption></figure>'
    )


def _ruler(report: RunReport, item: GalleryItem) -> str:
    histograms = report.policy.histograms
    if not report.windows or not 0 <= item.predicted < len(histograms):
        return ""
    if not histograms[item.predicted].counts:
        return ""
    return figures.score_ruler(item.score, histograms[item.predicted], report.windows[item.predicted])


def _place(report: RunReport, item: GalleryItem) -> str:
    windows = report.windows
    if not isfinite(item.distance) or not windows or not windows[item.predicted].discards:
        return "no window"
    if item.distance <= 0:
        return "inside"
    return f"{significant(item.distance, 2)} \u03c3 outside"
