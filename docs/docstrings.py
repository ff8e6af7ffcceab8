"""Turns docstrings into what the API pages can show; mkdocs.yml lists this file as an extension of griffe.

The docstrings use roles of reStructuredText and doctests between paragraphs, because editors and pydoc show
those well. Markdown would print the roles as they are and turn `>>>` into three nested quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`[~!]?([^`]+)`")
_DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*|\n(?P=indent)    .*)*", re.MULTILINE)

_LONGEST_VALUE = 60


class Docstrings(griffe.Extension):
    """Rewrites every docstring after it was loaded; leaves out special methods and long values."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Roles become code, doctests become fenced blocks."""
        if obj.docstring is None:
            return
        if obj.is_module:  # the page has its own introduction; these describe the files inside
            obj.docstring = None
            return
        text = _ROLE.sub(lambda role: f"`{role[1]}`", obj.docstring.value).replace("``", "`")
        obj.docstring.value = _DOCTEST.sub(_fenced, text)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """The same for the package itself, for which `on_object` is not called."""
        pkg.docstring = None

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Long values, such as a table of functions, are no part of the interface."""
        if len(str(attr.value)) > _LONGEST_VALUE:
            attr.value = None

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """`len(x)` and `x[0]` need no entry; `__init__` is merged into its class."""
        for name in [name for name in cls.members if name.startswith("__") and name != "__init__"]:
            cls.del_member(name)


def _fenced(block: re.Match[str]) -> str:
    indent = block["indent"]
    return f"{indent}```pycon\n{block[0]}\n{indent}```"
