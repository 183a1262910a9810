"""What is said about configurations that load: warnings, summaries, differences, the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from test_config_file import SMALL, WHOLE

from tunnelbridge.config.load import loads, schema
from tunnelbridge.config.mirror import Mirror


def test_nothing_to_say() -> None:
    assert loads(SMALL).warnings() == []
    assert loads("").warnings() == ["no session and no policy: nothing is mirrored"]


def test_entries_nobody_uses() -> None:
    text = (
        SMALL
        + """
[tunnels]
used = "gre://192.0.2.2"
unused = "gre://192.0.2.3"
[arp]
"10.0.0.1" = "02:00:00:00:00:01"
"10.0.0.2" = "02:00:00:00:00:02"
[fdb]
"02:00:00:00:00:01" = "used"
"02:00:00:00:00:03" = "gre://192.0.2.4"
[pools.spare]
members = [{ ip = "10.0.0.1" }]
[pools.busy]
members = [{ ip = "10.0.0.9", via = "used", labels = { a = "b" } }]
[filters.unused]
inbound = [{ priority = 1, action = "accept" }]
[destinations.idle]
labels = { a = "b" }
[sessions.t]
sources = ["eth1"]
target = "a=b"
"""
    )
    assert loads(text).warnings() == [
        "tunnels.unused is not used",
        'arp."10.0.0.2" is not used',
        'fdb."02:00:00:00:00:03" is not used',
        "pools.spare is not used",
        "filters.unused is not used",
        "destinations.idle is not used",
    ]


@pytest.mark.parametrize(
    "use",
    [
        'target = "p"',
        'target = "10.0.0.9"',
        'target = "a=b"',
        'target = "d"\n[destinations.d]\nlabels = { a = "b" }',
        'target = "gre://h"\n[stand_in]\ninterface = "eth1"\nmembers = ["10.0.0.9"]',
        (
            'target = "gre://h"\n[policies.q]\nsources = ["e"]\n'
            'rules = [{ secondary_action = { mirror = "p" } }]'
        ),
    ],
)
def test_ways_to_use_a_pool(use: str) -> None:
    text = f"""
[pools.p]
members = [{{ ip = "10.0.0.9", mac = "02:00:00:00:00:09", via = "gre://h", labels = {{ a = "b" }} }}]
[sessions.s]
sources = ["eth0"]
{use}
"""
    assert loads(text).warnings() == []


@pytest.mark.parametrize(
    ("pool", "warning"),
    [
        ('distribution = "round-robin"', "one connection's packets go to several members"),
        ('distribution = "weighted-round-robin"', "one connection's packets go to several members"),
        ('per = "flow"', "has a meaning for the round robins only"),
        ("weight = 0", "every member has weight 0 and gets nothing"),
    ],
)
def test_pools_that_are_seldom_meant(pool: str, warning: str) -> None:
    member = '{ ip = "10.0.0.9", via = "gre://h" }'
    if pool.startswith("weight"):
        member, pool = member.replace(" }", f", {pool} }}"), ""
    text = f'[pools.p]\nmembers = [{member}]\n{pool}\n[sessions.s]\nsources = ["e"]\ntarget = "p"'
    (line,) = loads(text).warnings()
    assert warning in line


def test_a_round_robin_over_flows_is_fine() -> None:
    text = """
