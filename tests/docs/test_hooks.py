"""What the style sheet of the site cannot know: which text fits into one line of a phone."""

import importlib.util

import pytest
from pages import ROOT


@pytest.fixture(scope="module")
def html():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.on_page_content


def table(*cells):
    return "<table><tr><th>a</th></tr>" + "".join(f"<tr><td>{cell}</td></tr>" for cell in cells) + "</table>"


def test_short_code_stays_in_one_line(html):
    assert html("<p><code>--keep 0.3</code></p>") == '<p><code class="whole">--keep 0.3</code></p>'


def test_long_code_breaks_between_words_or_after_a_dot(html):
    assert '<span class="whole">by-class</span>' in html(
        "<code>drip store export kept.db --to by-class</code>"
    )
    assert "torch_forgetting.<wbr>TorchForgetting" in html(
        "<code>drip.reduction.torch_forgetting.TorchForgetting</code>"
    )


def test_a_bracket_after_code_does_not_begin_a_line(html):
    assert html("<code>None</code>\n) - text").endswith("</code>) - text")


def test_columns_of_sentences_are_marked_and_names_stay_whole(html):
    assert '<td class="long">' in html(table("a sentence that needs more than one line", "b"))
    assert '<span class="whole">--overwrite</span>' in html(
        table("Replace it with --overwrite, if it exists.")
    )
    assert '<span class="whole">--accept</span>-parent-windows' in html(
        table("or accept them with <code>--accept-parent-windows</code>")
    )
    assert html(table("12 of 12")).count('<td class="whole">') == 1
    assert '<span class="whole">cluster-centroids</span>' in html(table("cluster-centroids (CLC)"))


@pytest.mark.parametrize(
    ("n", "expected"), [(40, "<pre><code>"), (41, "below-on-phones"), (81, '"below"')], ids=str
)
def test_code_that_would_end_under_the_copy_button_is_moved_down(html, n, expected):
    assert expected in html(f"<pre><code>{'x' * n}\nsecond</code></pre>")
