"""OnnxScorer gives what NumPy computes from the same weights, and rejects what it cannot score."""

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from known_model import N_CLASSES, make_model, write_digest
from PIL import Image

from drip.errors import InputError, ModelError, NonFiniteError, PolicyError
from drip.media import InputSpec, encode_npy
from drip.onnx import OnnxScorer
from drip.policy import Policy

IMAGES = InputSpec((3, 6, 5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
AUDIO = InputSpec((1, 400), sample_rate_hz=16_000)


@pytest.fixture
def known(tmp_path):
    return make_model(tmp_path / "model.onnx", IMAGES)


def noise(n, spec=IMAGES, seed=1):
    return np.random.default_rng(seed).normal(size=(n, *spec.shape)).astype(np.float32)


@pytest.mark.parametrize(
    "copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_scorer_can_be_sent_to_another_process(copied, known):
    scorer = OnnxScorer(known.path, threads=2)
    other, x = copied(scorer), noise(5)
    assert other.threads == 2
    np.testing.assert_array_equal(other.score(x).scores, scorer.score(x).scores)
    assert other.provides == scorer.provides


def test_a_scorer_does_not_wake_up_with_another_model(known):
    sent = pickle.dumps(OnnxScorer(known.path))
    make_model(known.path, IMAGES, seed=99)
    with pytest.raises(ModelError, match="another model") as error:
        pickle.loads(sent)
    assert error.value.code == "model-file-damaged"
    known.path.unlink()
    with pytest.raises(ModelError) as error:
        pickle.loads(sent)
    assert error.value.code == "path-missing"


def policy_of(known, **changes):
    """Windows around the middle of the scores of noise."""
    _, classes, scores, _ = known.expected(noise(600, known.spec, seed=9))
    provenance = {
        "model_digest": known.digest,
        "score": {"method": "gradcam", "heatmap": "raw", "layer": "maps"},
        "input_spec": known.spec.to_json(),
        **changes,
    }
    return Policy.fit(scores, classes, n_classes=N_CLASSES, retention=0.6, provenance=provenance)


@pytest.mark.parametrize("spec", [IMAGES, AUDIO], ids=["image", "audio"])
@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_scores_are_those_of_the_equations(n, batch, spec, tmp_path):
    known = make_model(tmp_path / "model.onnx", spec, batch=batch)
    scorer = OnnxScorer(known.path)
    inputs = noise(n, spec)
    found = scorer.score(inputs)
    logits, classes, scores, _ = known.expected(inputs)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-7)
    assert found.logits.dtype == found.scores.dtype == np.float64
    assert found.primary == "drip"
    assert scorer.provides == {"logits", "drip"}
    assert scorer.graph_retain.tolist() == [True] * n


def test_contrast_and_features_are_given_if_the_file_has_them(tmp_path):
    known = make_model(tmp_path / "model.onnx", IMAGES, on_request=True)
    scorer = OnnxScorer(known.path)
    assert scorer.provides == {"logits", "drip", "contrast", "features"}
    inputs = noise(8)
    found = scorer.score(inputs)
    *_, scores, contrasts = known.expected(inputs)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.named_scores["contrast"], contrasts, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.features, known.maps(inputs).mean(axis=2), rtol=1e-4)
    assert list(found.named_scores) == ["drip", "contrast"]


def test_rows_do_not_depend_on_the_batch(known):
    scorer = OnnxScorer(known.path)
    inputs = noise(9)
    together = scorer.score(inputs)
    alone = [scorer.score(inputs[i : i + 1]) for i in range(9)]
    np.testing.assert_allclose(together.scores, [part.scores[0] for part in alone], rtol=1e-5)


@pytest.mark.parametrize("batch", ["N", 1])
def test_an_empty_batch_gives_empty_columns(batch, tmp_path):
    scorer = OnnxScorer(make_model(tmp_path / "model.onnx", IMAGES, batch=batch).path)
    found = scorer.score(noise(0))
    assert len(found) == 0
    assert found.logits.shape == (0, N_CLASSES)


def test_metadata_are_attributes_of_the_scorer(known):
    scorer = OnnxScorer(known.path)
    assert scorer.digest == known.digest
    assert scorer.parent_digest == "b" * 64
    assert scorer.digests == (known.digest, "b" * 64)
    assert scorer.spec == IMAGES
    assert scorer.class_names == ("ant", "bee", "cow")
    assert scorer.policy is None
    assert scorer.layer == "maps"
    assert scorer.n_classes == N_CLASSES


# -- prepared by the input spec ------------------------------------------------------------------------------


def encoded_image(kind, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def encoded_audio(kind, values):
    buffer = io.BytesIO()
    soundfile.write(buffer, values, 16_000, format=kind, subtype="PCM_16")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_encoded_image_scores_like_its_pixels(kind, known):
    pixels = np.random.default_rng(2).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    data = encoded_image(kind, pixels)
    decoded = np.asarray(Image.open(io.BytesIO(data))).astype(np.float64).transpose(2, 0, 1) / 255
    inputs = (decoded - np.reshape(IMAGES.mean, (3, 1, 1))) / np.reshape(IMAGES.std, (3, 1, 1))
    found = OnnxScorer(known.path).score(IMAGES.prepare(data, f"image/{kind.lower()}")[None])
    np.testing.assert_allclose(found.scores, known.expected(inputs[None])[2], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_encoded_audio_scores_like_its_samples(kind, tmp_path):
    known = make_model(tmp_path / "model.onnx", AUDIO)
    values = np.round(np.sin(np.arange(400) / 7) * 20_000) / 32_768
    found = OnnxScorer(known.path).score(
        AUDIO.prepare(encoded_audio(kind, values), f"audio/{kind.lower()}")[None]
    )
    np.testing.assert_allclose(found.scores, known.expected(values[None, None])[2], rtol=1e-4)


def test_arrays_are_scored_unchanged(tmp_path):
    spec = InputSpec((3, 6, 5))
    known = make_model(tmp_path / "model.onnx", spec)
    values = noise(1)[0]
    found = OnnxScorer(known.path).score(spec.prepare(encode_npy(values), "application/x-npy")[None])
    np.testing.assert_allclose(found.scores, known.expected(values[None])[2], rtol=1e-4)


# -- policies ------------------------------------------------------------------------------------------


def test_decisions_that_differ_between_graph_and_policy_are_counted(tmp_path):
    plain = make_model(tmp_path / "plain.onnx", IMAGES)
    policy = policy_of(plain)
    lower = [window.lower for window in policy.windows]
    upper = [window.upper for window in policy.windows]
    same = OnnxScorer(make_model(tmp_path / "same.onnx", IMAGES, windows=(lower, upper)).path)
    other = OnnxScorer(plain.path)  # its windows are empty: it keeps everything
    inputs = noise(200)
    for scorer in (same, other):
        scorer.compare(policy)
        found = scorer.score(inputs)
    decided = policy.retains(found.scores, found.classes)
    assert same.graph_retain.tolist() == decided.tolist()
    assert same.n_disagreements == 0
    assert other.n_disagreements == (~decided).sum() > 0
    other.score(inputs[:100])
    assert other.n_disagreements == (~decided).sum() + (~decided[:100]).sum()
    other.compare(None)
    other.score(inputs)
    assert other.n_disagreements == (~decided).sum() + (~decided[:100]).sum()


def test_rules_without_windows_have_nothing_to_compare(known):
    scorer = OnnxScorer(known.path)
    policy = policy_of(known)
    for recipe in (
        replace(policy.rule, name="margin"),
        replace(policy.rule, params={**policy.rule.params, "score": "contrast"}),
    ):
        scorer.compare(replace(policy, rule=recipe))
        scorer.score(noise(50))
    assert scorer.n_disagreements == 0


def test_the_policy_in_the_file_is_read(known, tmp_path):
    policy = policy_of(known)
    path = make_model(tmp_path / "with.onnx", IMAGES, policy=policy).path
    assert OnnxScorer(path).policy == policy


def test_the_parents_windows_fit_a_float32_file_and_not_a_quantised_one(known, tmp_path):
    policy = policy_of(known, model_digest="b" * 64)
    OnnxScorer(known.path).require(policy)
    int8 = OnnxScorer(make_model(tmp_path / "int8.onnx", IMAGES, quantization={"weights": "int8"}).path)
    with pytest.raises(PolicyError, match="--accept-parent-windows") as error:
        int8.require(policy)
    assert error.value.code == "policy-parent-windows"
    int8.require(policy, accept_parent_windows=True)
    int8.require(policy_of(known))  # fitted on the file itself
    assert int8.digests == (known.digest,)


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"model_digest": "c" * 64}, "policy-other-model", "c" * 12),
        ({"model_digest": ""}, "policy-other-model", "none"),
        ({"score": {"heatmap": "normalised"}}, "policy-other-score", "heatmap 'normalised'"),
        ({"score": {"layer": "conv7"}}, "policy-other-score", "conv7"),
        ({"input_spec": InputSpec((3, 6, 5)).to_json()}, "policy-other-score", "mean"),
        ({"input_spec": replace(IMAGES, shape=(3, 5, 6)).to_json()}, "policy-other-score", "shape"),
    ],
)
def test_a_policy_of_another_model_or_score_is_rejected(changes, code, word, known):
    with pytest.raises(PolicyError, match=word) as error:
        OnnxScorer(known.path).require(policy_of(known, **changes))
    assert error.value.code == code


