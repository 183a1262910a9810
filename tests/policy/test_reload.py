"""A new plan: what is equal stays open and keeps counting, what is wrong changes nothing."""

from __future__ import annotations

from typing import Any

import outer
import pytest
from rig import Rig

from tunnelbridge.clone.nat import NatTable
from tunnelbridge.errors import UsageError
from tunnelbridge.interfaces import Interfaces
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.wishes import Wishes
from tunnelbridge.status import Status

TEXT = """
[tunnels]
a = "gre://192.0.2.1?seq=on"
b = "vxlan://192.0.2.2"
[pools.p]
distribution = "{distribution}"
health = {{ check = "icmp" }}
members = [{{ ip = "192.0.2.1", via = "a" }}, {{ ip = "192.0.2.2", via = "b" }}]
[sessions.kept]
sources = ["eth0"]
expression = "tcp"
target = "a"
[sessions.pooled]
sources = ["eth0"]
priority = 2
target = "p"
"""
BEFORE = TEXT.format(distribution="round-robin")


def tcp(port: int) -> bytes:
    return outer.frame(outer.ipv4(outer.tcp(b"x", 40000, port), 6, "10.0.0.1", "10.0.0.2"))


def udp(port: int) -> bytes:
    return outer.frame(outer.ipv4(outer.udp(b"y", 40000, port), 17, "10.0.0.1", "10.0.0.2"))


def sequences(rig: Rig, name: str) -> list[int]:
    return [int.from_bytes(packet[4:8]) for packet in rig.sockets[name].packets]


def test_an_unchanged_tunnel_goes_on_counting() -> None:
    rig = Rig(BEFORE)
    first = rig.sockets["a"]
    rig.feed([tcp(1), tcp(2)])
    rig.apply(BEFORE.replace("priority = 2", "priority = 3"))
    rig.feed([tcp(3)])

    assert rig.sockets["a"] is first
    assert not first.is_closed
    assert sequences(rig, "a") == [0, 1, 2]
    assert [each.ledger.matched for each in rig.policy.sessions] == [3, 0]


def test_members_behind_one_tunnel_share_its_numbers_through_a_reload() -> None:
    rig = Rig(BEFORE)
    rig.feed([tcp(1), udp(1), tcp(2)])  # the session's own tunnel, then the pool's member of it
    rig.apply(BEFORE.replace("priority = 2", "priority = 3"))
    rig.feed([tcp(3)])
    numbers = sequences(rig, "a") + sequences(rig, "192.0.2.1 via a")
    assert sorted(numbers) == [0, 1, 2, 3]


def test_turns_go_on_where_the_group_is_the_same() -> None:
    rig = Rig(BEFORE)
    rig.feed([udp(1)])
    rig.apply(BEFORE.replace("priority = 2", "priority = 3"))
    rig.feed([udp(2)])
    assert [len(rig.sockets[f"192.0.2.{n} via {t}"].packets) for n, t in ((1, "a"), (2, "b"))] == [
        1,
        1,
    ]


def test_what_is_removed_is_closed_and_stays_in_the_sums() -> None:
    rig = Rig(BEFORE)
    rig.feed([tcp(1), udp(1), udp(2)])
    gone = rig.sockets["192.0.2.2 via b"]
    rig.apply(BEFORE.partition("[sessions.pooled]")[0])
    rig.feed([tcp(2), udp(3)])

    assert gone.is_closed
    ledger = rig.policy.ledger
    assert ledger.balances()
    assert {each.name: each.copies for each in ledger.sessions} == {
        "kept": 2,
        "removed sessions": 2,
    }
    assert {each.name: each.sent for each in ledger.tunnels} == {"a": 2, "closed tunnels": 2}
    assert ledger.not_matched == 1
    assert rig.policy.guard.signatures[0].remote == "192.0.2.1"


def test_a_session_that_begins_to_cut_gets_tunnels_that_say_so() -> None:
    text = BEFORE.replace("vxlan://192.0.2.2", "geneve://192.0.2.2").replace('"a"\n', '"b"\n')
    rig = Rig(text)
    rig.feed([tcp(1)])
    rig.apply(text.replace('expression = "tcp"', 'expression = "tcp"\npacket_length = 20'))
    rig.feed([tcp(2)])

    (packet,) = rig.sockets["b"].packets
    assert packet.endswith(tcp(2)[:20])
    assert packet[8] & 0x3F  # RFC 8926: options follow, the original length is in them
    assert rig.policy.sessions[0].ledger.members[0].num_succeeded == 2


def test_a_changed_member_keeps_its_counters() -> None:
    rig = Rig(BEFORE)
    rig.feed([udp(1), udp(2)])
    rig.apply(TEXT.format(distribution="flow"))
    members = rig.policy.sessions[1].ledger.members
    assert [each.num_total_pkts_cloned for each in members] == [1, 1]


def test_what_cannot_be_opened_changes_nothing() -> None:
    rig = Rig(BEFORE)
    plan, sessions, tunnels = rig.policy.plan, rig.policy.sessions, rig.policy.tunnels
    rig.fails = "gre://192.0.2.9"
    fresh = BEFORE + '[sessions.x]\nsources = ["eth0"]\ntarget = "gre://192.0.2.8"\n'
    fresh += '[sessions.y]\nsources = ["eth0"]\ntarget = "gre://192.0.2.9"\n'
    with pytest.raises(OSError, match=r"192\.0\.2\.9"):
        rig.apply(fresh)

    assert rig.sockets["gre://192.0.2.8"].is_closed
    assert rig.policy.plan is plan
    assert rig.policy.sessions is sessions
    assert rig.policy.tunnels == tunnels
    rig.feed([tcp(1)])
    assert len(rig.sent("a")) == 1 if len(rig.sockets) == 1 else rig.sockets["a"].packets


