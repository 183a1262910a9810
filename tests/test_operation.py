"""A running sender as an operator sees it: health, stand-in, control socket, the NSX counters."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outer
import pytest

import lab
from tunnelbridge.control_client import ask
from tunnelbridge.errors import UserError

pytestmark = pytest.mark.usefixtures("root")

PROGRAM = [sys.executable, "-m", "tunnelbridge.cli"]
MAC = "02:00:0a:0a:0a:0a"


def flow(number: int) -> bytes:
    return outer.frame(
        outer.ipv4(outer.udp(b"x" * 20, 2000 + number, 9), 17, "10.0.0.1", "10.0.0.2")
    )


@contextlib.contextmanager
def sending(ns: str, folder: Path, config: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "mirror.toml").write_text(config)
    argv = [
        "ip", "netns", "exec", ns, *PROGRAM, "send", "--config", str(folder / "mirror.toml"),
        "--control", str(folder / "s.sock"), "--stats", str(folder / "stats.json"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(argv, stderr=log, text=True)
    try:
        lab.until(lambda: '"cloning"' in (folder / "log").read_text() or process.poll(), 15)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def show(folder: Path, what: str) -> Any:
    return ask(folder / "s.sock", {"command": "show", "what": what})


def inject(ns: str, interface: str, frames: list[bytes]) -> None:
    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((interface, 0))
            for frame in frames:
                sock.send(frame)

    lab.in_namespace(ns, work)


def test_a_member_that_stops_to_answer_loses_its_flows_and_gets_them_back(tmp_path: Path) -> None:
    config = """
[pools.ids]
health = {{ check = "icmp", interval = 0.1, timeout = 0.2, fall = 2, rise = 2 }}
members = [{{ ip = "198.51.100.7", via = "vxlan://198.51.100.7" }},
           {{ ip = "198.51.100.8", via = "vxlan://198.51.100.8" }}]
[sessions.s]
sources = ["{}"]
target = "ids"
expression = "udp port 9"
"""
    with (
        lab.namespace() as ns,
        lab.namespace() as far,
        lab.veth(ns, far, "198.51.100.1/24", "198.51.100.7/24") as (_, there),
        lab.veth(ns, ns) as (near, other),
    ):
        second = ("198.51.100.8/24", "dev", there)
        lab.run("ip", "-n", far, "address", "add", *second)
        with sending(ns, tmp_path, config.format(near)):

            def states() -> list[str]:
                return [each["state"] for each in show(tmp_path, "pools")[0]["members"]]

            def spread() -> list[int]:
                before = got()
                inject(ns, other, [flow(number) for number in range(64)])
                lab.until(lambda: sum(got()) >= sum(before) + 64, 10, "64 clones")
                return [now - then for now, then in zip(got(), before, strict=True)]

            def got() -> list[int]:
                return [
                    each["num_total_pkts_cloned"] for each in show(tmp_path, "pools")[0]["members"]
                ]

            assert states() == ["up", "up"]
            first = spread()
            assert min(first) > 5
            lab.run("ip", "-n", far, "address", "del", *second)
            lab.until(lambda: states() == ["up", "down"], 15, "the member to be down")
            assert spread() == [64, 0]
            lab.run("ip", "-n", far, "address", "add", *second)
            lab.until(lambda: states() == ["up", "up"], 15, "the member to be up")
            assert spread() == first
    assert json.loads((tmp_path / "stats.json").read_text())["balanced"]


def test_the_stand_in_is_found_and_carries_what_is_sent_to_it(tmp_path: Path) -> None:
    config = f"""
[arp]
"10.10.10.10" = "{MAC}"
[fdb]
"{MAC}" = "vxlan://198.51.100.7"
[stand_in]
interface = "{{}}"
members = ["10.10.10.10"]
"""
    lab.need("tcpdump")
    with (
        lab.namespace() as ns,
        lab.namespace() as lan,
        lab.namespace() as far,
        lab.veth(ns, far, "198.51.100.1/24", "198.51.100.7/24") as (_, there),
        lab.veth(ns, lan, None, "10.10.10.1/24") as (near, _),
        sending(ns, tmp_path, config.format(near)),
    ):
        capture = subprocess.Popen(
                ["ip", "netns", "exec", far, "tcpdump", "-U", "-n", "-i", there, "-c", "1",
                 "-w", str(tmp_path / "x.pcap"), "udp port 4789"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert capture.stderr is not None
        assert "listening" in capture.stderr.readline()

        def neighbour() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"hello member", ("10.10.10.10", 9))
            return MAC in lab.run("ip", "-n", lan, "neigh", "show", "10.10.10.10")

        lab.until(lambda: lab.in_namespace(lan, neighbour), 10, "the member to be found")
        assert capture.wait(10) == 0
        capture.stderr.close()
        sessions = show(tmp_path, "sessions")
        assert [each["name"] for each in sessions] == ["stand-in 10.10.10.10"]
        assert show(tmp_path, "arp")[0]["mac"] == MAC
    octets = (tmp_path / "x.pcap").read_bytes()
    assert bytes.fromhex(MAC.replace(":", "")) in octets
    assert b"hello member" in octets


def test_a_refused_reload_leaves_the_stand_in_as_it_was(tmp_path: Path) -> None:
    config = f"""
