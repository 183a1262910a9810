"""One tunnel: what leaves it octet by octet, and that its ledger accounts for everything."""

from __future__ import annotations

import struct
from collections import Counter

import numpy as np
import outer
import pytest
import recording
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III
from scapy.layers.inet import UDP
from scapy.layers.l2 import GRE
from scapy.layers.vxlan import VXLAN

from tunnelbridge.config.tunnel import MtuPolicy, parse_tunnel
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.tunnel import Tunnel

MAC = bytes.fromhex("02000a0a0a0a")
WEB = outer.frame(outer.ipv4(outer.tcp(bytes(range(200)), 40000, 80), 6, "10.0.0.1", "10.0.0.2"))
ARP = outer.MACS + bytes.fromhex("0806 0001 0800 0604 0001") + bytes(20) + bytes(18)

OVERHEAD = {  # octets between the outer IP header and the frame, by the formats' specifications
    "gre://{}": 4,
    "gre://{}?key=7&seq=true&csum=true": 16,
    "gre-ip://{}": 4,
    "erspan1://{}": 4,
    "erspan2://{}": 16,
    "erspan3://{}": 20,
    "vxlan://{}": 16,
    "geneve://{}": 16,
    "tzsp://{}": 8 + 4 + 1,
}
REMOTES = {"4": ("192.0.2.9", 20), "6": ("[2001:db8::9]", 40)}


def ip_frame(octets: int, *tags: int) -> bytes:
    """Return a frame of a given length around an IPv4 packet of counting octets."""
    head = 14 + 4 * len(tags) + 20 + 8
    payload = bytes(number % 251 for number in range(octets - head))
    return outer.frame(outer.ipv4(outer.udp(payload, 1, 9), 17, "10.0.0.1", "10.0.0.2"), *tags)


def balanced(ledger: TunnelLedger, segments: int) -> bool:
    return ledger.balances() and ledger.clones + ledger.refused.total() == segments


@pytest.mark.parametrize("delta", [-1, 0, 1])
@pytest.mark.parametrize("tags", [(), (100, 7)], ids=["untagged", "qinq"])
@pytest.mark.parametrize("mac", [b"", MAC], ids=["as-is", "rewritten"])
@pytest.mark.parametrize("version", REMOTES)
@pytest.mark.parametrize("text", OVERHEAD)
@pytest.mark.parametrize("policy", list(MtuPolicy))
def test_at_the_limit(
    policy: MtuPolicy, text: str, version: str, mac: bytes, tags: tuple[int, ...], delta: int
) -> None:
    remote, ip_header = REMOTES[version]
    header_octets = OVERHEAD[text]
    is_bare = text.startswith("gre-ip")
    stripped = 14 + 4 * len(tags) if is_bare else 0
    mac = b"" if is_bare else mac
    tunnel, sock = recording.tunnel(text.format(remote), policy, 1400, mac, may_cut=False)
    assert tunnel.overhead == ip_header + header_octets
    frame = ip_frame(1400 + delta - ip_header - header_octets + stripped, *tags)
    small = ip_frame(90, *tags)

    tunnel.send(recording.frames([small, frame, small]))

    ledger, too_long = tunnel.ledger, delta > 0
    sent = [mac + each[len(mac) :][stripped:] for each in (small, frame, small)]
    if too_long and policy is MtuPolicy.TRUNCATE:
        sent[1] = sent[1][:-1]
    if too_long and policy is MtuPolicy.DROP:
        del sent[1]
    assert [packet[header_octets:] for packet in sock.packets] == sent
    longest = max(ip_header + len(packet) for packet in sock.packets)
    if policy is not MtuPolicy.FRAGMENT:
        assert longest <= 1400
    assert ledger.truncated == (too_long and policy is MtuPolicy.TRUNCATE)
    assert ledger.fragmented == (too_long and policy is MtuPolicy.FRAGMENT)
    assert ledger.refused == Counter(mtu=1 if too_long and policy is MtuPolicy.DROP else 0)
    assert ledger.octets == sum(map(len, sent))
    assert balanced(ledger, 3)


