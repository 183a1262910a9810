"""The lab builds what it says, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import topology
from netlab import NAMESPACES, Lab, inside
from process import LabError, wait_until

from tunnelbridge.errors import UserError

pytestmark = pytest.mark.usefixtures("root")

SCRIPT = """
import sys, time
from netlab import Lab
import topology
try:
    with Lab() as lab:
        topology.build(lab)
        # one that the lab knows, and one that it never heard of
        lab.start("sleeper", ["sleep", "1000"], lab.namespaces[0])
        import subprocess
        child = subprocess.Popen(["ip", "netns", "exec", lab.namespaces[1], "sleep", "1000"])
        import json
        print(json.dumps([lab.namespaces, str(lab.folder), child.pid]), flush=True)
        time.sleep(1000)
except KeyboardInterrupt as why:
    sys.exit(str(why))
"""


def left(lab: Lab) -> list[str]:
    return [name for name in lab.namespaces if (NAMESPACES / name).exists()]


def test_a_datagram_goes_from_host_to_collector_through_the_router_only() -> None:
    with Lab() as lab:
        net = topology.build(lab)
        way = lab.command("ip", "-n", net.host, "route", "get", topology.COLLECTOR)
        assert "via 203.0.113.1" in way

        def udp() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        with inside(net.host, udp) as sender, inside(net.collector, udp) as receiver:
            receiver.bind(("", 5000))
            receiver.settimeout(2)
            receiver.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
            sender.sendto(b"hello", (topology.COLLECTOR, 5000))
            octets, [(_, _, ttl)], _, source = receiver.recvmsg(100, 100)

        assert octets == b"hello"
        assert source[0] == "203.0.113.2"
        assert int.from_bytes(ttl, sys.byteorder) == 63  # one router has had it


def test_the_mirrored_interface_keeps_its_offloads() -> None:
    with Lab() as lab:
        net = topology.build(lab)
        features = lab.command("ethtool", "-k", topology.MIRRORED, namespace=net.host)

        assert "tcp-segmentation-offload: on" in features
        assert "tx-checksumming: on" in features


def test_nothing_is_left_after_the_end() -> None:
    with Lab() as lab:
        name = lab.namespace("a")
        process = lab.start("sleeper", ["sleep", "1000"], name)
        assert left(lab) == [name]

    assert left(lab) == []
    assert process.popen.returncode == -signal.SIGINT
    assert not lab.folder.exists()


def test_nothing_is_left_after_a_failure() -> None:
    lab = Lab()

    def fail() -> None:
        with lab:
            lab.namespace("a")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()

    assert left(lab) == []
    assert not lab.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_an_interruption(number: signal.Signals, tmp_path: Path) -> None:
    lab_folder = str(Path(topology.__file__).parent)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": lab_folder},
    ) as process:
        assert process.stdout is not None
        namespaces, folder, pid = json.loads(process.stdout.readline())
        assert all((NAMESPACES / name).exists() for name in namespaces)

        process.send_signal(number)
        process.send_signal(number)  # the impatient user's second
        _, err = process.communicate(timeout=20)

    assert err.strip() == number.name
    assert process.returncode == 1
    assert not any((NAMESPACES / name).exists() for name in namespaces)
    assert not Path(folder).exists()
    # killed; its parent has ended, so init takes it away
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5, "the unknown process to end")


def test_a_kept_lab_stands() -> None:
    with Lab(keep=True) as lab:
        name = lab.namespace("a")
        process = lab.start("sleeper", ["sleep", "1000"], name)

    try:
        assert left(lab) == [name]
        assert lab.folder.is_dir()
        assert process.popen.returncode == -signal.SIGINT
    finally:
        lab.command("ip", "netns", "del", name)
        for each in lab.folder.iterdir():
            each.unlink()
        lab.folder.rmdir()


def test_what_cannot_be_deleted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    monkeypatch.setattr(lab, "_delete", str)
    lab.__enter__()
    name = lab.namespace("a")

    with pytest.raises(LabError, match=f"{name} is still there"):
        lab.__exit__(None, None, None)

    subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_failing_command_says_what_it_said() -> None:
    with Lab() as lab:
        with pytest.raises(LabError, match='Device "nosuch" does not exist'):
            lab.command("ip", "link", "show", "dev", "nosuch", namespace=lab.namespace("a"))
        with pytest.raises(LabError, match="no-such-tool is not installed"):
            lab.command("no-such-tool")


def test_a_program_is_ready_once_it_says_so() -> None:
    with Lab() as lab:
        script = "import sys, time; time.sleep(.1); print('rea' + 'dy', file=sys.stderr); input()"
        process = lab.start("program", [sys.executable, "-c", script], ready="EOFError")
        assert process.said("ready")


def test_a_program_that_ends_early_is_told_with_its_last_words() -> None:
    with Lab() as lab:
        script = "import sys; sys.exit('no such interface')"
        with pytest.raises(LabError, match="ended with exit code 1: no such interface"):
            lab.start("program", [sys.executable, "-c", script], ready="listening")


def test_a_program_that_does_not_end_is_killed_and_told() -> None:
    with Lab() as lab:
        process = lab.start("deaf", ["sh", "-c", "trap '' INT; echo up; sleep 99"], ready="up")
        with pytest.raises(LabError, match=r"did not end within 0\.2 s"):
            process.stop(seconds=0.2)

        assert process.popen.returncode == -signal.SIGKILL


def test_inside_raises_what_the_function_raises() -> None:
    with Lab() as lab:
        with pytest.raises(ZeroDivisionError):
            inside(lab.namespace("a"), lambda: 1 / 0)
        with pytest.raises(UserError, match="no network namespace named"):
            inside("no-such-namespace", int)


def test_waiting_has_an_end() -> None:
    began = time.monotonic()
    with pytest.raises(LabError, match=r"waited 0\.05 s in vain: the moon"):
        wait_until(lambda: None, 0.05, "the moon")

    assert time.monotonic() - began < 1
