"""What the parts of a configuration name in each other, and where a target leads."""

from __future__ import annotations

import pytest

from tunnelbridge.config.load import loads
from tunnelbridge.config.targets import Group, Way, resolve
from tunnelbridge.errors import UsageError

CHAIN = """
[tunnels]
dc2 = "gre://198.51.100.7?key=7"
[arp]
"10.10.10.10" = "02:00:0a:0a:0a:0a"
[fdb]
"02:00:0a:0a:0a:0a" = "dc2"
[pools.ids]
members = [{ ip = "10.10.10.10" }]
[sessions.s]
sources = ["eth0"]
target = "ids"
"""
MAC = "02:00:0a:0a:0a:0a"
GRE = "gre://198.51.100.7?key=7"


def mistakes(text: str) -> list[str]:
    with pytest.raises(UsageError) as refused:
        loads(text, "m.toml")
    return str(refused.value).splitlines()


def led(text: str, target: str) -> Group:
    return resolve(loads(text), target)


def test_member_to_mac_to_tunnel() -> None:
    assert led(CHAIN, "ids").ways == (Way("10.10.10.10", (GRE,), MAC),)
    assert led(CHAIN, "ids").distribution == "flow"


def test_a_missing_link_is_named() -> None:
    assert mistakes(CHAIN.replace(f'"{MAC}" = "dc2"', "")) == [
        (
            f"m.toml: pools.ids.members[0]: no FDB entry for {MAC} (member 10.10.10.10): a layer-2 FDB"
            f' entry is required, as in F5 K17567; add "{MAC}" = "TUNNEL" to [fdb]'
        )
    ]
    assert mistakes(CHAIN.replace(f'"10.10.10.10" = "{MAC}"', "")) == [
        (
            "m.toml: pools.ids.members[0]: no ARP entry for 10.10.10.10: add"
            ' "10.10.10.10" = "MAC" to [arp] and "MAC" = "TUNNEL" to [fdb], or give the member a via'
        )
    ]


def test_a_member_named_as_target_needs_the_chain_too() -> None:
    text = CHAIN.replace('target = "ids"', 'target = "10.10.10.11"')
    (line,) = mistakes(text)
    assert line.startswith(
        'm.toml: sessions.s.target = "10.10.10.11": no ARP entry for 10.10.10.11'
    )
    fine = CHAIN.replace('target = "ids"', 'target = "10.10.10.10"').replace("[pools.ids]\n", "")
    fine = fine.replace('members = [{ ip = "10.10.10.10" }]', "")
    assert led(fine, "10.10.10.10").ways == (Way("10.10.10.10", (GRE,), MAC),)


def test_a_wrong_tunnel_is_told_once_where_it_stands() -> None:
    lines = mistakes(CHAIN.replace("gre://198.51.100.7?key=7", "gre://198.51.100.7?kei=7"))
    assert len(lines) == 1
    assert lines[0].startswith('m.toml: tunnels.dc2 = "gre://198.51.100.7?kei=7": no option kei')
    (line,) = mistakes(CHAIN.replace('= "dc2"', '= "dc3"'))
    assert line == (
        f'm.toml: fdb."{MAC}" = "dc3": is no tunnel: neither a name in [tunnels] (dc2) nor a URL'
    )


def test_a_wrong_via() -> None:
    (line,) = mistakes('[pools.p]\nmembers = [{ ip = "10.0.0.1", via = ["gre://h", "dc9"] }]')
    assert line.startswith('m.toml: pools.p.members[0].via = "dc9": is no tunnel')


def test_an_fdb_with_several_tunnels_replicates() -> None:
    text = CHAIN.replace('= "dc2"', '= ["dc2", "vxlan://192.0.2.7"]')
    assert led(text, "ids").ways[0].tunnels == (GRE, "vxlan://192.0.2.7")