def test_a_port_of_two_kinds_is_refused() -> None:
    rig = Rig(BEFORE)
    with pytest.raises(UsageError, match="two encapsulations through UDP port 4789"):
        rig.apply(BEFORE + '[sessions.x]\nsources = ["eth0"]\ntarget = "geneve://192.0.2.8:4789"\n')
    assert len(rig.policy.tunnels) == 3


def test_a_member_that_is_down_stays_down_through_a_reload() -> None:
    rig = Rig(BEFORE)
    rig.health("192.0.2.1", False)
    rig.apply(TEXT.format(distribution="flow"))
    rig.feed([udp(port) for port in range(50)])
    assert len(rig.sent("192.0.2.2 via b")) == 50


def test_the_mtu_policy_of_the_file_is_followed() -> None:
    rig = Rig(BEFORE)
    rig.feed([tcp(1)])
    rig.apply('mtu = "drop"\n' + BEFORE)
    assert {str(tunnel.policy) for tunnel in rig.policy.tunnels} == {"drop"}
    rig.feed([tcp(2)])
    assert sequences(rig, "a") == [1]  # a new socket, and the numbers go on
    ledger = rig.policy.ledger
    assert ledger.balances()
    assert ledger.sessions[0].members[0].num_succeeded == 2


GROUPS = """
[pools.p]
members = [{ ip = "192.0.2.1", via = "gre://192.0.2.1", labels = { role = "ids" } },
           { ip = "192.0.2.2", via = "gre://192.0.2.2" }]
[destinations.labelled]
labels = { role = "ids" }
[policies.web]
sources = ["eth0"]
rules = [{ protocol = "tcp", secondary_action = { mirror = "labelled" } },
         { protocol = "udp", secondary_action = { mirror = "p" } }]
"""


def test_a_member_of_two_groups_keeps_two_counters() -> None:
    rig = Rig(GROUPS)
    rig.feed([tcp(1), tcp(2), tcp(3)])
    ledger = rig.policy.sessions[0].ledger
    assert [each.num_total_pkts_cloned for each in ledger.members] == [3, 0, 0]
    for weight in (2, 3):
        rig.apply(GROUPS.replace("labels", f"weight = {weight}, labels", 1))
        assert [each.num_total_pkts_cloned for each in ledger.members] == [3, 0, 0]


def test_turns_of_flows_stay_when_a_weight_changes() -> None:
    text = """
[pools.p]
distribution = "round-robin"
per = "flow"
members = [{{ ip = "192.0.2.1", via = "gre://192.0.2.1" }},
           {{ ip = "192.0.2.2", via = "gre://192.0.2.2", weight = {} }}]
[sessions.s]
sources = ["eth0"]
target = "p"
"""
    rig = Rig(text.format(1))
    rig.feed([udp(port) for port in range(20)])
    before = {name: list(sock.packets) for name, sock in rig.sockets.items()}
    for sock in rig.sockets.values():
        sock.packets.clear()
    rig.apply(text.format(2))
    rig.feed([udp(port) for port in range(20)])
    assert {name: sock.packets for name, sock in rig.sockets.items()} == before


def test_a_flow_that_began_while_its_member_was_alone_stays_with_it() -> None:
    text = TEXT.format(distribution="round-robin").replace("[pools.p]", '[pools.p]\nper = "flow"')
    rig = Rig(text)
    rig.health("192.0.2.2", False)
    flows = [udp(port) for port in range(9)]
    rig.feed(flows)
    assert len(rig.sent("192.0.2.1 via a")) == 9
    rig.health("192.0.2.2", True)
    rig.feed(flows)
    assert len(rig.sent("192.0.2.1 via a")) == 18


def test_counters_that_were_reset_never_show_below_zero() -> None:
    text = '[sessions.s]\nsources = ["eth0"]\ntarget = "gre://192.0.2.{}"\n'
    rig = Rig(text.format(1))
    wishes = Wishes(rig.policy.plan)
    status = Status(wishes, rig.policy, Interfaces(rig.pipeline, lambda _: None, lambda _: None))
    rig.feed([udp(1)] * 5)
    status.reset()
    for number in range(2, 40):  # ledgers come and go: one may lie where another was
        rig.apply(text.format(number))
        (member,) = status.pools()[0]["members"]
        assert member["num_total_pkts_cloned"] == 0


class Tables:
    """Stands for the tables of clients: one for each namespace."""

    def __init__(self) -> None:
        self.tables: dict[str, NatTable] = {}

    def table(self, session: SessionPlan) -> NatTable:
        return self.tables.setdefault(session.sources[0].partition(":")[0], NatTable())

    def keep(self, sessions: object) -> None: ...


def test_a_session_that_moves_to_another_namespace_gets_its_clients() -> None:
    text = """
[pools.p]
preserve_client_ip = true
members = [{{ ip = "192.0.2.1", via = "gre://192.0.2.1" }}]
[sessions.s]
sources = ["{}:eth0"]
target = "p"
"""
    tables: Any = Tables()
    rig = Rig("")
    rig.policy.clients = tables
    for namespace in ("one", "two"):
        rig.apply(text.format(namespace))
        assert rig.policy.sessions[0].groups[0].nat is tables.tables[namespace]
