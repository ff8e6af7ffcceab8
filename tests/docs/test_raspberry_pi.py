"""The ten commands of the tutorial on the Raspberry Pi, in order; the device has only the base install."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from device_install import install
from pages import commands
from support import require_module, require_tool

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "raspberry-pi.md").read_text()
UNIT = ROOT / "examples" / "drip.service"
HOME = "/home/pi/drip"
N_INCOMING = 300


def steps():
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for text in blocks for line in commands(text)]


class Places:
    """A workstation and a device as two folders; knows what the page's programs do to them."""

    def __init__(self, root, drip):
        self.workstation, self.device = root / "workstation", root / "device"
        self.drip = drip
        self.log = []
        for folder in (self.workstation, self.device):
            folder.mkdir()

    def call(self, line):
        for part in re.split(r" && (?=(?:[^']*'[^']*')*[^']*$)", line):
            self._call(shlex.split(part))

    def _call(self, words):
        program, *rest = words
        self.log.append(program)
        if program == "drip":
            result = self.drip(*rest)
            assert result.code == 0, result.err
        elif program == "env/bin/drip":
            self.on_device(rest)
        elif program == "scp":
            *sources, target = [word for word in rest if word != "-r"]
            for source in map(self._path, sources):
                copy = shutil.copytree if source.is_dir() else shutil.copy
                to = self._path(target)
                copy(source, to / source.name if source.is_dir() else to)
        elif program == "ssh":
            (inner,) = rest[1:]
            if inner == "mkdir -p drip":
                return
            assert inner.startswith("cd drip && ")
            self.call(inner.removeprefix("cd drip && "))
        elif program == "python3":
            assert rest == ["-m", "venv", "env"]
            install(self.device / "env")
        else:
            assert (program, *rest[:2]) in {
                ("env/bin/pip", "install", "drip-edge[device]"),
                ("sudo", "cp", "drip.service"),
                ("sudo", "systemctl", "enable"),
            }

    def _path(self, text):
        if text.startswith("pi@device:drip/"):
            return self.device / text.removeprefix("pi@device:drip/")
        return UNIT if text == "drip.service" else self.workstation / text

    def on_device(self, arguments):
        done = subprocess.run(
            [self.device / "env/bin/drip", *arguments], cwd=self.device, env=clean(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def clean():
    return {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/")}


def unit(device):
    """The unit with this device's folder in place of the page's, and the command it starts."""
    text = UNIT.read_text().replace(HOME, str(device)).replace("/run/drip", str(device))
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(text)
    return text, parser["Service"]


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_the_ten_commands_take_a_model_to_a_device_and_bring_back_what_it_kept(
    digits, drip, tmp_path, monkeypatch
):
    require_module("onnxscript", "pip install onnxscript")
    if "--store" in drip("replay", "--help").out:
        pytest.skip("the command line does not have its new options yet")
    places = Places(tmp_path, drip)
    (places.workstation / "drip-demo").mkdir()
    shutil.copy(digits.weights, places.workstation / "drip-demo" / "model.pt")
    shutil.copy(digits.policy, places.workstation / "drip-demo" / "policy.json")
    monkeypatch.chdir(places.device)
    exec("".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)), {})
    monkeypatch.chdir(places.workstation)

    *before, last = steps()
    assert len([*before, last]) == 10
    for command in before:
        places.call(command)
    without = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx', 'pytest')])"
    done = subprocess.run(
        [places.device / "env/bin/python", "-c", without], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[None, None, None]"
    assert json.loads(places.on_device(["store", "stats", "shadow.db", "--json"]))["kept"] == N_INCOMING

    _, service = unit(places.device)
    process = subprocess.Popen(
        shlex.split(service["ExecStart"]), cwd=places.device, env=clean(), stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    status = places.device / "status.json"
    try:
        wait_for(lambda: status.exists() and json.loads(status.read_text())["n_seen"] == N_INCOMING, process)
        wait_for(lambda: not list((places.device / "incoming").glob("*.png")), process)
        places.call(last)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=float(service["TimeoutStopSec"]))
    finally:
        process.kill()
        process.communicate()
    assert str(code) == service["SuccessExitStatus"]
    said = json.loads(status.read_text())
    assert said["state"] == "stopped"
    assert 0 < said["n_retained"] < N_INCOMING
    assert len(list((places.workstation / "kept").rglob("*.png"))) == said["n_retained"]
    assert {"scp", "ssh", "sudo", "drip", "env/bin/drip", "env/bin/pip"} <= set(places.log)
    for field in re.findall(r"`(n_\w+|retention|\w+_per_s|last_\w+|store_counts|reason)`", PAGE):
        assert field in said


def test_systemd_takes_the_unit(tmp_path):
    program = require_tool("systemd-analyze", "apt-get install systemd")
    device = tmp_path / "device"
    (device / "env" / "bin").mkdir(parents=True)
    (device / "env" / "bin" / "drip").write_text("#!/bin/sh\n")
    (device / "env" / "bin" / "drip").chmod(0o755)
    text, _ = unit(device)
    path = tmp_path / "drip.service"
    path.write_text(text)
    done = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    path.write_text(text.replace("Restart=always", "Restart=perhaps"))
    broken = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
    assert "perhaps" in broken.stderr
