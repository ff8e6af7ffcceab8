"""A TOML file gives options of commands; the command line wins, and what the file gets wrong is an error."""

import json

import pytest

from drip.policy import Policy
from drip.store import RetentionStore


@pytest.fixture
def config(tmp_path):
    """Writes the file; gives its path."""

    def write(text):
        path = tmp_path / "drip.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_gives_required_options_flags_numbers_and_lists(config, board, drip, tmp_path):
    path = config(f"""
        [calibrate]
        data = "{board.calibration}"
        out = "{tmp_path}/policy.json"
        keep = 0.25
        rule = "drip"
        rule-option = ["method=histogram_peak", "min_class_count=3"]

        [run]
        source = "{board.production}"
        store = "{tmp_path}/kept.db"
        policy = "{tmp_path}/policy.json"
        budget = "3MB"
        batch_size = 7
        shadow = true
        json = true

        [store.stats]
        json = true
    """)
    assert drip("--config", path, "calibrate", board.bare.path).code == 0
    params = Policy.load(tmp_path / "policy.json").rule.params
    assert (params["retention"], params["method"], params["min_class_count"]) == (0.25, "histogram_peak", 3)
    found = json.loads(drip("--config", path, "run", board.bare.path).out)
    assert found["store"]["budget_bytes"] == 3_000_000
    assert found["store"]["kept"] == found["run"]["n_seen"]
    with RetentionStore.open_readonly(tmp_path / "kept.db") as store:
        assert json.loads(drip("--config", path, "store", "stats", store.path).out)["seen"] == len(store)


def test_the_command_line_wins(config, drip, run_options):
    path = config('[run]\nbudget = "3MB"\nshadow = true\nstore = "/nowhere/kept.db"\n')
    found = json.loads(drip("--config", path, *run_options, "--budget", "4MB", "--no-shadow", "--json").out)
    assert found["store"]["budget_bytes"] == 4_000_000
    assert found["store"]["kept"] < found["run"]["n_seen"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("keep = 0.25", ["--dpw", "0.5"], 0.5),
        ("dpw = 0.75", ["--keep", "0.5"], 0.5),
        ("dpw = 0.75", [], 0.25),
        ("keep = 0.25", [], 0.25),
    ],
)
def test_keep_and_dpw_are_one_number_of_which_the_typed_one_wins(
    text, options, expected, config, board, drip, tmp_path
):
    path = config(f"[calibrate]\n{text}\n")
    calibrate = ["calibrate", board.bare.path, "--data", board.calibration, "--rule", "drip"]
    calibrate += ["--out", tmp_path / "p.json"]
    assert drip("--config", path, *calibrate, *options).code == 0
    assert Policy.load(tmp_path / "p.json").rule.params["retention"] == expected
    assert drip(*calibrate, "--keep", "0.5", "--dpw", "0.5").code == 2
    assert drip("--config", config("[calibrate]\nkeep = 0.5\ndpw = 0.5"), *calibrate).code == 2


@pytest.mark.parametrize(
    ("table", "text", "typed"),
    [
        ("reduce.table", "keep = 0.5", ["--n-samples", "3"]),
        ("reduce.table", "n-samples = 2", ["--keep", "0.3"]),
        ("reduce.table", "keep = 0.5", ["--epsilon", "9"]),
        ("calibrate", "keep = 0.5", ["--rule", "adaptive-random", "--rule-option", "samples_per_hour=60"]),
        (
            "calibrate",
            'rule-option = ["samples_per_hour=60"]',
            ["--rule", "adaptive-random", "--keep", "0.5"],
        ),
        (
            "calibrate",
            'weights = "w.pt"\ninput-spec = "3x8x8"\nscore = "layer=a"\nclass-names = "a,b"',
            ["--rule", "drip"],
        ),
        ("run", 'weights = "w.pt"', []),
    ],
)
def test_a_typed_option_silences_a_configured_one_that_it_excludes(
    table, text, typed, config, board, drip, run_options, tmp_path
):
    (tmp_path / "t.csv").write_text("a\n" + "".join(f"{number}\n" for number in range(10)))
    commands = {
        "reduce.table": ["reduce", "table", tmp_path / "t.csv", "--out", tmp_path / "kept.csv"],
        "calibrate": [
            "calibrate", board.bare.path, "--data", board.calibration, "--out", tmp_path / "p.json"
        ],
        "run": run_options,
    }  # fmt: skip
    path = config(f"[{table}]\n{text}\n")
    result = drip("--config", path, *commands[table], *typed)
    # The model file has no features, which every rule with a target per time needs: that is checked last.
    assert result.error == ("rule-needs" if "adaptive-random" in typed else ""), result.err


