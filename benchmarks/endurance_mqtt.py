"""Endurance: real digits through MQTT into a store, while broker and `drip run` are stopped and killed.

A Mosquitto is stopped (SIGTERM) and started three times, `drip run` killed (SIGKILL) five times. Afterwards
the store is compared with an independent pass over all digits: nothing that met the rule may be missing,
nothing stored twice, the budget never exceeded, memory flat. With the first budget nothing need be evicted,
the second one binds. Then what an undisturbed run does in a second, beside the bare model on the same
decoded digits, in turns. Writes benchmarks/results/endurance_mqtt.jsonl: a line per second, one per trial
with the verdict, one with the speeds; endurance_plot.py draws them. Needs mosquitto (apt-get install
mosquitto), torch, and DRIP_DATA for all 70,000 digits.
    python benchmarks/endurance_mqtt.py [--messages 100000] [--budgets 300000000 40000000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from timing import RESULTS, commit, machine

from drip.datasets import load_mnist
from drip.errors import DripError
from drip.models import SmallCNN
from drip.onnx import OnnxScorer, export_onnx
from drip.policy import Policy
from drip.rules import create
from drip.scoring import TorchScorer
from drip.store import RetentionStore
from drip.training import Examples, TrainConfig, train
from drip.workflow import calibrated

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "streams")]
from broker import Broker, Publisher  # noqa: E402  # the tests' own broker

N_KILLS = 5
N_RESTARTS = 3
N_TRAINING = 2000
N_BACKLOG = 5000
N_TIMED = 10_000
N_ROUNDS = 3
BATCH_SIZE = 32  # as drip run has it
_MARGIN = 1e-5
"""Scores closer to a limit than this may fall on either side, as batches of another size round otherwise."""


def main() -> None:
    """Run, judge, write; the exit code says whether all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[300_000_000, 40_000_000], help="bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "endurance_mqtt.jsonl")
    arguments = parser.parse_args()
    lines, verdicts = [], []
    shared = {"commit": commit(), "machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        digits = Digits(Path(name))
        for number, budget_bytes in enumerate(arguments.budgets):
            folder = Path(name) / str(number)
            folder.mkdir()
            trial = Trial(folder, digits, arguments.messages, budget_bytes, arguments.seed + number)
            rows, verdict = trial.run()
            print(json.dumps(verdict, indent=2))
            lines += [{"kind": "second", "trial": number, **row} for row in rows]
            verdicts.append({"kind": "verdict", "trial": number, **verdict, **shared})
        speeds = Speeds(Path(name) / "speeds", digits, min(arguments.messages, N_TIMED)).measure()
        print(json.dumps(speeds, indent=2))
    lines += [*verdicts, {"kind": "speed", **speeds, **shared}]
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sys.exit(0 if all(verdict["ok"] for verdict in verdicts) else 1)


class Digits:
    """The digits as messages, each with a text chunk of its own number; the model file and its policy."""

    def __init__(self, folder: Path) -> None:
        self._set = load_mnist()
        rows = np.arange(N_TRAINING)
        examples = Examples(self._set.inputs(rows), self._set.labels[rows])
        model = train(SmallCNN, examples, config=TrainConfig(epochs=3))
        scorer = TorchScorer(model)
        typical = scorer.score(self._set.inputs(rows[: N_TRAINING // 2]))
        policy: Policy = calibrated(
            create("drip", retention=0.6), scorer, model, typical, spec=self._set.spec, data="mnist"
        )
        self.model_path, self._policy = folder / "model.onnx", policy
        export_onnx(model, policy, self._set.inputs(rows[:4]), self.model_path)

    def message(self, number: int) -> bytes:
        """The bytes of one message: a digit's PNG with the number in a text chunk, so all differ."""
        (sample,) = self._set.samples([number % len(self._set)])
        body = b"tEXt" + b"number\0" + str(number).encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return sample.data[:-12] + chunk + sample.data[-12:]  # in front of the last chunk, IEND

    def inputs(self, n_messages: int) -> np.ndarray:
        """The first messages as inputs of the model."""
        return self._set.inputs(np.arange(n_messages) % len(self._set))

    def decisions(self, n_messages: int) -> tuple[np.ndarray, np.ndarray]:
        """For every message whether the rule keeps it, and whether that hangs on the last bits of a score."""
        scorer, kept, close = OnnxScorer(self.model_path), [], []
        limits = np.array([[window.lower, window.upper] for window in self._policy.windows])
        for start in range(0, min(n_messages, len(self._set)), 500):
            rows = np.arange(start, min(start + 500, n_messages, len(self._set)))
            observations = scorer.score(self._set.inputs(rows))
            kept.append(self._policy.to_rule().decide_many(observations).retain)
            distance = np.abs(limits[observations.classes] - observations.scores[:, None]).min(axis=1)
            top = np.sort(observations.logits, axis=1)
            close.append((distance < _MARGIN) | (top[:, -1] - top[:, -2] < _MARGIN))
        unique = np.concatenate(kept), np.concatenate(close)
        of = np.arange(n_messages) % len(self._set)
        return unique[0][of], unique[1][of]


@dataclass
class Trial:
    """One run with its interruptions."""

    folder: Path
    digits: Digits
    n_messages: int
    budget_bytes: int
    seed: int
    n_published: int = 0
    n_seen: int = 0
    peak_bytes: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _is_over: bool = False
    _is_watched: bool = False

    def run(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows per second and the verdict."""
        self._prepare()
        watchers = [threading.Thread(target=target) for target in (self._watch_disk, self._watch)]
        try:
            self._start_run()
            for watcher in watchers:
                watcher.start()
            self._is_watched = True
            self._wait_for_session()
            publisher = threading.Thread(target=self._publish)
            publisher.start()
            self._interrupt()
            publisher.join()
            self._wait_until(self.n_messages)
            code = self._end_run()
        finally:
            self._clean_up()
        for watcher in watchers:
            watcher.join()
        return self.rows, self._verdict(code)

    def undisturbed_rate(self) -> float:
        """Samples per second of a run that finds all messages at the broker, from its first commit on."""
        self._prepare()
        try:
            self._start_run()  # makes the session, which keeps what comes while nobody is connected
            self._wait_for_session()
            self._end_run()
            self._publish(n_ahead=self.n_messages)
            self._start_run()
            self._wait_until(1)
            n_first, start_s = self.n_seen, time.monotonic()
            self._wait_until(self.n_messages)
            seconds = time.monotonic() - start_s
            self._end_run()
        finally:
            self._clean_up()
        return (self.n_messages - n_first) / seconds

    def _prepare(self) -> None:
        self._start_s = time.monotonic()
        self._store_path = self.folder / "kept.db"
        broker_folder = self.folder / "broker"
        broker_folder.mkdir()
        self._broker = Broker(broker_folder, more=["max_packet_size 1000000"]).start()

    def _clean_up(self) -> None:
        self._is_over = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._broker.stop()

    def _start_run(self) -> None:
        program = shutil.which("drip", path=str(Path(sys.executable).parent)) or "drip"
        arguments = ["run", self.digits.model_path, "--source", self._broker.url("digits/+", window=128)]
        arguments += ["--store", self._store_path, "--budget", f"{self.budget_bytes}B"]
        with (self.folder / "run.log").open("ab") as log:
            self._process = subprocess.Popen([program, *map(str, arguments)], stdout=log, stderr=log)

    def _end_run(self) -> int:
        process = self._process
        if process is None:
            return -1
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)

    def _wait_for_session(self) -> None:
        """Until the run has subscribed: what is published before is for nobody."""
        log = self._broker._log  # noqa: SLF001  # the broker's own words
        while b"as device" not in log.read_bytes():
            self._check_alive()
            time.sleep(0.1)
        time.sleep(1)

    def _publish(self, n_ahead: int = N_BACKLOG) -> None:
        publisher = Publisher(self._broker.port)
        for number in range(self.n_messages):
            while number - min(self.n_seen, self.n_published) > n_ahead:
                time.sleep(0.01)
            publisher.send(self.digits.message(number), f"digits/{number % 4}", id=number)
            self.n_published = publisher.n_acknowledged
        while publisher.n_acknowledged < self.n_messages:
            time.sleep(0.05)
        self.n_published = publisher.n_acknowledged
        publisher.close()

    def _interrupt(self) -> None:
        """Kills and restarts, in random order at random places of the middle nine tenths."""
        rng = random.Random(self.seed)  # noqa: S311  # a schedule
        acts = [self._kill_run] * N_KILLS + [self._restart_broker] * N_RESTARTS
        rng.shuffle(acts)
        places = sorted(rng.uniform(0.05, 0.95) for _ in acts)
        for place, act in zip(places, acts, strict=True):
            self._wait_until(int(place * self.n_messages))
            time.sleep(rng.uniform(0, 0.1))
            act()

    def _kill_run(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._note("drip run killed")
        self._start_run()

    def _restart_broker(self) -> None:
        self._broker.stop()
        self._note("broker stopped")
        time.sleep(1)
        self._broker.start()

    def _wait_until(self, n_seen: int) -> None:
        last, since = -1, time.monotonic()
        while self.n_seen < n_seen:
            self._check_alive()
            if not self._is_watched:
                self.n_seen = self._count_seen()
            if self.n_seen != last:
                last, since = self.n_seen, time.monotonic()
            if time.monotonic() - since > 120:
                raise SystemExit(f"the run stands at {self.n_seen} of {n_seen} samples for two minutes")
            time.sleep(0.02)

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise SystemExit(f"drip run ended:\n{(self.folder / 'run.log').read_text()}")

    def _watch_disk(self) -> None:
        """The size of all files of the store, as often as can be."""
        while not self._is_over:
            self.peak_bytes = max(self.peak_bytes, sum(_size(path) for path in self.folder.glob("kept.db*")))
            time.sleep(0.005)

    def _watch(self) -> None:
        while not self._is_over:
            for _ in range(10):
                self.n_seen = self._count_seen()
                time.sleep(0.1)
            self._note()

    def _count_seen(self) -> int:
        try:
            with RetentionStore.open_readonly(self._store_path) as store:
                stats = store.stats()
                return stats.seen + stats.quarantined
        except DripError:  # in the making, or in recovery
            return self.n_seen

    def _note(self, event: str = "") -> None:
        process = self._process
        row = {
            "time_s": round(time.monotonic() - self._start_s, 2),
            "published": self.n_published,
            "seen": self.n_seen,
            "run_bytes": 0 if process is None else _resident_bytes(process.pid),
            "run_pid": 0 if process is None else process.pid,
            "broker_bytes": _resident_bytes(self._broker.pid),
            "store_bytes": sum(_size(path) for path in self.folder.glob("kept.db*")),
        }
        self.rows.append({**row, "event": event} if event else row)

    def _verdict(self, code: int) -> dict[str, Any]:
        expected, is_close = self.digits.decisions(self.n_messages)
        stored: dict[int, int] = {}
        contents = set()
        with RetentionStore.open(self._store_path) as store:
            for record in store:
                number = int(record.sample.id.rpartition("/")[2])
                stored[number] = stored.get(number, 0) + 1
                contents.add(record.sample.data)
            stats, is_sound = store.stats(), store.check().ok
        wanted = set(np.flatnonzero(expected & ~is_close).tolist())
        unwanted = set(np.flatnonzero(~expected & ~is_close).tolist())
        growth = max((_growth(rows) for rows in self._lives()), default=0)
        verdict = {
            "n_messages": self.n_messages,
            "n_kills": sum(row.get("event") == "drip run killed" for row in self.rows),
            "n_restarts": sum(row.get("event") == "broker stopped" for row in self.rows),
            "seconds": round(time.monotonic() - self._start_s, 1),
            "seen": stats.seen,
            "kept": stats.kept,
            "discarded": stats.discarded,
            "evicted": stats.evicted,
            "redelivered": stats.redelivered,
            "quarantined": stats.quarantined,
            "close_to_a_limit": int(is_close.sum()),
            "missing": max(0, len(wanted - set(stored)) - stats.evicted),
            "unwanted": len(unwanted & set(stored)),
            "stored_twice": sum(stored.values()) - len(contents),
            "budget_bytes": self.budget_bytes,
            "peak_store_bytes": self.peak_bytes,
            "peak_run_bytes": max(row["run_bytes"] for row in self.rows),
            "growth_of_a_run_bytes": growth,
            "store_is_sound": is_sound,
            "exit_code": code,
        }
        verdict["ok"] = (
            stats.seen == self.n_messages
            and not any(verdict[name] for name in ("missing", "unwanted", "stored_twice", "quarantined"))
            and self.peak_bytes <= self.budget_bytes
            and growth < 20_000_000
            and is_sound
        )
        return verdict

    def _lives(self) -> Iterator[list[int]]:
        """Memory by second of every process, without the first five seconds, in which it loads."""
        for pid in {row["run_pid"] for row in self.rows}:
            sizes = [row["run_bytes"] for row in self.rows if row["run_pid"] == pid and row["run_bytes"]]
            if len(sizes) > 10:
                yield sizes[5:]


class Speeds:
    """Samples per second of `drip run` from a broker that has all messages, and of the bare model on them.

    The publisher has finished before the run starts; the broker shares the machine with it. The bare model
    is the session of the same file alone, one thread, with decoded inputs in memory; another number has the
    decoding too.
    """

    def __init__(self, folder: Path, digits: Digits, n_messages: int) -> None:
        folder.mkdir()
        self._folder, self._digits, self._n_messages = folder, digits, n_messages
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(digits.model_path), options, providers=["CPUExecutionProvider"]
        )

    def measure(self) -> dict[str, Any]:
        """The raw rates of every round, their medians and the ratio of these."""
        ways = {"bare_model": self._bare, "decode_and_model": self._decoded, "drip_run": self._drip_run}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(N_ROUNDS):
            for name, way in ways.items():
                rates[name].append(round(way(), 1))
        medians = {f"{name}_per_s": float(np.median(found)) for name, found in rates.items()}
        share = medians["drip_run_per_s"] / medians["bare_model_per_s"]
        return {"n_messages": self._n_messages, **medians, "share_of_bare": round(share, 3), "rounds": rates}

    def _bare(self) -> float:
        inputs = self._digits.inputs(self._n_messages)
        start = time.perf_counter()
        for first in range(0, len(inputs), BATCH_SIZE):
            self._session.run(None, {"input": inputs[first : first + BATCH_SIZE]})
        return len(inputs) / (time.perf_counter() - start)

    def _decoded(self) -> float:
        messages = [self._digits.message(number) for number in range(self._n_messages)]
        prepare = OnnxScorer(self._digits.model_path).spec.prepare
        start = time.perf_counter()
        for first in range(0, len(messages), BATCH_SIZE):
            batch = [prepare(message, "image/png") for message in messages[first : first + BATCH_SIZE]]
            self._session.run(None, {"input": np.stack(batch)})
        return len(messages) / (time.perf_counter() - start)

    def _drip_run(self) -> float:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return Trial(folder, self._digits, self._n_messages, 300_000_000, 0).undisturbed_rate()


def _growth(sizes: list[int]) -> int:
    """By how much the last fifth of a life is above its first, in bytes."""
    n = max(1, len(sizes) // 5)
    return int(np.median(sizes[-n:]) - np.median(sizes[:n]))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return 0


if __name__ == "__main__":
    main()