def test_a_policy_with_another_number_of_classes_is_rejected(known):
    policy = policy_of(known)
    wide = Policy.fit(
        np.arange(8.0), np.arange(8) % 4, n_classes=4, retention=0.6, provenance=policy.provenance
    )
    with pytest.raises(PolicyError, match="has 4 classes, but the model has 3") as error:
        OnnxScorer(known.path).require(wide)
    assert error.value.code == "policy-other-classes"


def test_a_bound_on_memory_does_not_make_another_input_spec(known):
    spec = replace(IMAGES, max_values=1000)
    OnnxScorer(known.path).require(policy_of(known, input_spec=spec.to_json()))


# -- inputs and numbers that are rejected --------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 5, 6), np.float32),
        np.zeros((3, 6, 5), np.float32),
        np.zeros((1, 3, 6, 5), np.uint8),
        [[0.0]],
    ],
    ids=["turned", "no batch axis", "integers", "list"],
)
def test_another_shape_or_type_is_rejected(batch, known):
    with pytest.raises(InputError, match=r"\('N', 3, 6, 5\)") as error:
        OnnxScorer(known.path).score(batch)
    assert error.value.code == "sample-shape"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_non_finite_inputs_are_rejected_with_their_rows(value, known):
    batch = noise(4).astype(np.float64)
    batch[2, 0, 0, 0] = value
    with pytest.raises(InputError, match="rows 2 ") as error:
        OnnxScorer(known.path).score(batch)
    assert error.value.code == "sample-non-finite"


