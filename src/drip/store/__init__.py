"""The store: one SQLite file that keeps retained samples inside a byte budget and survives a kill.

Public: :class:`RetentionStore` and what it gives back. Decides nothing and knows no model.
"""

from drip.store.exports import export_image_folder, export_webdataset
from drip.store.records import (
    AuditRow,
    CheckReport,
    ClassCounts,
    LabelState,
    Outcome,
    QuarantinedSample,
    StoredSample,
    StoreStats,
)
from drip.store.retention import RetentionStore

__all__ = [
    "AuditRow",
    "CheckReport",
    "ClassCounts",
    "LabelState",
    "Outcome",
    "QuarantinedSample",
    "RetentionStore",
    "StoreStats",
    "StoredSample",
    "export_image_folder",
    "export_webdataset",
]
