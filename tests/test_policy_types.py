"""Every value of a policy file replaced by every other JSON type: refused, or of the same meaning."""

import pytest
from support import replaced

from drip.errors import PolicyError
from drip.policy import Policy, Provenance
from drip.rules import available, create
from drip.testing import fake_observations

PROVENANCE = Provenance(
    model_digest="ab" * 32,
    layer="features",
    score={
        "name": "contrast",
        "method": "gradcam",
        "heatmap": "raw",
        "contrast": True,
        "layer": "features",
        "layer_shape": [16, 8, 8],
    },
    data="a folder",
    n_samples=60,
    input_spec={
        "shape": [3, 32, 32],
        "resize": "crop",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "sample_rate_hz": 0,
        "max_values": 1000,
    },
    class_names=("a", "b", "c"),
)
OTHERS = (None, True, False, 3, 0.5, "x", "yes", [], ["x"], [None], [True], {}, {"x": 1})


def content_of(name):
    """The content of a policy of a rule, with every part of the provenance."""
    rule = create(name).calibrate(fake_observations(60, 3))
    return Policy.of(rule, n_classes=3, provenance=PROVENANCE).to_json()


def leaves(value, path=()):
    """The paths of everything below a value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from leaves(child, (*path, key))


def kind(value):
    """The JSON type; an integer is a number that another language may write for 1.0."""
    return (
        "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    )


@pytest.mark.parametrize("name", sorted(available()))
def test_a_value_of_another_type_is_refused(name):
    content = content_of(name)
    accepted = []
    for path in leaves(content):
        if path[0] == "rule" and name != "drip":
            continue  # parameters and state of the other rules are theirs to judge
        old = content
        for key in path:
            old = old[key]
        for new in OTHERS:
            if kind(new) == kind(old):
                continue
            try:
                Policy.from_json(replaced(content, path, new)).to_rule()
            except PolicyError:
                continue
            accepted.append(("/".join(map(str, path)), old, new))
    assert accepted == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("score", "contrast", "yes"),
        ("score", "contrast", 1),
        ("score", "layer_shape", [16, 8.5]),
        ("score", "layer_shape", ["16"]),
        ("input_spec", "mean", ["0.5"]),
        ("input_spec", "std", [True]),
        ("input_spec", "shape", [3.5]),
        ("input_spec", "sample_rate_hz", 0.5),
    ],
)
def test_a_part_of_the_provenance_of_another_type_is_named(part, key, value):
    content = replaced(content_of("drip"), ("provenance", part, key), value)
    with pytest.raises(PolicyError, match=f"{key} of {part} is .*; calibrate again"):
        Policy.from_json(content)


def test_windows_that_are_no_list_are_refused():
    content = replaced(content_of("inverse-drip"), ("rule", "state", "kept_windows"), {})
    with pytest.raises(PolicyError, match=r"windows are \{\}, not a list"):
        Policy.from_json(content).to_rule()


def test_definitions_of_others_are_kept():
    provenance = {"score": {"beta": {"deep": [1, None]}}, "input_spec": {}}
    policy = Policy.from_json(
        {**content_of("drip"), "provenance": {**content_of("drip")["provenance"], **provenance}}
    )
    assert policy.provenance.score == provenance["score"]
