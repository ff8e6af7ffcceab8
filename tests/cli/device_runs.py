"""What tests of runs on a device share: processes without torch, and looks at what they leave."""

import json
import os
import subprocess
import sys
import threading
import time

from drip.errors import DripError
from drip.store import RetentionStore

N_PRODUCTION = 150
TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from drip.cli import main
main()
"""


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-c", TORCHLESS, *map(str, arguments)],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def audit(path):
    with RetentionStore.open_readonly(path) as store:
        return list(store.audit())


class Watcher(threading.Thread):
    """Reads the status file all the time; every look must be whole JSON."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.seen, self.problems, self.is_done = path, [], [], False

    def run(self):
        while not self.is_done:
            try:
                self.seen.append(json.loads(self.path.read_text()))
            except FileNotFoundError:
                pass
            except ValueError as error:
                self.problems.append(repr(error))
            time.sleep(0.001)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def n_decided(path):
    try:
        with RetentionStore.open_readonly(path) as store:
            return store.stats().seen
    except DripError:
        return 0
