"""Joules with their source: counters laid out as the kernel does, read by the real library."""

import logging
import math
import subprocess
import sys
import time
from threading import Event

import pytest
from tables import fails

from drip.errors import DripError
from drip.reduction import energy as room
from drip.reduction.energy import measure_energy


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """A processor with two packages and memory, laid out like sysfs."""
    base = tmp_path / "powercap" / "intel-rapl"
    for number, name in enumerate(["package-0", "package-1", "dram"]):
        domain = base / f"intel-rapl:{number}"
        domain.mkdir(parents=True)
        (domain / "name").write_text(f"{name}\n")
        (domain / "energy_uj").write_text(f"{(number + 1) * 40_000_000}\n")
        (domain / "max_energy_range_uj").write_text("262143328850\n")
    monkeypatch.setattr(room, "RAPL_PATH", str(base))
    return [base / f"intel-rapl:{number}" / "energy_uj" for number in range(3)]


@pytest.fixture
def no_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "RAPL_PATH", str(tmp_path / "none" / "subsystem"))


def test_joules_of_all_packages_and_memory_are_counted(counters):
    with measure_energy() as energy:
        for counter, joules in zip(counters, (7.0, 2.0, 0.5), strict=True):
            counter.write_text(f"{int(counter.read_text()) + round(joules * 1e6)}\n")
    assert energy.joules == pytest.approx(9.5, rel=1e-4)
    assert energy.parts["RAPL"] == pytest.approx(9.5, rel=1e-4)
    assert energy.measured
    assert energy.source == "RAPL, of the whole machine"


def test_a_counter_that_wraps_between_readings_loses_nothing(counters):
    most = 262_143_328_850
    counters[0].write_text(f"{most - 3_000_000}\n")
    adding = room._Sums([room._Rapl()])
    for now in (5_000_000, most - 1_000_000, 1_000_000):
        counters[0].write_text(f"{now}\n")
        adding._read()
    expected = 8.0 + (most * 1e-6 - 6.0) + 2.0
    assert adding.stop()["RAPL"] == pytest.approx(expected, rel=1e-4)


def test_a_long_block_reads_its_counters_before_they_wrap_twice(monkeypatch):
    twice = Event()

    class Meter:
        name = "RAPL"
        n = 0

        def joules(self, seconds):
            assert seconds > 0
            self.n += 1
            if self.n == 2:
                twice.set()
            return 1.0

    monkeypatch.setattr(room, "_READ_EVERY_S", 0.005)
    monkeypatch.setattr(room, "_sensors", lambda: ([Meter()], ""))
    with measure_energy() as energy:
        assert twice.wait(600)
    assert energy.joules >= 3.0


@pytest.mark.usefixtures("counters")
def test_a_measured_block_ignores_stated_watts(capfd):
    with measure_energy(watts=1e9, required=True) as energy:
        pass
    assert energy.joules == 0.0
    assert energy.measured
    assert capfd.readouterr() == ("", "")  # the library logs to standard error by itself


@pytest.mark.usefixtures("no_counters")
def test_an_estimate_is_processor_time_at_the_stated_watts_and_called_one():
    with measure_energy(watts=12.5) as energy:
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
    assert energy.cpu_seconds >= 0.04
    assert energy.joules == pytest.approx(12.5 * energy.cpu_seconds)
    assert not energy.measured
    assert "estimate" in energy.source
    assert "12.5 W" in energy.source


@pytest.mark.usefixtures("no_counters")
def test_time_of_ended_children_counts():
    busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    with measure_energy(watts=1.0) as energy:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert energy.cpu_seconds >= 0.15


@pytest.mark.usefixtures("no_counters")
def test_without_sensor_and_watts_nothing_is_made_up():
    with measure_energy() as energy:
        assert math.isnan(energy.joules)
    assert math.isnan(energy.joules)
    assert not energy.measured
    assert "not measured" in energy.source
    assert energy.seconds > 0.0


@pytest.mark.usefixtures("no_counters")
def test_joules_of_gpus_alone_are_not_called_the_measured_whole(monkeypatch):
    class Gpu:
        name = "NVML"

        def joules(self, seconds):
            return float(seconds > 0.0)

    monkeypatch.setattr(room, "_sensors", lambda: ([Gpu()], "no counter"))
    with measure_energy() as energy:
        pass
    assert (energy.joules, energy.measured) == (1.0, False)
    assert "the processor is not measured" in energy.source


def test_a_required_sensor_that_is_missing_stops_before_the_work():
    with (
        fails("energy-sensor-missing", DripError),
        measure_energy(required=True),
    ):
        pytest.fail("the block ran")


@pytest.mark.usefixtures("no_counters")
def test_the_record_is_filled_where_the_block_fails():
    with pytest.raises(KeyError), measure_energy(watts=1.0) as energy:
        raise KeyError
    assert energy.seconds >= 0.0
    assert math.isfinite(energy.joules)


@pytest.mark.parametrize("watts", [0.0, -1.0, math.nan, math.inf])
def test_watts_that_are_none_are_rejected(watts):
    with fails(), measure_energy(watts=watts):
        pass


def fresh(code, cwd):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.mark.slow
def test_no_socket_is_opened_no_file_written_and_nothing_printed(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket is opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from drip.reduction.energy import measure_energy\n"
        "with measure_energy(watts=5.0) as energy: sum(range(10**6))\n"
        "import sys\n"
        "assert 'torch' not in sys.modules and 'codecarbon' in sys.modules\n"
    )
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path):
    code = (
        "import sys\nsys.modules['codecarbon'] = None\n"
        "from drip.reduction.energy import measure_energy\n"
        "with measure_energy() as energy: pass\n"
        "print(energy.source)\n"
    )
    done = fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'pip install "drip-edge[energy]"' in done.stdout


@pytest.mark.usefixtures("no_counters")
def test_the_logging_of_others_is_left_alone(caplog):
    with measure_energy(watts=1.0), caplog.at_level(logging.INFO):
        logging.getLogger("mine").info("heard")
    assert "heard" in caplog.text
