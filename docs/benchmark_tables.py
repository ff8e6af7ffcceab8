"""The tables and single numbers of `reference/benchmarks.md`, from the raw timings of `benchmarks/results/`.

Numbers only: the sentences around them are in `templates/benchmarks.md.j2`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from drip.rules import OFFERED

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

Records = list[dict[str, Any]]

_RENAMED = {"drip.device": "drip.onnx"}  # a record keeps the name that its module had then


def records(name: str) -> Records:
    """The lines of one result file."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def machine(name: str) -> str:
    """Processor, Python and commit of one result file."""
    first = records(name)[0]
    found = first["machine"]
    return f"{found['cpu']}, {found['cores']} cores, Python {found['python']}; commit {first['commit']}."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are aligned right."""
    texts = [[str(cell) for cell in row] for row in rows]
    columns = [[row[place] for row in texts if row[place]] for place in range(len(head))]
    rulers = [
        "---:" if place and any(map(_starts_with_number, cells)) else "---"
        for place, cells in enumerate(columns)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rulers, *texts))


def _starts_with_number(cell: str) -> bool:
    return cell.lstrip("+-\N{MINUS SIGN}")[:1].isdigit()


def scoring() -> str:
    """Each way to score beside the plain forward pass, in time and memory."""
    rows = []
    for record in records("scoring"):
        plain = record["seconds"]["plain"]
        for way, seconds in record["seconds"].items():
            memory = record["growth_mib"].get(way, {})
            rows.append(
                (
                    f"{record['case']}, {way}",
                    f"{1e3 * median(seconds):.3f}",
                    f"{median(seconds) / median(plain):.3f}",
                    f"{min(seconds) / min(plain):.3f}",
                    *(f"{memory[when]:.1f}" if memory else "" for when in ("first", "later")),
                )
            )
    head = ("model, batch, way", "median ms", "ratio", "ratio of minima", "first call MiB", "later calls MiB")
    return table(head, rows)


def scoring_ratio(case: str, way: str) -> str:
    """Median time of one way over that of the plain pass."""
    seconds = next(record["seconds"] for record in records("scoring") if record["case"] == case)
    return f"{median(seconds[way]) / median(seconds['plain']):.2f}"


def scoring_extra_us(case: str) -> str:
    """Microseconds that the general scorer needs beyond code written for this one network."""
    seconds = next(record["seconds"] for record in records("scoring") if record["case"] == case)
    return f"{1e6 * (median(seconds['drip']) - median(seconds['by hand'])):.0f}"


def first_call_mib(case: str, way: str) -> str:
    """Growth of the peak memory by the first call."""
    found = next(record["growth_mib"] for record in records("scoring") if record["case"] == case)
    return f"{found[way]['first']:.0f}"


def device() -> str:
    """A model file beside the same graph with only the logits as output."""
    rows = []
    for record in records("device"):
        plain, scored, int8 = (
            1e6 * median(record["seconds"][name]) for name in ("plain", "drip", "int8 plain")
        )
        rows.append(
            (
                record["case"],
                f"{plain:.1f}",
                f"{scored:.1f}",
                f"{record['ratio']:.3f}",
                record["limit"],
                f"{int8:.1f}",
                f"{record['int8_more_us']:+.1f}",
                f"{record['int8_limit_us']:.0f}",
            )
        )
    head = (
        "model",
        "plain µs",
        "score µs",
        "ratio",
        "target",
        "int8 plain µs",
        "int8 score, more µs",
        "target µs",
    )
    return table(head, rows)


def int8() -> str:
    """Agreement of int8 files with their float32 files."""
    rows = []
    for record in records("int8_agreement"):
        test, recipe = record["test"], record["recipe"]
        rows.append(
            (
                record["case"],
                f"{1 - record['discard_fraction']:.0%}",
                f"{test['n']:,}",
                f"{test['kappa']:.3f}",
                record["wanted_kappa"],
                f"{test['retention_float']:.1%}",
                f"{test['retention']:.1%}",
                f"{record['bytes'] / record['bytes_float']:.0%}",
                recipe["float_layers"],
            )
        )
    head = (
        "data set",
        "requested keep rate",
        "samples",
        "kappa",
        "target",
        "kept by float32",
        "kept by int8",
        "file size",
        "float32 layers",
    )
    return table(head, rows)


def install() -> str:
    """Size of the installation and time of the imports."""
    record = records("install_size")[-1]
    limits = record["limits"]
    rows = [
        ("installed, MB", f"{record['installed_mb']:.1f}", f"{limits['installed_mb']:.0f}"),
        ("wheel with the MNIST test digits, MB", f"{record['wheel_mb']:.2f}", f"{limits['wheel_mb']:.0f}"),
    ]
    rows += [
        (f"`import {_RENAMED.get(module, module)}`, s", f"{median(times):.2f}", limits["import_s"])
        for module, times in record.get("imports_s", {}).items()
    ]
    return table(("what", "measured", "target"), rows)


def memory() -> str:
    """Resident memory of a model file, alone and in a run."""
    rows = [
        (name, *(f"{held[way]:.0f}" if way in held else "" for way in ("onnxruntime", "scorer", "run")))
        for name, held in records("install_size")[-1]["resident_mib"].items()
    ]
    return table(("model", "ONNX Runtime alone, MiB", "`OnnxScorer`, MiB", "`drip run`, MiB"), rows)


def rules() -> str:
    """Time of one decision and size of the state, by offered rule."""
    rows = ((f"`{name}`", *costs) for name, costs in rule_costs().items())
    return table(("rule", "µs per decision", "of the inference, %", "state, kB"), rows)


def rule_costs() -> dict[str, tuple[str, str, str]]:
    """What :func:`rules` shows of every offered rule, the fastest first."""
    return {
        record["rule"]: (
            f"{record['decide_us']:.0f}",
            f"{100 * record['decide_us'] / record['inference_us']:.2f}",
            f"{record['state_bytes'] / 1e3:.1f}",
        )
        for record in sorted(records("selectors"), key=lambda each: each["decide_us"])
        if record["rule"] in OFFERED
    }


def inference_ms() -> str:
    """Milliseconds of the inference that decisions are compared with."""
    return f"{records('selectors')[0]['inference_us'] / 1e3:.1f}"


def keep_rates() -> str:
    """The keep rates of the default rule over any 1,000 arrivals after the first 1,000, per stream."""
    found: dict[tuple[str, str], list[str]] = {}
    asked = sorted({record["keep"] for record in records("keep_rate")})
    for record in records("keep_rate"):
        cell = f"{record['lowest']:.1f} to {record['highest']:.1f}"
        found.setdefault((record["dataset"], record["stream"]), []).append(cell)
    return table(
        ["data set", "stream", *(f"{100 * keep:.0f} %" for keep in asked)],
        [[*where, *cells] for where, cells in found.items()],
    )


def calibration() -> str:
    """Windows of a million scores, beside sorting them."""
    found = records("policy")
    base = median(next(record["seconds"] for record in found if record["variant"] == "bucket and sort"))
    rows = [
        (
            record["variant"],
            f"{1e3 * median(record['seconds']):.1f}",
            f"{median(record['seconds']) / base:.2f}",
        )
        for record in found
    ]
    return table(("way", "median ms", "ratio"), rows)


def store() -> str:
    """Puts into a store, beside a bare SQLite loop."""
    found = records("store")
    rows = []
    for name, label in (("single", "one by one, each durable"), ("batch", "1,000 in one transaction")):
        runs = [record for record in found if record["bench"] == name]
        each = 1e6 * median(run["store"] / run["n_puts"] for run in runs)
        rows.append(
            (label, f"{each:.1f}", f"the bare loop: {median(run['bare'] / run['store'] for run in runs):.2f}")
        )
    late = [record for record in found if record["bench"] == "late"]
    for way, label in (("store", ""), ("bare", ", bare loop")):
        seconds = sum(run[way] for run in late[-(len(late) // 10) :])
        rows.append(
            (
                f"the last 100,000 of a million, in batches of 1,000{label}",
                f"{1e6 * seconds / 100_000:.1f}",
                f"its own first 100,000: {late_ratio(way)}",
            )
        )
    return table(("puts", "µs per put", "speed relative to"), rows)


def late_ratio(way: str) -> str:
    """Speed of the last tenth of a million puts over that of the first."""
    late = [record for record in records("store") if record["bench"] == "late"]
    tenth = len(late) // 10
    early_s, late_s = (sum(run[way] for run in part) for part in (late[:tenth], late[-tenth:]))
    return f"{early_s / late_s:.2f}"