[pools.p]
members = [{ ip = "10.0.0.9", via = "gre://h" }]
distribution = "round-robin"
per = "flow"
[sessions.s]
sources = ["e"]
target = "p"
"""
    assert loads(text).warnings() == []


@pytest.mark.parametrize(
    ("target", "identifier", "fits"),
    [
        ("vxlan://h", "vni", True),
        ("geneve://h", "vni", True),
        ("gre://h", "vni", False),
        ("gre-ip://h", "key", True),
        ("erspan2://h", "session_id", True),
        ("erspan3://h", "session_id", True),
        ("erspan1://h", "session_id", False),
        ("vxlan://h", "key", False),
    ],
)
def test_an_identifier_that_no_tunnel_has(target: str, identifier: str, fits: bool) -> None:
    text = f'[sessions.s]\nsources = ["eth0"]\ntarget = "{target}"\n{identifier} = 5'
    expected = [] if fits else [f"sessions.s.{identifier} = 5: no tunnel of its has one"]
    assert loads(text).warnings() == expected


def test_a_filter_that_accepts_nothing() -> None:
    text = SMALL + 'filter = "f"\n[filters.f]\ninbound = [{ priority = 1, action = "reject" }]'
    assert loads(text).warnings() == ["filters.f: no rule accepts, so nothing is mirrored"]


def test_a_summary() -> None:
    assert loads("").summary() == ["nothing is mirrored"]
    assert loads(SMALL).summary() == [
        "session s, priority 1: all packets of eth0",
        "  → gre://192.0.2.1",
    ]
    lines = loads(WHOLE).summary()
    assert [line for line in lines if not line.startswith(" ")] == [
        "session second, priority 1: packets with tcp port 1234 of eth1",
        "policy web, priority 10: flows by 4 rules of veth*",
        (
            "session mirror-session-01 (disabled), priority 32766: packets that come in that filter"
            " mirror-filter-01 (4 rules) accepts of eth0, web:eth*"
        ),
        "stand-in on eth1 for 10.10.10.10",
    ]
    assert "  → outside: 10.87.88.88 (juniper://10.87.88.88:8100)" in lines
    assert any("192.0.2.250 (on layer 2 in 192.0.2.0/24)" in line for line in lines)


def changed(old: str, new: str) -> list[str]:
    return loads(old).difference(loads(new))


def test_no_difference() -> None:
    assert changed(WHOLE, WHOLE) == []
    assert changed(WHOLE, WHOLE.replace("02-00-0A-0a-0a-0a", "02:00:0a:0a:0a:0a")) == []
    assert changed(SMALL, SMALL + "priority = 1\nlabels = {}") == []  # what is so by default


def test_what_came_and_went() -> None:
    assert changed("", SMALL) == ["+ session s"]
    assert changed(SMALL, "") == ["- session s"]
    assert changed("", '[tunnels]\nt = "gre://h"') == ["+ tunnel t = gre://h"]
    arp = '[arp]\n"10.0.0.1" = "02:00:00:00:00:01"'
    assert changed(arp, "") == ["- arp 10.0.0.1 = 02:00:00:00:00:01"]
    stand_in = WHOLE.index("[stand_in]")
    assert changed(WHOLE, WHOLE[:stand_in]) == ["- stand_in"]
    assert changed(WHOLE[:stand_in], WHOLE) == ["+ stand_in"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("priority = 10", "priority = 11", "~ policy web: priority 10 → 11"),
        ("enabled = false", "", "~ session mirror-session-01: enabled false → true"),
        ("packet_length = 96", "", "~ session mirror-session-01: packet_length 96 → none"),
        ('["eth0", "web:eth*"]', '["eth0"]', "sources eth0, web:eth* → eth0"),
        ("weight = 2", "weight = 3", "~ pool ids: members.10.10.10.10.weight 2 → 3"),
        (', { ip = "2001:db8::1" }', "", "~ pool ids: members.2001:db8::1 removed"),
        ('role = "analyzer" } }, {', 'role = "analyzer", a = "b" } }, {', "labels.a added"),
        ("priority = 9,", "priority = 8,", "~ filter mirror-filter-01: outbound.0.priority 9 → 8"),
        ('name = "r1"', 'name = "r2"', "rules.0.name r1 → r2"),
        ('mtu = "truncate"', "", "~ mtu: truncate → fragment"),
        ("announce = 5", "announce = 6", "~ stand_in: announce 5.0 → 6.0"),
        ("key=7", "key=8", "~ tunnel dc2: gre://198.51.100.7?key=7&seq=on → gre://198.51.100.7?key=8"),
        ('"02:00:0a:0a:0a:0a" = "dc2"', '"02:00:0a:0a:0a:0a" = ["dc2", "gre://h"]',
         "~ fdb 02:00:0a:0a:0a:0a: dc2 → dc2, gre://h"),
    ],
)  # fmt: skip
def test_what_is_different(old: str, new: str, line: str) -> None:
    assert old in WHOLE
    (found,) = changed(WHOLE, WHOLE.replace(old, new))
    assert line in found


def test_members_in_another_order() -> None:
    swapped = WHOLE.replace(
        'members = [{ ip = "10.10.10.10", weight = 2, labels = { role = "analyzer" } },'
        ' { ip = "2001:db8::1" }]',
        'members = [{ ip = "2001:db8::1" },'
        ' { ip = "10.10.10.10", weight = 2, labels = { role = "analyzer" } }]',
    )
    assert changed(WHOLE, swapped) == ["~ pool ids: members in another order"]


def properties(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield from node["properties"].items()
        for value in node.values():
            yield from properties(value)


def test_the_schema_describes_every_key() -> None:
    found = schema()
    json.dumps(found)
    undescribed = [name for name, one in properties(found) if not one.get("description")]
    assert undescribed == []
    assert set(found["properties"]) == set(Mirror.model_fields)
    priority = found["$defs"]["Session"]["properties"]["priority"]
    assert (priority["minimum"], priority["maximum"]) == (1, 32766)
    assert {"type": "string"} in found["properties"]["fdb"]["additionalProperties"]["anyOf"]


def test_the_schema_has_the_words_of_the_whole_example() -> None:
    text = json.dumps(schema())
    words = set(re.findall(r"(\w+) = ", WHOLE)) - {"dc2", "role", "note", "decrypted", "b"}
    assert [word for word in words if f'"{word}"' not in text] == []


def test_a_health_check_of_an_address_that_may_be_nobodys() -> None:
    text = """
[arp]
"10.10.10.10" = "02:00:0a:0a:0a:0a"
[fdb]
"02:00:0a:0a:0a:0a" = "gre://h"
[pools.p]
members = [{ ip = "10.10.10.10" }, { ip = "192.0.2.1", via = "gre://g" }]
health = { check = "icmp" }
[sessions.s]
sources = ["e"]
target = "p"
"""
    (line,) = loads(text).warnings()
    assert "10.10.10.10 is reached by its MAC address, but asked by its IP address" in line
