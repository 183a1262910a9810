"""Clones on layer 2: judged by a packet socket at the other end, and by the kernel's limits."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import lab
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, libpcap
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.linux.wire_socket import WireSocket
from tunnelbridge.restore import vlan

pytestmark = pytest.mark.usefixtures("root")

MAC = bytes.fromhex("02000a0a0a0a")
ETH_P_ALL = 3


@pytest.fixture(scope="module")
def spaces(root: None) -> Iterator[tuple[str, str]]:
    with lab.namespace() as a, lab.namespace() as b:
        yield a, b


@pytest.fixture
def cable(spaces: tuple[str, str]) -> Iterator[tuple[str, str, str, str]]:
    with lab.veth(*spaces) as ends:
        yield *spaces, *ends


@pytest.fixture
def sender(cable: tuple[str, str, str, str]) -> Iterator[WireSocket]:
    with lab.in_namespace(cable[0], WireSocket, cable[2]) as opened:
        yield opened


@contextlib.contextmanager
def listening(ns: str, interface: str) -> Iterator[socket.socket]:
    sock = lab.in_namespace(ns, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        sock.setsockopt(libc.SOL_PACKET, 8, 1)  # PACKET_AUXDATA: the tag that the kernel takes out
        sock.bind((interface, ETH_P_ALL))
        yield sock


def take(sock: socket.socket, count: int) -> list[bytes]:
    """Return the next frames with their tags put back."""
    frames = []
    deadline = time.monotonic() + 5
    while len(frames) < count:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        octets, control, _, _ = sock.recvmsg(1 << 16, 256)
        told = np.frombuffer(control[0][2], "=u4,=u4,=u4,=u2,=u2,=u2,=u2")[0]
        if told[0] & 16:  # TP_STATUS_VLAN_VALID
            tag = int(told[6]).to_bytes(2) + int(told[5]).to_bytes(2)
            octets = octets[:12] + tag + octets[12:]
        frames.append(octets)
    return frames


def nothing_waits(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    return False


def frames(count: int, seed: int = 1) -> list[bytes]:
    """Return frames of at least 16 octets: skb_vlan_untag drops a tagged one with less inside."""
    source = random.Random(seed)
    return [
        source.randbytes(12) + b"\x08\x00" + source.randbytes(source.randint(2, 300))
        for _ in range(count)
    ]


def rows(count: int, octets: bytes = b"") -> np.ndarray:
    return np.tile(np.frombuffer(octets, np.uint8), (count, 1))


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 2500])
def test_frames_arrive_as_they_are(
    cable: tuple[str, str, str, str], sender: WireSocket, count: int
) -> None:
    given = frames(count)
    with listening(cable[1], cable[3]) as far:
        sent = sender.send(rows(count), from_packets(given))
        assert take(far, count) == given
        assert nothing_waits(far)
    assert sent == Sent(count, sum(map(len, given)))


def test_the_rewritten_address_replaces_the_first_six_octets(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    given = frames(1025, seed=2)
    with listening(cable[1], cable[3]) as far:
        sent = sender.send(rows(1025, MAC), from_packets(given).skip(6))
        assert take(far, 1025) == [MAC + frame[6:] for frame in given]
    assert (sent.packets, sent.errors) == (1025, {})


@pytest.mark.parametrize("mac", [b"", MAC])
def test_a_pushed_tag_stands_behind_the_addresses(
    cable: tuple[str, str, str, str], sender: WireSocket, mac: bytes
) -> None:
    given = frames(1025, seed=3)
    given[7] = given[7][:12] + bytes.fromhex("81000005") + given[7][12:]  # has one already
    tagged = vlan.insert(replace(from_packets(given), vlan=np.full(1025, 0x8100A064)))
    with listening(cable[1], cable[3]) as far:
        sent = sender.send(rows(1025, mac), tagged.skip(len(mac)))
        arrived = take(far, 1025)
    assert sent.errors == {}
    for octets, frame in zip(arrived, given, strict=True):
        addresses = mac + frame[len(mac) : 12]
        assert octets == addresses + bytes.fromhex("8100a064") + frame[12:]


@pytest.mark.parametrize(
    ("type_octets", "longest"),
    [("0800", 1514), ("810000050800", 1518), ("8100000581000006", 1518), ("88a800050800", 1514)],
)
def test_the_longest_frame_is_the_mtu_a_mac_header_and_one_tag(
    cable: tuple[str, str, str, str], sender: WireSocket, type_octets: str, longest: int
) -> None:
    assert sender.path_mtu() == 1514
    head = frames(1)[0][:12] + bytes.fromhex(type_octets)
    fits, beyond = head.ljust(longest, b"x"), head.ljust(longest + 1, b"x")
    with listening(cable[1], cable[3]) as far:
        sent = sender.send(rows(3), from_packets([fits, beyond, fits]))
        assert take(far, 2) == [fits, fits]
    assert sent == Sent(2, 2 * longest, {"message-too-long": 1})


def test_the_mtu_is_asked_for_each_time(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    lab.run("ip", "-n", cable[0], "link", "set", cable[2], "mtu", "9000")
    assert sender.path_mtu() == 9014


def test_too_short_for_a_mac_header_costs_that_packet_only(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    whole = frames(2)
    with listening(cable[1], cable[3]) as far:
        sent = sender.send(rows(4), from_packets([b"", whole[0], bytes(13), whole[1]]))
        assert take(far, 2) == whole
    assert (sent.packets, sent.errors) == (2, {"einval": 2})


def test_our_own_captures_refuse_what_it_sends(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    assert sender.marked
    program = libpcap.refuse_marked(libpcap.compile_filter(""))
    with listening(cable[0], cable[2]) as ours, listening(cable[0], cable[2]) as plain:
        libc.attach_filter(ours.fileno(), program)
        sender.send(rows(1), from_packets(frames(1)))
        assert take(plain, 1) == frames(1)  # tcpdump on the interface does see it
        assert nothing_waits(ours)


def test_down_and_up_again(cable: tuple[str, str, str, str], sender: WireSocket) -> None:
    near, far_space, end, far_end = cable
    lab.run("ip", "-n", near, "link", "set", end, "down")
    given = frames(3)
    assert sender.send(rows(3), from_packets(given)) == Sent(errors={"network-down": 3})
    assert sender.send(rows(3), from_packets(given)) == Sent(errors={"network-down": 3})
    assert sender.path_mtu() == 1514
    lab.run("ip", "-n", near, "link", "set", end, "up")
    lab.until(lambda: lab.carrier(near, end), what="carrier")
    with listening(far_space, far_end) as far:
        assert sender.send(rows(3), from_packets(given)).packets == 3
        assert take(far, 3) == given


def test_gone_and_back_under_the_same_name(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    near, far_space, end, far_end = cable
    lab.run("ip", "-n", near, "link", "delete", end)
    given = from_packets(frames(3))
    assert sender.send(rows(3), given) == Sent(errors={"no-interface": 3})
    assert sender.send(rows(0), from_packets([])) == Sent()
    with pytest.raises(UserError, match=f"^no interface named {end} "):
        sender.path_mtu()
    lab.run("ip", "-n", near, "link", "add", end, "type", "veth",
            "peer", "name", far_end, "netns", far_space)  # fmt: skip
    for ns, name in ((near, end), (far_space, far_end)):
        lab.run("ip", "-n", ns, "link", "set", name, "up")
    lab.until(lambda: lab.carrier(near, end), what="carrier")
    assert sender.send(rows(3), given).errors == {"no-interface": 3}
    assert sender.path_mtu() == 1514  # who asks for the MTU, as once a second, is bound again
    assert sender.send(rows(3), given).packets == 3


def test_another_interface_that_got_the_name(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    near, far_space, end, _ = cable
    lab.run("ip", "-n", near, "link", "set", end, "down")
    lab.run("ip", "-n", near, "link", "set", end, "name", "other")
    try:
        with lab.veth(near, far_space) as (second, second_far):
            lab.run("ip", "-n", near, "link", "set", second, "down")
            lab.run("ip", "-n", near, "link", "set", second, "name", end)
            lab.run("ip", "-n", near, "link", "set", end, "up")
            lab.until(lambda: lab.carrier(near, end), what="carrier")
            sender.path_mtu()
            with listening(far_space, second_far) as far:
                sender.send(rows(1), from_packets(frames(1)))
                assert take(far, 1) == frames(1)
            lab.run("ip", "-n", near, "link", "delete", end)
    finally:
        lab.run("ip", "-n", near, "link", "delete", "other")


def test_a_full_queue_is_counted_and_waited_for_no_longer_than_patience(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    lab.need("tc")
    lab.run("tc", "qdisc", "add", "dev", cable[2], "root", "tbf", "rate", "8kbit", "burst", "2kb",
            "limit", "64mb", ns=cable[0])  # fmt: skip
    sender._sockets[0].setsockopt(socket.SOL_SOCKET, 32, 32 << 10)  # SO_SNDBUFFORCE
    given = [bytes(1514)] * 200
    began = time.monotonic()
    sent = sender.send(rows(200), from_packets(given))
    assert time.monotonic() - began < 2
    assert sent.packets > 0
    assert sent.errors == {"queue-full": 200 - sent.packets}


def test_a_queue_that_drops_is_counted_per_frame(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    lab.need("tc")
    lab.run("tc", "qdisc", "add", "dev", cable[2], "root", "tbf", "rate", "8kbit", "burst", "2kb",
            "limit", "4kb", ns=cable[0])  # fmt: skip
    sent = sender.send(rows(20), from_packets([bytes(1514)] * 20))
    assert 0 < sent.packets < 20
    assert sent.errors == {"no-buffers": 20 - sent.packets}


def test_interfaces_it_cannot_send_by(cable: tuple[str, str, str, str]) -> None:
    near, _, end, _ = cable
    before = lab.descriptors()
    with pytest.raises(UserError, match=r"^no interface named nowhere0 \(there are: .*lo"):
        lab.in_namespace(near, WireSocket, "nowhere0")
    with pytest.raises(UserError, match=r"^interface lo takes no Ethernet frames"):
        lab.in_namespace(near, WireSocket, "lo")
    lab.run("ip", "-n", near, "link", "set", end, "down")
    with pytest.raises(UserError, match=f"^interface {end} is down: sudo ip link set {end} up$"):
        lab.in_namespace(near, WireSocket, end)
    assert not lab.left_open(before)


def test_without_the_right_it_says_which(
    cable: tuple[str, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(UserError, match=f"^sending by {cable[2]} needs CAP_NET_RAW: "):
        WireSocket(cable[2])


def test_heads_and_bodies_are_gathered(
    cable: tuple[str, str, str, str], sender: WireSocket
) -> None:
    given = frames(1025, seed=5)
    batch: Batch = from_packets([frame[14:] for frame in given])
    batch.head = np.frombuffer(b"".join(frame[:14] for frame in given), np.uint8)
    batch.head_start, batch.head_length = np.arange(1025) * 14, np.full(1025, 14)
    with listening(cable[1], cable[3]) as far:
        sender.send(rows(1025, MAC), batch.skip(6))
        assert take(far, 1025) == [MAC + frame[6:] for frame in given]
