"""Every error has the right type and code, and its message names the thing that is wrong."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from heads import build
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own custom

from drip.errors import InputError, ModelError, NonFiniteError
from drip.models import EfficientNetB0, SmallCNN
from drip.scoring import TorchScorer

IMAGES = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)


class Wrapped(nn.Module):
    """A small network whose output goes through a function."""

    def __init__(self, after):
        super().__init__()
        torch.manual_seed(0)
        self.net = SmallCNN(1, 3, width=2)
        self.after = after

    def forward(self, x):
        return self.after(self.net(x))


def named(caught, code, *words):
    """The error has the code, and its message contains the words."""
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("after", "code", "words"),
    [
        (lambda y: y[:, :1], "model-outputs", ["(2, 1)", "torch.cat"]),
        (lambda y: y[:, :, None], "model-outputs", ["(2, 3, 1)", "(2, n_classes)"]),
        (lambda y: y.mean(), "model-outputs", ["shape ()"]),
        (lambda y: (y, y), "model-outputs", ["tuple"]),
        (lambda y: {"scores": y}, "model-outputs", ["dict"]),
        (lambda y: y / 0, "sample-non-finite", ["rows 0, 1"]),
    ],
    ids=["one logit", "3-D", "0-D", "tuple", "dict", "infinite"],
)
def test_models_without_class_logits_are_rejected(after, code, words):
    with pytest.raises(ModelError) as caught:
        TorchScorer(Wrapped(after)).score(IMAGES)
    named(caught, code, *words)


def test_a_good_message_says_what_is_wrong_and_what_to_do():
    with pytest.raises(ModelError) as caught:
        TorchScorer(SmallCNN(1, 3), layer="featurs", example=IMAGES)
    assert str(caught.value).startswith(
        "the model has no layer 'featurs'; choose another, such as features, "
    )


@pytest.mark.parametrize("after", [lambda y: SimpleNamespace(logits=y), lambda y: {"logits": y}])
def test_objects_and_mappings_with_logits_are_accepted(after):
    expected = TorchScorer(Wrapped(lambda y: y)).score(IMAGES).scores
    assert np.array_equal(TorchScorer(Wrapped(after)).score(IMAGES).scores, expected)


@pytest.mark.parametrize("after", [lambda y: y.softmax(1), lambda y: y.log_softmax(1)])
def test_probabilities_are_noted(after):
    assert "look like (log-)probabilities" in TorchScorer(Wrapped(after), example=IMAGES).describe()
    assert "note" not in TorchScorer(Wrapped(lambda y: y), example=IMAGES).describe()


def test_probabilities_of_independent_labels_are_noted():
    text = TorchScorer(Wrapped(torch.sigmoid), example=IMAGES).describe()
    assert "probabilities of independent labels" in text
    assert "one class per sample" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_named(value):
    scorer = TorchScorer(SmallCNN(1, 3, width=2), example=IMAGES)
    batch = IMAGES.copy()
    batch[1, 0, 3, 4] = value
    with pytest.raises(InputError) as caught:
        scorer.score(batch)
    named(caught, "sample-non-finite", "rows 1;")


def test_huge_finite_inputs_are_not_mistaken_for_infinity():
    model = SmallCNN(1, 3, width=2)
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(1.0)  # sums of huge inputs overflow for certain, not by luck of the initial weights
    scorer = TorchScorer(model, example=IMAGES)
    with pytest.raises(NonFiniteError) as caught:  # not the input: its logits overflow
        scorer.score(np.full((1, 1, 8, 8), 3e38, dtype=np.float32))
    named(caught, "sample-non-finite")


@pytest.mark.parametrize("n_rows", [1, 3])
def test_logits_whose_squares_overflow_are_fine(n_rows):
    small = TorchScorer(Wrapped(lambda y: y), layer="net.features", example=IMAGES).score(IMAGES)
    large = TorchScorer(Wrapped(lambda y: y), layer="net.features", example=IMAGES)
    with torch.no_grad():
        large._model.net.classifier.weight *= 1e25
        large._model.net.classifier.bias *= 1e25
    found = large.score(IMAGES[:n_rows])
    assert np.allclose(found.logits, 1e25 * small.logits[:n_rows], rtol=1e-5)
    assert np.allclose(found.scores, 1e25 * small.scores[:n_rows], rtol=1e-5)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_infinities_of_both_signs_are_named_without_a_warning(n_rows):
    model = Wrapped(lambda y: y)
    scorer = TorchScorer(model, layer="net.features", example=IMAGES)
    model.after = lambda y: torch.tensor([[torch.inf, -torch.inf, 1.0]]).expand(len(y), 3)
    with pytest.raises(NonFiniteError, match="the logits contain"):
        scorer.score(IMAGES[:n_rows])


def test_logits_that_are_not_finite_are_named():
    model = Wrapped(lambda y: torch.where(torch.arange(len(y))[:, None] == 2, torch.nan, y))
    with pytest.raises(NonFiniteError) as caught:
        TorchScorer(model).score(IMAGES)
    named(caught, "sample-non-finite", "the logits contain", "rows 2;")


def test_a_first_sample_without_finite_logits_is_the_samples_fault():
    model = Wrapped(lambda y: torch.where(y > -9, torch.nan, y))
    with pytest.raises(NonFiniteError) as caught:
        TorchScorer(model).score(IMAGES)
    named(caught, "sample-non-finite", "scale", "weights")


@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_are_not_finite_are_the_models_fault(when):
    model = SmallCNN(1, 3, width=2)
    scorer = TorchScorer(model, example=IMAGES if when == "after" else None)
    with torch.no_grad():
        model.classifier.weight[1, 1] = torch.nan
    with pytest.raises(ModelError) as caught:
        scorer.score(IMAGES)
    named(caught, "model-non-finite", "'classifier.weight'")
    assert not isinstance(caught.value, NonFiniteError)


class Fussy(nn.Module):
    """Raises the given error for images of another size, and for every image once it is broken."""

    def __init__(self, error):
        super().__init__()
        self.net = SmallCNN(1, 3, width=2)
        self.error, self.broken = error, False

    def forward(self, x):
        if self.broken or x.shape[-1] != 8:
            raise self.error
        return self.net(x)


ERRORS = [
    AssertionError("Wrong image size"),
    ValueError("size"),
    TypeError("size"),
    IndexError("size"),
    KeyError("size"),
    RuntimeError("size"),
    AssertionError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_forward_raises_is_reported_with_its_type(error):
    model = Fussy(error)
    larger = np.zeros((1, 1, 12, 12), np.float32)
    with pytest.raises(InputError) as caught:
        TorchScorer(model).score(larger)
    named(caught, "input-spec-invalid", "(1, 1, 12, 12)", type(error).__name__)
    scorer = TorchScorer(model, example=IMAGES)
    with pytest.raises(InputError) as caught:
        scorer.score(larger)
    named(caught, "sample-shape", "(1, 1, 12, 12)", type(error).__name__)
    assert caught.value.__cause__ is error
    model.broken = True
    with pytest.raises(ModelError) as caught:
        scorer.score(IMAGES)
    named(caught, "model-failed", "(3, 1, 8, 8)", type(error).__name__)
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, NonFiniteError)


def test_an_interrupt_is_not_a_failure_of_the_model():
    model = Fussy(KeyboardInterrupt())
    scorer = TorchScorer(model, example=IMAGES)
    model.broken = True
    with pytest.raises(KeyboardInterrupt):
        scorer.score(IMAGES)


@pytest.mark.parametrize("model", [nn.Linear(2, 2).state_dict(), "model.pt", SmallCNN])
def test_anything_but_a_module_is_rejected(model):
    with pytest.raises(ModelError) as caught:
        TorchScorer(model)
    named(caught, "model-not-loadable", type(model).__name__, "torch.nn.Module")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_rejected():
    script = torch.jit.trace(SmallCNN(1, 3, width=2).eval(), torch.from_numpy(IMAGES))
    with pytest.raises(ModelError) as caught:
        TorchScorer(script)
    named(caught, "model-not-loadable", "not a script")


def test_a_reshape_that_fails_is_named():
    with pytest.raises(ModelError) as caught:
        TorchScorer(SmallCNN(1, 3), layer="features", reshape=lambda a: a.nothing, example=IMAGES)
    named(caught, "score-unavailable", "AttributeError", "reshape=")


@pytest.mark.parametrize(
    ("batch", "code", "words"),
    [
        (IMAGES.astype(np.uint8), "bad-argument", ["ndarray of uint8"]),
        (IMAGES.astype(object), "bad-argument", ["ndarray of object"]),
        (np.ma.masked_less(IMAGES, 0.5), "bad-argument", ["masked"]),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int32), "bad-argument", ["Tensor of torch.int32"]),
        (IMAGES.tolist(), "bad-argument", ["list"]),
        (np.float32(1.0).reshape(1), "sample-shape", ["(1,)", "batch[None]"]),
        (IMAGES[0], "sample-shape", ["('N', 1, 8, 8)", "(1, 8, 8)", "batch[None]"]),
        (np.zeros((1, 3, 8, 8), np.float32), "sample-shape", ["('N', 1, 8, 8)", "(1, 3, 8, 8)"]),
    ],
    ids=["uint8", "object", "masked", "int32", "list", "1-D", "no batch axis", "channels"],
)
def test_batches_of_another_kind_are_rejected(batch, code, words):
    scorer = TorchScorer(SmallCNN(1, 3, width=2), example=IMAGES)
    with pytest.raises(InputError) as caught:
        scorer.score(batch)
    named(caught, code, *words)


def test_a_first_batch_of_the_wrong_shape_is_rejected():
    with pytest.raises(InputError) as caught:
        TorchScorer(SmallCNN(1, 3)).score(np.zeros((1, 3, 8, 8), np.float32))
    named(caught, "input-spec-invalid", "(1, 3, 8, 8)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heatmap": "minmax"}, ["heatmap 'minmax'", "('raw', 'normalised')"]),
        ({"method": "eigencam"}, ["method 'eigencam'", "'gradcam'"]),
        ({"method": ["gradcam"]}, ["method ['gradcam']"]),
        ({"layer": 5}, ["layer 5"]),
        ({"reshape": (1, 2)}, ["reshape (1, 2)"]),
        ({"device": "toaster"}, ["device 'toaster'"]),
        ({"example": IMAGES[:0]}, ["at least one sample"]),
    ],
)
def test_unknown_options_are_rejected(options, words):
    with pytest.raises(InputError) as caught:
        TorchScorer(SmallCNN(1, 3), **options)
    named(caught, "bad-argument", *words)


def test_properties_of_an_unprepared_scorer_ask_for_an_example():
    scorer = TorchScorer(SmallCNN(1, 3))
    for name in ("layer", "plan", "score_definition"):
        with pytest.raises(InputError, match="pass example="):
            getattr(scorer, name)


def test_a_module_without_parameters_is_rejected():
    with pytest.raises(ModelError) as caught:
        TorchScorer(nn.Flatten())
    named(caught, "model-not-loadable", "no parameters")


@pytest.mark.parametrize("layer", ["feature", "featurs.8", ""])
def test_an_unknown_layer_lists_near_matches(layer):
    model = EfficientNetB0(3)
    with pytest.raises(ModelError) as caught:
        TorchScorer(model, layer=layer, example=np.zeros((1, 3, 32, 32), np.float32))
    named(caught, "model-layer", repr(layer), "features")


def test_a_layer_after_the_pooling_is_rejected():
    with pytest.raises(ModelError) as caught:
        TorchScorer(SmallCNN(1, 3), layer="classifier", example=IMAGES)
    named(caught, "model-layer", "'classifier'", "(2, 3)")


class Odd(nn.Module):
    """A convolution that never runs, one that runs twice, one whose output is unused."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.dropped = nn.Conv2d(4, 4, 1)
        self.mixed = nn.LSTM(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = self.twice(self.twice(x))
        self.dropped(x)
        pooled = x.mean((2, 3))
        self.mixed(pooled[:, None])
        return self.fc(pooled)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("unused", "ran 0 times"),
        ("twice", "ran 2 times"),
        ("dropped", "do not depend on layer 'dropped'"),
        ("mixed", "is a tuple"),
        ("stem+relu", "'relu'"),
    ],
)
def test_a_layer_that_cannot_be_scored_says_why(layer, words):
    with pytest.raises(ModelError) as caught:
        TorchScorer(Odd(), layer=layer, example=IMAGES)
    named(caught, "model-layer", words)


