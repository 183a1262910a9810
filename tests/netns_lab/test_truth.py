"""The judge of the wire: tshark and the receiver's kernel agree with what it records."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from lab import need

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import compare
import topology
import traffic
import truth
from netlab import Lab, inside
from process import wait_until

pytestmark = pytest.mark.usefixtures("root")

OCTETS = 400_000


def bulk() -> bytes:
    traffic.get(topology.HOST, OCTETS)
    traffic.get(topology.HOST6, OCTETS)
    traffic.post(topology.HOST, OCTETS)
    return traffic.mark(topology.HOST, "end")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    need("tcpdump", "ethtool", "tc")
    folder = tmp_path_factory.mktemp("recorded")
    with Lab() as lab:
        net = topology.build(lab)
        host = traffic.Host(net.host)
        lab.defer(host.close)
        wire, on_wire = truth.record(lab, net.host, topology.MIRRORED)
        raw, on_interface = truth.capture(lab, "raw", net.host, topology.MIRRORED, 1 << 17)
        last = inside(net.client, bulk)
        for path in (on_wire, on_interface):
            wait_until(lambda at=path: compare.holds(compare.read(at), last), 5, "the last mark")
        for recorder in (wire, raw):
            recorder.stop()
            assert truth.lost(recorder) == 0
        paths = {"wire": on_wire, "interface": on_interface}
        return {name: path.rename(folder / path.name) for name, path in paths.items()}


def test_no_super_packet_is_left_and_there_were_some(recorded: dict[str, Path]) -> None:
    wire, interface = (compare.read(recorded[name]) for name in ("wire", "interface"))

    assert max(len(frame.octets) for frame in interface) > 1514
    assert max(len(frame.octets) for frame in wire) == 1514
    assert len(wire) > len(interface)


def test_tshark_finds_no_bad_checksum(recorded: dict[str, Path]) -> None:
    need("tshark")
    bad = "ip.checksum.status==0 || tcp.checksum.status==0 || udp.checksum.status==0"
    with Lab() as lab:
        found = {name: _tshark(lab, path, "-Y", bad) for name, path in recorded.items()}
        checked = _tshark(lab, recorded["wire"], "-Y", "tcp.checksum.status==1")

    assert found["wire"] == []
    assert len(checked) > 3 * OCTETS // 1514
    assert found["interface"]  # or tshark did not look


def test_the_streams_are_whole(recorded: dict[str, Path], tmp_path: Path) -> None:
    need("tshark")
    with Lab() as lab:
        _tshark(lab, recorded["wire"], "-q", "--export-objects", f"http,{tmp_path}")
    found = Counter(path.read_bytes() for path in tmp_path.iterdir())

    body = traffic.content(OCTETS, seed=2)
    answer = hashlib.sha256(body).hexdigest().encode()
    assert found == Counter({traffic.content(OCTETS): 2, body: 1, answer: 1})


def _tshark(lab: Lab, path: Path, *arguments: str) -> list[str]:
    checks = [x for p in ("ip", "tcp", "udp") for x in ("-o", f"{p}.check_checksum:TRUE")]
    return lab.command("tshark", "-r", str(path), *checks, *arguments).splitlines()
