"""The pages of the documentation, and what their fenced blocks contain."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE_URL = "https://drip-edge.github.io/drip/"
SOURCE_URL = "https://github.com/drip-edge/drip/"
RAW_URL = "https://raw.githubusercontent.com/drip-edge/drip/main/"

GENERATED = ("reference/cli.md", "reference/benchmarks.md", "appendix/", "reference/api/")
"""Pages below docs/ that nobody writes by hand, so their length is the length of the product."""

PAGES = sorted(
    page for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")] if DOCS / "templates" not in page.parents
)

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)


def name(page):
    return page.relative_to(ROOT).as_posix()


def fences(page):
    """Kind and text of every fenced block, in order."""
    return [(found["kind"], found["text"]) for found in _FENCE.finditer(page.read_text())]


def commands(text):
    """The command lines of a block; a line that ends in a backslash goes on in the next."""
    return re.sub(r" *\\\n *", " ", text).splitlines()


def prose(page):
    """The page without the generated table of error codes."""
    text = page.read_text()
    return re.sub(r"^\| <a id=.*$", "", text, flags=re.MULTILINE)
