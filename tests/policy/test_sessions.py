"""Sessions and pools: which tunnel each frame leaves by, and that everything is accounted for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import outer
import pytest
from rig import Rig

from tunnelbridge.batch import INBOUND, OUTBOUND, VNET_HEADER, from_packets
from tunnelbridge.errors import UsageError, UserError

TUNNELS = """
[tunnels]
a = "gre://192.0.2.1"
b = "gre://192.0.2.2"
c = "gre://192.0.2.3"
"""


def session(name: str, target: str, more: str = "", sources: str = '["eth0"]') -> str:
    return f'[sessions.{name}]\nsources = {sources}\ntarget = "{target}"\n{more}\n'


def tcp(
    port: int, source: str = "10.0.0.1", destination: str = "10.0.0.2", sport: int = 40000
) -> bytes:
    return outer.frame(outer.ipv4(outer.tcp(b"x" * 20, sport, port), 6, source, destination))


def udp(port: int, sport: int = 40000) -> bytes:
    return outer.frame(outer.ipv4(outer.udp(b"y" * 20, sport, port), 17, "10.0.0.1", "10.0.0.2"))


ARP = outer.MACS + bytes.fromhex("0806 0001 0800 0604 0001") + bytes(20)


def test_the_first_session_that_accepts_takes_the_packet() -> None:
    rig = Rig(
        TUNNELS
        + session("late", "b", 'priority = 9\nexpression = "tcp"')
        + session("first", "a", 'priority = 1\nexpression = "tcp port 80"')
        + session("same", "c", 'priority = 9\nexpression = "tcp"')
    )
    rig.feed([tcp(80), tcp(443), udp(53)])

    assert rig.sent("a") == [tcp(80)]
    assert rig.sent("b") == [tcp(443)]  # ties in the order of the file
    assert rig.sent("c") == []
    assert rig.policy.ledger.not_matched == 1
    assert [each.ledger.matched for each in rig.policy.sessions] == [1, 1, 0]


def test_a_session_may_stand_beside_the_others() -> None:
    rig = Rig(
        TUNNELS
        + session("all", "a", "priority = 5\nmirror_once = false")
        + session("web", "b", 'priority = 7\nexpression = "tcp port 80"')
        + session("early", "c", 'priority = 1\nexpression = "udp"')
    )
    rig.feed([tcp(80), udp(53), ARP])

    assert rig.sent("a") == [tcp(80), udp(53), ARP]
    assert rig.sent("b") == [tcp(80)]
    assert rig.sent("c") == [udp(53)]
    ledger = rig.policy.ledger
    assert (ledger.cloned, ledger.segments, ledger.mirrored_again, ledger.copies) == (3, 3, 2, 5)


def test_rules_look_from_the_source_inbound_and_outbound() -> None:
    text = (
        TUNNELS
        + session("s", "a", 'filter = "f"')
        + """
[filters.f]
inbound  = [{ priority = 2, action = "accept", protocol = "tcp" },
            { priority = 1, action = "reject", protocol = "tcp", destination_ports = "22" }]
