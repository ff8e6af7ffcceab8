"""Training on arrays and on a store: it learns, is repeatable, and rejects unusable examples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drip.errors import InputError, ModelError
from drip.media import InputSpec, encode_npy, encode_png
from drip.models import SmallCNN
from drip.scoring import model_digest
from drip.store import RetentionStore, class_of
from drip.training import Examples, TrainConfig, predict, retrain, stored_examples, train
from drip.types import Decision, Observation, Sample

SPEC = InputSpec((1, 8, 8))
QUICK = TrainConfig(epochs=3, batch_size=16, seed=1)


def pictures(n, seed, n_classes=3):
    """Classes differ in which third of the picture is bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    pixels = rng.integers(0, 100, (n, 8, 8), dtype=np.uint8)
    for row, label in enumerate(labels):
        pixels[row, 2 * label : 2 * label + 2] += 120
    return pixels, labels.astype(np.int64)


def examples(n, seed):
    pixels, labels = pictures(n, seed)
    return Examples(pixels[:, None].astype(np.float32) / 255, labels)


def small():
    return SmallCNN(n_classes=3, width=4)


def fill(store, n=30, seed=5, *, label=lambda _, true: true):
    pixels, labels = pictures(n, seed)
    for row in range(n):
        sample = Sample(f"s{row}", encode_png(pixels[row]), "image/png", label=label(row, int(labels[row])))
        predicted = int(labels[row]) if row % 5 else (int(labels[row]) + 1) % 3
        observation = Observation(predicted, np.zeros(3), {"drip": 0.5})
        store.put(sample, observation, Decision(row % 2 == 0, 1.0, 1.0, "test"))
    return pixels, labels


@pytest.fixture
def store(tmp_path):
    with RetentionStore.open(tmp_path / "kept.db", budget_bytes=2_000_000) as kept:
        yield kept


# -- training ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_separable_classes_are_learnt():
    model = train(small, examples(240, 0), config=replace(QUICK, epochs=6))
    test = examples(90, 1)
    assert (predict(model, test.inputs) == test.labels).mean() > 0.95
    assert not model.training


@pytest.mark.slow
def test_equal_seeds_give_equal_weights_and_others_do_not():
    first, second = (train(small, examples(60, 0), config=QUICK) for _ in range(2))
    assert model_digest(first) == model_digest(second)
    other = train(small, examples(60, 0), config=replace(QUICK, seed=2))
    assert model_digest(other) != model_digest(first)


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(small, examples(40, 0), config=QUICK)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_parts_count_as_one_set_however_they_are_cut():
    whole = examples(60, 0)
    parts = [Examples(whole.inputs[a:b], whole.labels[a:b]) for a, b in ((0, 0), (0, 13), (13, 60))]
    cut, uncut = train(small, *parts, config=QUICK), train(small, whole, config=QUICK)
    # Not bit-identical: the rows of a batch are summed in another order.
    torch.testing.assert_close(cut.classifier.weight, uncut.classifier.weight, rtol=0, atol=1e-3)


def test_fine_tuning_starts_from_the_given_weights_and_leaves_them_unchanged():
    start = train(small, examples(60, 0), config=QUICK)
    digest = model_digest(start)
    barely = TrainConfig(epochs=1, batch_size=60, learning_rate=1e-9, weight_decay=0)
    tuned = train(small, examples(60, 0), config=barely, start=start)
    assert tuned is not start
    assert model_digest(start) == digest
    torch.testing.assert_close(tuned.classifier.weight, start.classifier.weight, rtol=0, atol=1e-6)
    assert not torch.allclose(
        train(small, examples(60, 0), config=barely).classifier.weight, start.classifier.weight
    )


def test_epochs_are_reported_with_a_falling_loss():
    seen = []
    train(small, examples(120, 0), config=replace(QUICK, epochs=5), on_epoch=lambda *row: seen.append(row))
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[-1][1] < seen[0][1]


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (4, 1), (5, 2), (11, 3)])
def test_steps_count_the_batches_whatever_the_epochs(steps, epochs):
    batches, seen = [], []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            batches.append(len(x))
            return self.net(x)

    config = replace(QUICK, epochs=9, steps=steps)
    train(Spy, examples(64, 0), config=config, on_epoch=lambda *row: seen.append(row))
    assert batches == [16] * steps
    assert [epoch for epoch, _ in seen] == list(range(1, epochs + 1))
    assert all(0 < loss < 3 for _, loss in seen)


