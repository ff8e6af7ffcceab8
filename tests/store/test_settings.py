"""What a store remembers of how it was opened."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3

import pytest
from making import refused

from drip.errors import InputError, StoreError
from drip.store.settings import Settings, merge

KNOWN = Settings(1_000_000, 300_000, "fifo", 7, audit_logits=False)
NOTHING = {
    "path": "kept.drip",
    "budget_bytes": None,
    "log_bytes": None,
    "eviction": None,
    "audit_rows": None,
    "audit_logits": None,
}


def test_a_new_store_gets_the_defaults():
    assert merge(None, **(NOTHING | {"budget_bytes": 5})) == Settings(
        5, None, "priority", 100_000, audit_logits=True
    )


def test_a_new_store_without_a_budget_is_refused():
    with refused(StoreError, "store-missing") as caught:
        merge(None, **NOTHING)
    assert str(caught.value) == (
        "kept.drip does not exist; check the path, or give budget_bytes to create a store"
    )


def test_a_setting_that_is_not_given_stays():
    assert merge(KNOWN, **NOTHING) == KNOWN


@pytest.mark.parametrize(
    "asked",
    [{"log_bytes": 400_000}, {"eviction": "priority"}, {"audit_rows": 9}, {"audit_logits": True}],
)
def test_only_the_given_setting_changes(asked):
    assert merge(KNOWN, **(NOTHING | asked)) == dataclasses.replace(KNOWN, **asked)


def test_a_new_budget_recomputes_the_log_size_unless_it_is_given():
    assert merge(KNOWN, **(NOTHING | {"budget_bytes": 9})) == dataclasses.replace(
        KNOWN, budget_bytes=9, log_bytes=None
    )
    both = {"budget_bytes": 9, "log_bytes": 8}
    assert merge(KNOWN, **(NOTHING | both)) == dataclasses.replace(KNOWN, **both)


@pytest.mark.parametrize("name", ["budget_bytes", "log_bytes", "audit_rows"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1"])
def test_numbers_must_be_positive_integers(name, value):
    with refused(InputError, "bad-argument", f"{name}={value!r}"):
        merge(KNOWN, **(NOTHING | {name: value}))
    assert getattr(merge(KNOWN, **(NOTHING | {name: 1})), name) == 1


def test_an_unknown_eviction_is_refused_with_the_known_ones():
    with refused(InputError, "bad-argument", "'random'", "priority, fifo"):
        merge(KNOWN, **(NOTHING | {"eviction": "random"}))


@pytest.mark.parametrize("settings", [KNOWN, Settings(5, None, "priority", 3, audit_logits=True)])
def test_settings_come_back_as_they_were_saved(settings):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        cursor = connection.cursor()
        KNOWN.save(cursor)
        settings.save(cursor)
        assert Settings.load(cursor) == settings
        assert dict(cursor.execute("SELECT name, value FROM settings"))["audit_logits"] in {"0", "1"}