@pytest.mark.parametrize("text", ["geneve://192.0.2.9", "tzsp://192.0.2.9"])
def test_the_octets_that_carry_the_original_length_count_for_the_limit(text: str) -> None:
    tunnel, sock = recording.tunnel(text, "truncate", 1000)
    frame = ip_frame(1500)

    tunnel.send(recording.frames([frame]))

    (packet,) = sock.packets
    assert 20 + len(packet) == 1000
    assert packet[tunnel.encapsulation.overhead :] == frame[: 1000 - tunnel.overhead]
    assert (1500).to_bytes(2) in packet[8 : tunnel.encapsulation.overhead]


def test_nothing_longer_than_an_ip_packet_can_be() -> None:
    tunnel, sock = recording.tunnel("vxlan://192.0.2.9")
    frames = [outer.MACS + bytes(65535 - 20 - 16 - 12 + more) for more in (0, 1)]

    tunnel.send(recording.frames(frames))

    assert [20 + len(packet) for packet in sock.packets] == [65535]
    assert tunnel.ledger.refused == Counter(mtu=1)
    assert tunnel.ledger.fragmented == 1
    assert balanced(tunnel.ledger, 2)


def test_a_path_too_narrow_for_any_frame_refuses() -> None:
    text = f"juniper://192.0.2.9?source_vn={'a' * 255}&destination_vn={'b' * 255}"
    tunnel, sock = recording.tunnel(text, "truncate", 540)
    assert tunnel.overhead > 540

    tunnel.send(recording.frames([WEB, ARP]))

    assert sock.packets == []
    assert tunnel.ledger.refused == Counter(mtu=2)
    assert balanced(tunnel.ledger, 2)


@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_batch_sizes(count: int) -> None:
    tunnel, sock = recording.tunnel("gre://192.0.2.9?seq=true")
    sent = [ip_frame(60 + number % 40) for number in range(count)]

    tunnel.send(recording.frames(sent))
    tunnel.send(recording.frames(sent))

    assert [packet[8:] for packet in sock.packets] == sent + sent
    numbers = [struct.unpack_from(">I", packet, 4)[0] for packet in sock.packets]
    assert numbers == list(range(2 * count))
    assert balanced(tunnel.ledger, 2 * count)


@pytest.mark.parametrize("text", ["erspan2://192.0.2.9?session=5", "erspan3://192.0.2.9?session=5"])
def test_cut_frames_are_marked_and_numbers_leave_no_gap(text: str) -> None:
    tunnel, sock = recording.tunnel(text, "drop", 1000)
    whole, cut, long = ip_frame(100), ip_frame(100)[:70], ip_frame(1200)

    for _ in range(2):
        frames = recording.frames([whole, long, cut], [100, 1200, 100])
        tunnel.send(frames)

    headers = [GRE(packet) for packet in sock.packets]
    assert [header.seqnum_present for header in headers] == [1] * 4
    assert [header.sequence_number for header in headers] == [0, 1, 2, 3]
    erspan = [header[ERSPAN_II if "2" in text[:8] else ERSPAN_III] for header in headers]
    assert [header.t for header in erspan] == [0, 1, 0, 1]
    assert [header.session_id for header in erspan] == [5] * 4
    assert tunnel.ledger.truncated == 2
    assert tunnel.ledger.refused == Counter(mtu=2)
    assert balanced(tunnel.ledger, 6)


def test_sequence_numbers_wrap() -> None:
    tunnel, sock = recording.tunnel("gre://192.0.2.9?seq=true")
    tunnel._numbering.next = 2**32 - 1

    tunnel.send(recording.frames([WEB, WEB, WEB]))

    numbers = [struct.unpack_from(">I", packet, 4)[0] for packet in sock.packets]
    assert numbers == [2**32 - 1, 0, 1]