def test_the_steps_of_whole_epochs_give_the_model_of_these_epochs():
    by_epochs = train(small, examples(64, 0), config=replace(QUICK, epochs=3))
    by_steps = train(small, examples(64, 0), config=replace(QUICK, epochs=1, steps=12))
    assert model_digest(by_epochs) == model_digest(by_steps)


def test_zero_steps_are_rejected():
    with pytest.raises(InputError, match="steps is 0") as caught:
        TrainConfig(steps=0)
    assert caught.value.code == "bad-argument"


@pytest.mark.parametrize("n", [2, 3, 5, 7, 9, 17, 33])
@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_no_batch_has_a_single_example_which_would_break_batch_normalisation(n, batch_size):
    sizes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = SmallCNN(n_classes=3, width=2)

        def forward(self, x):
            sizes.append(len(x))
            return self.net(x)

    train(Spy, examples(n, 0), config=TrainConfig(epochs=1, batch_size=batch_size))
    assert sum(sizes) == n
    assert min(sizes) >= 2
    assert max(sizes) <= max(3, 1.5 * batch_size + 1)


def test_a_loss_that_is_not_finite_is_an_error():
    broken = examples(40, 0)
    broken.inputs[3] = np.nan
    with pytest.raises(ModelError, match="nan in epoch 1") as caught:
        train(small, broken, config=QUICK)
    assert caught.value.code == "training-diverged"


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_examples_are_rejected(n):
    with pytest.raises(InputError, match=f"{n} training examples") as caught:
        train(small, examples(n, 0), config=QUICK)
    assert caught.value.code == "labels-invalid"


@pytest.mark.parametrize("label", [-100, -1, 3, 2**31])
def test_a_label_outside_the_classes_is_rejected(label):
    wrong = examples(40, 0)
    wrong.labels[7] = label
    with pytest.raises(InputError, match="classes are 0 to 2") as caught:
        train(small, wrong, config=QUICK)
    assert caught.value.code == "labels-invalid"


def test_parts_with_different_shapes_are_rejected():
    other = Examples(np.zeros((4, 1, 9, 9), np.float32), np.zeros(4, np.int64))
    with pytest.raises(InputError, match=r"8, 8.*9, 9") as caught:
        train(small, examples(8, 0), other, config=QUICK)
    assert caught.value.code == "sample-shape"


def test_unequal_lengths_are_rejected():
    with pytest.raises(InputError, match="3 labels for 4 inputs") as caught:
        Examples(np.zeros((4, 1, 8, 8), np.float32), np.zeros(3, np.int64))
    assert caught.value.code == "labels-invalid"


@pytest.mark.parametrize(
    "field", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"weight_decay": -0.1}]
)
def test_a_config_outside_its_range_is_rejected(field):
    with pytest.raises(InputError, match="must be at least") as caught:
        TrainConfig(**field)
    assert caught.value.code == "bad-argument"


def test_predictions_do_not_depend_on_the_batch_size():
    model, inputs = train(small, examples(60, 0), config=QUICK), examples(33, 2).inputs
    np.testing.assert_array_equal(predict(model, inputs, 1), predict(model, inputs, 512))
    assert predict(model, inputs[:0]).shape == (0,)


# -- examples of a store -------------------------------------------------------------------------------


def test_true_labels_are_those_that_arrived_with_the_samples(store):
    pixels, labels = fill(store)
    with stored_examples(store, prepare=SPEC.prepare) as got:
        np.testing.assert_array_equal(got.labels, labels[::2])
        np.testing.assert_allclose(got.inputs[:, 0] * 255, pixels[::2], atol=1e-3)


def test_predicted_labels_are_the_models(store):
    _, labels = fill(store)
    with stored_examples(store, prepare=SPEC.prepare, labels="predicted") as got:
        expected = [labels[row] if row % 5 else (labels[row] + 1) % 3 for row in range(0, 30, 2)]
        assert got.labels.tolist() == expected


def test_human_labels_are_those_that_a_person_added(store):
    pixels, _ = fill(store)
    store.set_label("s4", 2)
    store.set_label("s10", 0)
    with stored_examples(store, prepare=SPEC.prepare, labels="human") as got:
        assert got.labels.tolist() == [2, 0]
        np.testing.assert_allclose(got.inputs[:, 0] * 255, pixels[[4, 10]], atol=1e-3)


def test_samples_without_the_label_are_skipped(store):
    pixels, labels = fill(store, label=lambda row, true: true if row % 4 == 0 else None)
    with stored_examples(store, prepare=SPEC.prepare) as got:
        np.testing.assert_array_equal(got.labels, labels[::4])
        np.testing.assert_allclose(got.inputs[:, 0] * 255, pixels[::4], atol=1e-3)