def test_a_branch_whose_output_is_unused_is_not_the_target():
    assert TorchScorer(Odd(), example=IMAGES).layer == "stem"


def test_a_model_without_positions_is_rejected():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError) as caught:
        TorchScorer(model, example=IMAGES)
    named(caught, "model-layer", "(N, K, L) or (N, K, H, W)", "3 (2, 3)")


class Functional(nn.Module):
    """As in many tutorials: nonlinearity and pooling are functions, not modules."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.drop = nn.Dropout2d()
        self.fc = nn.Linear(6 * 4, 3)
        self.order = order

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = self.drop(self.conv2(x))
        x = (
            F.max_pool2d(F.relu(x), 2)
            if self.order == "relu first"
            else F.relu(F.max_pool2d(x, 2), inplace=True)
        )
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("order", ["relu first", "pool first"])
def test_functions_of_forward_belong_to_the_activation(order):
    model = Functional(order).eval()
    scorer = TorchScorer(model, example=IMAGES)
    assert (
        scorer.layer == {"relu first": "conv2+relu+max_pool2d", "pool first": "conv2+max_pool2d+relu"}[order]
    )
    x = torch.from_numpy(IMAGES)
    with torch.no_grad():
        a = F.max_pool2d(F.relu(model.conv2(F.relu(model.conv1(x)))), 2)
    a.requires_grad_()
    logits = model.fc(a.flatten(1))
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), a)
    expected = (gradient.mean((2, 3), keepdim=True) * a).sum(1).relu().mean((1, 2)).detach().numpy()
    found = scorer.score(IMAGES)
    assert np.allclose(found.scores, expected, rtol=1e-5, atol=1e-7)
    assert np.allclose(found.features, a.detach().mean((2, 3)))
    again = TorchScorer(model, layer=scorer.layer).score(IMAGES)
    assert np.array_equal(again.scores, found.scores)


class Shortcut(nn.Module):
    """The sum that enters the head is made in forward, outside any module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3)
        self.branch = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(F.relu(x + self.branch(x)).mean((2, 3)))


