"""A user's own model by name: whatever is wrong with it or its weights is a ModelError that names it."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drip.errors import ModelError
from drip.models import SmallCNN, load_model
from drip.scoring import model_digest

FACTORY = "drip.models:SmallCNN"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    torch.save(SmallCNN().state_dict(), path)
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text):
        (tmp_path / "usersmodel.py").write_text("from torch import nn\n" + text)
        monkeypatch.delitem(sys.modules, "usersmodel", raising=False)
        return "usersmodel:build"

    yield write
    sys.modules.pop("usersmodel", None)


def test_the_model_has_the_weights_of_the_file(weights):
    model = load_model(FACTORY, weights)
    torch.manual_seed(0)
    assert model_digest(model) == model_digest(SmallCNN())
    assert not model.training


def test_without_a_file_the_factorys_weights_stay(module):
    spec = module("def build():\n    m = nn.Linear(2, 2)\n    nn.init.zeros_(m.weight)\n    return m\n")
    assert not load_model(spec, None).weight.any()


def test_module_in_the_current_folder_is_found(module):
    assert isinstance(load_model(module("build = lambda: nn.Linear(2, 3)\n"), None), torch.nn.Linear)


@pytest.mark.parametrize("spec", ["", ":", "drip.models", "drip.models:", ":SmallCNN", "SmallCNN"])
def test_a_malformed_name_is_rejected_with_the_right_form(spec):
    with pytest.raises(ModelError, match=r"package\.module:factory") as caught:
        load_model(spec, None)
    assert caught.value.code == "model-not-loadable"


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("no_such_module:build", "no_such_module"),
        ("drip.models:NoSuchNet", "NoSuchNet"),
        ("drip.models:SmallCNN:x", "SmallCNN:x"),
        ("drip.models:__all__", "not callable"),
        (".models:SmallCNN", "relative"),
    ],
)
def test_a_factory_that_cannot_be_found_or_called_is_named(spec, word):
    with pytest.raises(ModelError) as caught:
        load_model(spec, None)
    assert caught.value.code == "model-not-loadable"
    assert repr(spec) in str(caught.value)
    assert word in str(caught.value)


def test_a_factory_that_returns_something_else_is_rejected_with_its_type(module):
    with pytest.raises(ModelError, match="returns a dict") as caught:
        load_model(module("build = dict\n"), None)
    assert caught.value.code == "model-not-loadable"


def test_a_model_on_the_meta_device_is_rejected(module):
    text = "import torch\ndef build():\n    with torch.device('meta'):\n        return nn.Linear(2, 2)\n"
    with pytest.raises(ModelError, match="'weight' is on the meta device") as caught:
        load_model(module(text), None)
    assert caught.value.code == "model-not-loadable"


@pytest.mark.parametrize(
    "text",
    [
        "def build(size):\n    return nn.Linear(size, 2)\n",
        "def build():\n    raise ValueError('no licence')\n",
        "def build(:\n",
        "raise RuntimeError('broken module')\n",
        "import no_such_dependency\n",
    ],
)
def test_factory_that_fails_is_reported_with_its_own_error(module, text):
    with pytest.raises(ModelError, match=r"'usersmodel:build'.*\w+Error: ") as caught:
        load_model(module(text), None)
    assert caught.value.__cause__ is not None


# -- weights -------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pt: does not exist") as caught:
        load_model(FACTORY, tmp_path / "none.pt")
    assert caught.value.code == "path-missing"


def test_weights_of_another_architecture_are_rejected(tmp_path):
    for name, state in (
        ("keys", torch.nn.Linear(2, 2).state_dict()),
        ("shapes", SmallCNN(n_classes=3).state_dict()),
        ("nested", {"state_dict": SmallCNN().state_dict()}),
        ("tensor", torch.zeros(3)),
        ("list", [1, 2]),
        ("none", None),
    ):
        torch.save(state, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name}: does not fit the model") as caught:
            load_model(FACTORY, tmp_path / name)
        assert caught.value.code == "model-not-loadable"


def test_truncated_weights_are_rejected_at_many_offsets(weights, tmp_path):
    data = weights.read_bytes()
    cut = tmp_path / "cut.pt"
    for end in [*range(0, 64, 7), *range(64, len(data), len(data) // 40), len(data) - 1]:
        cut.write_bytes(data[:end])
        with pytest.raises(ModelError, match=r"cut\.pt"):
            load_model(FACTORY, cut)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_weights_file_is_rejected_and_not_run(writer, tmp_path):
    harm = tmp_path / "harm"
    content = {"classifier.bias": Harmful(str(harm))}
    if writer == "torch":
        torch.save(content, tmp_path / "model.pt")
    else:
        (tmp_path / "model.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError):
        load_model(FACTORY, tmp_path / "model.pt")
    assert not harm.exists()


def test_a_whole_pickled_model_is_rejected(tmp_path):
    torch.save(SmallCNN(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="state_dict"):
        load_model(FACTORY, tmp_path / "model.pt")


def test_a_text_file_as_weights_is_reported_without_torchs_message(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"notes\.txt: cannot be read as a state_dict") as caught:
        load_model(FACTORY, tmp_path / "notes.txt")
    assert caught.value.code == "model-not-loadable"


@settings(max_examples=60)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_rejected(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "arbitrary.pt"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load_model(FACTORY, path)


def test_a_numpy_archive_is_rejected(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    (tmp_path / "model.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ModelError):
        load_model(FACTORY, tmp_path / "model.npz")
