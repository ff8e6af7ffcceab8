"""The report of a reduction: no input becomes markup, and lost classes are shown as lost."""

from dataclasses import replace
from math import inf, nan

from tables import fails

from drip.reduction.report import ReducedClass, ReductionReport, energy_text, reduction_html

CLASSES = (
    ReducedClass("<b>ant</b>", 30, 3, 0.25, 0.125, 0.5, 0.375),
    ReducedClass("bee & co", 10, 0, inf, inf, inf, inf),
)
REPORT = ReductionReport(
    title="beans <i>", data="/tmp/<beans>.csv", rows="rows", class_word="kind", method="maxmin (MMS)",
    parameters={"fraction": 0.1, "metric": "<euclidean>"}, features="3 columns; scaling: minmax",
    overall=ReducedClass("all", 40, 3, inf, inf, inf, inf), classes=CLASSES, seconds=1.25, cpu_seconds=1.5,
    joules=2.5, energy_source="RAPL, of the whole machine", energy_measured=True, peak_bytes=123_000_000,
    notes=("1 of 2 <classes>",), problems=("<img src=x>: left out",),
)  # fmt: skip


def test_the_page_has_every_number_and_escapes_every_text():
    page = reduction_html(REPORT)
    for words in (
        "30",
        "7.5&nbsp;%",
        "0.250",
        "0.125",
        "lost",
        "2.50 J",
        "measured, of the method alone",
        "123 MB",
        "1.25 s",
        "fraction = 0.1",
    ):
        assert words in page
    for markup in ("<b>ant", "<i>", "<beans>", "<euclidean>", "<classes>", "<img", "<script"):
        assert markup not in page
    assert "&lt;b&gt;ant&lt;/b&gt;" in page


def test_energy_says_what_it_is():
    assert energy_text(REPORT) == "2.50 J, measured"
    guess = replace(REPORT, energy_measured=False, energy_source="estimate: 2 s at 1 W")
    assert energy_text(guess) == "2.50 J, estimate"
    assert energy_text(replace(guess, energy_source="NVML; the processor is not measured")) == "2.50 J, part"
    assert energy_text(replace(REPORT, joules=nan)) == "n/a"


def test_many_problems_are_cut_and_counted():
    page = reduction_html(replace(REPORT, problems=tuple(f"p{number}." for number in range(1250))))
    assert "p199." in page
    assert "p200." not in page
    assert "and 1,050 more" in page


def test_classes_that_do_not_sum_are_rejected():
    with fails():
        replace(REPORT, classes=CLASSES[1:])