outbound = [{ priority = 1, action = "accept", protocol = "udp", source = "10.0.0.0/24" }]
"""
    )
    frames = [tcp(22), tcp(80), udp(53), ARP]
    rig = Rig(text)
    rig.feed(frames, INBOUND)
    assert rig.sent("a") == [tcp(80)]
    rig = Rig(text)
    rig.feed(frames, OUTBOUND)
    assert rig.sent("a") == [udp(53)]
    guest = Rig(text.replace('filter = "f"', 'filter = "f"\nviewpoint = "guest"'))
    guest.feed(frames, OUTBOUND)  # what the host's end sends is what the guest gets
    assert guest.sent("a") == [tcp(80)]


@pytest.mark.parametrize("how", ['filter = "f"', 'expression = "ip"', ""])
@pytest.mark.parametrize(("direction", "expected"), [("in", 1), ("out", 2), ("both", 3)])
def test_a_sessions_direction(how: str, direction: str, expected: int) -> None:
    rules = '[{ priority = 1, action = "accept" }]'
    rig = Rig(
        TUNNELS
        + f"[filters.f]\ninbound = {rules}\noutbound = {rules}\n"
        + session("s", "a", f'{how}\ndirection = "{direction}"')
        + session("none", "b", 'priority = 2\nexpression = "ip6"')
    )
    rig.feed([tcp(1), tcp(2), tcp(3)], [INBOUND, OUTBOUND, OUTBOUND])
    assert len(rig.sent("a")) == expected


@pytest.mark.parametrize(("direction", "seen"), [("in", OUTBOUND), ("out", INBOUND)])
def test_a_guests_direction_is_the_cables_other_end(direction: str, seen: int) -> None:
    more = f'expression = "ip"\ndirection = "{direction}"\nviewpoint = "guest"'
    rig = Rig(TUNNELS + session("s", "a", more))
    rig.feed([tcp(1), tcp(2)], [seen, 1 - seen])
    assert rig.sent("a") == [tcp(1)]


def test_segments_go_where_their_super_packet_goes() -> None:
    rig = Rig(
        TUNNELS
        + session("web", "a", 'expression = "tcp port 80"')
        + session("rest", "b", "priority = 2")
    )
    payload = bytes(number % 251 for number in range(300))
    long = outer.frame(outer.ipv4(outer.tcp(payload, 40000, 80), 6, "10.0.0.1", "10.0.0.2"))
    batch = from_packets([udp(53), long, udp(54)])
    batch.vnet = np.zeros(3, VNET_HEADER)
    batch.vnet[1] = (1, 1, 54, 100, 34, 16)  # TCP over IPv4, segments of 100 octets
    rig.pipeline.process(batch, rig.selection())

    assert b"".join(frame[54:] for frame in rig.sent("a")) == payload
    assert [len(frame) for frame in rig.sent("a")] == [154, 154, 154]
    assert rig.sent("b") == [udp(53), udp(54)]
    assert rig.policy.ledger.balances()


def test_sources_by_name_glob_and_namespace() -> None:
    rig = Rig(
        TUNNELS
        + session("named", "a", sources='["eth0"]')
        + session("globbed", "b", sources='["veth*", "blue:eth?"]')
        + session("red", "c", sources='["red:any"]')
    )
    for source in ("eth0", "eth1", "veth7", "blue:eth0", "blue:veth7", "red:eth0", "lo", "red:lo"):
        rig.feed([tcp(80)], source=source)
    assert rig.counts() == {"a": 1, "b": 2, "c": 1}


def test_a_session_that_is_disabled_takes_nothing_away() -> None:
    rig = Rig(TUNNELS + session("off", "a", "enabled = false") + session("on", "b", "priority = 2"))
    rig.feed([tcp(80)])
    assert rig.counts() == {"a": 0, "b": 1}

    assert rig.policy.enable("off", True)
    assert not rig.policy.enable("off", True)
    rig.feed([tcp(80)])
    assert rig.counts() == {"a": 1, "b": 1}
    with pytest.raises(UsageError, match=r"no session named of \(there are: off, on\)"):
        rig.policy.enable("of", True)


def test_packet_length_and_identifier() -> None:
    rig = Rig(
        """
[tunnels]
vx = "vxlan://192.0.2.1?vni=1"
er = "erspan2://192.0.2.2?session=3"
[pools.p]
distribution = "all"
members = [{ ip = "192.0.2.1", via = "vx" }, { ip = "192.0.2.2", via = "er" }]
"""
        + session("s", "p", "vni = 7\nsession_id = 9\npacket_length = 40")
    )
    rig.feed([tcp(80)])

    (vxlan,), (erspan,) = (sock.packets for sock in rig.sockets.values())
    assert vxlan[8:16] == bytes.fromhex("08000000 00000700")  # RFC 7348 §5, behind UDP
    assert int.from_bytes(erspan[8 + 2 : 8 + 4]) & 0x3FF == 9  # behind GRE with a sequence number
    assert int.from_bytes(erspan[8 + 2 : 8 + 4]) & 0x400  # T: the frame was cut
    assert vxlan[16:] == erspan[16:] == tcp(80)[:40]


POOL = """
[pools.p]
distribution = "{}"
health = {{ check = "icmp" }}
members = [{{ ip = "192.0.2.1", via = "a", weight = 2 }}, {{ ip = "192.0.2.2", via = "b" }},
           {{ ip = "192.0.2.3", via = "c", weight = 0 }}]
"""


@pytest.mark.parametrize("distribution", ["round-robin", "weighted-round-robin"])
def test_turns_are_exact_whatever_the_batches(distribution: str) -> None:
    rig = Rig(TUNNELS + POOL.format(distribution) + session("s", "p"))
    for size in (1, 4, 0, 2, 3, 7, 13):
        rig.feed([udp(53, 1000 + number) for number in range(size)])
    assert [len(each.packets) for each in rig.sockets.values()] == [20, 10, 0]
    (ledger,) = (each.ledger for each in rig.policy.sessions)
    assert [each.num_total_pkts_cloned for each in ledger.members] == [20, 10, 0]
    assert [each.num_succeeded for each in ledger.members] == [20, 10, 0]


def test_all_members_get_all_that_are_not_drained() -> None:
    rig = Rig(TUNNELS + POOL.format("all") + session("s", "p"))
    rig.feed([tcp(80), udp(53)])
    assert [len(each.packets) for each in rig.sockets.values()] == [2, 2, 0]
    assert rig.policy.ledger.copies == 4


def flows(count: int) -> list[tuple[bytes, bytes]]:
    """Return flows as a packet in each direction."""
    return [
        (
            tcp(80, "10.0.0.1", "10.0.0.2", 1000 + number),
            tcp(1000 + number, "10.0.0.2", "10.0.0.1", 80),
        )
        for number in range(count)
    ]


def members_of(rig: Rig) -> dict[bytes, str]:
    """Return which tunnel each frame left by."""
    return {frame: name[-1] for name in rig.sockets for frame in rig.sent(name)}


def test_both_directions_of_a_flow_reach_one_member_from_every_sender() -> None:
    text = TUNNELS + POOL.format("flow") + session("s", "p")
    one, other = Rig(text), Rig(text.replace('"192.0.2.1", via', '"192.0.2.1",  via'))
    pairs = flows(400)
    one.feed([there for there, _ in pairs], INBOUND)
    other.feed([back for _, back in pairs], OUTBOUND)

    seen, answered = members_of(one), members_of(other)
    assert all(seen[there] == answered[back] for there, back in pairs)
    shares = Counter(seen.values())
    assert shares["c"] == 0
    assert 200 < shares["a"] < 330  # two thirds of 400, six sigma and more


def test_a_member_that_is_down_loses_its_own_flows_only_and_gets_them_back() -> None:
    rig = Rig(TUNNELS + POOL.format("flow").replace("weight = 0", "weight = 1") + session("s", "p"))
    frames = [there for there, _ in flows(300)]
    rig.feed(frames)
    before = members_of(rig)

    rig.health("192.0.2.1", False)
    for sock in rig.sockets.values():
        sock.packets.clear()
    rig.feed(frames)
    during = members_of(rig)
    moved = {frame for frame in frames if before[frame] != during[frame]}
    assert moved == {frame for frame in frames if before[frame] == "a"}

    rig.health("192.0.2.1", True)
    for sock in rig.sockets.values():
        sock.packets.clear()
    rig.feed(frames)
    assert members_of(rig) == before


def test_with_everybody_down_frames_are_counted() -> None:
    rig = Rig(TUNNELS + POOL.format("flow") + session("s", "p"))
    for member in ("192.0.2.1", "192.0.2.2"):
        rig.health(member, False)
    rig.feed([tcp(80), udp(53)])
    assert rig.policy.sessions[0].ledger.no_member == 2
    assert not any(rig.counts().values())


def test_source_ip_keeps_what_one_host_sends_together() -> None:
    rig = Rig(TUNNELS + POOL.format("source-ip") + session("s", "p"))
    hosts = [f"10.0.1.{number}" for number in range(100)]
    rig.feed([tcp(port, host) for host in hosts for port in (80, 443)])
    where = members_of(rig)
    assert all(where[tcp(80, host)] == where[tcp(443, host)] for host in hosts)
    assert set(where.values()) == {"a", "b"}


def test_static_arp_and_fdb_rewrite_and_replicate() -> None:
    rig = Rig(
        TUNNELS
        + """
