"""The store: one SQLite file that keeps samples inside a byte budget and survives a kill.

Public: :class:`RetentionStore` and the records that it returns. It decides nothing and knows no model.
"""

from drip.store.exports import export_image_folder, export_webdataset
from drip.store.records import (
    AuditRow,
    CheckReport,
    ClassCounts,
    Labels,
    LabelState,
    Origin,
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
    "Origin",
    "Outcome",
    "QuarantinedSample",
    "RetentionStore",
    "StoreStats",
    "StoredSample",
    "class_of",
    "export_image_folder",
    "export_webdataset",
]
