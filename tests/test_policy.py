"""A policy survives a round trip through its file, decides by its windows and rejects what it cannot read."""

import contextlib
import copy
import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import raises

from drip.errors import DripError, InputError, PolicyError
from drip.policy import FORMAT_VERSION, Histogram, Policy, Provenance, RuleSpec, class_histograms
from drip.rules import available, create
from drip.testing import fake_observations
from drip.windows import fit_windows, sort_by_class

DELETED = object()


def small_policy(**arguments):
    rng = np.random.default_rng(4)
    # One window, one pooled window, one class that never discards.
    scores = np.concatenate([rng.normal(0, 1, 40), rng.normal(5, 2, 30), np.zeros(40)])
    classes = np.repeat([0, 1, 2], [40, 30, 40])
    arguments = {
        "n_classes": 3,
        "min_class_count": 35,
        "retention": 0.6,
        "provenance": {"model_digest": "ab" * 32},
        **arguments,
    }
    return Policy.fit(scores, classes, **arguments)


def nodes(content, path=()):
    """Paths of everything below the root of a JSON value."""
    if isinstance(content, dict | list):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield (*path, key)
            yield from nodes(part, (*path, key))


def changed(content, path, value):
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_fit_keeps_windows_provenance_and_histograms():
    policy = small_policy(method="histogram_peak", min_class_count=10)
    assert policy.rule.name == "drip"
    assert policy.rule.params == {
        "retention": 0.6,
        "method": "histogram_peak",
        "score": "drip",
        "min_class_count": 10,
    }
    assert policy.provenance == Provenance(model_digest="ab" * 32, n_samples=110)
    assert [sum(histogram.counts) for histogram in policy.histograms] == [40, 30, 40]
    assert [window.discards for window in policy.windows] == [True, True, False]
    rng = np.random.default_rng(4)
    parts = sort_by_class(
        np.concatenate([rng.normal(0, 1, 40), rng.normal(5, 2, 30), np.zeros(40)]),
        np.repeat([0, 1, 2], [40, 30, 40]),
        3,
    )
    assert policy.windows == fit_windows(parts, fraction=0.4, method="histogram_peak", min_class_count=10)


def test_fit_takes_provenance_in_every_form():
    assert small_policy(provenance=None).provenance == Provenance(n_samples=110)
    own = Provenance(layer="conv", n_samples=3)
    assert small_policy(provenance=own).provenance is own
    named = small_policy(provenance={"class_names": ["a", "b", "c"], "data": "D1c"}).provenance
    assert named == Provenance(class_names=("a", "b", "c"), data="D1c", n_samples=110)


def test_fit_refuses_what_is_outside_its_range():
    scores, classes = np.arange(30.0), np.zeros(30, dtype=np.int64)
    with pytest.raises(InputError, match="retention must be in"):
        Policy.fit(scores, classes, n_classes=2, retention=-0.5)
    with pytest.raises(InputError, match="n_classes must be at least 2"):
        Policy.fit(scores, classes, n_classes=1, retention=0.5)


def test_both_limits_belong_to_the_window():
    policy = small_policy()
    window = policy.windows[1]
    scores = np.array(
        [
            np.nextafter(window.lower, -inf),
            window.lower,
            window.upper,
            np.nextafter(window.upper, inf),
        ]
    )
    assert policy.retains(scores, np.ones(4, dtype=np.int64)).tolist() == [True, False, False, True]
    assert policy.retains(scores, np.full(4, 2)).all()
    with pytest.raises(InputError, match="row 0"):
        policy.retains(np.array([nan]), np.array([0]))


def test_a_rule_without_windows_says_so():
    policy = Policy(RuleSpec("margin", {}, {"limit": 0.5}), 3)
    with raises(PolicyError, "policy-no-windows"):
        policy.retains(np.array([0.0]), np.array([0]))


def test_windows_of_what_is_kept_are_not_taken_for_windows_of_what_is_discarded():
    rule = create("inverse-drip").calibrate(fake_observations(300, 3))
    with pytest.raises(PolicyError, match="'inverse-drip'"):
        Policy.of(rule, n_classes=3).retains(np.array([0.0]), np.array([0]))


