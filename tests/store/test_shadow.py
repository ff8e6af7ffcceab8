"""Shadow mode: what it keeps, what the rule retains later, and which of two decisions on a sample counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BUDGET, DROP, names, observation, put, sample

from drip.store import Outcome, RetentionStore
from drip.store.codec import decode_reason, encode_reason
from drip.types import Decision, Progress

LATER = Decision(True, 0.75, 0.5, "margin")


def shadow(store, name="a", data=None, predicted_class=1):
    store.put(sample(name, data), observation(predicted_class), DROP, keep=True)


def standing(store):
    """The kept samples' decisions, and the audit's with their outcomes."""
    kept = [(record.key, record.sample.id, record.decision) for record in store]
    return kept, [(row.key, row.sample_id, row.decision, row.outcome) for row in store.audit()]


def counts(store):
    stats = store.stats()
    assert store.check().problems == ()
    ring = store._writer.ring
    count = "SELECT count(*), total(row_bytes) FROM audit"
    assert store._connection.execute(count).fetchone() == (ring.rows, ring.bytes)
    return {
        "seen": stats.seen,
        "kept": stats.kept,
        "discarded": stats.discarded,
        "duplicates": stats.duplicates,
        "redelivered": stats.redelivered,
        "shadowed": stats.kept_shadowed,
    }


# -- reasons -------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["shadow:", "\x1b"]) | st.text()).map("".join), st.booleans())
def test_any_reason_and_its_mark_come_back(reason, is_shadow):
    assert decode_reason(encode_reason(reason, is_shadow=is_shadow)) == (reason, is_shadow)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("margin", ("margin", False)),
        ("shadow:margin", ("margin", True)),
        ("\x1bword", ("\x1bword", False)),
        ("", ("", False)),
    ],
)
def test_reasons_in_older_stores_are_read_as_before(written, read):
    assert decode_reason(written) == read


@pytest.mark.parametrize("reason", ["shadow:play", "shadow:", "\x1bshadow:", "", "a\x00b"])
@pytest.mark.parametrize("is_retained", [True, False])
def test_a_reason_of_a_rule_may_look_like_a_mark(store, reason, is_retained):
    decision = Decision(is_retained, 0.5, None, reason)
    store.put(sample("a"), observation(), decision, keep=True)
    assert [record.decision for record in store] == [row.decision for row in store.audit()] == [decision]
    assert [record.shadow for record in store] == [row.shadow for row in store.audit()] == [not is_retained]
    assert store.stats().kept_shadowed == (not is_retained)


# -- the same decision again ---------------------------------------------------------------------------


@pytest.mark.parametrize("decision", [DROP, LATER])
def test_a_discarded_sample_is_kept_by_a_later_put_that_says_so(store, decision):
    put(store, "before")
    store.put(sample("a"), observation(0), DROP)
    store.put(sample("a"), observation(1), decision, keep=True)
    kept, audit = standing(store)
    assert kept[1:] == [(3, "a", decision)]
    assert audit[1:] == [(3, "a", decision, Outcome.KEPT)]
    assert counts(store) == {
        "seen": 2, "kept": 2, "discarded": 0, "duplicates": 0, "redelivered": 0,
        "shadowed": int(decision is DROP),
    }  # fmt: skip
    store.put(sample("a"), observation(1), decision, keep=True)
    assert counts(store)["redelivered"] == 1


def test_a_sample_that_shadow_mode_kept_becomes_retained_when_the_rule_retains_it(store):
    shadow(store)
    assert counts(store)["shadowed"] == 1
    store.put(sample("a"), observation(), LATER)
    assert standing(store) == ([(1, "a", LATER)], [(1, "a", LATER, Outcome.KEPT)])
    assert counts(store) == {
        "seen": 1, "kept": 1, "discarded": 0, "duplicates": 0, "redelivered": 0, "shadowed": 0,
    }  # fmt: skip


def test_a_decision_that_keeps_less_is_a_redelivery(store):
    store.put(sample("a"), observation(), LATER)
    for put_again in (lambda: store.put(sample("a"), observation(), DROP), lambda: shadow(store)):
        put_again()
    assert standing(store) == ([(1, "a", LATER)], [(1, "a", LATER, Outcome.KEPT)])
    assert counts(store)["redelivered"] == 2


def test_content_that_shadow_mode_kept_becomes_retained_under_another_id_or_policy(store):
    shadow(store, "a", b"same")
    shadow(store, "b", b"other")
    store.set_label("a", 2)
    store.put(sample("c", b"same"), observation(), LATER)
    store.save_progress(Progress(None, {}, "policy"))
    store.put(sample("b", b"other"), observation(), LATER)
    kept, audit = standing(store)
    assert kept == [(1, "a", LATER), (2, "b", LATER)]
    assert audit == [
        (1, "a", DROP, Outcome.KEPT),
        (2, "b", DROP, Outcome.KEPT),
        (3, "c", LATER, Outcome.DUPLICATE),
        (4, "b", LATER, Outcome.DUPLICATE),
    ]
    assert [(record.policy_digest, record.human_label, record.repeats) for record in store] == [
        ("", 2, 1),
        ("policy", None, 1),
    ]
    assert (counts(store)["shadowed"], counts(store)["duplicates"]) == (0, 2)


def test_a_duplicate_of_shadow_mode_that_the_rule_retains_is_counted_once(store):
    shadow(store, "a", b"same")
    shadow(store, "b", b"same", predicted_class=0)
    store.put(sample("b", b"same"), observation(2), LATER)
    kept, audit = standing(store)
    assert kept == [(1, "a", LATER)]
    assert audit == [(1, "a", DROP, Outcome.KEPT), (3, "b", LATER, Outcome.DUPLICATE)]
    assert [record.repeats for record in store] == [1]
    assert counts(store) == {
        "seen": 2, "kept": 1, "discarded": 0, "duplicates": 1, "redelivered": 0, "shadowed": 0,
    }  # fmt: skip


def test_a_sample_that_was_evicted_comes_back_only_when_the_rule_retains_it_for_the_first_time(path):
    with RetentionStore.open(path, budget_bytes=BUDGET, eviction="fifo") as store:
        shadow(store, "a", bytes(5000))
        for i in range(300):
            put(store, f"s{i}", data=i.to_bytes(2, "big") * 2500)
        assert "a" not in names(store)
        shadow(store, "a", bytes(5000))
        assert "a" not in names(store)
        evicted = store.stats().evicted
        store.put(sample("a", bytes(5000)), observation(), LATER)
        assert names(store)[-1] == "a"
        assert abs(store.stats().evicted - evicted) < 10
        assert counts(store)["seen"] == 301
        for i in range(300):
            put(store, f"t{i}", data=i.to_bytes(2, "big") * 2501)
        store.put(sample("a", bytes(5000)), observation(), LATER)
        assert "a" not in names(store)


def test_counts_of_shadow_mode_follow_evictions_rollbacks_and_reopening(path):
    with RetentionStore.open(path, budget_bytes=BUDGET, eviction="fifo") as store:
        for i in range(400):
            shadow(store, f"s{i}", i.to_bytes(2, "big") * 1500)
            if i % 3 == 0:
                put(store, f"r{i}", data=i.to_bytes(2, "big") * 1501)
            store.stats()
        with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012  # rolled back on purpose
            shadow(store, "lost")
            assert store.stats().kept_shadowed == sum(record.shadow for record in store)
            raise ZeroDivisionError
        n_shadowed = sum(record.shadow for record in store)
        assert 0 < n_shadowed == store.stats().kept_shadowed < store.stats().kept
    with RetentionStore.open_readonly(path) as store:
        assert store.stats().kept_shadowed == n_shadowed