def test_a_shortcut_outside_any_module_is_not_chosen_but_noted():
    scorer = TorchScorer(Shortcut(), example=IMAGES)
    assert scorer.layer == "stem"
    assert "'branch' runs later but was not chosen" in scorer.describe()
    scorer = TorchScorer(Shortcut(), layer="branch", example=IMAGES)
    assert "bypasses this layer" in scorer.describe()


class WithLoudness(nn.Module):
    """The head sees the input's mean beside the pooled activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x).relu().mean((2, 3)), x.mean((2, 3))], 1))


def test_a_head_that_needs_more_than_one_activation_is_rejected_with_the_nearest_layer():
    with pytest.raises(ModelError) as caught:
        TorchScorer(WithLoudness(), example=IMAGES)
    named(caught, "model-layer", "bypasses each of 'conv+relu'", "layer='conv+relu'")
    scorer = TorchScorer(WithLoudness(), layer="conv+relu", example=IMAGES)
    assert "bypasses this layer" in scorer.describe()


def test_an_activation_changed_in_place_afterwards_is_scored_as_it_was():
    torch.manual_seed(0)
    head = [nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *head).eval()
    found = TorchScorer(model, layer="1").score(IMAGES)
    model[2].inplace = False
    expected = TorchScorer(model, layer="1").score(IMAGES)
    assert np.allclose(found.scores, expected.scores, rtol=1e-6)
    assert np.array_equal(found.features, expected.features)
    assert found.features.min() < 0


def test_one_position_is_allowed_and_noted():
    scorer = TorchScorer(EfficientNetB0(3), example=np.zeros((1, 3, 32, 32), np.float32))
    assert scorer.layer == "features"
    assert scorer.score_definition["layer_shape"] == [1280, 1, 1]
    assert "one position" in scorer.describe()


def test_tokens_that_do_not_form_a_square_ask_for_a_reshape():
    model, batch, _ = build("tokens")
    wide = np.concatenate([batch, batch], axis=3)  # 4 x 8 patches and a class token
    with pytest.raises(ModelError) as caught:
        TorchScorer(model, example=wide)
    named(caught, "model-layer", "33 tokens", "reshape=")

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 4, 8)

    scorer = TorchScorer(model, reshape=grid, example=wide)
    assert scorer.score_definition["layer_shape"] == [16, 4, 8]
    assert scorer.layer == "blocks.1"


def test_a_target_layer_replaced_after_the_scorer_was_built_is_noticed():
    model = SmallCNN(1, 3, width=2)
    scorer = TorchScorer(model, example=IMAGES)
    model.features = copy.deepcopy(model.features)
    with pytest.raises(ModelError) as caught:
        scorer.score(IMAGES)
    named(caught, "model-layer", "ran 0 times", "new scorer")


@pytest.mark.parametrize("room", ["drip.scoring", "drip.models"])
def test_without_torch_the_room_names_the_install_command(room):
    code = f"import sys; sys.modules['torch'] = None\nimport {room}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{room} needs torch" in done.stderr
    assert 'run: pip install "drip-edge[torch]"' in done.stderr


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 3], [-1, 0, 0], [0.0, 1.0, 2.0]])
def test_heatmaps_of_impossible_classes_are_rejected(classes):
    scorer = TorchScorer(SmallCNN(1, 3, width=2), example=IMAGES)
    with pytest.raises(InputError) as caught:
        scorer.heatmap(IMAGES, classes)
    named(caught, "bad-argument", "classes")