@pytest.mark.parametrize("tags", [(), (0x2064,), (0xE001, 7)])
def test_erspan_tells_of_the_tag_in_the_frame(tags: tuple[int, ...]) -> None:
    tunnel, sock = recording.tunnel("erspan2://192.0.2.9")
    frame = ip_frame(100, *tags)

    tunnel.send(recording.frames([frame]))

    header = GRE(sock.packets[0])[ERSPAN_II]
    tci = tags[0] if tags else 0
    assert (header.vlan, header.cos, header.en) == (tci & 0xFFF, tci >> 13, 3 if tags else 0)
    assert bytes(header.payload) == frame


def test_the_flow_chooses_the_source_port() -> None:
    tunnel, sock = recording.tunnel("vxlan://192.0.2.9:8472?vni=77")

    tunnel.send(recording.frames([WEB, ARP, WEB]))

    headers = [UDP(packet) for packet in sock.packets]
    ports = [header.sport for header in headers]
    assert ports[0] == ports[2] != ports[1]
    assert all(port >= 49152 for port in ports)
    assert [header.dport for header in headers] == [8472] * 3
    assert [VXLAN(bytes(header.payload)).vni for header in headers] == [77] * 3
    assert [header.len for header in headers] == [len(packet) for packet in sock.packets]


causes = st.sampled_from(["", "", "queue-full", "no-route", "message-too-long", "einval"])


@given(st.lists(st.lists(causes, max_size=9), max_size=4), st.integers(0, 3))
def test_ledger_balances_whatever_the_socket_says(
    batches: list[list[str]], unreachable: int
) -> None:
    tunnel, sock = recording.tunnel("gre://192.0.2.9")
    sock.unreachable = unreachable
    fates = iter([cause for batch in batches for cause in batch])
    sock.fate = lambda _: next(fates)

    for batch in batches:
        tunnel.send(recording.frames([WEB] * len(batch)))

    counted = Counter(cause for batch in batches for cause in batch)
    ledger = tunnel.ledger
    assert ledger.sent == counted.pop("", 0)
    assert ledger.queue_dropped == counted.pop("queue-full", 0)
    assert ledger.errors == counted
    assert ledger.octets == ledger.sent * len(WEB)
    assert ledger.unreachable == unreachable * len(batches)
    assert balanced(ledger, sum(map(len, batches)))


@given(st.lists(st.tuples(st.binary(min_size=14, max_size=80), st.integers(0, 80)), max_size=6))
def test_rewriting_changes_the_first_six_octets_only(parts: list[tuple[bytes, int]]) -> None:
    octets = [frame for frame, _ in parts]
    plain = recording.frames(octets)
    headed = recording.frames(octets)
    split = np.minimum(np.array([at for _, at in parts], np.int64), plain.batch.length)
    headed.batch.head = plain.batch.memory.copy()
    headed.batch.head_start, headed.batch.head_length = plain.batch.start, split
    headed.batch.start = plain.batch.start + split
    headed.batch.length = plain.batch.length - split
    before = plain.batch.memory.tobytes()

    for frames in (plain, headed):
        tunnel, sock = recording.tunnel("gre://192.0.2.9?key=3&csum=true", mac=MAC)
        tunnel.send(frames)

        assert [packet[12:] for packet in sock.packets] == [MAC + frame[6:] for frame in octets]
        assert all(outer.internet_checksum(packet) == 0 for packet in sock.packets)
        assert tunnel.ledger.octets == sum(map(len, octets))
        assert tunnel.ledger.truncated == 0
        assert frames.batch.memory.tobytes() == before


