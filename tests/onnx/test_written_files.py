"""Metadata, digest and windows of a model file: read, exchanged, checked, and rejected if they do not fit."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from heads import build
from networks import noise
from onnx import numpy_helper

from drip.errors import DripError, ExportError, InputError, ModelError, PolicyError
from drip.media import InputSpec
from drip.onnx import OnnxScorer, check, export_onnx, model_file_digest, read_metadata, set_policy
from drip.onnx.files import run_file
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


def test_another_policy_changes_decisions_but_not_digest_or_scores(path):
    before, _, _ = observed(path)
    digest = read_metadata(path).digest
    discarded = []
    for fraction in (0.2, 0.6):
        policy = fitted(path, retention=complement(fraction))
        metadata = set_policy(path, policy)
        after, scores, classes = observed(path)
        assert metadata.digest == digest == model_file_digest(onnx.load(path)) == read_metadata(path).digest
        assert read_metadata(path).policy == policy
        assert (after["retain"] == policy.retains(scores, classes)).all()
        assert (after["drip_score"] == before["drip_score"]).all()
        discarded.append(1 - after["retain"].mean())
        assert check(path).ok
    assert before["retain"].all()
    assert discarded[0] < discarded[1]


def test_calibration_scores_at_the_ends_of_windows_are_discarded(path):
    policy = fitted(path)
    set_policy(path, policy)
    found, scores, classes = observed(path)
    at_ends = [
        np.flatnonzero((classes == c) & ((scores == w.lower) | (scores == w.upper)))
        for c, w in enumerate(policy.windows) if w.discards and not w.pooled
    ]  # fmt: skip
    assert at_ends
    assert all(len(rows) >= 2 for rows in at_ends)
    assert not found["retain"][np.concatenate(at_ends)].any()


def test_pooled_windows_are_in_the_graph_too(path):
    metadata = read_metadata(path)
    _, scores, classes = observed(path)
    policy = Policy.fit(
        scores, classes, n_classes=5, retention=0.6, min_class_count=1000,
        provenance=Provenance(model_digest=metadata.digest, score=metadata.score),
    )  # fmt: skip
    assert all(window.pooled for window in policy.windows)
    set_policy(path, policy)
    assert read_metadata(path).policy == policy
    retain = observed(path)[0]["retain"]
    assert retain.tolist() == policy.retains(scores, classes).tolist()
    assert not retain.all()


def test_a_policy_of_the_parent_fits_a_float32_file(path):
    set_policy(path, fitted(path, digest=read_metadata(path).parent_digest))
    assert read_metadata(path).policy is not None


def test_the_new_file_can_have_another_path(path, tmp_path):
    before = path.read_bytes()
    set_policy(path, fitted(path), out=tmp_path / "other.onnx")
    assert path.read_bytes() == before
    assert check(tmp_path / "other.onnx").metadata.policy is not None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"digest": "0" * 64}, "policy-other-model"),
        ({"heatmap": "normalised"}, "policy-other-score"),
        ({"layer": "other"}, "policy-other-score"),
        ({"layer_shape": [1, 2]}, "policy-other-score"),
    ],
    ids=str,
)
def test_a_policy_of_another_model_or_score_is_rejected_and_nothing_changes(path, change, code):
    before = path.read_bytes()
    with pytest.raises(PolicyError) as error:
        set_policy(path, fitted(path, **change))
    assert error.value.code == code
    assert path.read_bytes() == before


def test_a_policy_with_another_number_of_classes_is_rejected(path):
    policy = Policy.fit(
        np.arange(60.0), np.repeat([0, 1, 2], 20), n_classes=3, retention=0.6,
        provenance=Provenance(model_digest=read_metadata(path).digest),
    )  # fmt: skip
    with pytest.raises(PolicyError) as error:
        set_policy(path, policy)
    assert error.value.code == "policy-other-classes"


def observations(path, **more):
    found, scores, classes = observed(path)
    return Observations(classes, found["logits"].astype(np.float64), {"drip": scores, **more}, "drip", None)


@pytest.mark.parametrize("name", ["margin", "random", "inverse-drip", "max-logit-window"])
def test_the_graph_keeps_every_sample_for_rules_without_windows_of_the_score(path, name):
    set_policy(path, fitted(path))
    rule = create(name, retention=0.5).calibrate(observations(path))
    policy = Policy.of(rule, n_classes=5, provenance=Provenance(model_digest=read_metadata(path).digest))
    set_policy(path, policy)
    assert observed(path)[0]["retain"].all()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert np.isposinf(stored[LOWER]).all()
    assert np.isneginf(stored[UPPER]).all()
    assert check(path).ok


def test_a_rule_that_reads_a_missing_output_is_rejected(path):
    _, scores, _ = observed(path)
    rule = create("lowest-contrast", retention=0.5).calibrate(observations(path, contrast=scores))
    policy = Policy.of(rule, n_classes=5, provenance=Provenance(model_digest=read_metadata(path).digest))
    with pytest.raises(InputError, match=r"contrast.*export the model again with this policy") as error:
        set_policy(path, policy)
    assert error.value.code == "rule-needs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params", "outputs"),
    [
        ("lowest-contrast", {}, ["drip_contrast", "features"]),
        ("adaptive-margin", {"gates": True}, ["features"]),
    ],
)
def test_export_adds_the_output_that_the_rule_reads(name, params, outputs, tmp_path):
    model, _, layer = build("gap_linear")
    path, x = tmp_path / "model.onnx", noise((3, 9, 11), 200)
    scorer = TorchScorer(model, layer=layer, contrast=True)
    scored = scorer.score(x)
    rule = create(name, retention=0.5, **params).calibrate(scored)
    provenance = Provenance(
        model_digest=model_digest(model), layer=scorer.layer, score=scorer.score_definition,
        input_spec=InputSpec((3, 9, 11)).to_json(),
    )  # fmt: skip
    policy = Policy.of(rule, n_classes=scored.logits.shape[1], provenance=provenance)
    export_onnx(model, policy, x[:2], path)
    assert [item.name for item in onnx.load(path).graph.output][4:] == outputs
    assert check(path).ok
    decided = policy.to_rule().decide_many(OnnxScorer(path).score(x)).retain
    expected = policy.to_rule().decide_many(scored).retain
    assert (decided == expected).mean() >= 0.99
    assert 0 < decided.mean() < 1


# -- digest ----------------------------------------------------------------------------------------------


def test_the_digest_ignores_windows_names_of_nodes_comments_and_metadata(path):
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
def test_every_other_change_changes_the_digest(path, change):
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


def test_a_changed_weight_is_found(path):
    model = onnx.load(path)
    _weight(model)
    onnx.save(model, path)
    for look in (read_metadata, check, lambda p: set_policy(p, fitted(p))):
        with pytest.raises(ExportError) as error:
            look(path)
        assert error.value.code == "model-file-damaged"


def test_windows_that_differ_from_the_policy_are_a_problem(path):
    set_policy(path, fitted(path))
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == UPPER)
    tensor.CopyFrom(numpy_helper.from_array(np.full(5, 9, np.float32), UPPER))
    onnx.save(model, path)
    report = check(path)
    assert not report.ok
    assert any(UPPER in problem for problem in report.problems)


@pytest.mark.parametrize("n_bytes", [0, 1, 100, -1, -1000])
def test_a_truncated_file_is_rejected(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])
    for look in (read_metadata, check):
        with pytest.raises(DripError):
            look(path)


def test_a_path_without_a_model_is_rejected(path, tmp_path):
    path.write_bytes(b"hello" * 100)
    for wrong, code in (
        (path, "model-file-damaged"),
        (tmp_path / "missing.onnx", "path-missing"),
        (tmp_path, "model-file-damaged"),
    ):
        with pytest.raises(ExportError, match=str(wrong)) as error:
            read_metadata(wrong)
        assert error.value.code == code


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda c: c.update(format_version=4), "model-file-version"),
        (lambda c: c.pop("digest"), "model-file-damaged"),
        (lambda c: c.update(policy=3), "model-file-damaged"),
        (None, "model-file-plain"),
    ],
    ids=["version", "digest", "policy", "none"],
)
def test_metadata_of_another_kind_are_rejected(path, edit, code):
    model = onnx.load(path)
    content = json.loads(model.metadata_props[0].value)
    if edit is None:
        del model.metadata_props[:]
    else:
        edit(content)
        model.metadata_props[0].value = json.dumps(content)
    onnx.save(model, path)
    with pytest.raises(ModelError) as error:
        read_metadata(path)
    assert error.value.code == code


def test_a_device_reads_the_metadata_that_were_written(path):
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


# -- imports --------------------------------------------------------------------------------------------


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_importing_neither_needs_nor_loads_torch():
    done = fresh("import sys\nsys.modules['torch'] = None\nimport drip.onnx, drip.cli\n")
    assert done.returncode == 0, done.stderr
    done = fresh("import sys, drip.onnx\nassert 'torch' not in sys.modules\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_error_for_a_missing_package_has_the_command_that_installs_it(package):
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


@pytest.mark.slow
def test_export_of_a_pytorch_model(factory, drip, tmp_path):
    torch.save(build("gap_linear", seed=3)[0].state_dict(), tmp_path / "w.pt")
    result = drip(
        "model", "export", factory, "--weights", "w.pt", "--input-spec", "3x9x11", "--out", "m.onnx",
        "--class-names", "a,b,c,d,e", "--contrast", "--json",
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


def small_graph(path, shape=(2, 6, 7), **options):
    from test_any_onnx import BACKBONE, CONSTANTS, HEAD, graph_of

    onnx.save(graph_of([*BACKBONE, *HEAD], CONSTANTS, shape, **options), path)
    return path


def test_export_of_an_onnx_file_loses_no_word_of_the_input_spec(drip, tmp_path):
    plain, out = small_graph(tmp_path / "plain.onnx"), tmp_path / "m.onnx"
    result = drip("model", "export", plain, "--out", out, "--input-spec", "mean=0.5 std=0.25 resize=stretch")
    assert result.code == 0, result.err
    assert read_metadata(out).spec == InputSpec((2, 6, 7), "stretch", (0.5,), (0.25,))
    assert "2x6x7 resize=stretch range=0,1 mean=0.5 std=0.25" in " ".join(result.out.split())
    open_size = small_graph(tmp_path / "open.onnx", (2, "h", "w"))
    result = drip("model", "export", open_size, "--out", out, "--input-spec", "mean=0.5")
    assert result.code == 1
    assert "--input-spec 3x224x224" in result.err


def test_export_with_the_names_of_an_onnx_file(drip, tmp_path):
    plain, out = small_graph(tmp_path / "plain.onnx", outputs=("y", "f")), tmp_path / "m.onnx"
    model = onnx.load(plain)
    model.metadata_props.add(key="names", value="{0: 'cat', 1: 'dog', 2: 'cow', 3: 'hen'}")
    onnx.save(model, plain)
    result = drip("model", "export", plain, "--out", out)
    assert result.code == 1
    assert "--output" in result.err
    assert "y (rows, classes), f (rows, classes)" in result.err
    result = drip("model", "export", plain, "--out", out, "--output", "y", "--contrast")
    assert result.code == 0, result.err
    assert "cat, dog, cow, hen" in result.out
    assert {item.name for item in onnx.load(out).graph.output} >= {"drip_contrast"}
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    result = drip("model", "export", plain, "--out", out, "--output", "y", "--labels-file", labels)
    assert read_metadata(out).class_names == ("a", "b", "c", "d")
    model.metadata_props[0].value = "{0: 'cat'}"
    onnx.save(model, plain)
    assert drip("model", "export", plain, "--out", out, "--output", "y").code == 0
    assert read_metadata(out).class_names == ()


@pytest.mark.parametrize(
    "words",
    [
        ("--score", "add=maps"),
        ("--score", "layout=up"),
        ("--softmax", "halve"),
        ("--score", "method=layercam"),
    ],
)
def test_export_options_without_meaning_are_wrong_usage(words, drip, tmp_path):
    assert (
        drip("model", "export", small_graph(tmp_path / "p.onnx"), "--out", tmp_path / "m.onnx", *words).code
        == 2
    )


def test_samples_prove_an_onnx_file_of_the_shape_that_it_declares(drip, tmp_path):
    from drip.media import encode_npy

    plain, out = small_graph(tmp_path / "plain.onnx"), tmp_path / "m.onnx"
    (tmp_path / "data").mkdir()
    for index, row in enumerate(noise((2, 6, 7), 5)):
        (tmp_path / "data" / f"{index}.npy").write_bytes(encode_npy(row))
    result = drip("model", "export", plain, "--out", out, "--data", tmp_path / "data")
    assert result.code == 0, result.err
    assert "4 samples" in drip("model", "check", out).out


def test_the_policy_completes_the_input_spec(drip, tmp_path):
    plain, out = small_graph(tmp_path / "plain.onnx"), tmp_path / "m.onnx"
    drip("model", "export", plain, "--out", out, "--input-spec", "mean=0.5 std=0.25")
    policy, metadata = tmp_path / "policy.json", read_metadata(out)
    scorer = OnnxScorer(out)
    seen = scorer.score(noise((2, 6, 7), 400))
    provenance = Provenance(
        model_digest=metadata.parent_digest, score=metadata.score, input_spec=metadata.spec.to_json()
    )
    Policy.fit(seen.scores, seen.classes, n_classes=4, retention=0.6, provenance=provenance).save(policy)
    result = drip("model", "export", plain, "--out", out, "--policy", policy, "--input-spec", "resize=exact")
    assert result.code == 0, result.err
    assert read_metadata(out).spec.mean == (0.5,)


@pytest.mark.parametrize("words", [("--output", "y"), ("--softmax", "keep"), ("--score", "layout=tokens")])
def test_options_of_onnx_files_are_wrong_usage_for_pytorch(words, factory, drip):
    result = drip("model", "export", factory, "--input-spec", "3x9x11", "--out", "m.onnx", *words)
    assert result.code == 2


def test_one_logit_on_the_command_line(drip, tmp_path):
    from test_any_onnx import BACKBONE, BIAS, CONSTANTS, HEAD, WEIGHT, graph_of

    constants = {**CONSTANTS, "w": WEIGHT[:, :1], "b": BIAS[:1]}
    onnx.save(graph_of([*BACKBONE, *HEAD], constants, (2, 6, 7)), tmp_path / "p.onnx")
    result = drip("model", "export", tmp_path / "p.onnx", "--out", tmp_path / "m.onnx")
    assert result.code == 1
    assert "--softmax sigmoid" in result.err
    result = drip(
        "model", "export", tmp_path / "p.onnx", "--out", tmp_path / "m.onnx", "--softmax", "sigmoid"
    )
    assert result.code == 0, result.err
    assert read_metadata(tmp_path / "m.onnx").n_classes == 2


def test_a_colour_image_with_channels_last_gets_them_first(drip, tmp_path):
    from test_any_onnx import CONSTANTS, HEAD, graph_of

    nodes = [
        ("Transpose", ["image"], ["t"], {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "k3"], ["c"], {}),
        ("Relu", ["c"], ["a"], {}), *HEAD,
    ]  # fmt: skip
    kernel = np.random.default_rng(0).normal(size=(6, 3, 3, 3)).astype(np.float32)
    onnx.save(graph_of(nodes, {**CONSTANTS, "k3": kernel}, (6, 7, 3)), tmp_path / "p.onnx")
    result = drip(
        "model", "export", tmp_path / "p.onnx", "--out", tmp_path / "m.onnx", "--input-spec", "std=0.5"
    )
    assert result.code == 0, result.err
    assert read_metadata(tmp_path / "m.onnx").spec.shape == (3, 6, 7)
    result = drip("model", "export", tmp_path / "p.onnx", "--out", tmp_path / "m.onnx")
    assert "drip model set-input" in result.err


def test_the_input_spec_of_a_file_can_be_corrected(path, drip, tmp_path):
    before = read_metadata(path)
    policy = fitted(path)
    policy = replace(policy, provenance=replace(policy.provenance, input_spec=before.spec.to_json()))
    set_policy(path, policy)
    result = drip("model", "set-input", path, "mean=0.5", "--out", tmp_path / "m.onnx")
    assert result.code == 0, result.err
    assert "policy was removed" in result.err
    after = read_metadata(tmp_path / "m.onnx")
    assert after.digest == before.digest
    assert after.policy is None
    assert after.spec == replace(before.spec, mean=(0.5,))
    assert check(tmp_path / "m.onnx").ok
    with pytest.raises(PolicyError) as error:  # its windows belong to other scores
        set_policy(tmp_path / "m.onnx", policy)
    assert error.value.code == "policy-other-score"
    result = drip("model", "set-input", path, before.spec.describe())  # no change
    assert result.code == 0, result.err
    assert read_metadata(path).policy is not None
    result = drip("model", "set-input", path, "x".join(map(str, (*before.spec.shape, 2))))
    assert result.code == 1


def test_check_of_a_damaged_file_ends_with_one(path, drip):
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == LOWER)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), LOWER))
    onnx.save(model, path)
    result = drip("model", "check", path)
    assert result.code == 1
    assert LOWER in result.err
