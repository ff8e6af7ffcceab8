"""`drip reduce table`: the rows it keeps, what it reports, and what it rejects."""

import csv
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from drip.reduction import MaxMin, epsilon_representativeness

COLUMNS = ["length", "width", "hue"]


@pytest.fixture
def table(tmp_path):
    """A table with odd texts: zeros in front, blanks, quotes and breaks, which must come out as they are."""
    rng = np.random.default_rng(0)
    path = tmp_path / "beans.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "Class", "note"])
        for number in range(120):
            values = [f"{value:.4f}" for value in rng.normal(size=3)]
            values[0] = f"{number * 10:05d}"
            kind = ["ant", "bee, wild", "07"][number % 3 if number % 10 else 0]
            writer.writerow([*values, kind, f'line {number}\nwith "quotes", commas'])
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def scaled(path):
    values = np.array([[float(cell) for cell in row[:3]] for row in rows_of(path)[1:]])
    return (values - values.min(axis=0)) / (values.max(axis=0) - values.min(axis=0))


def test_the_kept_rows_are_those_of_the_method_word_for_word(table, drip, tmp_path):
    out = tmp_path / "kept.csv"
    options = ["--label", "Class", "--ignore", "note", "--keep", "0.1", "--seed", "3", "--out", out]
    assert drip("reduce", "table", table, *options, "--method", "maxmin").code == 0
    whole = rows_of(table)
    labels = [row[3] for row in whole[1:]]
    expected = MaxMin(0.1, random_state=3).fit(scaled(table), labels).sample_indices_
    assert rows_of(out) == [whole[0], *(whole[1 + row] for row in expected)]
    assert len(expected) == 12


@pytest.mark.parametrize(
    "method", ["maxmin", "srs", "CLC", "protodash", "nrmd", "des", "fes", "rkmeans", "mod"]
)
def test_every_method_reduces_a_table_by_command(method, table, drip, tmp_path):
    out = tmp_path / "kept.csv"
    options = ["--label", "Class", "--ignore", "note", "--n-samples", "9", "--out", out]
    result = drip("reduce", "table", table, *options, "--method", method)
    assert result.code == 0, result.err
    assert len(rows_of(out)) == 10
    assert {row[3] for row in rows_of(out)[1:]} == {"ant", "bee, wild", "07"}


def test_json_gives_sizes_and_distances_of_every_class_in_both_norms(table, drip, tmp_path):
    out = tmp_path / "kept.csv"
    options = [
        "--label",
        "Class",
        "--ignore",
        "note",
        "--keep",
        "0.2",
        "--index-column",
        "row",
        "--out",
        out,
    ]
    found = json.loads(drip("reduce", "table", table, *options, "--watts", "8", "--json").out)
    kept = [int(row[0]) for row in rows_of(out)[1:]]
    labels = [row[3] for row in rows_of(table)[1:]]
    for norm in ("chebyshev", "euclidean"):
        expected = epsilon_representativeness(scaled(table), labels, indices=kept, metric=norm)
        for part in found["classes"]:
            spread = expected.per_class[part["name"]]
            assert (part["n"], part["n_kept"]) == (spread.n, spread.n_kept)
            assert part[f"epsilon_{norm}"] == pytest.approx(spread.epsilon)
            assert part[f"mean_{norm}"] == pytest.approx(spread.mean)
        assert found["overall"][f"epsilon_{norm}"] == pytest.approx(expected.epsilon)
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 10**7
    assert found["energy_measured"] is ("estimate" not in found["energy_source"])


def test_parquet_keeps_types_and_weights_sum_to_the_rows(table, drip, tmp_path):
    frame = pl.read_csv(table).with_columns(
        pl.col("width").cast(pl.Float32), pl.lit(value=True).alias("flag")
    )
    source, out = tmp_path / "beans.parquet", tmp_path / "kept.parquet"
    frame.write_parquet(source)
    options = ["--label", "Class", "--ignore", "note", "--keep", "0.1", "--weight-column", "represents"]
    assert drip("reduce", "table", source, *options, "--index-column", "row", "--out", out).code == 0
    kept = pl.read_parquet(out)
    assert kept.select(frame.columns).equals(frame[kept["row"].to_list()])
    assert kept["represents"].sum() == len(frame)


def test_epsilon_gives_the_size(table, drip, tmp_path):
    options = ["--label", "Class", "--ignore", "note", "--epsilon", "0.3", "--metric", "chebyshev"]
    found = json.loads(drip("reduce", "table", table, *options, "--out", tmp_path / "kept.csv", "--json").out)
    assert found["overall"]["epsilon_chebyshev"] <= 0.3
    assert found["overall"]["n_kept"] < 120