def test_bare_ip_tunnels_carry_ip_only() -> None:
    tunnel, sock = recording.tunnel("gre-ip://192.0.2.9")
    packet4 = WEB[14:]
    packet6 = outer.ipv6(outer.udp(b"six", 1, 2), 17, "2001:db8::1", "2001:db8::2")
    llc = outer.MACS + bytes.fromhex("0003 424203") + bytes(43)
    octets = [outer.frame(packet4), ARP, outer.frame(packet6, 7), llc, outer.frame(packet4, 7, 8)]

    tunnel.send(recording.frames(octets))

    four, six = bytes.fromhex("00000800"), bytes.fromhex("000086dd")
    assert sock.packets == [four + packet4, six + packet6, four + packet4]
    assert tunnel.ledger.refused == Counter({"not-ip": 2})
    assert tunnel.ledger.truncated == 0
    assert balanced(tunnel.ledger, 5)

    tunnel.send(recording.frames([ARP]))

    assert len(sock.packets) == 3
    assert balanced(tunnel.ledger, 6)


def test_a_tunnel_of_bare_ip_leaves_the_frames_to_the_next_tunnel() -> None:
    bare, _ = recording.tunnel("gre-ip://192.0.2.9")
    whole, sock = recording.tunnel("gre://192.0.2.9")
    frames = recording.frames([WEB, WEB])

    bare.send(frames)
    whole.send(frames)

    assert [packet[4:] for packet in sock.packets] == [WEB, WEB]


def test_a_source_address_that_is_gone_gets_a_new_socket_once() -> None:
    sockets: list[recording.RecordingSocket] = []

    def open_socket() -> recording.RecordingSocket:
        sockets.append(recording.RecordingSocket(1500 - 100 * len(sockets)))
        return sockets[-1]

    stack = parse_tunnel("gre://192.0.2.9").encapsulation(False)
    tunnel = Tunnel("gre", stack, open_socket, MtuPolicy.FRAGMENT, 20)
    tunnel.refresh()
    sockets[0].fate = lambda _: "no-route"
    tunnel.send(recording.frames([WEB]))
    tunnel.refresh()
    assert len(sockets) == 1

    sockets[0].fate = lambda _: "einval"
    tunnel.send(recording.frames([WEB, WEB]))
    tunnel.refresh()
    tunnel.refresh()
    tunnel.send(recording.frames([WEB]))
    tunnel.refresh()

    assert len(sockets) == 2
    assert [sock.is_closed for sock in sockets] == [True, False]
    assert tunnel.path_mtu == 1400
    assert tunnel.ledger.errors == Counter({"no-route": 1, "einval": 2})
    assert tunnel.ledger.sent == 1
    tunnel.close()
    assert sockets[1].is_closed


def test_in_a_hurry_a_full_queue_is_not_tried_again() -> None:
    tunnel, sock = recording.tunnel("erspan2://192.0.2.9")
    frames = recording.frames([WEB, WEB])
    sock.fate = lambda _: "queue-full"
    tunnel.send(frames)
    tunnel.send(frames)
    assert len(sock.packets) == 4
    tunnel.hurry()
    tunnel.send(frames)
    assert len(sock.packets) == 4
    assert (tunnel.ledger.clones, tunnel.ledger.queue_dropped) == (6, 6)
    assert balanced(tunnel.ledger, 6)

    tunnel, sock = recording.tunnel("gre://192.0.2.9")
    tunnel.hurry()
    tunnel.send(frames)
    sock.fate = lambda _: "queue-full"
    tunnel.send(frames)
    tunnel.send(frames)
    assert len(sock.packets) == 4
    assert (tunnel.ledger.sent, tunnel.ledger.queue_dropped) == (2, 4)
    assert balanced(tunnel.ledger, 6)


def test_the_route_decides_anew_what_fits() -> None:
    tunnel, sock = recording.tunnel("vxlan://192.0.2.9", "drop", 1500)
    frames = recording.frames([ip_frame(1400)])
    tunnel.send(frames)
    sock.mtu = 1400
    tunnel.send(frames)
    tunnel.refresh()
    tunnel.send(frames)

    assert tunnel.ledger.sent == 2
    assert tunnel.ledger.refused == Counter(mtu=1)
