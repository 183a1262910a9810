"""Put a load on a running program and measure for a while in the middle of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import networks
from netlab import Lab
from networks import Network
from process import LabError, Process, wait_until

GENERATOR: Final = Path(__file__).with_name("generator.py")
WARM_UP: Final = 0.2
QUIET: Final = 0.2
Judge = Callable[[], int]


@dataclass(frozen=True)
class Load:
    """What the generator sends: ``rate`` packets a second, or flat out without one."""

    flows: int
    rate: int | None = None
    encapsulation: str = "none"
    size: int = 64

    @property
    def name(self) -> str:
        """How tables call it."""
        return "flat out" if self.rate is None else f"{self.rate // 1000} kpps"


@dataclass(frozen=True)
class Window:
    """What happened within ``seconds`` of full load, and ``total`` from the first to the last packet.

    ``offered`` and ``done`` count packets; ``cpu`` (of the program) and ``busy`` (of the whole
    machine) are seconds.
    """

    seconds: float
    offered: int
    done: int
    cpu: float
    busy: float
    total_offered: int
    total_done: int


@dataclass(frozen=True)
class Site:
    """Where and for how long to measure."""

    lab: Lab
    net: Network
    seconds: float

    def start(
        self,
        name: str,
        argv: list[str],
        namespace: str,
        *,
        core: int | None = None,
        ready: str | None = None,
    ) -> Process:
        """Start a program on the core of what is measured, or another."""
        chosen = networks.cores()[1] if core is None else core
        return self.lab.start(name, ["taskset", "-c", str(chosen), *argv], namespace, ready)

    def generate(self, load: Load) -> Process:
        """Start the generator: at the mirrored interface, or with tunnels at the collector."""
        plain = load.encapsulation == "none"
        argv = [
            sys.executable, str(GENERATOR), "-i", "eth0" if plain else "eth1",
            "--to", networks.OTHER_HOST if plain else networks.COLLECTOR_MAC,
            "--size", str(load.size), "--flows", str(load.flows),
            "--encapsulation", load.encapsulation,
            "--seconds", str(self.seconds + 2 * WARM_UP),
        ]  # fmt: skip
        argv += ["--rate", str(load.rate)] if load.rate else []
        core = networks.cores()[0]
        return self.start("generator", argv, self.net.generator, core=core)


def under(
    site: Site,
    load: Load,
    offered: Judge,
    done: Judge,
    program: Process | None,
    quiet: float = QUIET,
) -> Window:
    """Put ``load`` on what runs, then end ``program``; ``offered`` and ``done`` count packets.

    It is ended when ``done`` has not moved for ``quiet`` seconds; the totals are of after its end.
    """
    pid = None if program is None else program.pid
    first_offered, first_done = offered(), done()
    generator = site.generate(load)
    wait_until(lambda: offered() > first_offered, 10, "the generator's first packet")
    time.sleep(WARM_UP)
    before = _sample(offered, done, pid)
    time.sleep(site.seconds)
    after = _sample(offered, done, pid)
    generator.wait(10)
    _settle(done, quiet)
    if program is not None and (code := program.stop()):
        raise LabError(f"{program.name} ended with exit code {code}: {program.last_words()}")
    seconds, packets, finished, cpu, busy = (b - a for a, b in zip(before, after, strict=True))
    total_offered, total_done = offered() - first_offered, done() - first_done
    return Window(seconds, int(packets), int(finished), cpu, busy, total_offered, total_done)


def _sample(offered: Judge, done: Judge, pid: int | None) -> tuple[float, ...]:
    return (
        time.monotonic(), offered(), done(), 0.0 if pid is None else cpu_time(pid), busy_time(),
    )  # fmt: skip


def _settle(done: Judge, quiet: float) -> None:
    """Wait until what was queued is through."""
    last = (done(), time.monotonic())

    def is_quiet() -> bool:
        nonlocal last
        now = done()
        if now != last[0]:
            last = (now, time.monotonic())
        return time.monotonic() - last[1] > quiet

    wait_until(is_quiet, 20, "the last packet")


def cpu_time(pid: int) -> float:
    """Return the CPU time of all of a process's threads: CPUCLOCK_SCHED of posix-timers(7)."""
    return time.clock_gettime((~pid << 3) | 2)


def busy_time() -> float:
    """Return the CPU time that all cores were not idle."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def last_json(process: Process) -> dict[str, int]:
    """Return the JSON object in the last line that a program printed."""
    found: dict[str, int] = json.loads(process.out.read_text().strip().split("\n")[-1])
    return found
