"""The benchmarks run: every case gives a rate and books that agree. Nothing here is about speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab import need

BENCH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench.py"
NAMESPACES = Path("/run/netns")
TOOLS = ("ip", "tc", "nft", "tcpdump", "capinfos", "iperf3", "taskset")

pytestmark = pytest.mark.usefixtures("root")


def left(pid: int) -> list[str]:
    """Return what a benchmark with this process id has left in memory and of namespaces."""
    there = NAMESPACES.iterdir() if NAMESPACES.exists() else ()
    return [each.name for each in there if each.name[:-2].endswith(f"-{pid}")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any]]:
    need(*TOOLS)
    path = tmp_path_factory.mktemp("bench") / "result.json"
    argv = [sys.executable, str(BENCH), "--quick", "--json", str(path)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    return running.pid, out, json.loads(path.read_text())


def test_every_case_gives_a_rate_and_balanced_books(
    measured: tuple[int, str, dict[str, Any]],
) -> None:
    _, _, found = measured
    assert [(each["work"], each["program"], each["format"]) for each in found["results"]] == [
        ("send", "tunnelbridge", "vxlan"),
        ("send", "tunnelbridge", "gre"),
        ("send", "tc mirred", "vxlan"),
        ("send", "uvloop loop", "vxlan"),
        ("collect", "tunnelbridge", "vxlan"),
        ("collect", "vxlan + tcpdump", "vxlan"),
        ("collect", "uvloop receiver", "vxlan"),
    ]
    for each in found["results"]:
        assert each["rate"] > 0, each
        assert each["balanced"], each
        assert 0 <= each["lost"] < 1, each
    assert [each["rate"] > 0 for each in found["ratios"]] == [True] * 6
    (bulk,) = found["bulk"]
    assert bulk["cloned_gbps"] > 0
    assert bulk["balanced"], bulk


def test_the_tables_show_every_case(measured: tuple[int, str, dict[str, Any]]) -> None:
    _, out, found = measured
    assert out.count("agrees") == len(found["results"]) + 1
    assert "ours ÷ peer" in out


def test_nothing_is_left(measured: tuple[int, str, dict[str, Any]]) -> None:
    assert left(measured[0]) == []


def test_ctrl_c_takes_everything_down() -> None:
    need(*TOOLS)
    with subprocess.Popen(
        [sys.executable, str(BENCH), "--quick", "--only", "collect tunnelbridge", "--seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 20
        while len(left(running.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(left(running.pid)) == 4
        os.kill(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "interrupted" in err
    assert left(running.pid) == []


def test_without_root_it_says_so() -> None:
    import ctypes

    def drop() -> None:
        ctypes.CDLL(None).setresuid(65534, 65534, 65534)

    need("bash")
    script = BENCH.with_name("run").read_text()
    done = subprocess.run(
        ["bash", "-c", script], preexec_fn=drop, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr
