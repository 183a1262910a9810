"""The table of source-NATed connections; a dictionary is the judge."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.nat import GRACE, NatTable, with_echoes
from tunnelbridge.connections import CONNECTION, ECHO_SERVICE, NO_PORT, Changes, Connections
from tunnelbridge.wire.five_tuple import FiveTuples, read_five_tuples
from tunnelbridge.wire.flow import read_flows
from tunnelbridge.wire.new_addresses import LEAVE, NewAddresses

End = tuple[str, int]
MACS = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
SERVER, NAT, CLIENT = ("198.51.100.7", 443), ("203.0.113.1", 40001), ("10.0.0.5", 50000)


def halves(address: str) -> tuple[int, int]:
    return divmod(int(ipaddress.ip_address(address)), 2**64)


def connection(
    server: End = SERVER, nat: End = NAT, client: End = CLIENT, protocol: int = 6
) -> tuple[Any, ...]:
    family = ipaddress.ip_address(server[0]).version
    ends = halves(server[0]), halves(nat[0]), halves(client[0])
    return (family, protocol, server[1], nat[1], client[1], *ends)


def column(*connections: tuple[Any, ...]) -> Connections:
    return np.array(list(connections), CONNECTION)


def tuples_of(frames: list[bytes]) -> FiveTuples:
    batch = from_packets(frames)
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    return with_echoes(batch.memory, flows, read_five_tuples(batch.memory, flows))


def tuples(*packets: Packet) -> FiveTuples:
    return tuples_of([bytes(MACS / packet) for packet in packets])


def address(words: Any) -> str:
    high, low = (int(word) for word in words)
    number = high << 64 | low
    return str(ipaddress.IPv6Address(number) if high else ipaddress.IPv4Address(number))


def told(new: NewAddresses) -> list[tuple[Any, ...]]:
    """Return row, source, destination, ports and identifier of each packet that is changed."""
    assert new.source is not None
    assert new.destination is not None
    assert new.source_port is not None
    assert new.destination_port is not None
    assert new.identifier is not None
    return [
        (row, address(source), address(destination), *numbers)
        for row, source, destination, *numbers in zip(
            new.rows.tolist(), new.source, new.destination, new.source_port.tolist(),
            new.destination_port.tolist(), new.identifier.tolist(), strict=True,
        )
    ]  # fmt: skip


def tcp(source: End, destination: End, layer: type = TCP) -> Packet:
    internet = IPv6 if ":" in source[0] else IP
    return internet(src=source[0], dst=destination[0]) / layer(
        sport=source[1], dport=destination[1]
    )


def test_both_directions_get_the_client_back() -> None:
    table = NatTable()
    table.learn(column(connection()))

    new = table.look_up(tuples(tcp(NAT, SERVER), tcp(CLIENT, SERVER), tcp(SERVER, NAT)))

    assert told(new) == [
        (0, CLIENT[0], SERVER[0], CLIENT[1], LEAVE, LEAVE),
        (2, SERVER[0], CLIENT[0], LEAVE, CLIENT[1], LEAVE),
    ]


@pytest.mark.parametrize(
    "packet",
    [
        tcp(NAT, (SERVER[0], 80)),
        tcp((NAT[0], 40002), SERVER),
        tcp((NAT[0], SERVER[1]), (SERVER[0], NAT[1])),
        tcp(NAT, SERVER, UDP),
        tcp((SERVER[0], NAT[1]), (NAT[0], SERVER[1])),
        tcp(("::cb00:7101", NAT[1]), ("::c633:6407", SERVER[1])),
        IP(src=NAT[0], dst=SERVER[0], proto=50) / Raw(bytes(40)),
        IP(src=NAT[0], dst=SERVER[0], frag=100, proto=6) / Raw(bytes(40)),
    ],
)
def test_other_packets_stay(packet: Packet) -> None:
    table = NatTable()
    table.learn(column(connection()))

    assert not len(table.look_up(tuples(packet)))


def test_ipv6_and_protocols_without_ports() -> None:
    server, nat, client = "2001:db8::7", "2001:db8:1::1", "fd00::5"
    table = NatTable()
    table.learn(
        column(
            connection((server, 53), (nat, 1053), (client, 2053), protocol=17),
            connection(*((ip, NO_PORT) for ip in (SERVER[0], NAT[0], CLIENT[0])), protocol=50),
        )
    )

    new = table.look_up(
        tuples(
            tcp((nat, 1053), (server, 53), UDP),
            tcp((server, 53), (nat, 1053), UDP),
            IP(src=NAT[0], dst=SERVER[0], proto=50) / Raw(bytes(40)),
            IP(src=SERVER[0], dst=NAT[0], proto=50) / Raw(bytes(40)),
        )
    )

    assert told(new) == [
        (0, client, server, 2053, LEAVE, LEAVE),
        (1, server, client, LEAVE, 2053, LEAVE),
        (2, CLIENT[0], SERVER[0], LEAVE, LEAVE, LEAVE),
        (3, SERVER[0], CLIENT[0], LEAVE, LEAVE, LEAVE),
    ]


def test_echo_messages_have_an_identifier_for_ports() -> None:
    table = NatTable()
    server, nat, client = "2001:db8::7", "2001:db8:1::1", "fd00::5"
    table.learn(
        column(
            connection((SERVER[0], ECHO_SERVICE), (NAT[0], 8), (CLIENT[0], 77), protocol=1),
            connection((server, ECHO_SERVICE), (nat, 0), (client, 99), protocol=58),
        )
    )
    there, back = {"src": NAT[0], "dst": SERVER[0]}, {"src": SERVER[0], "dst": NAT[0]}
    error = ICMP(type=3, code=1) / IP(**there) / ICMP(id=8)

    new = table.look_up(
        tuples(
            IP(**there) / ICMP(type=8, id=8),
            IP(**back) / ICMP(type=0, id=8),
            IP(**back) / ICMP(type=8, id=8),  # the server pings us, by chance with that number
            IP(**there) / ICMP(type=8, id=9),
            IP(**back) / error,
            IP(**there, flags="MF") / ICMP(type=8, id=8) / Raw(bytes(64)),
            IP(**there, frag=9, proto=1) / Raw(b"\x08\0\0\0\0\x08" * 9),
            IP(**there) / Raw(b"\x08"),
            IPv6(src=nat, dst=server) / ICMPv6EchoRequest(id=0),
            IPv6(src=server, dst=nat) / ICMPv6EchoReply(id=0),
        )
    )

    assert told(new) == [
        (0, CLIENT[0], SERVER[0], LEAVE, LEAVE, 77),
        (1, SERVER[0], CLIENT[0], LEAVE, LEAVE, 77),
        (5, CLIENT[0], SERVER[0], LEAVE, LEAVE, 77),
        (8, client, server, LEAVE, LEAVE, 99),
        (9, server, client, LEAVE, LEAVE, 99),
    ]


# --- against a dictionary -----------------------------------------------------------------------

SMALL = st.integers(1, 3)
CONNECTIONS = st.builds(
    lambda protocol, server, port, nat, client, own: connection(
        (f"198.51.100.{server}", 440 + port),
        ("203.0.113.1", 40000 + nat),
        (f"10.0.0.{client}", own),
        protocol,
    ),
    st.sampled_from([6, 17]), SMALL, SMALL, SMALL, SMALL, st.integers(0, 0xFFFF),
)  # fmt: skip
STEPS = st.lists(st.tuples(st.booleans(), st.lists(CONNECTIONS, max_size=20)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(CONNECTIONS, max_size=8))
def test_it_knows_what_a_dictionary_knows(
    steps: list[tuple[bool, list[tuple[Any, ...]]]], asked: list[tuple[Any, ...]]
) -> None:
    table, oracle = NatTable(1024), {}

    def key(one: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*one[:4], one[5], one[6])

    for is_new, connections in steps:
        if is_new:
            table.learn(column(*connections))
            oracle |= {key(one): one for one in connections}
        else:
            table.forget(column(*connections))
            for one in connections:
                oracle.pop(key(one), None)
        assert len(table) == len(oracle)
    frames, expected = [], []
    for one in asked:
        _, protocol, server_port, nat_port, *_ = one
        server, nat = (address(one[5]), server_port), (address(one[6]), nat_port)
        layer = TCP if protocol == 6 else UDP
        for ends, back in (((server, nat), True), ((nat, server), False)):
            known = oracle.get(key(one))
            if known is not None:
                client = address(known[7])
                row = (len(frames), server[0], client, LEAVE, known[4], LEAVE) if back else (
                    len(frames), client, server[0], known[4], LEAVE, LEAVE)  # fmt: skip
                expected.append(row)
            frames.append(bytes(MACS / tcp(*ends, layer)))

    assert told(table.look_up(tuples_of(frames))) == expected


@pytest.mark.parametrize("count", [0, 1, 65536])
def test_65536_connections_find_room(count: int) -> None:
    table = NatTable()
    rows = np.zeros(count, CONNECTION)
    rows["family"], rows["protocol"] = 4, 6
    rows["nat_port"] = np.arange(count)
    rows["server"][:, 1], rows["nat"][:, 1] = 0xC6336407, 0xCB007101
    table.learn(rows)

    assert len(table) + table.evicted == count
    assert table.evicted <= count // 1000


def test_a_full_table_stays_bounded_and_the_oldest_makes_room() -> None:
    table = NatTable(8)
    everything = [connection(nat=(NAT[0], port)) for port in range(1, 12)]
    for one in everything:
        table.learn(column(one))

    new = table.look_up(tuples(*(tcp((NAT[0], port), SERVER) for port in range(1, 12))))

    assert (len(table), table.evicted) == (8, 3)
    assert new.rows.tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


def test_more_than_fit_in_one_go_stay_bounded() -> None:
    table = NatTable(16)
    table.learn(column(*(connection(nat=(NAT[0], port)) for port in range(1000))))

    assert len(table) == 16
    assert len(table) + table.evicted == 1000


# --- changes as the feed tells them -------------------------------------------------------------

NOTHING = column()
LATER = connection(nat=(NAT[0], 40002))


def known(table: NatTable) -> list[int]:
    return table.look_up(tuples(tcp(NAT, SERVER), tcp((NAT[0], 40002), SERVER))).rows.tolist()


def test_what_is_gone_is_forgotten_after_a_while() -> None:
    table = NatTable()
    table.apply(Changes(column(connection(), LATER), column(connection())), now=5)
    assert known(table) == [0, 1]
    table.apply(Changes(NOTHING, column(LATER)), now=GRACE)
    assert known(table) == [0, 1]
    table.apply(Changes(NOTHING, NOTHING), now=GRACE + 4)
    assert known(table) == [0, 1]
    table.apply(Changes(NOTHING, NOTHING), now=GRACE + 5)
    assert known(table) == [1]
    table.apply(Changes(NOTHING, NOTHING), now=10 * GRACE)
    assert known(table) == []


def test_a_connection_that_comes_again_is_not_forgotten() -> None:
    table = NatTable()
    table.apply(Changes(column(connection(), LATER), column(connection(), LATER)), now=0)
    table.apply(Changes(column(LATER), NOTHING), now=1)
    table.apply(Changes(NOTHING, NOTHING), now=GRACE)
    assert known(table) == [1]


def test_after_a_restart_only_what_was_told_again_stays() -> None:
    table = NatTable()
    table.apply(Changes(column(connection(), LATER), NOTHING, complete=True), now=0)
    assert known(table) == [0, 1]
    table.apply(Changes(NOTHING, NOTHING, restarted=True), now=0)
    assert known(table) == [0, 1]
    table.apply(Changes(column(LATER), NOTHING), now=0)
    assert known(table) == [0, 1]
    table.apply(Changes(NOTHING, NOTHING, complete=True), now=0)
    assert known(table) == [1]


def test_clones_of_one_packet_follow_it() -> None:
    new = NewAddresses(rows=np.array([1, 3]), source_port=np.array([10, 30]))
    followed = new.follow(np.array([0, 1, 1, 2, 3, 4]))
    assert followed.rows.tolist() == [1, 2, 4]
    assert followed.source_port is not None
    assert followed.source_port.tolist() == [10, 10, 30]
    assert followed.source is None
    none = NewAddresses(rows=np.zeros(0, np.int64)).follow(np.arange(3))
    assert none.rows.tolist() == []
    assert new.follow(np.zeros(0, np.int64)).rows.tolist() == []
