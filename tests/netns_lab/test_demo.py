"""The demo as a user runs it: true to the end, false when it is false, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lab import need

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import demo
from netlab import NAMESPACES
from process import wait_until

LAB = Path(demo.__file__).parent
TOOLS = ("ip", "tc", "ethtool", "tcpdump", "unshare")


def left(pid: int) -> list[str]:
    """Return what a demo with that process id has left behind."""
    namespaces = NAMESPACES.glob(f"tb-*-{pid}??") if NAMESPACES.is_dir() else []
    return [str(path) for path in namespaces]


def start(
    *arguments: str, change: str = "", by: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start the demo, ``by`` another program; ``change`` is done to it first."""
    code = f"import sys; sys.path.insert(0, {str(LAB)!r}); import demo, routed\n{change}\n"
    return subprocess.Popen(
        [*by, sys.executable, "-c", code + "sys.exit(demo.main())", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def run(
    *arguments: str, change: str = "", by: Sequence[str] = (), **environment: str
) -> tuple[int, str, str]:
    with start(*arguments, change=change, by=by, **environment) as process:
        out, err = process.communicate(timeout=60)
    assert environment.get("KEEP") or left(process.pid) == []
    return process.returncode, out, err


@pytest.mark.usefixtures("root")
def test_every_frame_equals_the_original_across_a_router() -> None:
    need(*TOOLS)
    code, out, err = run()

    assert (code, err) == (0, "")
    assert "every collected frame equals the original on the wire" in out
    assert "in the pcap: GET / HTTP/1.1" in out
    assert "NO " not in out
    assert len(out.splitlines()) <= 60
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("routed.SEND += ['--snaplen', '1000']", id="cut short"),
        pytest.param("routed.SEND += ['--direction', 'in']", id="one direction missing"),
        pytest.param("routed.SEND += ['--to', 'gre://198.51.100.7?key=5']", id="twice"),
        pytest.param("routed.compare.readdressed = lambda frames, mac: frames", id="other MAC"),
    ],
)
def test_what_is_not_true_is_told(change: str) -> None:
    need(*TOOLS)
    code, out, _ = run(change=change)

    assert code == 1
    assert "NO   every collected frame equals the original" in out
    assert "It is NOT all true." in out


@pytest.mark.usefixtures("root")
def test_a_program_that_refuses_is_told() -> None:
    need(*TOOLS)
    code, _, err = run(change="routed.SEND += ['--no-such-option']")

    assert code == 1
    assert err.startswith("demo: tunnelbridge ended with exit code 2")
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("root")
def test_an_interruption_leaves_nothing() -> None:
    need(*TOOLS)
    with start() as process:
        assert process.stdout is not None
        while "mirrored" not in process.stdout.readline():
            pass
        wait_until(lambda: len(left(process.pid)) == 5, 10, "the judge's namespace")

        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (130, "demo: interrupted\n")
    assert left(process.pid) == []


@pytest.fixture
def kept() -> Iterator[list[str]]:
    """Run what the list holds at the end: the demo's own words on how to remove what it kept."""
    commands: list[str] = []
    yield commands
    for command in commands:
        subprocess.run(["sh", "-c", command], check=True)
        names = [word.rstrip(";") for word in command.split() if word.startswith("tb-")]
        assert names
        assert not any((NAMESPACES / name).exists() for name in names)


@pytest.mark.usefixtures("root")
def test_a_kept_lab_stands_until_it_is_removed_as_it_says(kept: list[str]) -> None:
    need(*TOOLS)
    code, out, _ = run(KEEP="1")
    kept.append(out.splitlines()[-1])

    assert code == 0
    namespaces = [word.rstrip(";") for word in kept[0].split() if word.startswith("tb-")]
    assert len(namespaces) == 5
    assert all((NAMESPACES / name).exists() for name in namespaces)
    assert f"ip netns exec {namespaces[1]} bash" in out


@pytest.mark.usefixtures("root")
def test_a_lab_kept_after_a_failure_says_how_to_remove_it(kept: list[str]) -> None:
    need(*TOOLS)
    code, out, _ = run(change="routed.SEND += ['--no-such-option']", KEEP="1")
    kept.append(out.splitlines()[-1])

    assert code == 1
    assert kept[0].split()[:3] == ["ip", "netns", "del"]


def test_without_namespaces_the_bundled_capture_comes_out_the_same() -> None:
    code, out, err = run("--unprivileged")

    assert (code, err) == (0, "")
    assert "every collected frame equals the original: " in out
    assert "NO " not in out


@pytest.mark.usefixtures("root")
def test_root_of_a_container_gets_the_job_without_namespaces() -> None:
    need("setpriv", "unshare")
    code, out, err = run(by=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])

    assert (code, err) == (0, "")
    assert out.startswith("This root may not make network namespaces")
    assert "every collected frame equals the original: " in out


def test_without_namespaces_what_is_not_true_is_told() -> None:
    code, out, _ = run("--unprivileged", change="routed.SEND += ['--snaplen', '1000']")

    assert code == 1
    assert "NO   every collected frame equals the original" in out