@pytest.mark.parametrize("strange", [np.float64, np.float16])
def test_other_float_types_and_memory_layouts_are_accepted(strange, known):
    scorer = OnnxScorer(known.path)
    values = noise(4).astype(strange)
    np.testing.assert_allclose(
        scorer.score(np.asfortranarray(values)).scores, known.expected(values)[2], rtol=1e-4
    )


def test_non_finite_results_are_reported_with_their_rows(known):
    batch = noise(5)
    batch[3] = 3e38
    with pytest.raises(NonFiniteError, match=r"(logits|drip) of rows 3 "):
        OnnxScorer(known.path).score(batch)


@pytest.mark.parametrize("name", ["first", "head", "bias"])
def test_nan_weights_are_rejected_when_the_file_is_opened(name, tmp_path):
    def spoil(weights):
        weights[name].flat[0] = np.nan

    path = make_model(tmp_path / "model.onnx", IMAGES, spoil=spoil).path
    with pytest.raises(ModelError, match=r"model\.onnx: ") as error:
        OnnxScorer(path)
    assert error.value.code == "model-non-finite"


def test_an_execution_provider_is_named_as_onnxruntime_names_it(known):
    scorer = OnnxScorer(known.path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(
        scorer.score(noise(3)).scores, OnnxScorer(known.path).score(noise(3)).scores
    )
    with pytest.raises(InputError, match="CPUExecutionProvider") as error:
        OnnxScorer(known.path, providers=["GpuExecutionProvider"])
    assert error.value.code == "provider-unknown"


def test_threads_below_one_are_rejected(known):
    with pytest.raises(InputError, match="threads"):
        OnnxScorer(known.path, threads=0)
    assert len(OnnxScorer(known.path, threads=2).score(noise(2))) == 2


# -- files that are rejected ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_rejected(keep, known, tmp_path):
    data = known.path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError) as error:
        OnnxScorer(path)
    assert error.value.code == "model-file-damaged"