def test_the_page_and_the_print_say_what_the_json_says(table, drip, tmp_path):
    out, page = tmp_path / "kept.csv", tmp_path / "r.html"
    options = ["--label", "Class", "--ignore", "note", "--report", page, "--out", out, "--watts", "8"]
    result = drip("reduce", "table", table, *options)
    assert result.code == 0, result.err
    text = page.read_text()
    for word in ("bee, wild", "12 of 120 rows", "maxmin (MMS)", "scaling: minmax", "processor"):
        assert word in text
    assert "<script" not in text
    assert "bee, wild" in result.out
    assert "12 of 120 rows" in result.out


def test_a_table_without_labels_is_one_class(table, drip, tmp_path):
    options = ["--ignore", "note", "--ignore", "Class", "--n-samples", "5", "--out", tmp_path / "kept.csv"]
    found = json.loads(drip("reduce", "table", table, *options, "--json", "--no-check").out)
    assert [part["n_kept"] for part in found["classes"]] == [5]
    assert found["overall"]["epsilon_chebyshev"] is None


def test_tabs_and_other_separators(table, drip, tmp_path):
    whole = pl.read_csv(table, infer_schema=False).select(*COLUMNS, "Class")
    whole.write_csv(tmp_path / "t.tsv", separator="\t")
    whole.write_csv(tmp_path / "s.csv", separator=";")
    assert (
        drip("reduce", "table", tmp_path / "t.tsv", "--label", "Class", "--out", tmp_path / "k.tsv").code == 0
    )
    failed = drip("reduce", "table", tmp_path / "s.csv", "--label", "Class", "--out", tmp_path / "k.csv")
    assert (failed.code, "check the separator" in failed.err) == (1, True)
    done = drip(
        "reduce",
        "table",
        tmp_path / "s.csv",
        "--label",
        "Class",
        "--separator",
        ";",
        "--out",
        tmp_path / "k.csv",
    )
    assert done.code == 0
    assert (tmp_path / "k.csv").read_text().count(";") == 13 * 3
    assert (tmp_path / "k.tsv").read_text().count("\t") == 13 * 3


def test_many_small_classes_that_raise_the_size_are_named(drip, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,k\n" + "".join(f"{number},c{number % 20}\n" for number in range(60)))
    result = drip("reduce", "table", path, "--label", "k", "--n-samples", "10", "--out", tmp_path / "k.csv")
    assert result.code == 0
    assert "10 rows more than requested" in result.out


BAD = {
    "a missing label column": ("a,b,k\n1,2,x\n3,4,y\n", [], "table-invalid"),
    "an ignored column that is not there": ("a,Class\n1,x\n2,y\n", ["--ignore", "b"], "table-invalid"),
    "text": ("a,b,Class\n1,2,x\n3,red,y\n", [], "table-invalid"),
    "NaN": ("a,Class\n1,x\nNaN,y\n", [], "table-invalid"),
    "infinity": ("a,Class\ninf,x\n2,y\n", [], "table-invalid"),
    "an empty cell": ("a,b,Class\n1,2,x\n3,,y\n", [], "table-invalid"),
    "a short row": ("a,b,Class\n1,2,x\n3\n", [], "table-invalid"),
    "a long row": ("a,Class\n1,x\n2,y,z\n", [], "table-invalid"),
    "no label in a row": ("a,Class\n1,x\n2,\n", [], "labels-invalid"),
    "one class": ("a,Class\n1,x\n2,x\n", [], "labels-invalid"),
    "an empty file": ("", [], "table-invalid"),
    "column names only": ("a,Class\n", [], "table-invalid"),
    "two columns of one name": ("a,a,Class\n1,2,x\n", [], "table-invalid"),
    "labels only": ("Class\nx\ny\n", [], "table-invalid"),
    "bytes that are not UTF-8": (b"a,Class\n1,x\n2,\xff\xfe\n", [], "table-invalid"),
    "numbers too far apart": ("a,Class\n1e308,x\n-1e308,y\n", [], "table-invalid"),
    "a fraction out of range": ("a,Class\n1,x\n2,y\n", ["--keep", "1.5"], "usage"),
    "two sizes": ("a,Class\n1,x\n2,y\n", ["--keep", "0.5", "--n-samples", "1"], "usage"),
    "more rows than there are": ("a,Class\n1,x\n2,y\n", ["--n-samples", "3"], "bad-argument"),
    "an unknown method": ("a,Class\n1,x\n2,y\n", ["--method", "best"], "method-unknown"),
    "an index that is a column": ("a,Class\n1,x\n2,y\n", ["--index-column", "a"], "bad-argument"),
    "an index without a name": ("a,Class\n1,x\n2,y\n", ["--index-column", ""], "bad-argument"),
    "weights without a name": ("a,Class\n1,x\n2,y\n", ["--weight-column", ""], "bad-argument"),
    "two new columns of one name": (
        "a,Class\n1,x\n2,y\n",
        ["--index-column", "i", "--weight-column", "i"],
        "bad-argument",
    ),
    "negative watts": ("a,Class\n1,x\n2,y\n", ["--watts", "-1"], "usage"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_rejected_in_one_line_and_nothing_is_written(case, drip, tmp_path):
    content, options, code = BAD[case]
    path, out = tmp_path / "t.csv", tmp_path / "kept.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = drip(
        "reduce", "table", path, "--label", "Class", "--out", out, "--report", tmp_path / "r.html", *options
    )
    expected = (2, "") if code == "usage" else (1, code)
    assert (result.code, result.error) == expected
    assert [found.name for found in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("a,b,Class\n1,2,x\n3,red,y\n", "column 'b' has 'red' in row 1"),
        ("a,Class\n1,x\nNaN,y\n", "column 'a' has 'NaN' in row 1"),
        ("a,b,Class\n1,2,x\n3,,y\n", "column 'b' has an empty cell in row 1"),
    ],
)
def test_the_error_names_the_cell(content, place, drip, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content)
    result = drip("reduce", "table", path, "--label", "Class", "--out", tmp_path / "k.csv")
    assert place in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("a,b,Class\n1,5,x\n2,6,y,z\n", []),
        ("a,b,Class\n1,5,x\n2,6,y\n", ["--method", "best"]),
        ("a,b,Class\n1,5,x\n2,6,y\n", ["--n-samples", "3"]),
    ],
    ids=["a row that ends late", "method", "number"],
)
def test_what_is_wrong_before_any_number_is_read_stops_there(content, options, drip, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content)
    result = drip("reduce", "table", path, "--label", "Class", "--out", tmp_path / "k.csv", *options)
    assert (result.code, "reading" in result.err) == (1, False)


