"""Tables: Dry Bean from both of its formats and over the network, Collision from its spreadsheet; damage."""

import gzip
import hashlib
import io
import zipfile

import numpy as np
import openpyxl
import pytest
from support import require_data

from drip.errors import DripError, InputError
from drip.reduction.datasets import (
    ARFF,
    CSV,
    FILE,
    SOURCE,
    TABLES,
    ArchivedFile,
    load_collision,
    load_dry_bean,
    load_table,
)

NAMES = (
    *("Area", "Perimeter", "MajorAxisLength", "MinorAxisLength", "AspectRatio", "Eccentricity", "ConvexArea"),
    *("EquivDiameter", "Extent", "Solidity", "Roundness", "Compactness"),
    *("ShapeFactor1", "ShapeFactor2", "ShapeFactor3", "ShapeFactor4"),
)
ORIGINAL = {"AspectRatio": "AspectRation", "Roundness": "roundness"}


def beans(n=12):
    """Cells of made-up beans."""
    rng = np.random.default_rng(0)
    kinds = ["SEKER", "BARBUNYA", "CALI"]
    return [[*map(repr, rng.uniform(0, 3e5, 16).tolist()), kinds[k % 3]] for k in range(n)]


def arff(rows, names=NAMES):
    lines = ["@RELATION Dry_Bean_Dataset", "", "%a comment"]
    lines += [f"@ATTRIBUTE {ORIGINAL.get(name, name)}\tREAL" for name in names]
    lines += ["@ATTRIBUTE Class {SEKER,BARBUNYA,BOMBAY,CALI}", "", "@DATA", *(",".join(row) for row in rows)]
    return "\n".join(lines).encode()