[arp]
"10.10.10.10" = "02:00:0a:0a:0a:0a"
[fdb]
"02:00:0a:0a:0a:0a" = ["a", "b"]
[pools.p]
members = [{ ip = "10.10.10.10" }]
"""
        + session("s", "p")
    )
    rig.feed([tcp(80)])
    expected = bytes.fromhex("02000a0a0a0a") + tcp(80)[6:]
    assert rig.sent("via a") == rig.sent("via b") == [expected]
    (member,) = rig.policy.sessions[0].ledger.members
    assert member.num_total_pkts_cloned == 2


def test_rewrites() -> None:
    text = (
        TUNNELS
        + """
[arp]
"10.10.10.10" = "02:00:0a:0a:0a:0a"
[fdb]
"02:00:0a:0a:0a:0a" = "a"
[pools.p]
rewrite = "{}"
members = [{{ ip = "10.10.10.10" }}]
"""
        + session("s", "p")
    )
    rig = Rig(text.format("none"))
    rig.feed([tcp(80)])
    assert rig.sent("via a") == [tcp(80)]

    rig = Rig(text.format("mac+ip"))
    rig.feed([tcp(80)])
    (frame,) = rig.sent("via a")
    whole = outer.frame(outer.ipv4(outer.tcp(b"x" * 20, 40000, 80), 6, "10.0.0.1", "10.10.10.10"))
    assert frame[:6] == bytes.fromhex("02000a0a0a0a")
    assert frame[26:34] == whole[26:34]  # addresses
    assert frame[24:26] == whole[24:26]  # the IP header's checksum, made anew by other code


def test_a_member_is_down_only_where_it_is_checked_like_that() -> None:
    text = TUNNELS
    for name, check in (("p", "icmp"), ("q", "off"), ("r", "route")):
        text += f'[pools.{name}]\nhealth = {{ check = "{check}" }}\n'
        text += 'members = [{ ip = "192.0.2.1", via = "a" }]\n'
        text += session(f"s{name}", name, "mirror_once = false")
    rig = Rig(text)
    watched = {health.check: (ip, health) for ip, health in rig.policy.plan.watched}
    rig.policy.set_up(watched["icmp"], False)
    rig.feed([tcp(80)])
    assert {each.plan.name: each.ledger.no_member for each in rig.policy.sessions} == {
        "sp": 1,
        "sq": 0,
        "sr": 0,
    }


def test_a_subnet_that_is_not_on_an_interface_is_refused() -> None:
    member = '{ ip = "192.0.2.250", mac = "02:00:00:00:02:50", subnet = "203.0.113.0/24" }'
    with pytest.raises(
        UserError, match=r"member 192.0.2.250: 203.0.113.0/24 is not on an|no route"
    ):
        Rig(f"[pools.p]\nmembers = [{member}]\n" + session("s", "p"))


def test_a_subnet_on_an_interface_is_that_interface() -> None:
    member = '{ ip = "127.9.9.9", mac = "02:00:00:00:02:50", subnet = "127.0.0.0/8" }'
    rig = Rig(f"[pools.p]\nmembers = [{member}]\n" + session("s", "p"))
    rig.feed([tcp(80)])
    assert list(rig.sockets) == ["127.9.9.9 via ether://lo"]
    assert rig.sent("ether://lo") == [bytes.fromhex("020000000250") + tcp(80)[6:]]
