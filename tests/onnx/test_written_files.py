"""A model file's metadata, digest and limits: read, exchanged, checked, and refused where they do not fit."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from heads import build
from networks import noise
from onnx import numpy_helper

from drip.errors import DripError, ExportError, ModelError, PolicyError
from drip.media import InputSpec
from drip.onnx import OnnxScorer, check, export_onnx, model_file_digest, read_metadata, set_policy
from drip.onnx.checking import run_file
from drip.onnx.metadata import LOWER, UPPER
from drip.policy import Policy, Provenance
from drip.rules import create
from drip.scoring import TorchScorer, model_digest
from drip.types import Observations
from drip.windows import complement


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model, batch, layer = build("gap_linear")
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export_onnx(model, None, batch, path, layer=layer, class_names=("a", "b", "c", "d", "e"))
    return path


@pytest.fixture
def path(original, tmp_path):
    copy = tmp_path / "model.onnx"
    copy.write_bytes(original.read_bytes())
    return copy


def observed(path, n=400):
    found = run_file(path.read_bytes(), noise((3, 9, 11), n, 4))
    return found, found["drip_score"].astype(np.float64), found["predicted_class"]


def fitted(path, digest=None, retention=0.6, **score):
    metadata = read_metadata(path)
    _, scores, classes = observed(path)
    provenance = Provenance(model_digest=digest or metadata.digest, score={**metadata.score, **score})
    return Policy.fit(scores, classes, n_classes=5, retention=retention, provenance=provenance)


def test_another_policy_changes_decisions_and_neither_digest_nor_scores(path):
    before, _, _ = observed(path)
    digest = read_metadata(path).digest
    shares = []
    for fraction in (0.2, 0.6):
        policy = fitted(path, retention=complement(fraction))
        metadata = set_policy(path, policy)
        after, scores, classes = observed(path)
        assert metadata.digest == digest == model_file_digest(onnx.load(path)) == read_metadata(path).digest
        assert read_metadata(path).policy == policy
        assert (after["retain"] == policy.retains(scores, classes)).all()
        assert (after["drip_score"] == before["drip_score"]).all()
        shares.append(1 - after["retain"].mean())
        assert check(path).ok
    assert before["retain"].all()
    assert shares[0] < shares[1]


def test_calibration_scores_at_the_limits_are_discarded(path):
    policy = fitted(path)
    set_policy(path, policy)
    found, scores, classes = observed(path)
    at_limit = [
        np.flatnonzero((classes == c) & ((scores == w.lower) | (scores == w.upper)))
        for c, w in enumerate(policy.windows) if w.discards
    ]  # fmt: skip
    assert all(len(rows) >= 2 for rows in at_limit)
    assert not found["retain"][np.concatenate(at_limit)].any()


def test_a_policy_for_the_parent_serves_a_float_file(path):
    set_policy(path, fitted(path, digest=read_metadata(path).parent_digest))
    assert read_metadata(path).policy is not None


def test_the_new_file_may_go_elsewhere(path, tmp_path):
    before = path.read_bytes()
    set_policy(path, fitted(path), out=tmp_path / "other.onnx")
    assert path.read_bytes() == before
    assert check(tmp_path / "other.onnx").metadata.policy is not None


@pytest.mark.parametrize(
    "change",
    [{"digest": "0" * 64}, {"heatmap": "normalised"}, {"layer": "other"}, {"layer_shape": [1, 2]}],
    ids=str,
)
def test_a_policy_of_another_model_or_score_is_refused_and_nothing_changes(path, change):
    before = path.read_bytes()
    with pytest.raises(PolicyError):
        set_policy(path, fitted(path, **change))
    assert path.read_bytes() == before


def test_a_policy_of_another_number_of_classes_is_refused(path):
    policy = Policy.fit(
        np.arange(60.0), np.repeat([0, 1, 2], 20), n_classes=3, retention=0.6,
        provenance=Provenance(model_digest=read_metadata(path).digest),
    )  # fmt: skip
    with pytest.raises(PolicyError, match="classes"):
        set_policy(path, policy)


def observations(path, **more):
    found, scores, classes = observed(path)
    return Observations(classes, found["logits"].astype(np.float64), {"drip": scores, **more}, "drip", None)


@pytest.mark.parametrize("rule", ["margin", "random", "inverse-drip", "max-logit-window", "reservoir"])
def test_rules_without_windows_of_the_score_retain_all_in_the_graph(path, rule):
    set_policy(path, fitted(path))
    selector = create(rule, retention=0.5).calibrate(observations(path))
    policy = Policy.of(selector, n_classes=5, provenance=Provenance(model_digest=read_metadata(path).digest))
    set_policy(path, policy)
    assert observed(path)[0]["retain"].all()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert np.isposinf(stored[LOWER]).all()
    assert np.isneginf(stored[UPPER]).all()
    assert check(path).ok


def test_a_rule_that_reads_what_the_file_does_not_give_is_refused(path):
    _, scores, _ = observed(path)
    selector = create("lowest-contrast", retention=0.5).calibrate(observations(path, contrast=scores))
    policy = Policy.of(selector, n_classes=5, provenance=Provenance(model_digest=read_metadata(path).digest))
    with pytest.raises(PolicyError, match=r"contrast.*export it again with this policy, which adds it"):
        set_policy(path, policy)


@pytest.mark.parametrize(
    ("rule", "params", "output"),
    [
        ("lowest-contrast", {}, "drip_contrast"),
        ("adaptive-margin", {"gates": True}, "features"),
        ("gradient-norm", {}, "features"),
        ("information-gain", {}, "features"),
    ],
)
def test_export_adds_the_output_that_the_rule_reads(rule, params, output, tmp_path):
    model, _, layer = build("gap_linear")
    path, x = tmp_path / "model.onnx", noise((3, 9, 11), 200)
    scorer = TorchScorer(model, layer=layer, contrast=True)
    scored = scorer.score(x)
    selector = create(rule, retention=0.5, **params).calibrate(scored)
    provenance = Provenance(
        model_digest=model_digest(model), layer=scorer.layer, score=scorer.score_definition,
        input_spec=InputSpec((3, 9, 11)).to_json(),
    )  # fmt: skip
    policy = Policy.of(selector, n_classes=scored.logits.shape[1], provenance=provenance)
    export_onnx(model, policy, x[:2], path)
    assert [item.name for item in onnx.load(path).graph.output][4:] == [output]
    assert check(path).ok
    decided = policy.to_rule().decide_many(OnnxScorer(path).score(x)).retain
    expected = policy.to_rule().decide_many(scored).retain
    assert (decided == expected).mean() >= 0.99
    assert 0 < decided.mean() < 1


# -- digest ----------------------------------------------------------------------------------------------


def test_the_digest_ignores_limits_names_of_nodes_comments_and_metadata(path):
    model = onnx.load(path)
    digest = model_file_digest(model)
    for tensor in model.graph.initializer:
        if tensor.name in {LOWER, UPPER}:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), tensor.name))
    model.graph.node[0].name = "other"
    model.doc_string = "comment"
    model.metadata_props.add(key="k", value="v")
    assert model_file_digest(model) == digest


def _weight(model):
    next(t for t in model.graph.initializer if t.name not in {LOWER, UPPER} and len(t.dims) > 1)
    tensor = next(t for t in model.graph.initializer if t.name not in {LOWER, UPPER} and len(t.dims) > 1)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


CHANGES = {
    "weight": _weight,
    "operation": lambda m: setattr(next(n for n in m.graph.node if n.op_type == "Relu"), "op_type", "Abs"),
    "attribute": lambda m: m.graph.node[-1].attribute.append(onnx.helper.make_attribute("axis", 3)),
    "wiring": lambda m: m.graph.node[-1].input.__setitem__(0, "other"),
    "opset": lambda m: setattr(m.opset_import[0], "version", 21),
    "order": lambda m: m.graph.node.insert(0, m.graph.node.pop()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_sees_every_other_change(path, change):
    model = onnx.load(path)
    digest = model_file_digest(model)
    CHANGES[change](model)
    assert model_file_digest(model) != digest


def test_the_digest_does_not_depend_on_how_numbers_are_stored(path):
    model = onnx.load(path)
    digest = model_file_digest(model)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(
                onnx.helper.make_tensor(tensor.name, 1, values.shape, values.reshape(-1).tolist())
            )
    assert not any(t.HasField("raw_data") for t in model.graph.initializer if t.data_type == 1)
    assert model_file_digest(model) == digest


# -- damage ----------------------------------------------------------------------------------------------


def test_a_changed_weight_is_noticed(path):
    model = onnx.load(path)
    _weight(model)
    onnx.save(model, path)
    for look in (read_metadata, check, lambda p: set_policy(p, fitted(p))):
        with pytest.raises(ExportError, match="damaged"):
            look(path)


def test_limits_that_are_not_the_policy_s_are_a_problem(path):
    set_policy(path, fitted(path))
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == UPPER)
    tensor.CopyFrom(numpy_helper.from_array(np.full(5, 9, np.float32), UPPER))
    onnx.save(model, path)
    report = check(path)
    assert not report.ok
    assert any(UPPER in problem for problem in report.problems)


@pytest.mark.parametrize("n_bytes", [0, 1, 100, -1, -1000])
def test_a_truncated_file_is_refused(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])
    for look in (read_metadata, check):
        with pytest.raises(DripError):
            look(path)


def test_a_file_that_is_no_model_or_not_there_is_refused(path, tmp_path):
    path.write_bytes(b"hello" * 100)
    for wrong in (path, tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(ExportError, match="readable ONNX file"):
            read_metadata(wrong)


@pytest.mark.parametrize(
    "edit",
    [lambda c: c.update(format_version=2), lambda c: c.pop("digest"), lambda c: c.update(policy=3), None],
    ids=["version", "digest", "policy", "none"],
)
def test_metadata_of_another_kind_are_refused(path, edit):
    model = onnx.load(path)
    content = json.loads(model.metadata_props[0].value)
    if edit is None:
        del model.metadata_props[:]
    else:
        edit(content)
        model.metadata_props[0].value = json.dumps(content)
    onnx.save(model, path)
    with pytest.raises(ModelError):
        read_metadata(path)


def test_what_a_device_reads_is_what_was_written(path):
    from drip.onnx import OnnxScorer

    policy = fitted(path)
    set_policy(path, policy)
    scorer = OnnxScorer(path)
    scorer.require(policy)
    scorer.compare(policy)
    found = scorer.score(noise((3, 9, 11), 50))
    assert len(found) == 50
    assert scorer.n_disagreements == 0
    assert scorer.metadata == read_metadata(path)
    assert scorer.class_names == ("a", "b", "c", "d", "e")


# -- the room --------------------------------------------------------------------------------------------


def fresh(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_room_opens_without_torch_and_does_not_load_it():
    done = fresh("import sys\nsys.modules['torch'] = None\nimport drip.onnx, drip.cli\n")
    assert done.returncode == 0, done.stderr
    done = fresh("import sys, drip.onnx\nassert 'torch' not in sys.modules\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(package):
    done = fresh(f"import sys\nsys.modules[{package!r}] = None\nfrom drip.onnx import check\n")
    assert done.returncode == 1
    assert f"needs {package}" in done.stderr
    assert 'pip install "drip-edge[export]"' in done.stderr


# -- the command line ------------------------------------------------------------------------------------

FACTORY = """
import torch
from heads import build