@pytest.mark.parametrize("labels", ["true", "human"])
def test_store_without_labels_gives_no_examples(store, labels):
    fill(store, label=lambda *_: None)
    with stored_examples(store, prepare=SPEC.prepare, labels=labels) as got:
        assert len(got.labels) == len(got.inputs) == 0


def test_small_memory_gives_the_same_arrays_through_a_file(store):
    fill(store)
    with (
        stored_examples(store, prepare=SPEC.prepare) as in_memory,
        stored_examples(store, prepare=SPEC.prepare, memory_bytes=100) as in_file,
    ):
        assert isinstance(in_file.inputs, np.memmap)
        assert not isinstance(in_memory.inputs, np.memmap)
        np.testing.assert_array_equal(in_file.inputs, in_memory.inputs)
        np.testing.assert_array_equal(in_file.labels, in_memory.labels)
        assert model_digest(train(small, in_file, config=QUICK)) == model_digest(
            train(small, in_memory, config=QUICK)
        )


class Changing:
    """A store that a device writes to between the two passes of a reader."""

    def __init__(self, *passes):
        self._passes = iter(passes)

    def __iter__(self):
        return iter(next(self._passes))


@pytest.mark.parametrize(("before", "after"), [(15, 9), (9, 15), (15, 0), (0, 15)])
def test_a_store_that_changes_meanwhile_leaves_no_empty_row(store, before, after):
    pixels, labels = fill(store)
    everything = list(store)
    changing = Changing(everything[:before], everything[:after])
    with stored_examples(changing, prepare=SPEC.prepare) as got:
        n = min(before, after)
        assert len(got.inputs) == n
        np.testing.assert_array_equal(got.labels, labels[::2][:n])
        if n:
            np.testing.assert_allclose(got.inputs[:, 0] * 255, pixels[::2][:n], atol=1e-3)


def test_a_stored_sample_that_cannot_be_decoded_is_named(store):
    fill(store, n=4)
    observation = Observation(0, np.zeros(3), {"drip": 0.5})
    store.put(Sample("torn", b"\x89PNG", "image/png", 0), observation, Decision(True, 1.0, 1.0, "test"))
    with (
        pytest.raises(InputError, match="stored sample 'torn': ") as caught,
        stored_examples(store, prepare=SPEC.prepare),
    ):
        pass
    with pytest.raises(InputError) as alone:
        SPEC.prepare(b"\x89PNG", "image/png")
    assert caught.value.code == alone.value.code


def test_an_unknown_kind_of_labels_is_rejected(store):
    with (
        pytest.raises(InputError, match=r"'guessed'.*true, predicted, human") as caught,
        stored_examples(store, prepare=SPEC.prepare, labels="guessed"),
    ):
        pass
    assert caught.value.code == "bad-argument"


def test_class_of_a_sample_by_kind(store):
    fill(store, n=1)
    store.set_label("s0", 2)
    (stored,) = store
    assert [class_of(stored, kind) for kind in ("true", "human", "predicted")] == [0, 2, 1]


# -- retraining ----------------------------------------------------------------------------------------


def test_retraining_is_training_on_the_set_plus_the_kept_samples(store):
    fill(store)
    base = examples(40, 0)
    with stored_examples(store, prepare=SPEC.prepare) as kept:
        expected = model_digest(train(small, base, kept, config=QUICK))
    got = retrain(small, base, store, prepare=SPEC.prepare, config=QUICK)
    assert model_digest(got) == expected
    assert model_digest(got) != model_digest(train(small, base, config=QUICK))


def test_retraining_reads_the_store_readonly(store, tmp_path):
    fill(store)
    expected = model_digest(retrain(small, examples(40, 0), store, prepare=SPEC.prepare, config=QUICK))
    store.close()
    with RetentionStore.open_readonly(tmp_path / "kept.db") as kept:
        got = retrain(small, examples(40, 0), kept, prepare=SPEC.prepare, config=QUICK)
    assert model_digest(got) == expected


def test_kept_arrays_with_another_shape_than_the_training_set_are_rejected(store):
    observation = Observation(0, np.zeros(3), {"drip": 0.5})
    data = encode_npy(np.zeros((1, 9, 9), np.float32))
    store.put(Sample("a", data, "application/x-npy", 0), observation, Decision(True, 1.0, 1.0, "test"))
    spec = InputSpec.from_json(json.loads(json.dumps(InputSpec((1, 9, 9)).to_json())))
    with pytest.raises(InputError) as caught:
        retrain(small, examples(8, 0), store, prepare=spec.prepare, config=QUICK)
    assert caught.value.code == "sample-shape"