@pytest.mark.parametrize(
    ("member", "pool", "way"),
    [
        ('via = "dc2"', "", Way("10.10.10.10", (GRE,))),  # reached by via alone: nothing rewritten
        (
            'via = "dc2", mac = "02:00:00:00:00:05"',
            "",
            Way("10.10.10.10", (GRE,), "02:00:00:00:00:05"),
        ),
        ('via = "dc2"', 'rewrite = "mac"', Way("10.10.10.10", (GRE,), MAC)),
        (
            'via = "vxlan://h"',
            'rewrite = "mac"',
            Way("10.10.10.10", ("vxlan://h",), MAC),
        ),  # before FDB
        ('via = "dc2"', 'rewrite = "mac+ip"', Way("10.10.10.10", (GRE,), MAC, "10.10.10.10")),
        ("weight = 3", 'rewrite = "none"', Way("10.10.10.10", (GRE,), weight=3)),
        (
            'mac = "02:00:00:00:02:50", subnet = "192.0.2.0/24"',  # NSX: a dummy MAC, on layer 2
            "",
            Way("10.10.10.10", (), "02:00:00:00:02:50", subnet="192.0.2.0/24"),
        ),
        ('subnet = "192.0.2.0/24"', "", Way("10.10.10.10", (GRE,), MAC)),  # ARP and FDB come first
    ],
)
def test_what_a_clone_gets_of_its_member(member: str, pool: str, way: Way) -> None:
    text = CHAIN.replace('ip = "10.10.10.10" }]', f'ip = "10.10.10.10", {member} }}]\n{pool}')
    assert led(text, "ids").ways == (way,)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ('ip = "10.0.0.1", subnet = "10.0.0.0/24"', "give the member a mac (a dummy one will do)"),
        (
            'ip = "10.0.0.1", via = "dc2"',
            'no ARP entry for 10.0.0.1: rewrite = "mac" needs its MAC',
        ),
        ('ip = "10.0.0.1", via = "gre-ip://h", mac = "02:00:00:00:00:09"', "carries bare IP"),
    ],
)
def test_no_mac_to_rewrite(member: str, reason: str) -> None:
    text = CHAIN.replace('ip = "10.10.10.10" }]', f'{member} }}]\nrewrite = "mac"')
    (line,) = mistakes(text)
    assert reason in line


def test_bare_ip_carries_what_is_not_rewritten() -> None:
    text = '[pools.p]\nmembers = [{ ip = "10.0.0.1", via = "gre-ip://192.0.2.1" }]'
    assert led(text, "p").ways == (Way("10.0.0.1", ("gre-ip://192.0.2.1",)),)


def test_targets_that_are_tunnels() -> None:
    assert led(CHAIN, "dc2") == Group("dc2", (Way("dc2", (GRE,)),))
    assert led(CHAIN, "vxlan://h?vni=2") == Group(
        "vxlan://h?vni=2", (Way("vxlan://h?vni=2", ("vxlan://h?vni=2",)),)
    )


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("idz", "is no pool, destination or tunnel (there are ids, dc2), and no tunnel URL"),
        ("gre://", "expected ENCAP://REMOTE"),
        ("role=analyzer", "no pool has a member with the labels role=analyzer"),
        ("=x", "a label selector is NAME=VALUE"),
        ("role=x,y", "a label selector is NAME=VALUE"),
        ("a b=c", "no pool has a member with the labels a b=c"),
        ("role=a,role=b", "selects by role twice"),
        ("", "is empty"),
    ],
)
def test_a_target_that_leads_nowhere(target: str, reason: str) -> None:
    (line,) = mistakes(CHAIN.replace('target = "ids"', f'target = "{target}"'))
    assert line.startswith(f'm.toml: sessions.s.target = "{target}": ')
    assert reason in line


def test_a_policys_targets() -> None:
    text = """
[policies.p]
sources = ["eth0"]
secondary_action = { mirror = "a" }
rules = [{}, { secondary_action = { mirror = "b" } }]
"""
    assert [line.partition(": ")[2].partition(":")[0] for line in mistakes(text)] == [
        'policies.p.secondary_action.mirror = "a"',
        'policies.p.rules[1].secondary_action.mirror = "b"',
    ]


LABELLED = """
[pools.a]
preserve_client_ip = true
health = { check = "icmp" }
members = [
  { ip = "10.0.0.10", via = "gre://192.0.2.10", labels = { role = "x", site = "a" } },
  { ip = "10.0.0.9", via = "gre://192.0.2.9", labels = { role = "x" }, weight = 0 },
]
[pools.b]
members = [
  { ip = "10.0.0.11", via = "gre://192.0.2.11", labels = { role = "x", site = "b" }, weight = 5 },
  { ip = "2001:db8::1", via = "gre://192.0.2.12", labels = { role = "y" } },
]
"""


def names(text: str, target: str) -> list[str]:
    return [way.name for way in led(text, target).ways]


def test_labels_select_over_all_pools() -> None:
    every = LABELLED + '[destinations.d]\nlabels = { role = "x" }\nselect = '

    assert names(every + '"all"', "d") == ["10.0.0.9", "10.0.0.10", "10.0.0.11"]  # by address
    assert led(every + '"all"', "d").distribution == "all"
    assert led(every + '"hash"', "d").distribution == "flow"
    assert led(every + '"hash"', "d").preserve_client_ip
    assert [way.weight for way in led(every + '"hash"', "d").ways] == [0, 1, 5]
    assert [way.health.check for way in led(every + '"hash"', "d").ways] == ["icmp", "icmp", "off"]
    assert names(every + '"one"', "d") == ["10.0.0.10"]  # the first that is not drained
    assert names(LABELLED, "role=x, site=b") == ["10.0.0.11"]
    assert names(LABELLED, "role=y") == ["2001:db8::1"]


