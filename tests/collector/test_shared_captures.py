"""Other people's captures through ``collector decap``: tshark reads what goes in and what comes out.

What tshark sees of a frame that came out, layer by layer and field by field, must be the end of what
it saw of the packet that went in: it takes the tunnels off by itself.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import outer
import pcap_files
import pytest
from scapy.utils import RawPcapReader

from collector.decap import SYNTHETIC_DESTINATION
from collector.files import FileDecapsulator
from tunnelbridge.errors import UserError
from tunnelbridge.wire.layer import Kind

if shutil.which("tshark") is None:
    pytest.skip("needs tshark, which is not installed", allow_module_level=True)

PORTS = {47101: Kind.GENEVE}
OPTIONS = (
    *("-d", "udp.port==8472,vxlan", "-d", "udp.port==47101,geneve"),
    *("-o", "tcp.desegment_tcp_streams:FALSE", "-o", "ip.defragment:FALSE"),
)
MAC = ("eth.dst", "eth.src", "eth.type")
FIELDS = (
    *("frame.protocols", "vlan.id", "erspan.vlan", *MAC),
    *("ip.src", "ip.dst", "ip.id", "ip.len", "ip.proto", "ipv6.src", "ipv6.dst", "ipv6.plen"),
    *("tcp.srcport", "tcp.dstport", "tcp.seq_raw", "tcp.len", "udp.srcport", "udp.dstport"),
    *("udp.length", "icmp.type", "icmp.seq", "arp.opcode", "arp.src.proto_ipv4"),
)
SHORTEST, LONGEST = 14, 65000
LINK = {"eth", "ethertype", "vlan"}
REJECTED = {
    "802.1ad_QinQ.pcap": {"not-a-tunnel": 2},
    "gre-heapoverflow-1.pcap": {"not-a-tunnel": 1, "ip-version": 1},
    "mpls-label-heapoverflow.pcap": {"not-a-tunnel": 1},
    "mpls-6in6-6in6-4in6-invalid-version-4.pcap": {"not-a-tunnel": 1},
    "geneve-truncated.pcapng": {"frame-short": 1},
    "erspan-type-iii-pb-1.pcap": {"erspan-short": 1},
}
"""Files of which nothing is delivered, and why; of all others every packet is."""
BLIND = "bigtcp-ipv4-vxlan-ipv6.pcap"
"""Where tshark stops at UDP because its length is 0."""

Seen = dict[str, list[str]]


def dissect(path: Path) -> list[Seen]:
    """Return each packet's fields, all occurrences from the outside in."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=a"]
    command += ["-E", "separator=/t", "-E", "aggregator=|", *OPTIONS]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [
        {
            name: value.split("|") if value else []
            for name, value in zip(FIELDS, line.split("\t"), strict=True)
        }
        for line in done.stdout.splitlines()
    ]


def load(path: Path) -> list[bytes]:
    """Return a capture's packets."""
    with RawPcapReader(str(path)) as reader:
        return [bytes(octets) for octets, _ in reader]


def layers(seen: Seen) -> list[str]:
    """Return the protocols above the link layer."""
    return [each for each in seen["frame.protocols"][0].split(":") if each not in LINK]


def ends_with(outer: Sequence[str], inner: Sequence[str]) -> bool:
    return not inner or list(outer[-len(inner) :]) == list(inner)


def check_frame(frame: bytes, packet: bytes, before: Seen, after: Seen) -> None:
    """Check one frame against the packet it was in."""
    assert ends_with(layers(before), layers(after))
    synthetic = frame.startswith(SYNTHETIC_DESTINATION)
    ours = set(MAC) if synthetic else set()
    if len(after["vlan.id"]) > len(before["vlan.id"]):  # ERSPAN II tells a tag that it took away
        assert after["vlan.id"] == [*before["erspan.vlan"], *before["vlan.id"]]
        assert frame[:12] in packet
        assert frame[16:] in packet
        ours = {"vlan.id", "eth.type"}
    else:
        assert (frame[14:] if synthetic else frame) in packet
    for name in set(FIELDS) - ours - {"frame.protocols", "erspan.vlan"}:
        assert ends_with(before[name], after[name]), (name, before[name], after[name])


