"""Text of a generated page as wrapped lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from experiments.tables import FIGURES

__all__ = ["FIGURES", "folded", "prose", "wrapped"]


def prose(text: str) -> list[str]:
    """Paragraphs as wrapped lines, each followed by a blank line."""
    lines: list[str] = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        lines += [*wrapped(" ".join(paragraph.split())), ""]
    return lines


def wrapped(text: str, bullet: str = "") -> list[str]:
    """One paragraph or list item as wrapped lines."""
    return textwrap.wrap(
        bullet + text,
        108,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def folded(title: str, body: Sequence[str]) -> list[str]:
    """Lines that a reader opens."""
    return ["<details>", f"<summary>{title}</summary>", "", *body, "</details>", ""]
