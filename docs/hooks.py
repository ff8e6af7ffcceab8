"""Changes to every page of the site; mkdocs.yml lists this file as a hook."""

from __future__ import annotations

import html
import re
from typing import Any

_LONG, _SHORT = 30, 14  # characters: a column that a phone must not squeeze, and one that never breaks
_WHOLE, _WHOLE_IN_CELLS = 30, 20  # characters that fit into one line of a list or of a cell on a phone
_BESIDE_BUTTON, _BESIDE_BUTTON_ON_PHONES = 80, 40  # characters of code that end before the button for copying
_PREFORMATTED = re.compile(r"(<pre.*?</pre>)", re.DOTALL)
_BEFORE_BRACKET = re.compile(r"(?<=</code>)\s+(?=\)\s)")  # lists of parameters: a line would begin with it
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_WHOLE_CODE = re.compile(r'<code class="whole">(.*?)</code>', re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
_CELL = re.compile(r"<(t[dh])([^>]*)>(.*?)</t[dh]>", re.DOTALL)
_TAG = re.compile(r"(<[^>]*>)")
_HYPHENATED = re.compile(r"[^\s<>]*\w[-\u2013]\w[^\s<>]*|--\w[^\s<>]*")
_OPTION = re.compile(r"--\w[\w-]*")
_FIRST_WORD = re.compile(r"^--\w+")  # a long option breaks, but not after its dashes
_PLACE_TO_BREAK = re.compile(r"(?<=[a-z_])([./])(?=[A-Za-z_]{4})")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep a number with its interval or percent sign on one line, which narrow columns would break."""
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(
        " % ", "\N{NO-BREAK SPACE}% "
    )


def on_page_content(content: str, **_: Any) -> str:
    """Mark long columns, and code that must not break or end under a button: CSS cannot count characters."""
    parts = _PREFORMATTED.split(_BEFORE_BRACKET.sub("", content))
    parts[::2] = (_TABLE.sub(_table, _CODE.sub(_code, part)) for part in parts[::2])
    parts[1::2] = map(_block, parts[1::2])
    return "".join(parts)


def _block(block: str) -> str:
    n = max(map(len, _text(block).split("\n")[:2]))  # the button is two lines high
    if n <= _BESIDE_BUTTON_ON_PHONES:
        return block
    return block.replace("<pre", f'<pre class="{"below" if n > _BESIDE_BUTTON else "below-on-phones"}"', 1)


def _code(found: re.Match[str]) -> str:
    if len(_text(found[1])) <= _WHOLE:
        return f'<code class="whole">{found[1]}</code>'
    parts = _TAG.split(_whole_words(found[1]))
    parts[::2] = (_PLACE_TO_BREAK.sub(r"\1<wbr>", part) for part in parts[::2])
    return f"<code>{''.join(parts)}</code>"


def _code_in_cell(found: re.Match[str]) -> str:
    return found[0] if len(_text(found[1])) <= _WHOLE_IN_CELLS else f"<code>{found[1]}</code>"


def _table(found: re.Match[str]) -> str:
    rows = [_CELL.findall(row) for row in _ROW.findall(found[0])]
    longest = [max(len(_text(cell[2])) for cell in column) for column in zip(*rows[1:], strict=False)]

    def mark(row: re.Match[str]) -> str:
        columns = iter(longest)

        def cell(of: re.Match[str]) -> str:
            tag, attributes, inner = of.groups()
            n = next(columns, 0)
            if n > _LONG:
                inner = _whole_words(_WHOLE_CODE.sub(_code_in_cell, inner), _OPTION, _WHOLE_IN_CELLS)
                return f'<{tag} class="long"{attributes}>{inner}</{tag}>'
            if tag == "td" and n <= _SHORT:
                return f'<td class="whole"{attributes}>{inner}</td>'
            return f"<{tag}{attributes}>{_whole_words(inner)}</{tag}>"

        return _CELL.sub(cell, row[0])

    return _ROW.sub(mark, found[0])


def _whole_words(inner: str, words: re.Pattern[str] = _HYPHENATED, longest: int = _WHOLE) -> str:
    def mark(word: re.Match[str]) -> str:
        if len(word[0]) <= longest:
            return f'<span class="whole">{word[0]}</span>'
        return _FIRST_WORD.sub(r'<span class="whole">\g<0></span>', word[0])

    parts = _TAG.split(inner)
    parts[::2] = (words.sub(mark, part) for part in parts[::2])
    return "".join(parts)


def _text(inner: str) -> str:
    return html.unescape(_TAG.sub("", inner)).strip()


def on_post_page(output: str, **_: Any) -> str:
    """Leave the link to the repository, but let no page ask its host for stars and releases."""
    return output.replace(' data-md-component="source"', "")


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that are not written in Markdown, such as 404.html."""
    return on_post_page(output_content)
