"""The house style of a report: one self-contained HTML page that loads nothing and runs no script.

Both wings write their reports with it, so the reports of a run and of a reduction look alike. A report is a
single file because people mail it or copy it off a device: pictures are data URIs, the style sheet is
inlined, and a content security policy in the page forbids the browser to load anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files


def document(title: str, body: str) -> str:
    """A complete page around its sections.

    Args:
        title: Plain text; it is escaped here.
        body: HTML in which everything that came from outside is already escaped.
    """
    style = files("drip.files").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Escaped text in which a number and its per cent sign stay on one line.

    >>> text("a < 5 %")
    'a &lt; 5&nbsp;%'
    """
    return escape(str(value)).replace(" %", "&nbsp;%")


def share_bar(seen: int, kept: int, most: int) -> str:
    """A bar for one class: kept (filled) out of seen (outlined), longer for a more frequent class.

    Args:
        seen: Samples of the class.
        kept: How many of them were kept.
        most: Samples of the most frequent class, which gets the full length.
    """
    unit = 298.0 / max(most, 1)
    parts = [
        f'<rect class="seen" x="1" y="2" width="{max(unit * seen, 0.5):.1f}" height="12"/>',
        f'<rect class="kept" x="1" y="2" width="{unit * kept:.1f}" height="12"/>',
    ]
    drawing = svg(300.0, 16.0, "share", f"{kept} of {seen} kept", parts)
    # The bar fills its table cell whatever the cell's width; without this it would shrink to keep 300:16.
    return drawing.replace("<svg ", '<svg preserveAspectRatio="none" ', 1)


def svg(width: float, height: float, kind: str, label: str, parts: Iterable[str]) -> str:
    """A drawing with a label for screen readers.

    Args:
        width: Width of the view box, in its units; the style sheet decides the size on screen.
        height: Height of the view box.
        kind: Class name in the style sheet.
        label: Plain text that says what the drawing shows.
        parts: SVG elements.
    """
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
