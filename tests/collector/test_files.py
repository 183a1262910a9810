"""``collector decap``: a capture file in, the mirrored frames out, every packet accounted for."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import outer
import pcap_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector import files
from collector.files import FileDecapsulator, decap
from tunnelbridge.errors import UserError
from tunnelbridge.wire.encapsulation import erspan_3, gre_teb, vxlan_tunnel
from tunnelbridge.wire.layer import Kind

SOURCES = {4: ("192.0.2.1", "198.51.100.9"), 6: ("2001:db8::1", "2001:db8:9::9")}


def inner(number: int, size: int = 64) -> bytes:
    payload = number.to_bytes(4) * (size // 4)
    return outer.frame(outer.ipv4(outer.udp(payload, 1, 2), 17, "10.0.0.1", "10.0.0.2"))


def packet(number: int, version: int = 4, size: int = 64, sequence: int = 0) -> bytes:
    """Return an outer VXLAN packet, from its IP header on."""
    columns = {"identification": number + 1}
    return outer.tunnelled(vxlan_tunnel(4789, 7), inner(number, size), *SOURCES[version], **columns)


def run(
    tmp_path: Path, packets: list, linktype: int = 1, tail: bytes = b"", **more: object
) -> tuple[FileDecapsulator, list[bytes], str | None]:
    source = pcap_files.write(tmp_path / "in.pcap", packets, linktype, tail)
    work = FileDecapsulator(**more)  # type: ignore[arg-type]
    damage = work.run(source, str(tmp_path / "out.pcap"))
    out = pcap_files.parse((tmp_path / "out.pcap").read_bytes())
    assert work.ledger.balances()
    assert work.ledger.sinks[0].octets == sum(len(each) for _, each, _ in out)
    return work, [each for _, each, _ in out], damage


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_whole_packets(tmp_path: Path, count: int, version: int) -> None:
    packets = [outer.frame(packet(number, version)) for number in range(count)]

    work, out, damage = run(tmp_path, packets)

    assert out == [inner(number) for number in range(count)]
    assert damage is None
    assert work.ledger.received == work.ledger.decapsulated == count
    streams = [(each.source, each.encapsulation, each.identifier, each.packets)
               for each in work.streams.ledgers()]  # fmt: skip
    assert streams == [(SOURCES[version][0], "vxlan", 7, count)] * bool(count)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [(), (100,)])
def test_fragments_come_out_where_their_last_one_was(
    tmp_path: Path, version: int, tags: tuple[int, ...]
) -> None:
    first, second = (
        outer.fragments(packet(number, version, 400), 200, number + 1) for number in (1, 2)
    )
    packets = [packet(0, version), first[1], packet(3, version), second[0], packet(4, version),
               first[0], second[1], packet(5, version)]  # fmt: skip
    times = [(number * 10**9, outer.frame(each, *tags)) for number, each in enumerate(packets)]

    work, out, _ = run(tmp_path, times)

    expected = [inner(0), inner(3), inner(4), inner(1, 400), inner(2, 400), inner(5)]
    assert out == expected
    written = pcap_files.parse((tmp_path / "out.pcap").read_bytes())
    assert [time // 10**9 for time, _, _ in written] == [0, 2, 4, 5, 6, 7]
    assert work.ledger.received == 6
    assert [each.source for each in work.streams.ledgers()] == [SOURCES[version][0]]


@pytest.mark.parametrize("source_time", [True, False])
def test_times_are_those_of_the_file_or_of_the_source(tmp_path: Path, source_time: bool) -> None:
    """A whole packet and one in fragments; the streams are seen when they came."""
    stamped, came = 1_700_000_000_123_456_700, 1_700_000_000_500_000_000
    sent = outer.tunnelled(
        erspan_3(7, 0, "100ns"), inner(0, 400), *SOURCES[4], timestamp=stamped, identification=5
    )
    parts = [outer.frame(each) for each in outer.fragments(sent, 200, 5)]
    packets = [(came, outer.frame(sent)), (came + 1, parts[0]), (came + 2, parts[1])]

    work, out, _ = run(tmp_path, packets, source_time=source_time)

    assert out == [inner(0, 400)] * 2
    times = [time for time, _, _ in pcap_files.parse((tmp_path / "out.pcap").read_bytes())]
    assert times == ([stamped] * 2 if source_time else [came, came + 2])
    (stream,) = work.streams.ledgers()
    assert (stream.first_seen, stream.last_seen) == (came, came + 2)


def test_sequence_numbers_are_taken_in_the_order_of_the_file(tmp_path: Path) -> None:
    tunnel = gre_teb(5, True, False)
    sent = [outer.tunnelled(tunnel, inner(number, 400), *SOURCES[4], sequence=number,
                            identification=number) for number in range(4)]  # fmt: skip
    fragments = outer.fragments(sent[1], 200, 1)
    packets = [sent[0], *fragments, sent[2], sent[3]]

    work, out, _ = run(tmp_path, [outer.frame(each) for each in packets])

    assert out == [inner(number, 400) for number in range(4)]
    (stream,) = work.streams.ledgers()
    assert (stream.packets, stream.lost, stream.reordered, stream.duplicate) == (4, 0, 0, 0)


def test_padding_is_no_part_of_a_fragment(tmp_path: Path) -> None:
    for version, first in ((4, 480), (6, 480)):
        head, tail = outer.fragments(packet(1, version, 460), first, 9)
        assert len(tail) < 100
        padded = [outer.frame(head) + b"\xff" * 4, outer.frame(tail) + b"\xff" * 30]

        _, out, _ = run(tmp_path, padded)

        assert out == [inner(1, 460)]


def test_what_never_becomes_whole_is_rejected(tmp_path: Path) -> None:
    lone = outer.fragments(packet(1, 4, 400), 200, 2)[0]
    head, tail = outer.fragments(packet(2, 4, 400), 200, 3)
    other = head[:-1] + bytes([head[-1] ^ 1])
    dns = outer.ipv4(outer.udp(bytes(400), 1, 2), 17, *SOURCES[4])
    late = outer.fragments(packet(4, 4, 400), 200, 5)
    packets = [(0, outer.frame(late[0])), (0, outer.frame(lone)),
               *((10**9, outer.frame(each)) for each in (head, other, tail)),  # they overlap
               *((2 * 10**9, outer.frame(each)) for each in outer.fragments(dns, 200, 4)),
               (90 * 10**9, outer.frame(late[1]))]  # fmt: skip

    work, out, _ = run(tmp_path, packets)

    assert out == []
    assert work.ledger.rejected["not-a-tunnel"] == 1
    # lone and late timed out, one overlapped, late's second half still waits
    assert work.ledger.rejected["ip-fragment"] == 4
    assert work.ledger.received == 5


def test_rejected_packets_and_other_link_types(tmp_path: Path) -> None:
    web = outer.ipv4(outer.tcp(b"", 1, 2), 6, "10.0.0.1", "10.0.0.2")
    work, out, _ = run(tmp_path, [packet(1), web, packet(2, 6), b""], linktype=101)

    assert out == [inner(1), inner(2)]
    assert work.ledger.rejected == Counter({"not-a-tunnel": 1, "frame-short": 1})
    assert work.ledger.received == 4


def test_ports_and_levels(tmp_path: Path) -> None:
    vxlan = outer.tunnelled(vxlan_tunnel(5555, 7), inner(1), *SOURCES[4])
    nested = outer.frame(outer.tunnelled(vxlan_tunnel(4789, 8), outer.frame(vxlan), *SOURCES[4]))

    assert run(tmp_path, [outer.frame(vxlan)])[1] == []
    assert run(tmp_path, [outer.frame(vxlan)], ports={5555: Kind.VXLAN})[1] == [inner(1)]
    assert run(tmp_path, [nested], ports={5555: Kind.VXLAN})[1] == [inner(1)]
    assert run(tmp_path, [nested], ports={5555: Kind.VXLAN}, levels=1)[1] == [outer.frame(vxlan)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(
    st.binary(max_size=60),
    st.builds(lambda n, cut: outer.frame(packet(n))[:cut], st.integers(0, 9), st.integers(0, 160)),
    st.builds(lambda n, which, version, cut: outer.frame(
        outer.fragments(packet(n, version), 64, n + 1)[which])[: 200 - cut],
        st.integers(0, 3), st.integers(0, 1), st.sampled_from([4, 6]), st.integers(0, 120)),
), max_size=12))  # fmt: skip
def test_foreign_octets_never_raise_and_always_balance(
    tmp_path: Path, packets: list[bytes]
) -> None:
    work, out, _ = run(tmp_path, packets)

    assert len(out) == work.ledger.decapsulated
    assert all(len(each) >= 14 for each in out)


def test_damage_is_told_and_what_came_before_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pcap_files.write(tmp_path / "in", [outer.frame(packet(1))], tail=b"damaged")
    stats = tmp_path / "stats.json"

    with pytest.raises(UserError, match=f"^{source}: .*; what came before was decapsulated$"):
        decap(source, str(tmp_path / "out"), 4, {}, str(stats))

    assert [each for _, each, _ in pcap_files.parse((tmp_path / "out").read_bytes())] == [inner(1)]
    ledger = json.loads(stats.read_text())
    assert ledger["program"] == "collector decap"
    assert ledger["balanced"] is True
    assert ledger["streams"][0]["source"] == "192.0.2.1"


def test_the_file_that_is_read_is_not_written(tmp_path: Path) -> None:
    source = pcap_files.write(tmp_path / "in", [outer.frame(packet(1))])
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)

    for name in ("in", "link", "hard"):
        with pytest.raises(UserError, match="is the file that is read: choose another name"):
            FileDecapsulator().run(source, str(tmp_path / name))
    assert source.read_bytes() == before


def test_what_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pcap_files.write(tmp_path / "in", [outer.frame(packet(1))])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    with pytest.raises(UserError, match=r"^cannot read"):
        FileDecapsulator().run(tmp_path / "nosuch", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"^cannot write"):
        FileDecapsulator().run(source, str(tmp_path / "nosuch" / "out"))
    with pytest.raises(UserError, match=r"^cannot write /dev/full: disk-full$"):
        FileDecapsulator().run(source, "/dev/full")
    monkeypatch.setattr(files, "open_pcap", lambda _: pytest.fail("must not be opened"))
    with pytest.raises(UserError, match=r"^cannot write .*: no such directory$"):
        decap(source, str(tmp_path / "out"), 4, {}, str(tmp_path / "nosuch" / "stats"))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
