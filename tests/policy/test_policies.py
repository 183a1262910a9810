"""CN2 policies: stateful, rule level over policy level, destinations by label and by address."""

from __future__ import annotations

import outer
from rig import Rig

from tunnelbridge.batch import INBOUND, OUTBOUND

POOLS = """
[tunnels]
a = "gre://192.0.2.1"
b = "gre://192.0.2.2"
[pools.one]
members = [{ ip = "192.0.2.1", via = "a", labels = { role = "analyzer", site = "x" } }]
[pools.two]
members = [{ ip = "192.0.2.2", via = "b", labels = { role = "analyzer", site = "y" } }]
"""
SECOND = 10**9


def tcp(sport: int, dport: int, source: str = "10.0.0.1", destination: str = "10.0.1.1") -> bytes:
    return outer.frame(outer.ipv4(outer.tcp(b"x" * 20, sport, dport), 6, source, destination))


def reply(sport: int, dport: int) -> bytes:
    return tcp(dport, sport, "10.0.1.1", "10.0.0.1")


def policy(rules: str, more: str = "", name: str = "web", priority: int = 10) -> str:
    return (
        f'[policies.{name}]\nsources = ["eth0"]\npriority = {priority}\n{more}\nrules = [{rules}]\n'
    )


WEB = '{ protocol = "tcp", destination = "10.0.1.0/24", destination_ports = "80" }'
TO_ONE = 'secondary_action = { mirror = "one" }'


def test_a_flow_is_mirrored_with_both_directions_once_its_first_packet_matched() -> None:
    rig = Rig(POOLS + policy(WEB, TO_ONE))
    rig.feed([reply(1000, 80)], OUTBOUND)  # no rule matches it by itself
    assert rig.sent("via a") == []

    rig.feed([tcp(1000, 80)], INBOUND)
    rig.feed([reply(1000, 80), reply(1001, 80), tcp(1001, 443)], [OUTBOUND, OUTBOUND, INBOUND])
    assert rig.sent("via a") == [tcp(1000, 80), reply(1000, 80)]


def test_a_reply_in_the_same_batch_as_the_first_packet_follows_it() -> None:
    rig = Rig(POOLS + policy(WEB, TO_ONE))
    rig.feed([tcp(1000, 80), reply(1000, 80), reply(2000, 80)])
    assert rig.sent("via a") == [tcp(1000, 80), reply(1000, 80)]


def test_a_flow_ends_when_it_is_idle() -> None:
    rig = Rig(POOLS + policy(WEB, TO_ONE))
    rig.feed([tcp(1000, 80)], now=0)
    rig.feed([reply(1000, 80)], now=100 * SECOND)
    rig.feed([reply(1000, 80)], now=1000 * SECOND)
    assert len(rig.sent("via a")) == 2


def test_rule_level_wins_over_policy_level_and_each_flow_counts_once() -> None:
    own = '{ protocol = "tcp", destination_ports = "80", secondary_action = { mirror = "two" } }'
    rig = Rig(
        POOLS + policy(f'{own}, {{ protocol = "tcp", destination_ports = "1-1000" }}', TO_ONE)
    )
    rig.feed([tcp(1000, 80), tcp(1000, 443), reply(1000, 80), reply(1000, 443)])

    assert rig.sent("via b") == [tcp(1000, 80), reply(1000, 80)]
    assert rig.sent("via a") == [tcp(1000, 443), reply(1000, 443)]
    assert rig.policy.ledger.copies == 4


def test_what_is_denied_is_not_mirrored_in_either_direction() -> None:
    deny = '{ action = "deny", protocol = "tcp", destination_ports = "22" }'
    anything = '{ protocol = "tcp" }'
    rig = Rig(POOLS + policy(f"{deny}, {anything}", TO_ONE))
    rig.feed([tcp(1000, 22), reply(1000, 22), tcp(1000, 80)])
    assert rig.sent("via a") == [tcp(1000, 80)]


def test_protocols_with_the_same_ports_are_different_flows() -> None:
    rig = Rig(POOLS + policy(WEB, TO_ONE))
    udp = outer.frame(outer.ipv4(outer.udp(b"y" * 20, 80, 1000), 17, "10.0.1.1", "10.0.0.1"))
    rig.feed([tcp(1000, 80), udp])
    assert rig.sent("via a") == [tcp(1000, 80)]