def write_csv(path, rows, names=NAMES):
    text = "\n".join([",".join([*names, "Class"]), *(",".join(row) for row in rows)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# -- Dry Bean ------------------------------------------------------------------------------------------


def test_all_beans_are_there_with_their_counts_and_ranges():
    place = require_data("tabular/dry_bean.csv.gz").parents[1]
    whole = load_dry_bean(place)
    assert whole.name == "Dry Bean, 13,611 rows"
    assert whole.values.shape == (13_611, 16)
    assert whole.feature_names == NAMES
    assert dict(zip(whole.class_names, np.bincount(whole.labels).tolist(), strict=True)) == {
        "BARBUNYA": 1322,
        "BOMBAY": 522,
        "CALI": 1630,
        "DERMASON": 3546,
        "HOROZ": 1928,
        "SEKER": 2027,
        "SIRA": 2636,
    }
    assert whole.values[:, 0].max() == 254_616
    assert whole.class_names[whole.labels[0]] == "SEKER"
    assert len(np.unique(np.column_stack([whole.values, whole.labels]), axis=0)) == 13_611 - 68


def test_the_original_file_gives_the_same_rows_as_the_compressed_one(tmp_path):
    rows = beans()
    write_csv(tmp_path / "csv" / "tabular" / CSV, rows)
    (tmp_path / "arff").mkdir()
    (tmp_path / "arff" / ARFF).write_bytes(arff(rows))
    one, two = load_dry_bean(tmp_path / "csv"), load_dry_bean(tmp_path / "arff")
    np.testing.assert_array_equal(one.values, np.array([row[:-1] for row in rows], float))
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.feature_names == two.feature_names == NAMES
    assert [one.class_names[label] for label in one.labels] == [row[-1] for row in rows]


@pytest.fixture
def served(server):
    """A source on this machine, of a made-up table."""
    content = arff(beans())
    archive = zipped({SOURCE.member: content, "DryBeanDataset/readme.txt": b"hello"})
    (server.folder / "beans.zip").write_bytes(archive)
    digest = hashlib.sha256(content).hexdigest()
    return ArchivedFile(server.url + "beans.zip", SOURCE.member, len(content), digest)


def test_the_table_is_downloaded_once_and_the_original_file_is_kept(served, server, cache):
    with pytest.raises(InputError, match=r"drip\.reduction\.datasets\.load_table"):
        load_dry_bean(cache=cache)
    seen = []
    first = load_dry_bean(download=True, cache=cache, source=served, progress=lambda *n: seen.append(n))
    assert len(first) == 12
    assert seen[-1][0] == seen[-1][1] == (server.folder / "beans.zip").stat().st_size
    again = load_table("dry_bean", cache=cache)
    np.testing.assert_array_equal(again.values, first.values)
    load_dry_bean(download=True, cache=cache, source=served)
    assert len(server.requests) == 1
    assert sorted(path.name for path in cache.iterdir()) == [f".{ARFF}.lock", ARFF]


@pytest.mark.parametrize("fault", ["content", "member", "cut", "no zip", "404"])
def test_a_download_of_anything_else_is_rejected_and_leaves_nothing(fault, served, server, cache):
    place = server.folder / "beans.zip"
    if fault == "content":
        place.write_bytes(zipped({SOURCE.member: arff(beans(9))}))
    elif fault == "member":
        place.write_bytes(zipped({"other.arff": arff(beans())}))
    elif fault == "cut":
        server.cuts = [len(place.read_bytes()) // 2]
    elif fault == "no zip":
        place.write_bytes(b"<html>moved</html>")
    else:
        place.unlink()
    with pytest.raises(DripError, match=r"beans\.zip"):
        load_dry_bean(download=True, cache=cache, source=served)
    assert not (cache / ARFF).exists()
    if fault == "cut":  # and the next call gets it
        assert len(load_dry_bean(download=True, cache=cache, source=served)) == 12


def test_no_network_is_an_error_with_the_address(cache):
    gone = ArchivedFile("http://127.0.0.1:9/beans.zip", SOURCE.member, 1, "0" * 64)
    with pytest.raises(DripError, match=r"127\.0\.0\.1:9/beans\.zip"):
        load_dry_bean(download=True, cache=cache, source=gone)


@pytest.mark.parametrize("damage", ["truncated", "nan", "text", "short", "column", "empty"])
def test_a_damaged_file_is_rejected_with_its_place(damage, tmp_path):
    rows, names = beans(), NAMES
    if damage == "nan":
        rows[5][3] = "nan"
    elif damage == "text":
        rows[5][3] = "wide"
    elif damage == "short":
        rows[5] = rows[5][1:]
    elif damage == "empty":
        rows = []
    write_csv(tmp_path / CSV, rows, names)
    if damage == "truncated":
        (tmp_path / CSV).write_bytes((tmp_path / CSV).read_bytes()[:-20])
    elif damage == "column":
        (tmp_path / CSV).write_bytes(gzip.compress(b"Area,Kind\n1,SEKER\n"))
    with pytest.raises(InputError) as caught:
        load_dry_bean(tmp_path)
    assert caught.value.code == "table-invalid"
    assert str(tmp_path / CSV) in str(caught.value)
    told = {"nan": "row 6", "text": "wide", "short": "16 cells in row 6", "column": "do not include Class"}
    assert told.get(damage, "") in str(caught.value)


def test_the_source_is_the_archive_of_the_repository():
    assert SOURCE.url.startswith("https://archive.ics.uci.edu/static/public/602/")
    assert SOURCE.n_bytes == 3_812_894


# -- Collision -----------------------------------------------------------------------------------------


def write_sheet(path, columns, rows):
    workbook = openpyxl.Workbook()
    for row in (columns, *rows):
        workbook.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook.save(path)


COLUMNS = ["N", "m", "v0", "delay", "collision"]
CARS = [[3, 1, 10.5, 0.2, 1], [4, 1, 12, 0.4, 0], [5, 1, 20.25, 0, 1]]


@pytest.mark.parametrize("truths", [(1, 0, 1), (1.0, 0.0, 1.0), (True, False, True), ("1", "0", "1")])
def test_the_spreadsheet_gives_features_without_the_two_dropped_columns(truths, tmp_path, monkeypatch):
    rows = [[*row[:-1], truth] for row, truth in zip(CARS, truths, strict=True)]
    write_sheet(tmp_path / "tabular" / FILE, COLUMNS, [*rows, [None] * 5])
    monkeypatch.setenv("DRIP_DATA", str(tmp_path))
    table = load_collision()
    assert table.name == "Collision, 3 rows"
    assert table.feature_names == ("v0", "delay")
    assert table.values.tolist() == [[10.5, 0.2], [12.0, 0.4], [20.25, 0.0]]
    assert [table.class_names[label] for label in table.labels] == ["collision", "safe", "collision"]


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        (COLUMNS[1:], [row[1:] for row in CARS], "do not include N"),
        (COLUMNS[:-1], [row[:-1] for row in CARS], "do not include collision"),
        (COLUMNS, [[3, 1, None, 0.2, 1]], "collision.xlsx"),
        (COLUMNS, [[3, 1, 2.0, 0.2, 2]], "'2'"),
        (COLUMNS, [[3, 1, 2.0, "fast", 1]], "fast"),
        (COLUMNS, [], "no row"),
    ],
)
def test_another_spreadsheet_is_rejected(columns, rows, told, tmp_path):
    write_sheet(tmp_path / FILE, columns, rows)
    with pytest.raises(InputError) as caught:
        load_collision(tmp_path)
    assert caught.value.code == "table-invalid"
    assert told in str(caught.value)


def test_a_file_that_is_no_spreadsheet_is_rejected(tmp_path):
    (tmp_path / FILE).write_bytes(b"N,m,collision\n1,2,0\n")
    with pytest.raises(InputError) as caught:
        load_collision(tmp_path)
    assert caught.value.code == "table-invalid"


def test_collision_is_not_public_and_the_error_says_so(tmp_path):
    with pytest.raises(InputError, match="not public") as caught:
        load_table("collision", folder=tmp_path, download=True)
    assert caught.value.code == "dataset-missing"


def test_tables_are_loaded_by_name(tmp_path):
    write_csv(tmp_path / CSV, beans())
    assert set(TABLES) == {"dry_bean", "collision"}
    assert len(load_table("dry_bean", folder=tmp_path)) == 12
    with pytest.raises(InputError):
        load_table("iris")
