"""Suricata on the collector's tap: an alert on cloned HTTP, and not one bad checksum."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live
import pytest
import traffic
from live import FAR4, MIRRORED, Lab, Net, Process, inside, wait_until

pytestmark = pytest.mark.usefixtures("root")

RULE = 'alert http any any -> any any (msg:"tunnelbridge"; http.uri; content:"/file/"; sid:1;)\n'
OCTETS = 3_000_000
CONFIGURATION = """\
%YAML 1.1
---
default-log-dir: {folder}
stats: {{enabled: yes, interval: 1}}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types: [alert, {{http: {{extended: yes}}}}, {{stats: {{totals: yes}}}}]
logging:
  default-log-level: notice
  outputs: [{{console: {{enabled: yes}}}}]
af-packet:
  - {{interface: mon0, cluster-id: 99, cluster-type: cluster_flow, checksum-checks: yes,
      defrag: yes, tpacket-v3: yes, block-size: 1048576, ring-size: 20000}}
stream: {{checksum-validation: yes, reassembly: {{depth: 0}}}}
app-layer: {{protocols: {{http: {{enabled: yes}}}}}}
unix-command: {{enabled: no}}
host-mode: sniffer-only
"""


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    live.need("suricata")
    with live.routed() as (lab, net):
        for namespace, interface, number in ((net.source, "eth0", 1), (net.host, MIRRORED, 2)):
            lab.setting(namespace, f"net/ipv6/conf/{interface}/disable_ipv6", "0")
            lab.address(namespace, interface, f"192.0.2.{number}/24", f"2001:db8:1::{number}/64")
        server = traffic.Host(net.host)
        lab.defer(server.close)
        yield Place(lab, net)


def watch(lab: Lab, namespace: str) -> tuple[Process, Path]:
    """Start Suricata on mon0; return it and its log of events once it captures."""
    (lab.folder / "suricata.yaml").write_text(CONFIGURATION.format(folder=lab.folder))
    (lab.folder / "one.rules").write_text(RULE)
    suricata = lab.start(
        "suricata",
        [
            "suricata", "-c", str(lab.folder / "suricata.yaml"), "--af-packet=mon0",
            "-S", str(lab.folder / "one.rules"), "-l", str(lab.folder), "--runmode", "single",
        ],
        namespace,
        ready="Engine started",
    )  # fmt: skip
    return suricata, lab.folder / "eve.json"


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if event["event_type"] == kind]


def bad_checksum() -> bytes:
    """Return a TCP frame whose checksum is wrong."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    macs = {"src": "02:00:00:00:01:01", "dst": "02:00:00:00:01:02"}
    return bytes(
        Ether(**macs)
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / TCP(sport=1, dport=2, flags="S", chksum=0x1234)
    )


def test_alerts_on_cloned_http_without_a_bad_checksum(place: Place) -> None:
    lab, net = place.lab, place.net
    analyser = lab.namespace("ids")
    collector = live.listen(lab, net.far, "--gre", "--tap", f"{analyser}:mon0")
    suricata, log = watch(lab, analyser)
    sender = live.send(lab, net.host, "-i", MIRRORED, "--to", f"gre://{FAR4}?seq=on")

    for address in ("192.0.2.2", "2001:db8:1::2"):
        inside(net.source, traffic.get, address, OCTETS)
    wait_until(lambda: len(events(log, "http")) >= 2, 10, "both transactions", every=0.1)
    wait_until(lambda: len(events(log, "alert")) >= 2, 10, "both alerts", every=0.1)
    frames = 2 * OCTETS // live.FULL_FRAME
    wait_until(lambda: last_stats(log)["decoder"]["pkts"] > frames, 10, "its counters", every=0.1)
    before = last_stats(log)
    live.inject(net.source, "eth0", [bad_checksum()])
    wait_until(
        lambda: last_stats(log)["tcp"]["invalid_checksum"] > 0, 10, "the wrong one", every=0.1
    )
    sent, received = sender.end(), collector.end()
    suricata.stop(signal.SIGTERM, seconds=20)

    live.assert_nothing_lost(sent, received)
    assert sent["segments"] > sent["cloned"]  # there were super-packets
    stats = last_stats(log)
    assert before["tcp"]["invalid_checksum"] == 0
    assert stats["tcp"]["invalid_checksum"] == 1  # the one that is wrong on the wire as well
    assert stats["decoder"]["invalid"] == 0
    assert stats["capture"]["kernel_drops"] == stats["capture"]["errors"] == 0
    assert stats["capture"]["kernel_packets"] == stats["decoder"]["pkts"]
    truncated = [each for each in counters(stats) if "trunc" in each[0]]
    assert {"trunc_pkt", "ipv4_trunc_pkt", "trunc_exthdr"} <= {name for name, _ in truncated}
    assert not any(count for _, count in truncated), truncated
    assert stats["decoder"]["max_pkt_size"] == live.FULL_FRAME
    assert stats["tcp"]["reassembly_gap"] == 0
    assert {alert["alert"]["signature"] for alert in events(log, "alert")} == {"tunnelbridge"}
    assert {alert["dest_ip"] for alert in events(log, "alert")} == {
        "192.0.2.2",
        "2001:0db8:0001:0000:0000:0000:0000:0002",
    }
    for http in events(log, "http"):
        assert http["http"]["status"] == 200
        assert http["http"]["length"] == OCTETS


def counters(stats: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield all counters, at whatever depth, with their last names."""
    for name, value in stats.items():
        if isinstance(value, dict):
            yield from counters(value)
        else:
            yield name, value


def last_stats(log: Path) -> dict[str, Any]:
    """Return the newest counters; no packets while there are none."""
    counters = events(log, "stats")
    found: dict[str, Any] = counters[-1]["stats"] if counters else {"decoder": {"pkts": 0}}
    return found