@pytest.mark.parametrize("name", sorted(available()))
def test_a_saved_policy_loads_equal(tmp_path, name):
    rule = available()[name]().calibrate(fake_observations(300, 3))
    policy = Policy.of(rule, n_classes=3, provenance=Provenance(class_names=("a", "b", "c")))
    assert policy.rule.state_version == rule.state_version
    path = tmp_path / "policy.json"
    policy.save(path)
    loaded = Policy.load(str(path))
    assert loaded == policy
    assert loaded.digest == policy.digest
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_fitted_policy_loads_equal(tmp_path):
    policy = small_policy(provenance={"class_names": ("a", "b", "c"), "score": {"heatmap": "raw"}})
    policy.save(tmp_path / "policy.json")
    loaded = Policy.load(tmp_path / "policy.json")
    assert loaded == policy
    assert loaded.windows == policy.windows
    assert (tmp_path / "policy.json").read_bytes().endswith(b"}\n")


def test_the_digest_is_stable_and_changes_with_every_value():
    content = small_policy().to_json()
    policy = Policy.from_json(content)
    assert policy.digest == small_policy().digest
    assert len(policy.digest) == 64
    digests = {policy.digest}
    limits = [
        ("rule", "state", "windows", index, key) for index in (0, 1) for key in ("lower", "upper", "scale")
    ]
    others = [("provenance", "model_digest"), ("n_classes",), ("histograms", 0, "low")]
    for path in limits:
        value = content["rule"]["state"]["windows"][path[3]][path[4]]
        digests.add(
            Policy.from_json(
                changed(content, path, float(np.nextafter(value, -inf if path[4] != "upper" else inf)))
            ).digest
        )
    for path, value in zip(others[::2], ("cd" * 32, -7.0), strict=True):
        digests.add(Policy.from_json(changed(content, path, value)).digest)
    assert len(digests) == 1 + len(limits) + 2


def test_the_digest_is_pinned():
    # A digest that changes would make every store doubt its policies: raise FORMAT_VERSION with it.
    policy = Policy(RuleSpec("margin", {"retention": 0.5}, {"limit": 0.25}), 2, Provenance(layer="conv"))
    assert policy.digest == "df88a205898bbc3b06719901c6741f76e34640f5aaf0bb857a8eb72b16d14a90"


def test_a_policy_serves_its_own_model_only():
    policy = small_policy()
    policy.require("ab" * 32)
    with raises(PolicyError, "policy-other-model"):
        policy.require("cd" * 32)
    with raises(PolicyError, "policy-other-model"):
        Policy(RuleSpec("drip", {}, {}), 2).require("cd" * 32)


@pytest.mark.slow
def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "policy.json"
    small_policy().save(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # without its last byte, a line feed, it is still whole
        path.write_bytes(whole[:length])
        with raises(PolicyError, "policy-invalid"):
            Policy.load(path)
    path.write_bytes(whole[:-1])
    assert Policy.load(path) == small_policy()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "policy-invalid"),
        (b"\xff\xfe\x00", "policy-invalid"),
        (b"[" * 200_000, "policy-invalid"),
        (b"[]", "policy-invalid"),
        (b'"' + b"x" * 99 + b'"', "policy-invalid"),
        (b'{"format": "other"}', "policy-invalid"),
        (b'{"format": "drip-policy"}', "policy-version"),
        (b'{"format": "drip-policy", "format_version": true}', "policy-version"),
        (b'{"format": "drip-policy", "format_version": 3}', "policy-version"),
        (b'{"format": "drip-policy", "format_version": 2}', "policy-invalid"),
        (b'{"format": "drip-policy", "format_version": 1}', "policy-invalid"),
    ],
)
def test_a_file_that_is_not_a_policy_is_refused_with_its_path(tmp_path, data, code):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with raises(PolicyError, code) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with raises(PolicyError, "path-missing"):
        Policy.load(tmp_path / "missing.json")
    with raises(PolicyError, "policy-invalid"):
        Policy.load(tmp_path)


VERSION_1 = json.loads((Path(__file__).parent / "data" / "policies_version_1.json").read_text())


@pytest.mark.parametrize("name", sorted(VERSION_1))
def test_a_policy_of_format_version_1_decides_as_it_did_and_keeps_its_digest(tmp_path, name):
    was = VERSION_1[name]
    policy = Policy.from_json(was["policy"])
    retain = policy.to_rule().decide_many(fake_observations(200, 3, seed=2)).retain
    assert np.flatnonzero(retain).tolist() == was["kept_rows"]
    assert policy.digest == was["digest"]
    assert policy.provenance.input_spec == was["policy"]["provenance"]["input_contract"]
    policy.save(tmp_path / "policy.json")
    again = Policy.load(tmp_path / "policy.json")
    assert again == policy
    assert json.loads((tmp_path / "policy.json").read_text())["format_version"] == FORMAT_VERSION


