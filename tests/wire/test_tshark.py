"""tshark as a second opinion: on other people's captures, and on everything we send."""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import outer
import pytest
from golden import FRAME
from scapy.utils import RawPcapReader

from collector.decap import SYNTHETIC_DESTINATION, Decapsulated, decapsulate
from tunnelbridge.batch import OUTBOUND, from_packets
from tunnelbridge.wire import udp
from tunnelbridge.wire.encapsulation import (
    Encapsulation,
    erspan_1,
    erspan_2,
    erspan_3,
    geneve_tunnel,
    gre_ip,
    gre_teb,
    juniper_tunnel,
    tzsp_tunnel,
    vxlan_tunnel,
)
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.reasons import Reason

if shutil.which("tshark") is None:
    pytest.skip("needs tshark, which is not installed", allow_module_level=True)

PORTS = udp.port_table({**udp.PORTS, 47101: Kind.GENEVE})
DECODE_AS = ("-d", "udp.port==8472,vxlan", "-d", "udp.port==47101,geneve")
ETHERNET, RAW = 1, 101
IDENTIFIERS = {
    Kind.ERSPAN2: "erspan.spanid",
    Kind.ERSPAN3: "erspan.spanid",
    Kind.VXLAN: "vxlan.vni",
    Kind.GENEVE: "geneve.vni",
    Kind.GRE: "gre.key",
    Kind.GRE_IP: "gre.key",
}
FIELDS = (
    *("frame.protocols", "eth.dst", "eth.src", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"),
    *("mpls.label", *dict.fromkeys(IDENTIFIERS.values())),
)
UNDELIVERED = {
    "802.1ad_QinQ.pcap": {"not-a-tunnel"},
    "gre-heapoverflow-1.pcap": {"not-a-tunnel", "ip-version"},
    "mpls-label-heapoverflow.pcap": {"not-a-tunnel"},  # MPLS on Ethernet is no mirror's tunnel
    "mpls-6in6-6in6-4in6-invalid-version-4.pcap": {"not-a-tunnel"},
    "geneve-truncated.pcapng": {"frame-short"},
}
BLIND = {"bigtcp-ipv4-vxlan-ipv6.pcap"}
"""Where tshark stops at UDP because its length is 0."""


@functools.cache
def dissect(path: Path, fields: tuple[str, ...], *options: str) -> list[dict[str, list[str]]]:
    """Return each packet's fields, all occurrences from the outside in."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=a"]
    command += ["-E", "separator=/t", "-E", "aggregator=|", *DECODE_AS, *options]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 2), done.stderr  # 2: the file itself is cut
    return [
        {
            name: value.split("|") if value else []
            for name, value in zip(fields, line.split("\t"), strict=True)
        }
        for line in done.stdout.splitlines()
    ]


def load(path: Path) -> tuple[list[bytes], Kind]:
    """Return a capture's packets and the kind of their first header."""
    with RawPcapReader(str(path)) as reader:
        records = list(reader)
        linktype = getattr(reader, "linktype", None) or records[0][1].linktype
    packets = [bytes(octets) for octets, _ in records]
    if linktype & 0xFFFF == RAW:
        return packets, Kind.IPV6 if packets[0][0] >> 4 == 6 else Kind.IPV4
    assert linktype & 0xFFFF == ETHERNET
    return packets, Kind.ETHERNET


def addresses(frame: bytes) -> tuple[str, str] | None:
    """Return the IP addresses of a frame."""
    at = 12
    while frame[at : at + 2] == b"\x81\x00":
        at += 4
    if frame[at : at + 2] == b"\x08\x00":
        return str(ip_address(frame[at + 14 : at + 18])), str(ip_address(frame[at + 18 : at + 22]))
    if frame[at : at + 2] == b"\x86\xdd":
        return str(ip_address(frame[at + 10 : at + 26])), str(ip_address(frame[at + 26 : at + 42]))
    return None


def check_innermost(frame: bytes, seen: dict[str, list[str]]) -> None:
    """Check MAC and IP addresses against the innermost that tshark saw."""
    if not frame.startswith(SYNTHETIC_DESTINATION):
        macs = [frame[:6].hex(":"), frame[6:12].hex(":")]
        assert macs == [seen["eth.dst"][-1], seen["eth.src"][-1]]
    inner = addresses(frame)
    if inner is None:
        return
    version = "ipv6" if ":" in inner[0] else "ip"
    pairs = list(zip(seen[f"{version}.src"], seen[f"{version}.dst"], strict=True))
    _, error, quoted = seen["frame.protocols"][0].partition(":icmp:")
    last = -1 - (quoted.split(":").count("ip") if error else 0)
    assert inner == pairs[last]


def check_identifier(result: Decapsulated, i: int, seen: dict[str, list[str]]) -> None:
    kind, identifier = Kind(result.encapsulation[i]), int(result.identifier[i])
    if kind == Kind.MPLS:
        assert identifier == int(seen["mpls.label"][-1])
    elif kind in IDENTIFIERS:
        told = seen[IDENTIFIERS[kind]]
        assert identifier == (int(told[0], 0) if told else -1)


FILES = [
    *("802.1ad_QinQ", "bigtcp-ipv4-vxlan-ipv6", "erspan-type-i-1", "erspan-type-i-3"),
    *("erspan-type-ii-1", "erspan-type-ii-3", "erspan-type-iii-ft-0", "erspan-type-iii-pb-1"),
    *("geneve-gcp", "gre-heapoverflow-1", "gso-ipv4-vxlan-ipv4", "gso-ipv6-geneve-ipv4"),
    *("mpls-label-heapoverflow", "mpls-over-udp", "nsh-over-vxlan-gpe", "vxlan_port_8472"),
    *("wccp_redirect_gre", "4in6", "6in4", "geneve-47101", "geneve-arp", "geneve-many-options"),
    *("geneve-truncated", "geneve", "gre-erspan3-dot1q", "gre-over-udp-4754", "gre-pptp"),
    *("gre-sample", "gre-within-gre", "mpls-6in6-6in6-4in6-invalid-version-4"),
    *("vxlan-encapsulated-http", "vxlan-triple-v2", "vxlan"),
]


def test_no_capture_is_forgotten(captures: Path) -> None:
    there = {path.stem for folder in ("tcpdump", "zeek") for path in (captures / folder).iterdir()}
    assert there == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_other_people_s_captures(name: str, captures: Path) -> None:
    path = next(
        path for path in captures.glob(f"*/{name}.pcap*") if path.parent.stem != "malformed"
    )
    packets, first = load(path)
    seen = dissect(path, FIELDS)
    assert len(seen) == len(packets)
    result = decapsulate(from_packets(packets), first, PORTS)
    reasons = {Reason(code).slug for code in result.reason.tolist() if code}
    if first == Kind.ETHERNET:  # the one raw capture is a fuzzer's: whatever it is
        assert reasons == UNDELIVERED.get(path.name, set())
    for i, number in enumerate(result.index.tolist()):
        if path.name not in BLIND:
            check_innermost(result.batch.octets(i), seen[number])
            check_identifier(result, i, seen[number])


V4, V6 = ("192.0.2.1", "198.51.100.9"), ("2001:db8::1", "2001:db8:9::9")
COLUMNS: dict[str, int] = {
    "sequence": 9, "tag": 0x8100_A2AA, "truncated": 1, "direction": OUTBOUND,
    "timestamp": 1_700_000_000_123_456_789, "wire_length": 1514,
}  # fmt: skip
TAGGED = FRAME[:12] + bytes.fromhex("8100 a2aa") + FRAME[12:]
SENT: list[tuple[str, Encapsulation, dict[str, Any]]] = [
    ("gre", gre_teb(None, False, False), {"gre.proto": "0x6558"}),
    ("gre-all", gre_teb(0xABCDEF01, True, True),
     {"gre.key": "0xabcdef01", "gre.sequence_number": "9", "gre.checksum.status": "1"}),
    ("gre-ip", gre_ip(5, False, True), {"gre.key": "0x00000005", "gre.checksum.status": "1"}),
    ("erspan1", erspan_1(), {"gre.proto": "0x88be", "erspan.spanid": None}),
    ("erspan2", erspan_2(0x155, 0xABCDE),
     {"erspan.version": "1", "erspan.vlan": "682", "erspan.cos": "5", "erspan.encap": "3",
      "erspan.truncated": "1", "erspan.spanid": "341", "erspan.index": "703710",
      "gre.sequence_number": "9"}),
    ("erspan3", erspan_3(0x2AA, 0x2A, "100us"),
     {"erspan.version": "2", "erspan.vlan": "682", "erspan.cos": "5", "erspan.bso": "0",
      "erspan.truncated": "1", "erspan.spanid": "682", "erspan.p": "1", "erspan.ft": "0",
      "erspan.hw": "42", "erspan.direction": "1", "erspan.gra": "0", "erspan.o": "0",
      "erspan.timestamp": str(17_000_000_001_234 % 2**32), "erspan.sgt": "0"}),
    ("erspan3-1588", erspan_3(1, 0, "1588"),
     {"erspan.gra": "2", "erspan.o": "1", "erspan.platid": "5", "erspan.timestamp": "123456789",
      "erspan.pid5.timestamp": "1700000000", "erspan.pid5.switchid": "0"}),
    ("vxlan", vxlan_tunnel(4789, 0xABCDEF), {"vxlan.vni": "11259375", "vxlan.flags": "0x0800"}),
    ("geneve", geneve_tunnel(6081, 0xABCDEF, False),
     {"geneve.vni": "0xabcdef", "geneve.option.class": None}),
    ("geneve-length", geneve_tunnel(6081, 5, True),
     {"geneve.vni": "0x000005", "geneve.option.class": "0x0164", "geneve.option.length": "28",
      "geneve.option.type": "0x00"}),
    ("tzsp", tzsp_tunnel(37008, False), {"tzsp.type": "0", "tzsp.original_length": None}),
    ("tzsp-length", tzsp_tunnel(37008, True),
     {"tzsp.version": "1", "tzsp.encap": "1", "tzsp.original_length": "1514"}),
    ("juniper", juniper_tunnel(8099, bytes([10, 0, 0, 2]), "a:b:c", ""), {}),
]  # fmt: skip
SENT_FIELDS = (
    *("frame.protocols", "_ws.malformed", "_ws.expert.message", "ip.checksum.status"),
    *("udp.srcport", "udp.dstport", "udp.length", "eth.dst", "eth.src", "vlan.id"),
    *dict.fromkeys(field for _, _, fields in SENT for field in fields),
)
OPTIONS = ("-o", "ip.check_checksum:TRUE", "-o", "udp.ignore_ipv6_zero_checksum:TRUE")


@functools.cache
def sent(folder: Path) -> list[dict[str, list[str]]]:
    """Write a packet of every tunnel over both families into one file and have it dissected."""
    path = folder / "sent.pcap"
    with path.open("wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, ETHERNET))
        for _, tunnel, _ in SENT:
            inner = FRAME if tunnel.bare_ip else TAGGED
            for pair in (V4, V6):
                octets = outer.frame(outer.tunnelled(tunnel, inner, *pair, **COLUMNS))
                file.write(struct.pack("<IIII", 0, 0, len(octets), len(octets)) + octets)
    return dissect(path, SENT_FIELDS, *OPTIONS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tshark")


@pytest.mark.parametrize(("name", "tunnel", "fields"), SENT, ids=[row[0] for row in SENT])
@pytest.mark.parametrize("version", [4, 6])
def test_what_we_send(
    name: str, tunnel: Encapsulation, fields: dict[str, Any], version: int, folder: Path
) -> None:
    number = 2 * [row[0] for row in SENT].index(name) + (version == 6)
    seen = sent(folder)[number]
    assert not seen["_ws.malformed"], seen
    assert not seen["_ws.expert.message"], seen
    assert {field: (seen[field] or [None])[0] for field in fields} == fields
    if tunnel.port is not None:
        assert int(seen["udp.dstport"][0]) == tunnel.port
        assert 49152 <= int(seen["udp.srcport"][0]) <= 65535
        assert int(seen["udp.length"][0]) == tunnel.overhead + len(TAGGED)
    if name == "juniper":  # tshark knows no such header
        return
    assert seen["frame.protocols"][0].endswith("ip:udp:data")
    if not tunnel.bare_ip:
        assert seen["eth.dst"][1] == FRAME[:6].hex(":")
        assert seen["vlan.id"] == ["682"]
