"""The store: one SQLite file that keeps retained samples inside a byte budget and survives a kill.

Public: :class:`RetentionStore` and what it gives back. Decides nothing and knows no model.
"""

from drip.store.exports import export_image_folder, export_webdataset
from drip.store.records import (
    AuditRow,
    CheckReport,
    ClassCounts,
    Labels,
    LabelState,
    Outcome,
    QuarantinedSample,
    StoredSample,
    StoreStats,
    class_of,
)
from drip.store.store import RetentionStore

__all__ = [
    "AuditRow",
    "CheckReport",
    "ClassCounts",
    "LabelState",
    "Labels",
    "Outcome",
    "QuarantinedSample",
    "RetentionStore",
    "StoreStats",
    "StoredSample",
    "class_of",
    "export_image_folder",
    "export_webdataset",
]