@pytest.mark.parametrize("data", [b"no model at all" * 50, bytes(300), b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_a_model_is_rejected(data, tmp_path):
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.onnx: ") as error:
        OnnxScorer(tmp_path / "x.onnx")
    assert error.value.code == "model-file-damaged"


def test_a_path_that_is_not_a_file_is_rejected(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: does not exist") as error:
        OnnxScorer(tmp_path / "none.onnx")
    assert error.value.code == "path-missing"
    with pytest.raises(ModelError, match="folder") as error:
        OnnxScorer(tmp_path)
    assert error.value.code == "path-missing"


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda _: None, "model-file-plain", "drip model export"),
        (lambda content: {**content, "format_version": 4}, "model-file-version", "version 4"),
        (lambda content: {**content, "format_version": "1"}, "model-file-version", "'1'"),
        (lambda content: {**content, "format_version": True}, "model-file-version", "True"),
        (lambda _: "{", "model-file-damaged", "JSON"),
        (lambda _: "[]", "model-file-damaged", "JSON"),
        (lambda content: without(content, "format_version"), "model-file-damaged", "JSON"),
        (lambda content: {**content, "digest": ""}, "model-file-damaged", "digest"),
        (lambda content: {**content, "digest": 7}, "model-file-damaged", "digest"),
        (lambda content: {**content, "score": None}, "model-file-damaged", "score"),
        (lambda content: {**content, "input_spec": {"shape": [0]}}, "model-file-damaged", "shape"),
        (lambda content: {**content, "policy": {"format": "other"}}, "model-file-damaged", "policy"),
        (lambda content: {**content, "class_names": [1, 2, 3]}, "model-file-damaged", "class names"),
        (lambda content: {**content, "n_classes": -1}, "model-file-damaged", "n_classes is -1"),
        (lambda content: {**content, "n_classes": "3"}, "model-file-damaged", "n_classes is '3'"),
        (lambda content: {**content, "n_classes": 4}, "model-file-damaged", "n_classes is 4"),
        (lambda content: without(content, "quantization"), "model-file-damaged", "quantization"),
        (lambda content: without(content, "input_spec"), "model-file-damaged", "input_spec"),
        (lambda content: {**content, "class_names": ["a", "b"]}, "model-outputs", "2 class names"),
        (lambda content: {**content, "n_classes": 5, "class_names": []}, "model-outputs", "metadata says 5"),
        (
            lambda content: {**content, "input_spec": InputSpec((3, 6, 6)).to_json()},
            "input-spec-invalid",
            r"\(3, 6, 6\)",
        ),
    ],
)
def test_metadata_that_do_not_fit_are_rejected(change, code, word, tmp_path):
    path = make_model(tmp_path / "model.onnx", IMAGES, change=change).path
    with pytest.raises(ModelError, match=word) as error:
        OnnxScorer(path)
    assert error.value.code == code


