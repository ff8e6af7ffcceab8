"""The numbers of one run as a page for people, HTML or Markdown; trains nothing and reads no store."""

from __future__ import annotations

from drip.report.findings import Verdict, findings, verdict
from drip.report.model import (
    ALL_DATA,
    BASELINE,
    DRIP,
    MARGIN,
    RANDOM,
    Arm,
    GalleryItem,
    Paired,
    RunReport,
    compare,
    standard_error,
)
from drip.report.page import to_html, to_markdown_table, write_html

__all__ = [
    "ALL_DATA",
    "BASELINE",
    "DRIP",
    "MARGIN",
    "RANDOM",
    "Arm",
    "GalleryItem",
    "Paired",
    "RunReport",
    "Verdict",
    "compare",
    "findings",
    "standard_error",
    "to_html",
    "to_markdown_table",
    "verdict",
    "write_html",
]
