"""Every encapsulation over IPv4 and IPv6, from a capture file through a router into a pcap."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import live
import pytest
from live import FAR4, FAR6, HOST4, HOST6, Lab, Net, Program, as_frames, compare, remote

pytestmark = pytest.mark.usefixtures("root")

TUNNELS = {
    "gre": ("gre", "key=77&seq=on&csum=on", 77),
    "gre-ip": ("gre-ip", "key=78", 78),
    "erspan1": ("erspan1", "", None),
    "erspan2": ("erspan2", "session=1023&index=5", 1023),
    "erspan3": ("erspan3", "session=9&hwid=3&granularity=1588", 9),
    "vxlan": ("vxlan", "vni=16777215", 16777215),
    "geneve": ("geneve", "vni=4", 4),
    "tzsp": ("tzsp", "", None),
    "juniper": ("juniper", "host=192.0.2.9&source_vn=a:b:c&destination_vn=a:b:d", None),
}
NUMBERED = ("gre", "erspan2", "erspan3")
"""Encapsulations of which losses are told by sequence numbers."""


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net
    capture: Path
    collector: Program
    pcap: Path


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        capture = live.write_pcap(lab.folder / "corpus.pcap", live.corpus())
        pcap = lab.folder / "collected.pcap"
        collector = live.listen(lab, net.far, "--pcap", str(pcap))
        yield Place(lab, net, capture, collector, pcap)
        ledger = collector.end()
        assert ledger["balanced"]
        assert ledger["socket_dropped"] == 0


@pytest.mark.parametrize("name", TUNNELS)
def test_comes_out_as_it_went_in(place: Place, name: str) -> None:
    scheme, query, identifier = TUNNELS[name]
    tunnels = [f"{scheme}://{remote(far)}?{query}".rstrip("?") for far in (FAR4, FAR6)]
    frames = live.corpus()
    if scheme == "gre-ip":
        frames = [bare for frame in frames if (bare := live.bare_ip(frame))]
    before = len(compare.read(place.pcap))

    options = [option for tunnel in tunnels for option in ("--to", tunnel)]
    sent = live.send(
        place.lab, place.net.host, "-r", str(place.capture), "--speed", "max", *options
    ).wait()
    got = live.collected(place.pcap, before + 2 * len(frames))[before:]

    live.assert_same(as_frames(frames * 2), got)
    assert sent["balanced"]
    assert sent["received"] == sent["cloned"] == len(live.corpus())
    for tunnel in sent["tunnels"]:
        assert tunnel["sent"] == tunnel["clones"] == len(frames)
        refused = len(live.corpus()) - len(frames)
        assert tunnel["refused"] == ({"not-ip": refused} if refused else {})
    ledger = place.collector.ask()
    assert ledger["balanced"]
    assert ledger["rejected"] == {}
    for source in (HOST4, HOST6):
        (stream,) = [
            stream
            for stream in ledger["streams"]
            if stream["source"] == source
            and stream["encapsulation"] == name
            and stream["identifier"] == identifier
        ]
        assert stream["packets"] == len(frames)
        assert stream["lost"] == stream["reordered"] == stream["duplicate"] == 0


def test_members_behind_static_arp_and_fdb(place: Place) -> None:
    """Each clone differs from the original in the destination MAC only, whatever carries it."""
    schemes = [name for name in TUNNELS if name != "gre-ip"]
    options, expected = [], []
    for number, (scheme, far) in enumerate(itertools.product(schemes, (FAR4, FAR6)), 1):
        member, mac = f"10.10.10.{number}", f"02:00:0a:0a:0a:{number:02x}"
        tunnel = f"{mac}={scheme}://{remote(far)}"
        options += ["--to", member, "--arp", f"{member}={mac}", "--fdb", tunnel]
        octets = bytes.fromhex(mac.replace(":", ""))
        expected += compare.readdressed(as_frames(live.corpus()), octets)
    before = len(compare.read(place.pcap))

    live.send(
        place.lab, place.net.host, "-r", str(place.capture), "--speed", "max", *options
    ).wait()
    live.assert_same(expected, live.collected(place.pcap, before + len(expected))[before:])


def test_what_tshark_calls_them(place: Place) -> None:
    """The outer packets are what they claim to be, to an independent dissector."""
    live.need("tshark")
    lab, net = place.lab, place.net
    recorder, path = live.truth.capture(lab, "outer", net.router, "host0")
    tunnels = [
        f"{scheme}://{remote(far)}?{query}".rstrip("?")
        for scheme, query, _ in TUNNELS.values()
        for far in (FAR4, FAR6)
    ]
    syn = live.corpus()[1]
    one = live.write_pcap(lab.folder / "one.pcap", [syn])
    options = [option for tunnel in tunnels for option in ("--to", tunnel)]
    live.send(lab, net.host, "-r", str(one), *options).wait()
    live.collected(path, len(tunnels))
    recorder.stop()

    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "udp")]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, *checks, "-Y", "gre or udp", "-Tfields", "-Eoccurrence=f"]
        + [f"-e{field}" for field in ("frame.protocols", "ip.checksum.status", "udp.srcport")]
        + ["-eudp.checksum.status", "-egre.checksum.status", "-e_ws.malformed", "-e_ws.expert"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == len(tunnels)
    for protocols, ip, _, udp, gre, malformed, _ in rows:
        assert "0" not in (ip, udp, gre), protocols
        assert not malformed, protocols
    seen = "\n".join(row[0] for row in rows)
    for wanted in ("gre:eth", "gre:ip", "erspan:eth", "vxlan:eth", "geneve:eth", "tzsp:eth"):
        assert seen.count(f":{wanted}") >= 2, seen
    for protocols, _, port, *_ in rows:
        if "vxlan" in protocols or "geneve" in protocols:
            assert 49152 <= int(port) <= 65535


def is_icmp(frame: bytes) -> bool:
    kind = frame[12:14]
    return (kind == b"\x08\x00" and frame[23] == 1) or (kind == b"\x86\xdd" and frame[20] == 58)


CHOICES: dict[str, tuple[list[str], Callable[[bytes], bool]]] = {
    "filter": (["--filter", "icmp or icmp6"], is_icmp),
    "tagged": (["--filter", "vlan 5"], lambda frame: frame[12:16] == bytes.fromhex("81006005")),
    "count": (["--count", "3"], lambda frame: frame in live.corpus()[:3]),
    "speed": (["--speed", "200"], lambda _: True),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_options_choose_packets(place: Place, choice: str) -> None:
    options, chosen = CHOICES[choice]
    frames = [frame for frame in live.corpus() if chosen(frame)]
    before = len(compare.read(place.pcap))

    sent = live.send(
        place.lab, place.net.host, "-r", str(place.capture), *options, "--to", f"gre://{FAR4}"
    ).wait()
    got = live.collected(place.pcap, before + len(frames))[before:]

    assert frames
    live.assert_same(as_frames(frames), got)
    assert sent["balanced"]
    assert sent["cloned"] == len(frames)


def test_snap_length_is_told(place: Place) -> None:
    """What is cut keeps its length where the format can carry it, and the collector writes it."""
    before = len(compare.read(place.pcap))
    sent = live.send(
        place.lab, place.net.host, "-r", str(place.capture), "--speed", "max", "--snaplen", "100",
        "--to", f"geneve://{FAR4}", "--to", f"tzsp://{FAR4}",
    ).wait()  # fmt: skip
    count = 2 * len(live.corpus())
    got = live.collected(place.pcap, before + count)[before:]

    expected = [compare.Frame(frame[:100], len(frame)) for frame in live.corpus()] * 2
    live.assert_same(expected, got)
    longer = sum(len(frame) > 100 for frame in live.corpus())
    assert [tunnel["truncated"] for tunnel in sent["tunnels"]] == [longer, longer]