def without(content, key):
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize("missing", ["logits", "predicted_class", "drip_score", "retain"])
def test_a_graph_without_an_output_is_rejected(missing, known):
    import onnx

    model = onnx.load(str(known.path))
    (output,) = [o for o in model.graph.output if o.name == missing]
    model.graph.output.remove(output)
    onnx.save(model, str(known.path))
    with pytest.raises(ModelError, match=f"output '{missing}' does not exist") as error:
        OnnxScorer(known.path)
    assert error.value.code == "model-outputs"


def test_a_fixed_batch_of_several_is_rejected(tmp_path):
    path = make_model(tmp_path / "model.onnx", IMAGES, batch=4).path
    with pytest.raises(ModelError, match="batches of 4"):
        OnnxScorer(path)


def test_a_graph_with_two_inputs_is_rejected(known):
    import onnx

    model = onnx.load(str(known.path))
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["N"]))
    onnx.save(model, str(known.path))
    with pytest.raises(ModelError, match="must have one float32 input"):
        OnnxScorer(known.path)


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (("Flatten", ["flat"], {"axis": 0}), "logits of shape|must have 2 rows"),
        (("Transpose", ["turned"], {"perm": [1, 0]}), "must have 2 rows"),
    ],
)
def test_logits_of_another_shape_are_rejected(node, match, known):
    import onnx

    kind, outputs, attributes = node
    model = onnx.load(str(known.path))
    for part in model.graph.node:
        part.output[:] = ["plain" if name == "logits" else name for name in part.output]
        part.input[:] = ["plain" if name == "logits" else name for name in part.input]
    model.graph.node.append(onnx.helper.make_node(kind, ["plain"], ["logits"], name=outputs[0], **attributes))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for name in ("a", "b"):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = name
    onnx.save(model, str(known.path))
    write_digest(known.path)
    with pytest.raises(ModelError, match=match):
        OnnxScorer(known.path)


def test_a_graph_that_fails_when_it_runs_is_rejected(known):
    import onnx

    model = onnx.load(str(known.path))
    (gather,) = [part for part in model.graph.node if list(part.output) == ["lower"]]
    for part in model.graph.initializer:
        if part.name == "drip.lower":
            part.CopyFrom(onnx.numpy_helper.from_array(np.zeros(0, np.float32), "drip.lower"))
    assert gather.input[0] == "drip.lower"
    onnx.save(model, str(known.path))
    with pytest.raises(ModelError, match="fails on inputs of shape"):
        OnnxScorer(known.path)


# -- a device has neither torch nor onnx ---------------------------------------------------------------

BARE = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
import numpy as np
from drip.onnx import OnnxScorer
scorer = OnnxScorer(sys.argv[1])
print(scorer.score(np.ones((2, 3, 6, 5), np.float32)).scores[0], scorer.digest)
"""


def test_scoring_needs_neither_torch_nor_onnx(known):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, known.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    score, digest = done.stdout.split()
    expected = known.expected(np.ones((1, 3, 6, 5)))[2][0]
    assert float(score) == pytest.approx(expected, rel=1e-4)
    assert digest == known.digest


def test_the_error_without_onnxruntime_has_the_command_that_installs_it():
    code = "import sys\nsys.modules['onnxruntime'] = None\nfrom drip.onnx import OnnxScorer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "drip-edge[device]"' in done.stderr


@pytest.mark.slow
def test_importing_is_quick_enough_for_a_device(capsys):
    # Processor time: a busy machine adds nothing to it.
    code = "import time\nt = time.process_time()\nimport drip.cli, drip.onnx\nprint(time.process_time() - t)"
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    )
    with capsys.disabled():
        sys.stdout.write(f"[drip.cli and drip.onnx import in {seconds:.2f} s of processor time] ")
    assert seconds < 5