VERSION_2 = json.loads((Path(__file__).parent / "data" / "policies_version_2.json").read_text())


@pytest.mark.parametrize("name", sorted(VERSION_2))
def test_a_policy_from_before_pooled_windows_decides_as_it_did_and_keeps_its_digest(tmp_path, name):
    was = VERSION_2[name]
    policy = Policy.from_json(was["policy"])
    rule = policy.to_rule()
    retain = rule.decide_many(fake_observations(200, 3, seed=2)).retain
    assert np.flatnonzero(retain).tolist() == was["kept_rows"]
    policy.save(tmp_path / "policy.json")
    again = Policy.of(rule, n_classes=3, provenance=policy.provenance)
    assert {one.digest for one in (policy, Policy.load(tmp_path / "policy.json"), again)} == {was["digest"]}


def test_a_pooled_window_survives_the_file_and_only_it_says_so(tmp_path):
    policy = small_policy()
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json").windows == policy.windows
    assert [window.pooled for window in policy.windows] == [False, True, False]
    written = json.loads((tmp_path / "policy.json").read_text())["rule"]["state"]["windows"]
    assert [window.get("pooled") for window in written] == [None, True, None]


CONTENT = small_policy(provenance={"class_names": ["a", "b", "c"]}).to_json()
LEAVES = [path for path in nodes(CONTENT) if "counts" not in path[:-1] or path[-1] == 0]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: "/".join(map(str, path)))
def test_every_part_of_the_wrong_type_is_refused_or_harmless(path):
    observations = fake_observations(30, 3)
    original = CONTENT
    for key in path:
        original = original[key]
    for value in (DELETED, None, "x", [], {}, -1, 0.5, True, nan, inf, 10**400, ["x"], [None]):
        content = changed(CONTENT, path, value)
        try:
            policy = Policy.from_json(content)
        except PolicyError as error:
            assert error.code in ("policy-invalid", "policy-version")  # noqa: PT017
            continue
        # Accepted: then it is of the same kind, or it is an argument that only the rule can judge.
        json.dumps(policy.to_json(), allow_nan=False)
        try:
            policy.to_rule().decide_many(observations)
        except PolicyError as error:
            assert path[0] == "rule"
            assert error.code.startswith(("rule-", "bad-argument"))  # noqa: PT017
        except InputError as error:
            assert error.code == "rule-needs"  # noqa: PT017  # another score's name
        if value is not DELETED and path[0] in ("n_classes", "provenance", "histograms"):
            assert isinstance(value, type(original)) or (isinstance(original, float) and value == -1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("n_classes",), 1, "n_classes is 1"),
        (("n_classes",), 4, "3 histograms for 4 classes"),
        (("histograms",), [], None),
        (("rule", "state", "windows", 0, "lower"), 1e9, "window of class 0 is 1000000000.0 to"),
        (("rule", "state", "windows", 1, "lower"), None, "lower of window of class 1 is None, not float"),
        (("rule", "state", "windows", 2, "lower"), 0.0, "lower of window of class 2 is 0.0, not NoneType"),
        (("rule", "state", "windows", 2, "never_because"), None, "lower of window of class 2 is None"),
        (("rule", "state", "windows", 1, "pooled"), "x", "pooled of window of class 1 is 'x', not bool"),
        (("rule", "state", "windows", 2, "pooled"), True, "window of class 2 is pooled and never discards"),
        (("rule", "state", "windows", 0, "upper"), nan, "JSON compliant"),
        (("rule", "state", "windows", 0, "n"), 1.5, "n of window of class 0 is 1.5, not int"),
        (("rule", "state", "windows"), [], "0 windows for 3 classes"),
        (("rule", "state_version"), "1", "state_version of rule is '1', not int"),
        (("provenance", "more"), 1, "unexpected keyword"),
        (("provenance", "class_names"), ["a", 2], "class_names are"),
        (("histograms", 0, "counts"), [1, -1], "counts are"),
        (("histograms", 0, "counts"), [1, 2.0], "counts are"),
        (("histograms", 0, "counts"), [True], "counts are"),
        (("histograms", 1), 5, "histogram is 5"),
        (("histograms", 0, "low"), 1e9, "a histogram ranges from 1000000000.0 to"),
        (("provenance", "class_names"), ["a", "b"], "2 class_names for 3 classes"),
        (("provenance", "n_samples"), -1, "n_samples is -1"),
        (("provenance", "score"), {"beta": 10**400}, "int too large"),
        (("rule", "state", "windows", 1, "n"), -1, "n of window of class 1 is -1"),
    ],
)
def test_bad_parts_are_named(path, value, message):
    content = changed(CONTENT, path, value)
    if message is None:
        assert Policy.from_json(content).histograms == ()
        return
    with raises(PolicyError, "policy-invalid") as caught:
        Policy.from_json(content)
    assert message in str(caught.value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1, 2, 3, 5e-324, 1e308])
    | st.floats()
    | st.text(st.characters(), max_size=4),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)