def test_the_environment_names_the_file_and_the_option_wins(config, drip, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIP_CONFIG", str(config("[demo]\nepochs = 'many'\n")))
    assert drip("store", "stats", tmp_path / "none.db").error == "config-invalid"
    other = tmp_path / "other.toml"
    other.write_text("")
    assert drip("--config", other, "store", "stats", tmp_path / "none.db").error != "config-invalid"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[rum]\n", "run"),
        ("[store.exprot]\n", "export"),
        ("[run]\nbudgte = '2GB'\n", "budget"),
        ("[run]\nbatch = 8\n", "batch-size"),
        ("[store.stats]\nbudget = 8\n", "json"),
        ("[run]\nmodel = 'model.onnx'\n", ""),
        ("config = 'other.toml'\n", ""),
        ("[run.more]\n", ""),
    ],
)
def test_an_unknown_key_is_an_error_with_a_near_one(text, hint, config, drip):
    path = config(text)
    result = drip("--config", path, "demo")
    assert (result.code, result.error) == (1, "config-unknown-key")
    assert str(path) in result.err
    assert hint in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[run", "run = 3\n", "[run]\nshadow = 1\n", "[run]\nshadow = 'yes'\n", "[run]\nbatch-size = true\n",
        "[run]\nbatch-size = 1.5\n", "[run]\nbatch-size = '8'\n", "[run]\nstore = 3\n", '[run]\nstore = "\\u0000"\n',
        "[run]\nstore = ['a']\n", "[run]\nbudget = true\n", "[run]\neviction = 1\n",
        "[calibrate]\nrule-option = 'seed=1'\n", "[calibrate]\nrule-option = [1]\n",
        "[run]\nbatch-size = 1\nbatch_size = 1\n", "[demo]\nseed = 1979-05-27\n", "\0",
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_an_error(text, config, drip):
    result = drip("--config", config(text), "demo", "--epochs", "0")
    assert (result.code, result.error) == (1, "config-invalid")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["batch-size = 0", "budget = 'much'", "eviction = 'lru'", "threads = 1000"])
def test_a_value_outside_its_range_is_wrong_usage_as_on_the_command_line(text, config, drip, run_options):
    result = drip("--config", config(f"[run]\n{text}\n"), *run_options)
    assert result.code == 2
    assert f"--{text.split()[0]}" in result.err


def test_a_file_that_is_none_is_refused(drip, tmp_path):
    assert drip("--config", tmp_path / "none.toml", "demo").error == "path-missing"
    assert drip("--config", tmp_path, "demo").error == "config-invalid"
    (tmp_path / "latin.toml").write_bytes("[run]\nstore = 'é'".encode("latin-1"))
    assert drip("--config", tmp_path / "latin.toml", "demo").error == "config-invalid"


def test_a_file_with_a_byte_order_mark_is_read(drip, tmp_path):
    path = tmp_path / "drip.toml"
    path.write_text("[demo]\nepochs = 'many'\n", encoding="utf-8-sig")
    result = drip("--config", path, "demo")
    assert (result.error, "epochs" in result.err) == ("config-invalid", True)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_of_a_command_does_not_need_a_good_file(option, config, drip):
    path = config("[run]\nbudgte = '2GB'\n")
    result = drip("--config", path, "run", option)
    assert (result.code, result.err) == (0, "")
    assert "--budget" in result.out