def test_destinations_by_label_one_hash_all() -> None:
    frames = [tcp(1000 + number, 80) for number in range(64)]
    for select, shares in (("one", (64, 0)), ("all", (64, 64)), ("hash", None)):
        text = f'[destinations.d]\nlabels = {{ role = "analyzer" }}\nselect = "{select}"\n'
        rig = Rig(POOLS + text + policy(WEB, 'secondary_action = { mirror = "d" }'))
        rig.feed(frames)
        found = tuple(len(sock.packets) for sock in rig.sockets.values())
        if shares is None:
            assert sum(found) == 64
            assert 8 < found[0] < 56
        else:
            assert (*found, 0)[:2] == shares


def test_a_label_selector_is_a_target() -> None:
    rig = Rig(POOLS + policy(WEB, 'secondary_action = { mirror = "role=analyzer,site=y" }'))
    rig.feed([tcp(1000, 80)])
    assert rig.counts() == {"192.0.2.2 via b": 1}


def test_an_external_analyser_with_the_juniper_header_and_a_static_next_hop_without() -> None:
    rig = Rig(
        """
[destinations.header]
external_analyzer = true
analyzer_ip = "10.87.88.88"
udp_port = 8100
[destinations.static]
external_analyzer = true
analyzer_ip = "10.87.88.89"
juniper_header = false
next_hop = "static"
vtep = "192.0.2.5"
vni = 5
mac = "02:00:00:00:00:05"
"""
        + policy(
            '{ destination_ports = "80", secondary_action = { mirror = "header" } },'
            '{ destination_ports = "443", secondary_action = { mirror = "static" } }'
        )
    )
    rig.feed([tcp(1000, 80), tcp(1000, 443)])

    (header,), (static,) = (sock.packets for sock in rig.sockets.values())
    assert int.from_bytes(header[2:4]) == 8100
    assert header.endswith(b"\xff\x00" + tcp(1000, 80))  # Contrail: end of the TLVs, then the frame
    assert int.from_bytes(static[2:4]) == 4789
    assert static[8:16] == bytes.fromhex("08000000 00000500")
    assert static[16:] == bytes.fromhex("020000000005") + tcp(1000, 443)[6:]


def test_a_policy_and_a_session_on_one_source() -> None:
    rig = Rig(
        POOLS
        + policy(WEB, TO_ONE, priority=1)
        + '[sessions.rest]\nsources = ["eth0"]\npriority = 2\ntarget = "two"\n'
    )
    rig.feed([tcp(1000, 80), reply(1000, 80), tcp(1000, 443)])
    assert rig.sent("via a") == [tcp(1000, 80), reply(1000, 80)]
    assert rig.sent("via b") == [tcp(1000, 443)]


def test_a_policy_behind_a_session_with_rules_of_its_own() -> None:
    rules = '{ priority = 1, action = "accept", protocol = "icmp" }'
    rig = Rig(
        POOLS
        + policy(WEB, TO_ONE, priority=2)
        + f"[filters.f]\ninbound = [{rules}, {rules}, {rules}]\n"
        + '[sessions.first]\nsources = ["eth0"]\npriority = 1\nfilter = "f"\ntarget = "two"\n'
    )
    rig.feed([tcp(1000, 80), reply(1000, 80), tcp(1000, 443)])
    assert rig.sent("via a") == [tcp(1000, 80), reply(1000, 80)]
    assert rig.sent("via b") == []


def test_known_flows_survive_a_reload_that_does_not_touch_the_rules() -> None:
    text = POOLS + policy(WEB, TO_ONE)
    rig = Rig(text)
    rig.feed([tcp(1000, 80)])
    rig.apply(text + '[sessions.other]\nsources = ["eth1"]\ntarget = "two"\n')
    rig.feed([reply(1000, 80)], source="eth0")
    rig.apply(text.replace("priority = 10", "priority = 11"))
    rig.feed([reply(1000, 80)])
    assert rig.sent("via a") == [tcp(1000, 80), reply(1000, 80), reply(1000, 80)]

    rig.apply(text.replace('"80"', '"81"'))
    rig.feed([reply(1000, 80)])
    assert len(rig.sent("via a")) == 3