def make():
    return build("gap_linear")[0]
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "exported_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "exported_factory:make"


def test_export_of_a_pytorch_model(factory, drip, tmp_path):
    torch.save(build("gap_linear", seed=3)[0].state_dict(), tmp_path / "w.pt")
    result = drip(
        "model", "export", factory, "--weights", "w.pt", "--input-spec", "3x9x11", "--out", "m.onnx",
        "--class-names", "a,b,c,d,e", "--output", "contrast", "--output", "features", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["score"]["layer"] == "0"
    assert content["class_names"] == ["a", "b", "c", "d", "e"]
    assert read_metadata("m.onnx").digest == content["digest"]
    result = drip("model", "check", "m.onnx", "--json")
    assert result.code == 0
    assert json.loads(result.out)["ok"] is True


def test_export_needs_a_shape_or_a_policy_that_says_it(factory, drip):
    result = drip("model", "export", factory)
    assert result.code == 2
    assert "--input-spec" in result.err


def test_set_policy_and_check(path, drip, tmp_path):
    fitted(path).save(tmp_path / "policy.json")
    result = drip("model", "set-policy", path, tmp_path / "policy.json")
    assert result.code == 0, result.err
    assert read_metadata(path).digest in result.out.replace("\n", "")
    result = drip("model", "check", path)
    assert result.code == 0
    assert "0 problems" in result.out
    fitted(path, digest="1" * 64).save(tmp_path / "other.json")
    result = drip("model", "set-policy", path, tmp_path / "other.json")
    assert result.code == 1
    assert result.error


def test_export_of_an_onnx_file(drip, tmp_path):
    from test_any_onnx import BACKBONE, CONSTANTS, HEAD, graph_of

    onnx.save(graph_of([*BACKBONE, *HEAD], CONSTANTS, (2, 6, 7)), tmp_path / "plain.onnx")
    out = tmp_path / "m.onnx"
    result = drip(
        "model", "export", tmp_path / "plain.onnx", "--out", out,
        "--input-spec", "2x6x7 mean=0.5,0.4 std=0.2,0.3 resize=crop",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert read_metadata(out).spec.mean == (0.5, 0.4)
    result = drip(
        "model", "export", tmp_path / "plain.onnx", "--out", out, "--weights", tmp_path / "plain.onnx"
    )
    assert result.code == 2
    result = drip("model", "export", tmp_path / "plain.onnx", "--out", out, "--score", "layer=f")
    assert result.code == 1
    assert "layer" in result.err


def test_check_of_a_damaged_file_ends_with_one(path, drip):
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == LOWER)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), LOWER))
    onnx.save(model, path)
    result = drip("model", "check", path)
    assert result.code == 1
    assert LOWER in result.err
