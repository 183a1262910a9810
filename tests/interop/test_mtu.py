"""Full frames over a path of 1500 octets: fragments, cut frames or none, as ``check`` foretells."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live
import pytest
from live import CHECK, FAR4, FAR6, MIRRORED, Lab, Net, as_frames, compare, remote, truth

pytestmark = pytest.mark.usefixtures("root")

MTU = 1500
SCHEMES = ("gre", "erspan1", "erspan2", "erspan3", "vxlan", "geneve", "tzsp", "juniper")
TUNNELS = [f"{scheme}://{remote(far)}" for scheme in SCHEMES for far in (FAR4, FAR6)]
OVERHEAD = {"gre": 4, "erspan1": 4, "erspan2": 16, "erspan3": 20, "vxlan": 16}
"""Octets that the specifications put between the outer IP header and the frame; without options."""


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@dataclass(frozen=True)
class Foretold:
    """What ``tunnelbridge check`` says of one tunnel and a full frame."""

    overhead: int
    outer: int
    fate: str
    cut: int | None


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        yield Place(lab, net)


@pytest.fixture(autouse=True)
def alone(place: Place) -> Iterator[None]:
    with live.ended(place.lab):
        yield


def frames(sizes: Sequence[int]) -> list[bytes]:
    """Return UDP frames of these sizes, IPv4 and IPv6 by turns, all different."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

    made = []
    for number, size in enumerate(sizes):
        network: Any = IP(src="192.0.2.1", dst="192.0.2.2")
        if number % 2:
            network = IPv6(src="2001:db8:1::1", dst="2001:db8:1::2")
        head = Ether(src="02:00:00:00:01:01", dst="02:00:00:00:01:02") / network
        head /= UDP(sport=number + 1000, dport=9)
        made.append(bytes(head / Raw(bytes([number % 251]) * (size - len(head)))))
    return made


def foretell(place: Place, policy: str, tunnels: Sequence[str]) -> list[Foretold]:
    """Ask ``tunnelbridge check``, and read what it says."""
    said = place.lab.command(
        *CHECK, "-i", MIRRORED, "--mtu", policy, *options(tunnels), namespace=place.net.host
    )
    found = []
    for part in said.split("\n\n")[1:]:
        overhead = re.search(r"overhead (\d+) octets", part)
        outer = re.search(r"1514-octet frame becomes a (\d+)-octet packet[^:]*: ([^(]*)", part)
        assert overhead, part
        assert outer, part
        cut = re.search(r"cut to (\d+) octets", part)
        fate = outer[2].strip()
        found.append(Foretold(int(overhead[1]), int(outer[1]), fate, cut and int(cut[1])))
    assert len(found) == len(tunnels)
    return found


def options(tunnels: Sequence[str]) -> list[str]:
    return [option for tunnel in tunnels for option in ("--to", tunnel)]


def carry(
    place: Place, policy: str, tunnels: Sequence[str], sent: Sequence[bytes], expected: int
) -> tuple[list[compare.Frame], dict[str, Any], dict[str, Any], Path]:
    """Mirror frames with a policy; return what was collected, the ledgers, and what was on the wire."""
    lab, net = place.lab, place.net
    pcap = lab.folder / f"{policy}-{len(list(lab.folder.iterdir()))}.pcap"
    recorder, wire = truth.capture(lab, f"wire-{pcap.stem}", net.router, "host0")
    collector = live.listen(lab, net.far, "--pcap", str(pcap))
    sender = live.send(lab, net.host, "-i", MIRRORED, "--mtu", policy, *options(tunnels))
    live.inject(net.source, "eth0", sent)
    live.collected(pcap, expected)
    ledgers = sender.end(), collector.end()
    recorder.stop()
    for ledger in ledgers:
        assert ledger["balanced"], ledger
    return compare.read(pcap), *ledgers, wire


def outer_fragments(path: Path) -> int:
    """Return how many packets of a capture are IP fragments, first ones not counted."""
    count = 0
    for frame, _ in compare.read(path):
        if frame[12:14] == b"\x08\x00":
            count += int.from_bytes(frame[20:22], "big") & 0x1FFF != 0
        elif frame[12:14] == b"\x86\xdd" and frame[20] == 44:
            count += int.from_bytes(frame[56:58], "big") & 0xFFF8 != 0
    return count


def test_what_is_foretold_is_what_the_specifications_say(place: Place) -> None:
    for tunnel, told in zip(TUNNELS, foretell(place, "fragment", TUNNELS), strict=True):
        scheme = tunnel.partition(":")[0]
        header = 40 if FAR6 in tunnel else 20
        if scheme in OVERHEAD:
            assert told.overhead == header + OVERHEAD[scheme], tunnel
        assert told.outer == 1514 + told.overhead