def test_a_member_in_two_pools_is_selected_once() -> None:
    again = LABELLED + (
        "[pools.c]\n"
        'members = [{ ip = "10.0.0.10", via = "gre://192.0.2.99", labels = { role = "x" } }]\n'
        '[destinations.d]\nlabels = { role = "x" }\nselect = "all"'
    )
    assert [way.tunnels[0][-2:] for way in led(again, "d").ways] == [".9", "10", "11"]


EXTERNAL = """
[arp]
"2001:db8::88" = "02:00:00:00:00:88"
[fdb]
"02:00:00:00:00:88" = "vxlan://192.0.2.7?vni=5"
[destinations.d]
external_analyzer = true
analyzer_ip = "2001:db8::88"
"""


@pytest.mark.parametrize(
    ("fields", "way"),
    [  # the four of Contrail's mirror_table.h
        ("", Way("2001:db8::88", ("juniper://[2001:db8::88]:8099",))),
        ("udp_port = 9000", Way("2001:db8::88", ("juniper://[2001:db8::88]:9000",))),
        (
            "juniper_header = false",
            Way("2001:db8::88", ("vxlan://192.0.2.7?vni=5",), "02:00:00:00:00:88"),
        ),
        (
            (
                'juniper_header = false\nnext_hop = "static"\nvtep = "192.0.2.9"\nvni = 77\n'
                'mac = "02:00:00:00:00:99"'
            ),
            Way("2001:db8::88", ("vxlan://192.0.2.9?vni=77",), "02:00:00:00:00:99"),
        ),
    ],
)
def test_next_hops_of_an_external_analyser(fields: str, way: Way) -> None:
    assert led(EXTERNAL + fields, "d").ways == (way,)


def test_a_dynamic_next_hop_needs_arp_and_fdb() -> None:
    text = (
        EXTERNAL.replace('"2001:db8::88" = "02', '"2001:db8::89" = "02') + "juniper_header = false"
    )
    (line,) = mistakes(text)
    assert line.startswith("m.toml: destinations.d: no ARP entry for 2001:db8::88")


def test_the_juniper_header_to_selected_members() -> None:
    text = (
        LABELLED + '[destinations.d]\nlabels = { role = "y" }\njuniper_header = true\nudp_port = 9'
    )
    assert led(text, "d").ways == (Way("2001:db8::1", ("juniper://[2001:db8::1]:9",)),)
    (line,) = mistakes(LABELLED + '[destinations.d]\nlabels = { role = "z" }')
    assert "no pool has a member with the labels role=z" in line


def test_names_that_could_mean_two_things() -> None:
    text = CHAIN + '[policies.s]\nsources = ["eth0"]\nrules = [{}]\n[destinations.ids]\n'
    assert mistakes(text + 'external_analyzer = true\nanalyzer_ip = "10.0.0.1"') == [
        "m.toml: destinations.ids: [pools] has this name too: rename one",
        "m.toml: policies.s: [sessions] has this name too: rename one",
    ]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ('["10.10.10.12"]', "no ARP entry for 10.10.10.12"),
        ('["10.10.10.11"]', "no FDB entry for 02:00:00:00:00:11 (member 10.10.10.11)"),
    ],
)
def test_stand_in_members_that_lead_nowhere(members: str, reason: str) -> None:
    text = CHAIN.replace("[fdb]", '"10.10.10.11" = "02:00:00:00:00:11"\n[fdb]')
    (line,) = mistakes(text + f'[stand_in]\ninterface = "eth1"\nmembers = {members}')
    assert line.startswith("m.toml: stand_in.members = ")
    assert reason in line


def test_stand_in_for_a_pools_member_with_a_mac_of_its_own() -> None:
    text = """
[pools.p]
members = [{ ip = "10.0.0.1", mac = "02:00:00:00:00:01", via = "gre://192.0.2.1" }]
[stand_in]
interface = "eth1"
members = ["10.0.0.1"]
"""
    assert loads(text).warnings() == [
        "no session and no policy: nothing is mirrored but what stand_in's members get"
    ]


def test_all_broken_references_at_once() -> None:
    text = """
[fdb]
"02:00:00:00:00:01" = "nowhere"
[pools.p]
members = [{ ip = "10.0.0.1" }]
[sessions.s]
sources = ["eth0"]
filter = "f"
target = "q"
[stand_in]
interface = "eth1"
members = ["10.0.0.2"]
"""
    assert len(mistakes(text)) == 5
