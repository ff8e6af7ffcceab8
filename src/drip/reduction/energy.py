"""The energy of a block of code in joules, and its origin: sensors, or an estimate that is labelled as one.

codecarbon's tracker would also fetch carbon intensities and write files; only its sensor classes are used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, nan
from threading import Event, Lock, Thread
from time import perf_counter, process_time
from typing import Any, Protocol

from drip.errors import DripError, InputError

RAPL_PATH = "/sys/class/powercap/intel-rapl/subsystem"
"""Folder with the processor's energy counters on Linux."""

_READ_EVERY_S = 30.0  # a counter wraps at 262 kJ: under an hour at 100 W; two wraps would go unseen
_LIBRARY = "codecarbon"


@dataclass(slots=True)
class Energy:
    """Cost of a block of code; NaN until it ends.

    Attributes:
        joules: Energy in J, the sum of the parts; NaN without parts.
        source: Description of the source: sensors, an estimate, or why there is no number.
        measured: True if sensors measured everything, including the processor.
        seconds: Wall time.
        cpu_seconds: Processor time of this process, its threads and its finished children.
        parts: Joules by source: ``RAPL``, ``NVML`` (or ``AMD SMI``), ``estimate``.
    """

    joules: float = nan
    source: str = "the block has not ended"
    measured: bool = False
    seconds: float = nan
    cpu_seconds: float = nan
    parts: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def measure_energy(*, watts: float | None = None, required: bool = False) -> Iterator[Energy]:
    r"""Measure the energy of a block in joules.

    Sensors are read with codecarbon's classes: RAPL for processor and memory, NVML or AMD SMI for GPUs. They
    count everything that runs on the machine, so measure on an idle one. If the processor has no readable
    sensor, ``watts`` provides an estimate, :math:`E = t_{cpu} \cdot` ``watts``, which excludes the idle power
    of the machine. Without ``watts`` there is no estimate: ``joules`` is NaN, or the energy of the GPUs
    alone, and ``source`` says so.

    Args:
        watts: Power of one busy core in W, for the estimate.
        required: Raise an error if the processor has no readable sensor.

    Yields:
        The record, filled when the block ends, even with an exception.

    Raises:
        InputError: ``watts`` is not a positive number.
        DripError: a sensor is required but not available; the message states the reason.

    >>> with measure_energy(watts=10.0) as energy:
    ...     total = sum(range(100_000))
    >>> energy.seconds > 0.0 and energy.joules > 0.0
    True
    """
    if watts is not None and not (isfinite(watts) and watts > 0):
        raise InputError(f"watts must be a positive number, or None for no estimate, not {watts!r}")
    meters, missing = _sensors()
    if required and missing:
        raise DripError(
            f"the processor's energy cannot be measured: {missing}; measure on another machine, or pass "
            "watts for an estimate and omit required",
            code="energy-sensor-missing",
        )
    energy = Energy()
    sums = _Sums(meters)
    started_s, started_cpu_s = perf_counter(), _cpu_s()
    sums.start()
    try:
        yield energy
    finally:
        energy.seconds, energy.cpu_seconds = perf_counter() - started_s, _cpu_s() - started_cpu_s
        _fill(energy, sums.stop(), missing, watts)


def _fill(energy: Energy, parts: dict[str, float], missing: str, watts: float | None) -> None:
    words = [f"{name}, of the whole machine" for name in parts]
    if missing and watts is not None:
        parts = {**parts, "estimate": energy.cpu_seconds * watts}
        words.append(f"estimate: {energy.cpu_seconds:.3g} s of processor time at {watts:g} W ({missing})")
    elif missing:
        words.append(f"the processor is not measured: {missing}; pass watts for an estimate")
    energy.parts = parts
    energy.joules = sum(parts.values()) if parts else nan
    energy.measured = bool(parts) and not missing
    energy.source = " + ".join(words)


def _cpu_s() -> float:
    ended = os.times()
    return process_time() + ended.children_user + ended.children_system


class _Meter(Protocol):
    """Returns the joules since the last reading."""

    name: str

    def joules(self, seconds: float) -> float: ...


class _Rapl:
    """Processor packages and, if the kernel counts it separately, memory."""

    name = "RAPL"

    def __init__(self) -> None:
        from codecarbon.core.cpu import IntelRAPL  # noqa: PLC0415  # an extra
        from codecarbon.core.units import Energy as KilowattHours  # noqa: PLC0415

        self._per_kwh: float = 1.0 / KilowattHours.JOULES_TO_KWH
        reader: Any = IntelRAPL  # incompletely typed
        self._reader = reader(rapl_dir=RAPL_PATH, rapl_include_dram=True)
        self._reader.start()

    def joules(self, seconds: float) -> float:
        from codecarbon.core.units import Time  # noqa: PLC0415

        found = self._reader.get_cpu_details(Time.from_seconds(seconds))
        return self._per_kwh * sum(float(kwh) for name, kwh in found.items() if "Power" not in name)


class _Gpus:
    """All GPUs of the machine."""

    def __init__(self, name: str) -> None:
        from codecarbon.core.gpu import AllGPUDevices  # noqa: PLC0415
        from codecarbon.core.units import Energy as KilowattHours  # noqa: PLC0415

        self.name = name
        self._per_kwh: float = 1.0 / KilowattHours.JOULES_TO_KWH
        self._devices = AllGPUDevices()
        self._devices.start()

    def joules(self, seconds: float) -> float:
        from codecarbon.core.units import Time  # noqa: PLC0415

        found = self._devices.get_delta(Time.from_seconds(seconds))
        return self._per_kwh * sum(float(gpu["delta_energy_consumption"].kWh) for gpu in found)


def _sensors() -> tuple[list[_Meter], str]:
    """The meters that can be read here, and why the processor has none (empty if it has one)."""
    with _quiet():
        try:
            from codecarbon.core import cpu, gpu  # noqa: PLC0415
        except ImportError:
            return [], f'{_LIBRARY} cannot be imported; run: pip install "drip-edge[energy]"'
        meters: list[_Meter] = []
        missing = f"no RAPL counter can be read at {RAPL_PATH}"
        if cpu.is_rapl_available(RAPL_PATH):
            meters.append(_Rapl())
            missing = ""
        if gpu.is_nvidia_system() and gpu.PYNVML_AVAILABLE:
            meters.append(_Gpus("NVML"))
        elif gpu.is_rocm_system():
            meters.append(_Gpus("AMD SMI"))
        return meters, missing


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library, which configures its own log output; ``source`` contains the same information."""
    logger = logging.getLogger(_LIBRARY)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Sums:
    """Adds up the meters every 30 s in a thread, because their counters wrap."""

    def __init__(self, meters: list[_Meter]) -> None:
        self._meters = meters
        self._sums = {meter.name: 0.0 for meter in meters}
        self._ended, self._lock = Event(), Lock()
        self._read_s = perf_counter()
        self._thread = Thread(target=self._run, name="drip-energy", daemon=True)

    def start(self) -> None:
        if self._meters:
            self._thread.start()

    def stop(self) -> dict[str, float]:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._read()
        return self._sums

    def _run(self) -> None:
        while not self._ended.wait(_READ_EVERY_S):
            self._read()

    def _read(self) -> None:
        with self._lock, _quiet():
            now_s = perf_counter()
            for meter in self._meters:
                self._sums[meter.name] += meter.joules(max(now_s - self._read_s, 1e-9))
            self._read_s = now_s
