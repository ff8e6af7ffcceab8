"""Files of format version 1, with a policy of version 1 inside, read and decide as when they were written.

``data/version-1.onnx`` and its int8 form were written by DRIP before the format changed, and
``data/version-1.json`` has what that DRIP gave for 60 inputs of noise.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from drip.media import InputSpec
from drip.onnx import OnnxScorer, check, read_metadata, set_policy

DATA = Path(__file__).parent / "data"
SPEC = InputSpec((2, 6, 7), mean=(0.1, -0.1), std=(1.0, 2.0))


@pytest.fixture(params=["version-1", "version-1-int8"])
def old(request):
    """Path of the file, and what it gave."""
    expected = json.loads((DATA / "version-1.json").read_text())
    return DATA / f"{request.param}.onnx", expected[request.param]


def inputs():
    return np.random.default_rng(1).normal(size=(60, 2, 6, 7)).astype(np.float32)


def content_of(path):
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return json.loads(properties["drip"])


def test_the_fixtures_have_the_old_keys(old):
    content = content_of(old[0])
    assert content["format_version"] == content["policy"]["format_version"] == 1
    assert "input_contract" in content
    assert "recipe" in content["policy"]
    assert "input_contract" in content["policy"]["provenance"]


def test_an_old_file_gives_the_same_scores_and_decisions(old):
    path, expected = old
    scorer = OnnxScorer(path)
    policy = scorer.policy
    scorer.require(policy)
    scorer.compare(policy)
    found = scorer.score(inputs())
    decided = policy.to_rule().decide_many(found).retain
    assert "".join("01"[int(one)] for one in decided) == expected["retain"]
    assert found.classes.tolist() == expected["classes"]
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-4, atol=2e-6)
    assert (scorer.graph_retain == decided).all()
    assert scorer.n_disagreements == 0
    assert check(path, inputs()).ok


def test_digests_and_input_spec_of_an_old_file_are_kept(old):
    path, expected = old
    metadata = read_metadata(path)
    assert metadata.digest == expected["digest"]
    assert metadata.parent_digest == expected["parent_digest"]
    assert metadata.policy.digest == expected["policy_digest"]
    assert metadata.spec == SPEC == InputSpec.from_json(metadata.policy.provenance.input_spec)


def test_setting_a_policy_writes_the_present_version(old, tmp_path):
    path, expected = old
    copy = tmp_path / "model.onnx"
    shutil.copy(path, copy)
    set_policy(copy, read_metadata(path).policy)
    content = content_of(copy)
    assert content["format_version"] == 3
    assert InputSpec.from_json(content["input_spec"]) == SPEC
    assert "input_contract" not in content
    scorer = OnnxScorer(copy)
    assert scorer.digest == expected["digest"]
    decided = scorer.policy.to_rule().decide_many(scorer.score(inputs())).retain
    assert "".join("01"[int(one)] for one in decided) == expected["retain"]