def merged(paths: Sequence[Path], path: Path) -> Path:
    """Write one file of several, one behind the other; return its path."""
    command = ["mergecap", "-a", "-F", "pcapng", "-w", str(path), *map(str, paths)]
    subprocess.run(command, check=True, timeout=60)
    return path


def test_frames_are_what_tshark_decapsulates(captures: Path, tmp_path: Path) -> None:
    paths = sorted(path for name in ("tcpdump", "zeek") for path in (captures / name).iterdir())
    outputs = [tmp_path / f"{path.name}.out" for path in paths]
    for path, output in zip(paths, outputs, strict=True):
        work = FileDecapsulator(ports=PORTS)
        assert work.run(path, str(output)) is None
        assert work.ledger.balances()
        assert dict(work.ledger.rejected) == REJECTED.get(path.name, {}), path.name

    seen_before = iter(dissect(merged(paths, tmp_path / "before")))
    seen_after = iter(dissect(merged(outputs, tmp_path / "after")))
    checked = 0
    for path, output in zip(paths, outputs, strict=True):
        packets = load(path)
        before = [next(seen_before) for _ in packets]
        frames = [octets for _, octets, _ in pcap_files.parse(output.read_bytes())]
        assert len(frames) == (0 if path.name in REJECTED else len(packets)), path.name
        for frame, packet, seen in zip(frames, packets, before, strict=bool(frames)):
            if path.name == BLIND:
                assert layers(next(seen_after)) == ["ipv6", "tcp"]
            else:
                check_frame(frame, packet, seen, next(seen_after))
            checked += 1
    assert checked > 800
    assert not [*seen_before, *seen_after]


def test_files_that_broke_parsers(captures: Path, tmp_path: Path) -> None:
    """Nothing raises but what a user is told (link types); there is no tunnel in any of them."""
    strange = [*(captures / "malformed").iterdir(), *(captures / "pcapng").rglob("*.pcap*")]
    assert len(strange) > 150
    for number, path in enumerate(sorted(strange)):
        out = tmp_path / f"{number}.pcap"
        work = FileDecapsulator()
        with contextlib.suppress(UserError):
            work.run(path, str(out))
        assert work.ledger.balances(), path
        assert work.ledger.decapsulated == 0
        assert pcap_files.parse(out.read_bytes()) == []


@pytest.mark.parametrize("kind", ["vxlan", "gre"])
def test_packets_that_broke_parsers_come_out_of_tunnels_as_they_went_in(
    captures: Path, tmp_path: Path, kind: str
) -> None:
    packets = [each for path in (captures / "malformed").iterdir() for each in readable(path)]
    assert len(packets) > 200
    packed = [
        outer.udp(bytes.fromhex("0800000000000700") + each, 50000, 4789)
        if kind == "vxlan"
        else bytes.fromhex("00006558") + each
        for each in packets
    ]
    protocol = 17 if kind == "vxlan" else 47
    sent = [outer.frame(outer.ipv4(each, protocol, "192.0.2.1", "192.0.2.2")) for each in packed]
    out = tmp_path / "out.pcap"
    work = FileDecapsulator(levels=1)  # whatever they carry themselves

    assert work.run(pcap_files.write(tmp_path / "in.pcap", sent), str(out)) is None

    whole = [each for each in packets if len(each) >= SHORTEST]
    assert [octets for _, octets, _ in pcap_files.parse(out.read_bytes())] == whole
    assert dict(work.ledger.rejected) == {"frame-short": len(packets) - len(whole)}
    assert len(dissect(out)) == len(whole)  # and tshark can read it


def readable(path: Path) -> list[bytes]:
    """Return the packets of a file, as far as it can be read."""
    found: list[bytes] = []
    with RawPcapReader(str(path)) as reader:
        while True:
            try:
                found.append(bytes(reader._read_packet(1 << 20)[0])[:LONGEST])
            except Exception:  # the file is malformed too: its end, or scapy's
                return found