def test_fragments(place: Place) -> None:
    told = foretell(place, "fragment", TUNNELS)
    assert {each.fate for each in told} == {"sent in IP fragments"}
    edges = sorted({MTU - each.overhead + more for each in told for more in (0, 1)})
    sent = frames([60, *edges, 1514])

    got, sending, receiving, wire = carry(
        place, "fragment", TUNNELS, sent, len(sent) * len(TUNNELS)
    )

    live.assert_same(as_frames(sent * len(TUNNELS)), got)
    live.assert_nothing_lost(sending, receiving)
    for tunnel, each in zip(sending["tunnels"], told, strict=True):
        assert tunnel["fragmented"] == sum(len(frame) > MTU - each.overhead for frame in sent)
    assert outer_fragments(wire) == sum(tunnel["fragmented"] for tunnel in sending["tunnels"])


def test_truncation(place: Place) -> None:
    told = foretell(place, "truncate", TUNNELS)
    assert all(each.cut == MTU - each.overhead for each in told)
    edges = sorted({MTU - each.overhead + more for each in told for more in (0, 1)})
    sent = frames([60, *edges, 1514])

    got, sending, receiving, wire = carry(
        place, "truncate", TUNNELS, sent, len(sent) * len(TUNNELS)
    )

    expected = [compare.Frame(frame[: each.cut], len(frame)) for each in told for frame in sent]
    live.assert_same(expected, got)
    live.assert_nothing_lost(sending, receiving)
    assert outer_fragments(wire) == 0
    for tunnel, each in zip(sending["tunnels"], told, strict=True):
        assert tunnel["truncated"] == sum(len(frame) > MTU - each.overhead for frame in sent)
    assert max(len(frame.octets) for frame in compare.read(wire)) == 14 + MTU
    streams = {
        (each["source"], each["encapsulation"]): each["truncated"] for each in receiving["streams"]
    }
    assert sum(streams.values()) == sum(tunnel["truncated"] for tunnel in sending["tunnels"])
    assert_t_bit(wire, sending)


def assert_t_bit(wire: Path, sending: dict[str, Any]) -> None:
    """Assert that ERSPAN II and III say which frames are cut, as tshark reads them."""
    live.need("tshark")
    done = subprocess.run(
        ["tshark", "-n", "-r", wire, "-Y", "erspan.truncated == 1", "-Tfields", "-eerspan.version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cut = [
        tunnel["truncated"]
        for tunnel in sending["tunnels"]
        if tunnel["name"].startswith(("erspan2", "erspan3"))
    ]
    assert len(done.stdout.splitlines()) == sum(cut) > 0


def test_dropping(place: Place) -> None:
    told = foretell(place, "drop", TUNNELS)
    assert {each.fate for each in told} == {"dropped"}
    edges = sorted({MTU - each.overhead + more for each in told for more in (0, 1)})
    sent = frames([60, *edges, 1514])
    expected = [frame for each in told for frame in sent if len(frame) <= MTU - each.overhead]

    got, sending, receiving, wire = carry(place, "drop", TUNNELS, sent, len(expected))

    live.assert_same(as_frames(expected), got)
    assert outer_fragments(wire) == 0
    for tunnel, each in zip(sending["tunnels"], told, strict=True):
        dropped = sum(len(frame) > MTU - each.overhead for frame in sent)
        assert tunnel["refused"] == {"mtu": dropped}
        assert tunnel["sent"] == len(sent) - dropped
    assert receiving["decapsulated"] == len(expected)


def test_each_tunnel_its_own_policy_and_the_mtu_of_its_route(place: Place) -> None:
    lab, net = place.lab, place.net
    tunnels = [f"vxlan://{FAR4}?vni={number}&mtu={policy}" for number, policy in
               enumerate(("fragment", "truncate", "drop"))]  # fmt: skip
    lab.command(
        "ip", "-n", net.host, "route", "add", f"{FAR4}/32", "via", live.ROUTER4, "mtu", "1300"
    )
    told = foretell(place, "drop", tunnels)
    assert [each.fate.split(" octets")[0] for each in told] == [
        "sent in IP fragments",
        f"cut to {1300 - 36}",
        "dropped",
    ]
    sent = frames([1264, 1265, 1400])
    got, sending, _, _ = carry(place, "drop", tunnels, sent, 7)
    lab.command("ip", "-n", net.host, "route", "delete", f"{FAR4}/32")

    cut = [compare.Frame(frame[:1264], len(frame)) for frame in sent]
    live.assert_same([*as_frames(sent), *cut, *as_frames(sent[:1])], got)
    fragmented, truncated, dropped = sending["tunnels"]
    assert fragmented["fragmented"] == truncated["truncated"] == dropped["refused"]["mtu"] == 2
