"""Every scenario of the lab, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import runner
from netlab import NAMESPACES

LAB = Path(runner.__file__).parent


def left(pid: int) -> list[str]:
    """Return what a run with that process id has left behind."""
    namespaces = NAMESPACES.glob(f"tb-*-{pid}??") if NAMESPACES.is_dir() else []
    return [str(path) for path in namespaces]


def lab(*arguments: str, **environment: str) -> tuple[int, str, str, int]:
    """Run ``netns-lab/lab`` without its set-up: exit code, standard output, error, process id."""
    with subprocess.Popen(
        [sys.executable, str(LAB / "runner.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    ) as process:
        out, err = process.communicate(timeout=110)
    return process.returncode, out, err, process.pid


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", runner.names())
def test_scenario(name: str) -> None:
    code, out, err, pid = lab("run", name)

    assert left(pid) == []
    if code == runner.SKIPPED:
        pytest.skip(out.strip().splitlines()[-1])
    assert (code, err) == (0, ""), out
    assert "All of it is true." in out
    assert "NO " not in out
    assert "] $ tunnelbridge send " in out
    assert max(map(len, out.splitlines())) <= 110
