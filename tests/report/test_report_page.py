from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from math import nan

import numpy as np
import pytest
from PIL import Image

import drip
from drip.errors import DripError
from drip.policy import Policy, RuleSpec
from drip.report import Arm, findings, to_html, to_markdown_table, write_html
from drip.report.figures import Scale, class_histogram, score_scales
from drip.report.gallery import image_uri, overlay_uri
from drip.report.page import COLUMNS, rows

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def words(page):
    return unescape(re.sub(r"<[^>]*>", "", page)).replace("\u00a0", " ")


def test_the_page_is_well_formed_and_has_its_sections(make_report):
    page = to_html(make_report())
    checker = parsed(page)
    assert page.startswith("<!DOCTYPE html>")
    assert {"header", "main", "footer", "table", "svg", "figure"} <= set(checker.tags)
    for heading in ("What happened", "Arms", "Windows per class", "Kept per class", "Time per decision"):
        assert f"<h2>{heading}</h2>" in page


def test_the_page_loads_nothing_and_runs_nothing(make_report):
    page = to_html(make_report())
    checker = parsed(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(checker.tags)
    for name, value in checker.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "srcset", "action", "poster"}:
            assert value.startswith("data:image/png;base64,")
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_the_header_says_what_was_run_and_how_to_run_it_again(make_report):
    page = words(to_html(make_report()))
    for text in (
        "A run",
        "MNIST",
        "small CNN",
        "drip demo --seed 3",
        "9.8.7",
        "calibration 107",
        "features.7",
    ):
        assert text in page


def test_every_finding_and_note_is_on_the_page(make_report):
    report = make_report(notes=["Labels are 5 % wrong."])
    page = words(to_html(report))
    for sentence in (*findings(report), *report.notes):
        assert sentence in page


def test_every_number_of_the_table_is_on_the_page_and_in_the_markdown(make_report):
    report = make_report()
    page, markdown = words(to_html(report)), to_markdown_table(report)
    assert len(rows(report)) == 5
    for row in rows(report):
        for cell in row.cells:
            assert cell in page
            assert cell in markdown


def test_the_markdown_table_is_exact_for_one_arm(make_report):
    report = make_report(arms=[make_report.arm("random", 900, 120, errors=0.5), Arm("a|b", nan, 1, 0, 0)])
    lines = to_markdown_table(report).splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert lines[2] == (
        "| random | 90.00 \u00b1 2.44 % | \u2013 | 120 | 60.0 % | 1.20 kB | 800 B (40.0 %) "
        "| 50.0 % | 420 | 12.5 s |"
    )
    assert lines[3].startswith("| a\\|b | n/a | \u2013 | 0 | 0.0 % |")
    assert "99 % confidence interval over the 1,000 test samples" in lines[5]


def test_the_kind_of_interval_is_named(make_report):
    assert "McNemar" in to_markdown_table(make_report())
    unpaired = [make_report.arm(name, 900, 10, paired=False) for name in ("drip", "random")]
    assert "treats the arms as independent" in to_markdown_table(make_report(arms=unpaired))


def test_everything_from_outside_is_escaped(make_report):
    evil = "<script>alert(1)</script>\"'&"
    report = make_report(
        title=evil,
        dataset=evil,
        split={evil: 10},
        model=evil,
        command=evil,
        policy=make_report.policy((evil, evil, evil)),
        arms=[make_report.arm(evil, 900, 10)],
        decision_includes=evil,
        gallery_choice=evil,
        notes=[evil],
        version=evil,
    )
    page = to_html(report)
    checker = parsed(page)
    assert "script" not in checker.tags
    assert "<script" not in page
    assert words(page).count(evil) >= 12


def test_equal_numbers_give_an_equal_page(make_report):
    assert to_html(make_report()) == to_html(make_report())


def test_the_page_is_replaced_in_one_step_and_a_missing_folder_is_named(make_report, tmp_path):
    write_html(make_report(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == to_html(make_report())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DripError) as caught:
        write_html(make_report(), tmp_path / "missing" / "report.html")
    assert caught.value.code == "path-missing"


def test_wrong_predictions_are_marked_in_words(make_report):
    page = to_html(make_report(gallery=[make_report.item(label=1)]))
    assert "\u2717 true dog" in words(page)
    assert 'class="card wrong"' in page
    page = to_html(make_report(gallery=[make_report.item(label=None)]))
    assert "true class unknown" in page
    assert 'class="card wrong"' not in page


def test_kept_and_discarded_samples_are_apart(make_report):
    page = words(to_html(make_report()))
    assert "Kept 3 shown, 2 of them predicted incorrectly" in page
    assert "Discarded 1 shown, 0 of them predicted incorrectly" in page
    assert "0.50 \u03c3 outside" in page
    assert "0.250 inside" in page
    assert "no window" in page


def test_a_large_gallery_is_cut_and_says_so(make_report):
    page = to_html(make_report(gallery=[make_report.item() for _ in range(70)]))
    assert page.count('<figure class="card') == 60
    assert "the first 60 of 70" in page


def test_sections_without_data_are_left_out(make_report):
    page = to_html(make_report(gallery=[], decision_ms=np.array([nan]), arms=[], split={}))
    parsed(page)
    for heading in ("What the model looked at", "Time per decision", "Arms"):
        assert f"<h2>{heading}</h2>" not in page
    assert "nan" not in words(page)


def test_unknown_numbers_are_written_as_missing(make_report):
    arms = [Arm("drip", nan, 10, 0, 0), Arm("random", nan, 10, 0, 0)]
    page = to_html(make_report(arms=arms))
    parsed(page)
    assert "n/a" in page
    assert "nan" not in words(page)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', re.sub(r'src="[^"]*"', "", page))


def test_a_class_without_scores_shows_the_pooled_window(make_report):
    page = words(to_html(make_report()))
    assert page.count("no calibration scores") == 1
    assert page.count("too few scores: window and keep rates of all classes together") == 1
    assert "window of all classes together from" in to_html(make_report())


def test_a_class_that_never_discards_shows_why(make_report):
    assert words(to_html(make_report())).count("ties: the window would hold") >= 2


def test_a_rule_without_windows_leaves_the_window_section_out(make_report):
    page = to_html(make_report(policy=Policy(RuleSpec("margin", {}, {"threshold": 0.5}), 3)))
    parsed(page)
    assert "Windows per class" not in page
    assert 'class="ruler"' not in page


def test_a_policy_without_histograms_still_shows_its_keep_rates(make_report):
    page = to_html(make_report(policy=replace(make_report.policy(), histograms=())))
    parsed(page)
    assert "Windows per class" in page
    assert 'class="panel"' not in page


def test_the_window_is_drawn_between_its_ends(make_report):
    policy = make_report.policy()
    window, histogram = policy.windows[0], policy.histograms[0]
    drawing = class_histogram(histogram, window, Scale(0.0, 1.0, 0.0, 100.0), "cat")
    band = re.search(r'class="band" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    assert float(band[1]) == pytest.approx(100 * window.lower, abs=0.06)
    assert float(band[2]) == pytest.approx(100 * (window.upper - window.lower), abs=0.06)
    assert drawing.count('class="limit"') == 2


def test_the_bars_of_a_histogram_have_the_area_of_its_counts(make_report):
    policy = make_report.policy()
    drawing = class_histogram(policy.histograms[0], policy.windows[0], Scale(0.0, 1.0, 0.0, 40.0), "cat")
    area = sum(float(height) * float(width) for height, width in re.findall(r"v-([\d.]+)h([\d.]+)v", drawing))
    counts = np.array(policy.histograms[0].counts)
    assert area == pytest.approx((98 - 22 - 4) * counts.sum() / counts.max(), rel=0.01)


def test_window_ends_at_the_edge_of_a_panel_share_one_label(make_report):
    policy = make_report.policy()
    window = replace(policy.windows[0], lower=0.0, upper=0.1)
    drawing = class_histogram(policy.histograms[0], window, Scale(0.0, 1.0, 4.0, 196.0), "cat")
    assert "0 to 0.100" in drawing


def test_equal_scores_are_drawn_as_one_bar_and_marked_as_ties():
    policy = Policy.fit(np.full(50, 2.5), np.zeros(50, dtype=np.int64), n_classes=2, retention=0.6)
    scale = score_scales(policy.histograms, 0.0, 100.0)[0]
    drawing = class_histogram(policy.histograms[0], policy.windows[0], scale, "only")
    assert 'd="M48.00 98.0v-72.00h4.00v72.00z"' in drawing
    assert "never discards, ties" in drawing


def test_a_class_that_never_discards_gives_no_distance(make_report):
    page = words(to_html(make_report(gallery=[make_report.item(predicted=1, label=1, distance=1.0)])))
    assert "no window" in page
    assert "outside" not in page.split("What the model looked at")[1].split("Time per decision")[0]


def test_without_a_given_version_the_installed_one_is_named(make_report):
    assert drip.__version__ in words(to_html(make_report(version="")))


def test_classes_share_an_axis_unless_one_of_them_would_vanish(make_report):
    first, narrow, empty = make_report.policy().histograms
    shared = score_scales([first, replace(narrow, low=0.2, high=0.8), empty], 0.0, 1.0)
    assert {(scale.low, scale.high) for scale in shared} == {(0.0, 1.0)}
    own = score_scales([first, replace(narrow, low=0.5, high=0.51)], 0.0, 1.0)
    assert (own[1].low, own[1].high) == (0.5, 0.51)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (8, 20)])
def test_images_keep_their_pixels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(image_uri(image))), image)
    assert decoded(overlay_uri(image, np.ones((3, 3)))).size == (112, round(112 * shape[0] / shape[1]))


def test_large_images_are_reduced():
    assert decoded(image_uri(np.zeros((600, 300, 3), dtype=np.uint8))).size == (128, 256)


@pytest.mark.parametrize("heatmap", [np.zeros((7, 7)), np.full((7, 7), nan)])
def test_an_empty_heatmap_is_drawn_black(heatmap):
    overlay = np.asarray(decoded(overlay_uri(np.zeros((28, 28), dtype=np.uint8), heatmap)).convert("RGB"))
    assert overlay.max() <= 4


def test_the_heatmap_is_brightest_where_it_is_largest():
    heatmap = np.zeros((7, 7))
    heatmap[1, 5] = 3.0
    overlay = decoded(overlay_uri(np.zeros((28, 28), dtype=np.uint8), heatmap)).convert("L")
    row, column = np.unravel_index(np.argmax(np.asarray(overlay)), (112, 112))
    assert (row // 16, column // 16) == (1, 5)


def test_the_page_stays_small(make_report):
    page = to_html(make_report(gallery=[make_report.item(retained=i % 2 == 0) for i in range(120)]))
    assert len(page.encode()) < 3_000_000
