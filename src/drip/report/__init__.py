"""The numbers of one run as a page for people, HTML or Markdown; trains nothing and reads no store."""

from __future__ import annotations

from drip.report.model import Arm, GalleryItem, RunReport

__all__ = ["Arm", "GalleryItem", "RunReport"]