[arp]
"10.10.10.1" = "{MAC}"
"10.10.10.10" = "{MAC}"
"10.10.10.11" = "{MAC}"
[fdb]
"{MAC}" = "vxlan://127.0.0.9"
[stand_in]
interface = "{{}}"
members = [{{}}]
"""

    def found(asker: str, lan: str, member: str) -> bool:
        lab.run("ip", "-n", lan, "neigh", "flush", "dev", asker)

        def ask_for_it() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (member, 9))
            return MAC in lab.run("ip", "-n", lan, "neigh", "show", member)

        return bool(lab.until(lambda: lab.in_namespace(lan, ask_for_it), 10, f"{member} be found"))

    with (
        lab.namespace() as ns,
        lab.namespace() as lan,
        lab.veth(ns, lan, None, "10.10.10.1/24") as (near, asker),
        sending(ns, tmp_path, config.format(near, '"10.10.10.10"')),
    ):
        assert found(asker, lan, "10.10.10.10")
        (tmp_path / "mirror.toml").write_text(config.format(near, '"10.10.10.10", "10.10.10.1"'))
        with pytest.raises(UserError, match=r"10\.10\.10\.1 on .* is in use"):
            ask(tmp_path / "s.sock", {"command": "reload"}, 20)
        assert found(asker, lan, "10.10.10.10")
        assert [each["name"] for each in show(tmp_path, "sessions")] == ["stand-in 10.10.10.10"]
        with pytest.raises(UserError, match=r"follows \[stand_in\] in the file"):
            ask(tmp_path / "s.sock", {"command": "disable", "session": "stand-in 10.10.10.10"})

        (tmp_path / "mirror.toml").write_text(config.format(near, '"10.10.10.11"'))
        ask(tmp_path / "s.sock", {"command": "reload"}, 20)
        assert found(asker, lan, "10.10.10.11")
        assert [each["name"] for each in show(tmp_path, "sessions")] == ["stand-in 10.10.10.11"]


def test_an_address_that_somebody_has_is_not_taken(tmp_path: Path) -> None:
    config = f"""
[arp]
"10.10.10.1" = "{MAC}"
[fdb]
"{MAC}" = "vxlan://127.0.0.9"
[stand_in]
interface = "{{}}"
members = ["10.10.10.1"]
"""
    with (
        lab.namespace() as ns,
        lab.namespace() as lan,
        lab.veth(ns, lan, None, "10.10.10.1/24") as (near, _),
        sending(ns, tmp_path, config.format(near)) as process,
    ):
        assert process.wait(10) == 1
        assert "10.10.10.1" in (tmp_path / "log").read_text()
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_nsx_counters_and_their_reset(tmp_path: Path) -> None:
    config = """
[pools.clones]
distribution = "round-robin"
members = [{{ ip = "127.0.0.7", via = "vxlan://127.0.0.7" }},
           {{ ip = "127.0.0.8", via = "vxlan://127.0.0.8" }}]
[sessions.vs1]
sources = ["{}"]
target = "clones"
expression = "udp port 9"
labels = {{ decrypted = "true" }}
"""
    with (
        lab.namespace() as ns,
        lab.veth(ns, ns) as (near, other),
        sending(ns, tmp_path, config.format(near)),
    ):
        inject(ns, other, [flow(number) for number in range(10)])

        def servers() -> list[dict[str, Any]]:
            (session,) = show(tmp_path, "stats")["traffic_clone_stats"]
            found: list[dict[str, Any]] = session["clone_srvr_stats"]
            return found

        lab.until(lambda: sum(each["num_succeeded"] for each in servers()) == 10, 10)
        assert [each["num_total_pkts_cloned"] for each in servers()] == [5, 5]
        assert show(tmp_path, "sessions")[0]["labels"] == {"decrypted": "true"}
        epoch = show(tmp_path, "stats")["stats_epoch"]
        ask(tmp_path / "s.sock", {"command": "show", "what": "stats", "reset": True})
        after = show(tmp_path, "stats")
        assert after["stats_epoch"] == epoch + 1
        assert [each["num_succeeded"] for each in servers()] == [0, 0]
        assert after["ledger"]["copies"] == 10  # the ledger itself is never reset
        inject(ns, other, [flow(1)])
        lab.until(lambda: sum(each["num_succeeded"] for each in servers()) == 1, 10)
        for what in ("sessions", "pools", "arp", "fdb", "tunnels", "stats"):
            printed = lab.run(*PROGRAM, "show", what, "--control", str(tmp_path / "s.sock"))
            assert max(map(len, printed.splitlines()), default=0) <= 80


def test_prometheus_may_ask(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus-client")
    from prometheus_client.parser import text_string_to_metric_families

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [
        *PROGRAM, "send", "-i", "lo", "--filter", "udp port 9", "--to", "vxlan://127.0.0.1:9999",
        "--metrics", f"127.0.0.1:{port}", "--count", "3",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, stderr=log)
    try:
        lab.until(lambda: '"cloning"' in (tmp_path / "log").read_text() or process.poll(), 15)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(2):
                sock.sendto(b"x", ("127.0.0.1", 9))

        def asked() -> dict[str, float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            return {
                sample.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if not sample.labels
            }

        lab.until(lambda: asked().get("tunnelbridge_cloned_total") == 2, 10, "two clones")
    finally:
        process.terminate()
        assert process.wait(15) == 0