def test_names_with_quotes_and_line_breaks_come_out_as_they_came(drip, tmp_path):
    path, out = tmp_path / "t.csv", tmp_path / "k.csv"
    head = '"a ""1""","b\nc",k\n'
    path.write_text(head + "".join(f"{n},{n * n % 7},{'xy'[n % 2]}\n" for n in range(20)))
    result = drip("reduce", "table", path, "--label", "k", "--ignore", 'a "1"', "--out", out)
    assert result.code == 0, result.err
    assert out.read_text().startswith(head)


def test_parquet_that_is_none_or_has_dates_is_rejected(drip, tmp_path):
    path, out = tmp_path / "t.parquet", tmp_path / "k.parquet"
    path.write_bytes(b"hello")
    assert "[table-invalid]" in drip("reduce", "table", path, "--out", out).err
    pl.DataFrame({"a": [1.0, 2.0], "day": ["2026-01-01", "2026-01-02"]}).with_columns(
        pl.col("day").str.to_date()
    ).write_parquet(path)
    assert "'day' (Date)" in drip("reduce", "table", path, "--out", out).err


def test_outputs_that_exist_or_cannot_be_written_are_rejected_before_the_work(table, drip, tmp_path):
    out = tmp_path / "kept.csv"
    options = ["--label", "Class", "--ignore", "note"]
    out.write_text("mine")
    assert "[path-exists]" in drip("reduce", "table", table, *options, "--out", out).err
    assert out.read_text() == "mine"
    assert drip("reduce", "table", table, *options, "--out", out, "--overwrite").code == 0
    assert len(rows_of(out)) == 13
    before = table.read_bytes()
    for target in (table, tmp_path, tmp_path / "none" / "kept.csv", tmp_path / "kept.parquet"):
        assert drip("reduce", "table", table, *options, "--out", target, "--overwrite").code == 1
    assert (
        drip(
            "reduce", "table", table, *options, "--out", tmp_path / "n.csv", "--report", tmp_path / "n.csv"
        ).code
        == 2
    )
    assert table.read_bytes() == before
    assert "does not exist" in drip("reduce", "table", tmp_path / "no.csv", "--out", tmp_path / "k.csv").err
    assert drip("reduce", "table", tmp_path / "no.xls", "--out", tmp_path / "k.xls").code == 1


@pytest.mark.slow
def test_a_machine_without_torch_reduces_tables(table, tmp_path):
    code = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] == "torch" else find(name, *rest)
from drip.cli import main
main()
"""
    command = [
        "reduce",
        "table",
        table,
        "--label",
        "Class",
        "--ignore",
        "note",
        "--out",
        tmp_path / "kept.csv",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, command)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "kept.csv")) == 13
