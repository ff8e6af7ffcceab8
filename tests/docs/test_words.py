"""One word per thing: texts do not use the words that `words.toml` lists."""

import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, ROOT, name

TABLE = tomllib.loads((Path(__file__).parent / "words.toml").read_text())
PATTERNS = {
    re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE): instead
    for words, instead in TABLE["words"].items()
}
TEMPLATES = sorted((ROOT / "docs" / "templates").glob("*"))
SOURCES = sorted(
    [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.py")]
)


def room(path):
    """`store` for src/drip/store/codec.py, `policy.py` for src/drip/policy.py, else the first folder."""
    parts = path.relative_to(ROOT).parts
    return parts[2] if parts[:2] == ("src", "drip") else parts[0]


def texts(path):
    """First line and text of every part of a file that people read."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(
            tokenize, "FSTRING_MIDDLE", None
        ):
            yield token.start[0], token.string


def findings(path):
    """One line per use of a word, with what to write instead."""
    allowed = [entry["text"] for entry in TABLE["allow"] if name(path).startswith(entry["path"])]
    for line, text in texts(path):
        for pattern, instead in PATTERNS.items():
            for found in pattern.finditer(text):
                quotes = text[found.start() - 1 : found.start()] + text[found.end() : found.end() + 1]
                if quotes in ("''", '""'):  # a key of a file or record
                    continue
                around = text[max(0, found.start() - 30) : found.end() + 30].replace("\n", " ")
                if not any(entry in around for entry in allowed):
                    at = line + text.count("\n", 0, found.start())
                    yield f"{name(path)}:{at}: {found[0]!r} (write: {instead}): ...{around}..."


ROOMS = {}
for _path in [*PAGES, *TEMPLATES, *SOURCES]:
    ROOMS.setdefault(room(_path), []).append(_path)


@pytest.mark.parametrize("place", sorted(ROOMS))
def test_texts_use_one_word_per_thing(place):
    found = [line for path in ROOMS[place] for line in findings(path)]
    assert not found, "\n".join(found)