def policy_content(name):
    rule = available()[name]().calibrate(fake_observations(60, 3))
    provenance = Provenance(
        class_names=("a", "b", "c"), score={"layer": "conv"}, input_spec={"shape": [1, 8, 8]}
    )
    histograms = (Histogram(0.0, 1.0, (2, 1)), Histogram(0.0, 0.0, ()), Histogram(-1.0, -1.0, (3,)))
    return Policy.of(rule, n_classes=3, provenance=provenance, histograms=histograms).to_json()


CONTENTS = [policy_content(name) for name in sorted(available())]


@pytest.mark.slow
@given(content=st.sampled_from(CONTENTS), data=st.data())
@settings(max_examples=400)
def test_what_happened_to_a_policy_file_is_refused_as_such_or_harmless(content, data):
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(nodes(content))))
        content = changed(content, path, data.draw(st.just(DELETED) | JSON_VALUES))
    try:
        policy = Policy.from_json(content)
        policy.to_rule()
    except PolicyError:
        return
    assert Policy.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False))) == policy
    assert len(policy.digest) == 64
    with contextlib.suppress(PolicyError):
        assert len(policy.windows) == policy.n_classes


def test_a_content_nested_too_deep_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with raises(PolicyError, "policy-invalid"):
        Policy.from_json(changed(CONTENT, ("provenance", "score", "deep"), deep))


def test_a_window_of_one_score_is_whole():
    content = changed(CONTENT, ("rule", "state", "windows", 0, "lower"), 0.25)
    content = changed(content, ("rule", "state", "windows", 0, "upper"), 0.25)
    assert Policy.from_json(content).retains(np.array([0.25]), np.array([0])).tolist() == [False]


def test_integers_of_other_writers_are_numbers():
    content = changed(CONTENT, ("rule", "state", "windows", 0, "lower"), -9)
    window = Policy.from_json(content).windows[0]
    assert window.lower == -9.0
    assert type(window.lower) is float


def test_saving_where_nothing_can_be_written_says_so(tmp_path):
    with pytest.raises(DripError) as caught:
        small_policy().save(tmp_path / "missing" / "policy.json")
    assert caught.value.code == "path-missing"


def test_a_failed_save_leaves_the_old_policy(tmp_path):
    path = tmp_path / "policy.json"
    policy = small_policy()
    policy.save(path)
    broken = replace(policy, rule=replace(policy.rule, params={"x": nan}))
    with pytest.raises(ValueError, match="JSON"):
        broken.save(path)
    assert Policy.load(path) == policy
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.json"]


@pytest.mark.parametrize("scale", [1e-310, 1.0, 1.7e308])
def test_histograms_count_every_score_once(scale):
    scores = np.sort(np.random.default_rng(0).uniform(-1.0, 1.0, 500)) * scale
    (histogram,) = class_histograms([scores])
    assert (histogram.low, histogram.high) == (scores[0], scores[-1])
    assert len(histogram.counts) == 40
    assert sum(histogram.counts) == 500
    assert max(histogram.counts) < 30


def test_histogram_bins_are_those_of_numpy():
    scores = np.sort(np.random.default_rng(1).normal(0, 1, 300))
    assert class_histograms([scores])[0].counts == tuple(np.histogram(scores, bins=40)[0].tolist())


def test_histograms_of_one_value_and_of_nothing():
    assert class_histograms([np.full(3, 2.5), np.array([])]) == (
        Histogram(2.5, 2.5, (3,)),
        Histogram(0.0, 0.0, ()),
    )


def test_the_format_version_is_written():
    assert small_policy().to_json()["format_version"] == FORMAT_VERSION == 2
    assert small_policy().to_json()["format"] == "drip-policy"
