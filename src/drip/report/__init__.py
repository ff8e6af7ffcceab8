"""The report of one run as an HTML page or a Markdown table; it trains nothing and reads no store."""

from __future__ import annotations

from drip.report.findings import Verdict, findings, verdict
from drip.report.model import (
    ALL_DATA,
    BASELINE,
    DRIP,
    MARGIN,
    RANDOM,
    Arm,
    Difference,
    GalleryItem,
    RunReport,
    compare,
    standard_error,
)
from drip.report.page import COLUMNS, rows, to_html, to_markdown_table, uncertainty, write_html

__all__ = [
    "ALL_DATA",
    "BASELINE",
    "COLUMNS",
    "DRIP",
    "MARGIN",
    "RANDOM",
    "Arm",
    "Difference",
    "GalleryItem",
    "RunReport",
    "Verdict",
    "compare",
    "findings",
    "rows",
    "standard_error",
    "to_html",
    "to_markdown_table",
    "uncertainty",
    "verdict",
    "write_html",
]
