"""What show tells: of ledgers made by hand, and of a real collector over its control socket."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import outer
import pytest
from delivered import delivery
from rich.console import Console
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

import lab
from collector import cli, show
from collector.findings import findings, remarks
from collector.health import MirrorHealth
from collector.ledger import CollectorLedger, RefusedSender, SinkLedger, StreamLedger
from collector.refinement import Refinement, Wishes
from collector.show import health_findings
from collector.status import MOST_SHOWN, Status
from tunnelbridge.batch import from_packets
from tunnelbridge.control_client import ask
from tunnelbridge.errors import UserError
from tunnelbridge.wire.encapsulation import vxlan_tunnel

Run = Callable[..., tuple[int, str, str]]
SECOND = 10**9
PORT = 4789


def status(
    *streams: StreamLedger, health: MirrorHealth | None = None, refused: list[Any] | None = None
) -> Status:
    sink = SinkLedger("tap t", 8, 800, Counter({"queue-full": 1}), 4, 2)
    ledger = CollectorLedger(received=20, sinks=[sink])
    return Status(
        ledger,
        lambda: list(streams),
        lambda: refused or [],
        lambda: ledger.as_dict("collector listen", streams),
        health,
    )


def stream(packets: int = 0, **more: Any) -> StreamLedger:
    return StreamLedger("192.0.2.1", "vxlan", 7, packets=packets, **more)


def test_streams_and_their_rates() -> None:
    one, two = stream(10, octets=1000), stream(0)
    shown = status(one, two)
    shown.tick(5 * SECOND)
    one.packets, one.octets = 30, 2000
    shown.tick(5 * SECOND + SECOND // 10)  # too soon to be a look
    shown.tick(7 * SECOND)
    first, second = shown.show("streams")["streams"]
    assert (first["packets_per_second"], first["bits_per_second"]) == (10.0, 4000)
    assert (second["packets_per_second"], second["name"]) == (0.0, "vxlan 192.0.2.1 vni 7")
    assert json.dumps(first)


def test_a_stream_that_came_since_the_last_look() -> None:
    streams = [stream(10)]
    shown = status()
    shown._streams = lambda: streams
    shown.tick(5 * SECOND)
    streams.append(stream(8))
    assert [each["packets_per_second"] for each in shown.streams()["streams"]] == [0.0, 0.0]
    shown.tick(6 * SECOND)
    assert [each["packets_per_second"] for each in shown.streams()["streams"]] == [0.0, 8.0]


def test_the_busiest_streams_are_shown_in_their_order() -> None:
    streams = [stream(number % 7) for number in range(MOST_SHOWN + 200)]
    found = status(*streams).show("streams")
    assert (len(found["streams"]), found["more"]) == (MOST_SHOWN, 200)
    numbers = [each["number"] for each in found["streams"]]
    assert numbers == sorted(numbers)
    assert min(each["packets"] for each in found["streams"]) == 1


def test_what_there_is_not() -> None:
    with pytest.raises(UserError, match="cannot show xyz: expected one of streams, sinks, refused"):
        status().show("xyz")
    with pytest.raises(UserError, match="mirror health is switched off"):
        status().show("health")
    assert status().findings() == []


def test_health_with_its_findings() -> None:
    found = status(stream(100, lost=3), health=MirrorHealth(1)).show("health")
    assert (found["lost"], found["findings"]) == (
        3,
        ["3 frames were lost on their way to the collector"],
    )


HEALTHY = {
    "frames": 1000, "truncated": 0, "sample": 1, "sampled_frames": 1000, "flows": 100,
    "one_direction": 30, "tcp_flows": 100, "tcp_one_direction": 5, "tcp_without_syn": 20,
    "tcp_octets": 999_000, "acked_unseen_octets": 900, "checked_checksums": 1000,
    "bad_checksums": 10, "suspected_duplicates": 50, "lost": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tcp_one_direction": 6}, "6.0% of TCP flows were seen in one direction"),
        ({"tcp_without_syn": 21}, "21.0% of TCP flows have no beginning"),
        ({"acked_unseen_octets": 9990}, "1.0% of TCP octets were acknowledged but never seen"),
        ({"truncated": 2}, "0.2% of frames were cut"),
        ({"bad_checksums": 11}, "1.1% of packets have a bad checksum"),
        ({"suspected_duplicates": 51}, "5.1% of frames came twice"),
    ],
)
def test_findings(wrong: dict[str, int], words: str) -> None:
    assert findings(HEALTHY) == []
    (found,) = findings(HEALTHY | wrong)
    assert found.startswith(words)


ONLY_UDP = HEALTHY | {"flows": 30, "one_direction": 30, "tcp_flows": 0, "tcp_one_direction": 0}


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        ({}, "100.0%"),
        ({"flows": 200, "one_direction": 198}, "99.0%"),
        ({"flows": 200, "one_direction": 197}, None),
        ({"flows": 29, "one_direction": 29}, None),  # too few
        ({"flows": 39, "one_direction": 30, "tcp_flows": 9}, "100.0%"),  # TCP too little to tell
        ({"flows": 40, "one_direction": 30, "tcp_flows": 10}, None),  # TCP came both ways
        ({"flows": 60, "one_direction": 60, "tcp_flows": 30, "tcp_one_direction": 30}, None),
    ],
)
def test_udp_in_one_direction_is_a_remark(changed: dict[str, int], share: str | None) -> None:
    told = remarks(ONLY_UDP | {"tcp_without_syn": 0} | changed)
    assert [each.split(" of UDP flows were seen in one direction")[0] for each in told] == (
        [share] if share else []
    )
    assert findings(ONLY_UDP | {"tcp_without_syn": 0}) == []
    assert remarks(HEALTHY) == []


def test_a_remark_is_shown_and_no_alarm() -> None:
    frames = [
        Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
        / IP(src="192.0.2.1", dst="192.0.2.2", id=port) / UDP(sport=port, dport=53) / b"?"
        for port in range(1000, 1040)
    ]  # fmt: skip
    health = MirrorHealth(1)
    health.take(delivery(from_packets([bytes(frame) for frame in frames])))
    looked = status(health=health)
    found = looked.show("health")
    assert found["findings"] == looked.findings() == []
    assert found["remarks"] == looked.remarks()
    (line,) = health_findings(found)
    assert line.plain.startswith("100.0% of UDP flows were seen in one direction only: normal for")
    assert not line.style


def test_a_few_flows_prove_nothing() -> None:
    few = {name: min(value, 9) for name, value in HEALTHY.items()}
    assert findings(few | {"acked_unseen_octets": 0}) == []


# --- tables ---


def table(what: str, result: Any) -> str:
    out = io.StringIO()
    show.write(what, result, Console(file=out, width=80, markup=False, highlight=False))
    return out.getvalue()


def test_tables_fit_80_columns() -> None:
    long = StreamLedger(
        "2001:db8:1234:5678:9abc:def0:1234:5678", "geneve", 16_777_215, 1 << 40, 1 << 50, 1 << 30,
        1 << 31, 1 << 32, 1 << 33, 9, 1_700_000_000 * SECOND, 1_700_000_001 * SECOND,
    )  # fmt: skip
    refused = RefusedSender(
        long.source, "vxlan", "vxlan-no-vni", 1 << 40, 1, 1_700_000_000 * SECOND
    )
    shown = status(long, stream(3), refused=[refused], health=MirrorHealth(1))
    for what in ("streams", "sinks", "refused", "health", "stats"):
        found = table(what, shown.show(what))
        assert max(map(len, found.splitlines())) <= 80, what
    found = table("streams", shown.show("streams"))
    assert "2023-11-14 22:13:20Z" in found
    for number in (1 << 40, 1 << 50, 1 << 31):
        assert str(number) in found
    assert "vxlan-no-vni" in "".join(table("refused", shown.show("refused")).split())


def test_tables_of_nothing() -> None:
    assert table("streams", {"streams": [], "more": 0}) == "no streams\n"
    assert table("refused", []) == "no refused\n"
    assert table("health", status(health=MirrorHealth(1)).show("health")).startswith(
        "nothing came yet\n"
    )
    assert "… and 5 more" in table("streams", {"streams": [], "more": 5})


def test_a_healthy_report_says_so() -> None:
    found = table("health", {**HEALTHY, "findings": []})
    assert found.startswith("nothing wrong with the mirror was seen\n")
    assert "5 (5.0% of 100)" in found
    found = table("health", {**HEALTHY, "sample": 8, "findings": ["all is wrong"]})
    assert found.startswith("! all is wrong\n")
    assert "1 of 8 flows" in found


# --- a real one ---


def frame(number: int, ttl: int = 64) -> bytes:
    payload = outer.udp(number.to_bytes(8), 1, 2)
    packet = bytearray(outer.ipv4(payload, 17, "10.0.0.1", "10.0.0.2"))
    packet[4:6], packet[8] = (number + 1).to_bytes(2), ttl
    return outer.frame(bytes(packet))


def datagram(inner: bytes, vni: int = 7) -> bytes:
    """Return a VXLAN datagram, from behind its UDP header."""
    row: bytes = vxlan_tunnel(PORT, vni).rows(outer.clones([inner]))[0].tobytes()
    return row[8:] + inner


@pytest.fixture(scope="module")
def ns(root: None) -> Iterator[str]:
    with lab.namespace() as name:
        yield name


@contextmanager
def listening(ns: str, folder: Path, *options: str) -> Iterator[Path]:
    control = folder / "c.sock"
    program = subprocess.Popen(
        ["ip", "netns", "exec", ns, sys.executable, "-m", "collector.cli", "listen",
         "--vxlan", str(PORT), "--control", str(control), "--stats", str(folder / "stats.json"),
         *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lab.until(control.exists, 15, "the control socket")
        yield control
    finally:
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=15)
    assert program.returncode == 0, errors
    assert not control.exists()


def send(ns: str, *datagrams: bytes) -> None:
    with lab.in_namespace(ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORT))
        for each in datagrams:
            sock.send(each)


def shown(control: Path, what: str) -> Any:
    return ask(control, {"command": "show", "what": what})


def test_a_running_collector(
    ns: str, tmp_path: Path, runner_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    pcap = tmp_path / "out.pcap"
    options = ["--dedup", "2s", "--reorder", "20ms", "--pcap", str(pcap), "--metrics", "9108"]
    with listening(ns, tmp_path, *options) as control:
        frames = [frame(number) for number in range(50)]
        routed = [frame(number, ttl=63) for number in range(10)]
        send(ns, *map(datagram, frames), *(datagram(each, 8) for each in routed), b"\x08nonsense")
        lab.until(lambda: shown(control, "totals")["decapsulated"] == 60, 5, "all frames")
        lab.until(lambda: shown(control, "sinks")[0]["delivered"] == 50, 5, "what is not double")

        totals = shown(control, "totals")
        assert (totals["received"], totals["deduplicated"], totals["waiting"]) == (61, 10, 0)
        assert totals["balanced"] is True
        first, second = shown(control, "streams")["streams"]
        assert (first["identifier"], first["packets"]) == (7, 50)
        assert (second["identifier"], second["packets"]) == (8, 10)
        (refused,) = shown(control, "refused")
        assert (refused["source"], refused["packets"]) == ("127.0.0.1", 1)
        health = shown(control, "health")
        assert (health["frames"], health["suspected_duplicates"]) == (60, 10)
        assert shown(control, "stats")["ledger"]["received"] == 61

        main = runner_of(cli.main, "collector")
        for what in ("streams", "sinks", "refused", "health", "stats"):
            code, out, err = main("show", what, "--control", str(control))
            assert (code, err) == (0, "")
            assert out
        code, out, _ = main("show", "sinks", "--json", "--control", str(control))
        assert json.loads(out)[0]["delivered"] == 50
        code, out, _ = main("top", "--once", "--interval", "0.1", "--control", str(control))
        assert code == 0
        assert "vxlan 127.0.0.1 vni 7" in out
        code, _, err = main("show", "streams", "--control", str(tmp_path / "none.sock"))
        assert code == 1
        assert "no collector listen is running" in err

        def scrape() -> str:
            with urllib.request.urlopen("http://127.0.0.1:9108/metrics", timeout=5) as answer:
                text: str = answer.read().decode()
                return text

        assert "collector_deduplicated_total 10.0" in lab.in_namespace(ns, scrape)
    ledger = json.loads((tmp_path / "stats.json").read_text())
    assert ledger["balanced"] is True
    assert ledger["health"]["frames"] == 60
    assert [bytes(each) for each in rdpcap(str(pcap))] == frames


def test_frames_that_wait_are_delivered_at_the_end(ns: str, tmp_path: Path) -> None:
    pcap = tmp_path / "out.pcap"
    with listening(ns, tmp_path, "--reorder", "60s", "--no-health", "--pcap", str(pcap)) as control:
        frames = [frame(number) for number in range(20)]
        send(ns, *map(datagram, frames))
        lab.until(lambda: shown(control, "totals")["waiting"] == 20, 5, "all frames waiting")
        totals = shown(control, "totals")
        assert totals["balanced"] is True
        with pytest.raises(UserError, match="switched off"):
            shown(control, "health")
    ledger = json.loads((tmp_path / "stats.json").read_text())
    assert (ledger["waiting"], ledger["balanced"], "health" in ledger) == (0, True, False)
    assert [bytes(each) for each in rdpcap(str(pcap))] == frames


def test_wrong_windows_and_what_does_not_go_together(runner_of: Callable[..., Run]) -> None:
    main = runner_of(cli.main, "collector")
    assert main("listen", "--dedup", "x")[0] == 2
    code, _, err = main("listen", "--reorder", "5", "--forward-raw", "192.0.2.1:4789")
    assert code == 2
    assert "--forward-raw needs datagrams" in err
    assert main("listen", "--metrics", "nowhere")[0] == 2


def test_each_stage_only_if_it_is_wanted() -> None:
    ledger = CollectorLedger()
    work = Refinement(Wishes(health=False), ledger)
    assert (work.health, work.window) == (None, None)
    assert work.due(5) is None
    assert work.flush() is None
    assert Refinement(Wishes(reorder=SECOND), ledger).window == 1.0
