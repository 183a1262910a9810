"""What is listened to: as asked for, or all that can be; and nothing stays open behind a mistake."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator, Sequence

import outer
import pytest

import lab
from collector.listener import Listeners, Wanted, parse_wanted
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.slab import SlabPool
from tunnelbridge.wire import udp
from tunnelbridge.wire.layer import Kind

DEFAULT_PORTS = {
    4789: Kind.VXLAN,
    8472: Kind.VXLAN,
    4790: Kind.VXLAN_GPE,
    6081: Kind.GENEVE,
    37008: Kind.TZSP,
    8099: Kind.JUNIPER,
    6635: Kind.MPLS,
    4754: Kind.GRE,
}


def test_by_default_everything() -> None:
    assert udp.PORTS == DEFAULT_PORTS
    assert parse_wanted(None, (), (), (), ()) == Wanted(True, DEFAULT_PORTS, [], False)
    assert parse_wanted(False, (), (), (), ()) == Wanted(False, DEFAULT_PORTS, [], False)


@pytest.mark.parametrize(
    ("asked", "gre", "ports", "ip"),
    [
        ((True, (), (), (), ()), True, {}, []),
        ((None, (4789,), (), (), ()), False, {4789: Kind.VXLAN}, []),
        ((False, (1, 2), (3,), (), ()), False, {1: Kind.VXLAN, 2: Kind.VXLAN, 3: Kind.GENEVE}, []),
        ((None, (), (), ("gre:4754", "mpls:65535"), ()), False, {4754: Kind.GRE, 65535: Kind.MPLS}, []),
        ((None, (), (), ("vxlan-gpe:1", "tzsp:2", "juniper:3"), ()), False,
         {1: Kind.VXLAN_GPE, 2: Kind.TZSP, 3: Kind.JUNIPER}, []),
        ((True, (), (), (), ("ipip", "6in4", "etherip", "mpls")), True, {}, [4, 41, 97, 137]),
    ],
)  # fmt: skip
def test_what_is_named(asked: tuple, gre: bool, ports: dict[int, Kind], ip: list[int]) -> None:
    assert parse_wanted(*asked) == Wanted(gre, ports, ip, explicit=True)


@pytest.mark.parametrize(
    "text", ["vxlan", "vxlan:", "vxlan:0", "vxlan:65536", "vxlan:-1", "vxlan:x", "erspan2:1", ":5"]
)
def test_no_such_udp_tunnel(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--udp {text}: expected KIND:PORT, KIND one of vxlan, "):
        parse_wanted(None, (), (), [text], ())


def test_no_such_ip_tunnel() -> None:
    with pytest.raises(UsageError, match=r"^--ip gre: expected one of ipip, 6in4, etherip, mpls$"):
        parse_wanted(None, (), (), (), ["gre"])


@pytest.fixture
def ns(root: None) -> Iterator[str]:
    with lab.namespace(ipv6=True) as name:
        yield name


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths


def opened(ns: str, wanted: Wanted, addresses: Sequence[str] = (), privileged: bool = True):
    """Open listeners in a namespace, as root or in a thread without any capability."""

    def work() -> Listeners:
        if not privileged:
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
            assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
        return Listeners(wanted, addresses)

    return lab.in_namespace(ns, work)


def names(listeners: Listeners) -> list[str]:
    return [each.name for each in listeners.open]


def everything() -> Wanted:
    return parse_wanted(None, (), (), (), ())


def test_with_the_right_one_raw_socket_serves_all_ports(ns: str) -> None:
    before = descriptors()
    listeners = opened(ns, everything())

    ports = ", ".join(f"{kind.slug} {port}" for port, kind in DEFAULT_PORTS.items())
    assert sorted(names(listeners)) == sorted(
        [
            "GRE on 0.0.0.0",
            f"UDP ({ports}) on 0.0.0.0",
            "GRE on ::",
            f"UDP ({ports}) on ::",
        ]
    )
    assert listeners.problems == []
    assert descriptors() == before + 4 + 2 * len(DEFAULT_PORTS)
    listeners.close()
    assert descriptors() == before


def test_without_the_right_each_port_has_a_socket_and_gre_is_a_remark(ns: str) -> None:
    listeners = opened(ns, everything(), privileged=False)

    assert len(names(listeners)) == 2 * len(DEFAULT_PORTS)
    assert "UDP (geneve 6081) on ::" in names(listeners)
    assert [each.first for each in listeners.open] == list(DEFAULT_PORTS.values()) * 2
    assert len(listeners.problems) == 2
    assert all("CAP_NET_RAW" in problem for problem in listeners.problems)
    listeners.close()


def test_without_the_right_gre_alone_is_nothing_to_listen_on(ns: str) -> None:
    before = descriptors()
    with pytest.raises(UserError, match="CAP_NET_RAW"):
        opened(ns, Wanted(True, {4789: Kind.VXLAN}, [], True), privileged=False)
    with pytest.raises(UserError, match=r"^nothing to listen on: .*CAP_NET_RAW.*; .*CAP_NET_RAW"):
        opened(ns, Wanted(True, {}, []), privileged=False)
    assert descriptors() == before


@pytest.mark.parametrize("privileged", [True, False])
def test_a_port_in_use(ns: str, privileged: bool) -> None:
    sock = lab.in_namespace(ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("127.0.0.1", 6081))
        before = descriptors()

        listeners = opened(ns, everything(), privileged=privileged)
        in_use = [problem for problem in listeners.problems if "in use" in problem]
        assert len(in_use) == 1
        assert "6081" in in_use[0]
        taken = [name for name in names(listeners) if "geneve 6081" in name]
        assert all(name.endswith("::") for name in taken)  # IPv6's is free
        assert any("vxlan 4789" in name for name in names(listeners))
        listeners.close()

        asked = parse_wanted(None, (4789,), (6081,), (), ())
        with pytest.raises(UserError, match=r"UDP port 6081.* is in use") as told:
            opened(ns, asked, privileged=privileged)
        assert "\n" not in str(told.value)
        assert descriptors() == before

        only = Wanted(False, {6081: Kind.GENEVE}, [])
        listeners = opened(ns, only, ["::1"], privileged=privileged)
        listeners.close()
        with pytest.raises(UserError, match=r"^nothing to listen on: .*6081"):
            opened(ns, only, ["127.0.0.1"], privileged=privileged)
        assert descriptors() == before


def test_addresses(ns: str) -> None:
    listeners = opened(ns, Wanted(True, {4789: Kind.VXLAN}), ["127.0.0.1", "::1"])
    assert names(listeners) == [
        "GRE on 127.0.0.1",
        "UDP (vxlan 4789) on 127.0.0.1",
        "GRE on ::1",
        "UDP (vxlan 4789) on ::1",
    ]
    listeners.close()


@pytest.mark.parametrize(
    ("addresses", "error", "message"),
    [
        (["localhost"], UsageError, "--bind: 'localhost' does not appear to be"),
        (["10.0.0.0/8"], UsageError, "--bind: '10.0.0.0/8' does not appear to be"),
        (["127.0.0.1", "127.0.0.1"], UsageError, "--bind 127.0.0.1: .*more than once"),
        (["::1", "0:0::1"], UsageError, "--bind ::1: .*more than once"),
        (["127.0.0.1", "0.0.0.0"], UsageError, "--bind 0.0.0.0: .*more than once"),
        (["127.0.0.1", "192.0.2.1"], UserError, "192.0.2.1 is not an address of this host"),
    ],
)
def test_wrong_addresses(
    ns: str, addresses: list[str], error: type[UserError], message: str
) -> None:
    before = descriptors()
    with pytest.raises(error, match=message):
        opened(ns, Wanted(True, {4789: Kind.VXLAN}, explicit=True), addresses)
    assert descriptors() == before


def test_a_kernel_without_ipv6(ns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **more: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", Socket)
    listeners = opened(ns, everything())
    assert len(names(listeners)) == 2
    assert all(name.endswith("0.0.0.0") for name in names(listeners))
    listeners.close()


def test_ip_protocols_over_ipv6_begin_behind_its_header(ns: str) -> None:
    listeners = opened(ns, Wanted(True, {}, [4, 41, 97, 137], explicit=True), ["::1", "127.0.0.1"])

    assert [(each.name, each.first) for each in listeners.open] == [
        ("GRE on ::1", Kind.GRE),
        ("IP protocol 97 on ::1", Kind.ETHERIP),
        ("IP protocol 137 on ::1", Kind.MPLS),
        ("GRE on 127.0.0.1", Kind.IPV4),
        ("IP protocol 4 on 127.0.0.1", Kind.IPV4),
        ("IP protocol 41 on 127.0.0.1", Kind.IPV4),
        ("IP protocol 97 on 127.0.0.1", Kind.IPV4),
        ("IP protocol 137 on 127.0.0.1", Kind.IPV4),
    ]
    listeners.close()


@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_datagrams_arrive_as_the_listener_says(ns: str, address: str, privileged: bool) -> None:
    listeners = opened(ns, Wanted(False, {5555: Kind.VXLAN}), [address], privileged)
    (only,) = listeners.open
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.in_namespace(ns, socket.socket, family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 5555))
        sock.send(b"datagram")
        sock.send(b"again")  # a closed port would have answered by now: ECONNREFUSED
        source_port = sock.getsockname()[1]
    pool = SlabPool(1, 16)
    slab = pool.take()
    assert slab is not None
    got = lab.until(lambda: only.receiver.receive(slab), what="datagrams")

    packet = got.batch.octets(0)
    header = outer.udp(b"datagram", source_port, 5555)[:6]
    kinds = {Kind.IPV4: packet[20:26] == header, Kind.UDP: packet[:6] == header, Kind.VXLAN: True}
    assert kinds[only.first]
    assert packet.endswith(b"datagram")
    assert len(packet) == 8 + {Kind.IPV4: 28, Kind.UDP: 8, Kind.VXLAN: 0}[only.first]
    slab.release()
    listeners.close()
