"""What a configuration file may say, and the one line for each mistake in it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tunnelbridge.clone.rules import Rule
from tunnelbridge.config.load import load, loads
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError

WHOLE = """
mtu = "truncate"
[tunnels]
dc2 = "gre://198.51.100.7?key=7&seq=on"
[arp]
"10.10.10.10" = "02-00-0A-0a-0a-0a"
"2001:DB8::0:1" = "02:00:00:00:00:61"
[fdb]
"02:00:0a:0a:0a:0a" = "dc2"
"02:00:00:00:00:61" = ["dc2", "vxlan://[2001:db8::9]?vni=3"]
[pools.ids]
distribution = "weighted-round-robin"
per = "flow"
rewrite = "mac+ip"
preserve_client_ip = true
health = { check = "heartbeat", interval = 2, timeout = 0.5, fall = 2, rise = 1, port = 9000 }
members = [{ ip = "10.10.10.10", weight = 2, labels = { role = "analyzer" } }, { ip = "2001:db8::1" }]
[pools.tap]
members = [
  { ip = "192.0.2.250", mac = "02:00:00:00:02:50", subnet = "192.0.2.0/24", network = "tap-net" },
  { ip = "198.51.100.9", via = ["vxlan://198.51.100.9?vni=1", "dc2"], weight = 0 },
]
[filters.mirror-filter-01]
inbound = [
  { priority = 5, action = "accept", protocol = 6, source = "192.168.0.161", destination_ports = 1234 },
  { priority = 1, action = "reject", family = "ipv6" },
  { priority = 5, action = "accept", protocol = "UDP", source = "::/0", source_ports = "53,80-90"},
]
outbound = [{ priority = 9, action = "accept" }]
[sessions.mirror-session-01]
enabled = false
priority = 32766
sources = ["eth0", "web:eth*"]
direction = "in"
viewpoint = "guest"
filter = "mirror-filter-01"
target = "ids"
key = 4294967295
packet_length = 96
mirror_once = false
labels = { decrypted = "true", note = "a, b = c" }
[sessions.second]
sources = ["eth1"]
expression = "tcp port 1234"
target = "role=analyzer"
[policies.web]
priority = 10
sources = ["veth*"]
secondary_action = { mirror = "tap" }
[[policies.web.rules]]
name = "r1"
protocol = "tcp"
source = "10.0.0.0/24"
destination = "10.0.1.0/24"
destination_ports = "80"
secondary_action = { mirror = "deep" }
[[policies.web.rules]]
action = "deny"
protocol = "icmp"
[[policies.web.rules]]
action = "deny"
protocol = "udp"
secondary_action = { mirror = "outside" }
[[policies.web.rules]]
[destinations.deep]
labels = { role = "analyzer" }
select = "hash"
[destinations.outside]
external_analyzer = true
analyzer_ip = "10.87.88.88"
udp_port = 8100
[stand_in]
interface = "eth1"
members = ["10.10.10.10"]
announce = 5
"""

SMALL = """
[sessions.s]
sources = ["eth0"]
target = "gre://192.0.2.1"
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(UsageError) as refused:
        loads(dedent(text), "m.toml")
    assert refused.value.status == 2
    return str(refused.value).splitlines()


def only(text: str) -> str:
    (line,) = mistakes(text)
    return line


def test_everything_there_is() -> None:
    mirror = loads(WHOLE)

    assert mirror.mtu is MtuPolicy.TRUNCATE
    assert mirror.arp == {"10.10.10.10": "02:00:0a:0a:0a:0a", "2001:db8::1": "02:00:00:00:00:61"}
    assert mirror.fdb["02:00:0a:0a:0a:0a"] == ("dc2",)
    assert mirror.fdb["02:00:00:00:00:61"] == ("dc2", "vxlan://[2001:db8::9]?vni=3")
    assert mirror.pools["ids"].health.interval == 2.0
    assert mirror.pools["tap"].members[1].via == ("vxlan://198.51.100.9?vni=1", "dc2")
    session = mirror.sessions["mirror-session-01"]
    assert session.sources == ("eth0", "web:eth*")
    assert session.identifiers == {"key": 4294967295}
    assert not session.enabled
    assert mirror.stand_in is not None
    assert mirror.stand_in.announce == 5.0


def test_defaults() -> None:
    mirror = loads(SMALL + '[pools.p]\nmembers = [{ ip = "192.0.2.1", via = "gre://192.0.2.1" }]')

    session = mirror.sessions["s"]
    assert (session.enabled, session.priority, session.direction) == (True, 1, "both")
    assert (session.mirror_once, session.packet_length, session.identifiers) == (True, None, {})
    pool = mirror.pools["p"]
    assert (pool.distribution, pool.per, pool.rewrite) == ("flow", "packet", None)
    assert (pool.health.check, pool.preserve_client_ip) == ("off", False)
    assert mirror.mtu is MtuPolicy.FRAGMENT
    assert Mirror() == loads("")


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "mirror.toml"
    path.write_text(SMALL)
    assert load(path) == loads(SMALL)

    for content, reason in (
        (b"[sessions.s]\npriority = 0\xff", "not UTF-8 at octet 25, as TOML must be"),
        (b"a = [\n1,\n b]", "line 3, column 2: invalid value"),
        (b"a = 1\na = 2", "line 2 (the end): cannot overwrite a value"),
        (b"a = 1\n\n[x", "line 3 (the end): expected"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError) as refused:
            load(path)
        assert str(refused.value).startswith(f"{path}: ")
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)

    with pytest.raises(UsageError, match=f"^{tmp_path}/none: no such file or directory$"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match=f"^{tmp_path}: is a directory$"):
        load(tmp_path)


def test_a_filters_rules_in_their_order() -> None:
    first, second, third, fourth = loads(WHOLE).filters["mirror-filter-01"].rules()

    assert first.name == "inbound rule 2 (priority 1)"
    assert (first.accept, first.family, first.direction) == (False, 6, "in")
    assert second.name == "inbound rule 1 (priority 5)"  # a tie: the order of the file
    assert (second.protocol, str(second.source)) == (6, "192.168.0.161/32")
    assert (second.source_ports, second.destination_ports) == (None, ((1234, 1234),))
    assert third.name == "inbound rule 3 (priority 5)"
    assert (third.protocol, third.source_ports) == (17, ((53, 53), (80, 90)))
    assert fourth == Rule(accept=True, direction="out", name="outbound rule 1 (priority 9)")


def test_a_policys_rules_and_where_each_mirrors() -> None:
    decisions = loads(WHOLE).policies["web"].decisions()

    found = [(each.rule.name, each.rule.accept, each.mirror) for each in decisions]
    assert found == [
        ("rule r1", True, "deep"),  # its own wins
        ("rule 2", False, None),  # denied, and nothing of its own: it ends the search
        ("rule 3", True, "outside"),  # denied, with its own
        ("rule 4", True, "tap"),  # the policy's
    ]
    assert all(each.rule.direction == "both" for each in decisions)


def test_a_policy_without_any_mirror_is_fine() -> None:
    mirror = loads('[policies.p]\nsources = ["eth0"]\nrules = [{ protocol = "tcp" }]')
    assert [each.mirror for each in mirror.policies["p"].decisions()] == [None]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("priority = 0", "sessions.s.priority = 0: must be 1 to 32766"),
        ("priority = 32767", "sessions.s.priority = 32767: must be 1 to 32766"),
        ("priority = true", "sessions.s.priority = true: must be a whole number"),
        ('priority = "1"', 'sessions.s.priority = "1": must be a whole number'),
        ("priority = 1.5", "sessions.s.priority = 1.5: must be a whole number"),
        ("enabled = 1", "sessions.s.enabled = 1: must be true or false"),
        ('enabled = "yes"', 'sessions.s.enabled = "yes": must be true or false'),
        (
            'direction = "inn"',
            'sessions.s.direction = "inn": must be one of both, in, out (did you mean in?)',
        ),
        ("vni = 16777216", "sessions.s.vni = 16777216: must be 0 to 16777215"),
        ("session_id = 1024", "sessions.s.session_id = 1024: must be 0 to 1023"),
        ("key = -1", "sessions.s.key = -1: must be 0 to 4294967295"),
        ("packet_length = 13", "sessions.s.packet_length = 13: must be 14 to 262144"),
        ('labels = { "a b" = "x" }', "a label's name is of letters, digits, - _ . and /"),
        ("labels = { a = 1 }", "sessions.s.labels.a = 1: must be text in quotes"),
        ("labels = 3", "sessions.s.labels = 3: must be a table"),
        ('filter = "f"', 'sessions.s.filter = "f": is not in [filters] (it is empty)'),
        (
            'filter = "f"\nexpression = "ip"',
            "sessions.s: has both filter and expression: leave one",
        ),
        ('expression = ""', 'sessions.s.expression = "": is empty'),
        (
            "pririty = 3",
            "sessions.s.pririty: unknown key (did you mean priority?); known: enabled, ",
        ),
    ],
)
def test_a_wrong_session(change: str, line: str) -> None:
    found = only(SMALL + change)
    assert found.startswith("m.toml: sessions.s")
    assert line in found


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ("[]", "sources: is empty: it needs at least one"),
        ('"eth0"', 'sources = "eth0": must be a list'),
        ('["eth0", "eth0"]', "sources: has eth0 twice"),
        ('["a/b"]', 'sources[0] = "a/b": must be an interface, a glob, or NETNS:INTERFACE'),
        ('["eth0", "a:b:c"]', 'sources[1] = "a:b:c": must be an interface'),
        ('["interface-name16"]', "no interface name is longer than 15 octets"),
        ('["eth 0"]', "must be an interface"),
    ],
)
def test_wrong_sources(sources: str, reason: str) -> None:
    assert reason in only(f'[sessions.s]\nsources = {sources}\ntarget = "gre://192.0.2.1"')


def test_a_long_glob_is_fine() -> None:
    text = '[sessions.s]\nsources = ["[ab]-interface-1*"]\ntarget = "gre://192.0.2.1"'
    assert loads(text).sessions["s"].sources == ("[ab]-interface-1*",)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ('source = "10.0.0.1/24"', "has bits behind its prefix length: is 10.0.0.0/24 meant?"),
        ('source = "10.0.0/24"', "is not a network (as in 192.0.2.0/24)"),
        ('source = "10.0.0.0/33"', "is not a network"),
        ('destination_ports = "70000"', "'70000' is not all, a port (0 to 65535) or a range"),
        ('source_ports = "90-80"', "90-80 ends before it begins"),
        ("source_ports = true", "must be a number or text in quotes"),
        ("source_ports = 80.5", "must be a number or text in quotes"),
        ('protocol = "tpc"', "must be all, a number from 0 to 255 or one of"),
        ("protocol = 256", "must be all, a number from 0 to 255 or one of"),
        ('family = "ipv4"\nsource = "2001:db8::/32"', "source 2001:db8::/32 is not IPv4"),
        ('source = "10.0.0.0/8"\ndestination = "::/0"', "destination ::/0 is not IPv4"),
        ('protocol = "icmp"\ndestination_ports = 80', "have ports, protocol 1 has none"),
        ("priority = 65536", "must be 1 to 65535"),
        ('action = "pass"', "must be one of accept, reject"),
        ('direction = "in"', "unknown key"),
    ],
)
def test_a_wrong_rule(fields: str, reason: str) -> None:
    given = "" if "priority" in fields else "priority = 1\n"
    given += "" if "action" in fields else 'action = "accept"\n'
    found = only(f"[[filters.f.outbound]]\n{given}{fields}")
    assert found.startswith("m.toml: filters.f.outbound[0]")
    assert reason in found


def test_what_a_rule_must_have() -> None:
    assert mistakes("[[filters.f.inbound]]") == [
        "m.toml: filters.f.inbound[0].priority: is missing",
        "m.toml: filters.f.inbound[0].action: is missing",
    ]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ('[arp]\n"x" = "02:00:00:00:00:01"', "arp.x: is not an IP address"),
        ('[arp]\n"fe80::1%eth0" = "02:00:00:00:00:01"', 'arp."fe80::1%eth0": has a zone'),
        ('[arp]\n"10.0.0.1" = "02:00:00:00:00"', 'arp."10.0.0.1" = "02:00:00:00:00": is not a MAC'),
        ('[arp]\n"10.0.0.1" = "01:00:5e:00:00:01"', "is a group MAC address"),
        ('[arp]\n"10.0.0.1" = "00:00:00:00:00:00"', "nobody has this MAC address"),
        (
            '[arp]\n"::1" = "02:00:00:00:00:01"\n"0:0::1" = "02:00:00:00:00:02"',
            "arp: ::1 and 0:0::1 are the same: leave one entry",
        ),
        (
            '[fdb]\n"02:00:00:00:00:0A" = "t"\n"02-00-00-00-00-0a" = "t"\n[tunnels]\nt = "gre://h"',
            "fdb: 02:00:00:00:00:0A and 02-00-00-00-00-0a are the same",
        ),
        ('[fdb]\n"02:00:00:00:00:01" = []', 'fdb."02:00:00:00:00:01": is empty'),
        ('[fdb]\n"02:00:00:00:00:01" = "dc2"', "is no tunnel: neither a name in [tunnels] (it is"),
        ('[fdb]\n"02:00:00:00:00:01" = "gre://h?k=1"', "no option k; it has"),
        ('[tunnels]\ndc2 = "gre:/h"', 'tunnels.dc2 = "gre:/h": expected ENCAP://REMOTE'),
        ('[tunnels]\n"a b" = "gre://h"', 'tunnels."a b": a name is of letters, digits'),
        ('[tunnels]\n"10.0.0.1" = "gre://h"', "a name cannot be an IP address"),
        ("mtu = 3", "mtu = 3: must be one of fragment, truncate, drop"),
        ("mtu = 'trunc'", "(did you mean truncate?)"),
        ("[sesions]", "sesions: unknown key (did you mean sessions?)"),
        ("sessions = 3", "sessions = 3: must be a table"),
        ("[pools]\np = 3", "pools.p = 3: must be a table"),
        ("[pools.p]\nmembers = []", "pools.p.members: is empty"),
        ("[pools.p]\nmembers = [3]", "pools.p.members[0] = 3: must be a table"),
        ("[pools.p]\nmembers = 3", "pools.p.members = 3: must be a list"),
    ],
)
def test_a_wrong_table(table: str, line: str) -> None:
    assert line in only(table)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ("weight = -1", "pools.p.members[0].weight = -1: must be 0 to 65535"),
        ("wieght = 1", "pools.p.members[0].wieght: unknown key (did you mean weight?); known: ip,"),
        ('subnet = "192.0.2.1/24"', "is 192.0.2.0/24 meant?"),
        ('mac = "02"', 'pools.p.members[0].mac = "02": is not a MAC address'),
        ('labels = { role = "a,b" }', "a selector could not name a label value with , or ="),
    ],
)
def test_a_wrong_member(fields: str, line: str) -> None:
    text = f'[pools.p]\nmembers = [{{ ip = "10.0.0.1", via = "gre://192.0.2.1", {fields} }}]'
    assert line in only(text)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ('distribution = "flwo"', "(did you mean flow?)"),
        ('health = { check = "tcp" }', "pools.p.health.check"),
        ("health = { interval = 0 }", "pools.p.health.interval = 0: must be 0.1 to 3600"),
        ("health = { interval = inf }", "must be 0.1 to 3600"),
        ("health = { port = 0 }", "pools.p.health.port = 0: must be 1 to 65535"),
        ('rewrite = "ip"', "must be one of mac, none, mac+ip"),
    ],
)
def test_a_wrong_pool(fields: str, line: str) -> None:
    text = f'[pools.p]\nmembers = [{{ ip = "10.0.0.1", via = "gre://192.0.2.1" }}]\n{fields}'
    assert line in only(text)


def test_the_same_member_twice() -> None:
    text = """
        [pools.p]
        members = [{ ip = "::1", via = "gre://h" }, { ip = "0::1", via = "gre://h" }]
    """
    assert only(text) == "m.toml: pools.p: member ::1 stands in it twice: give one a weight of 2"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("", "needs labels, or external_analyzer = true with analyzer_ip"),
        ("external_analyzer = true", "external_analyzer = true and analyzer_ip go together"),
        ('analyzer_ip = "10.0.0.1"', "external_analyzer = true and analyzer_ip go together"),
        (
            'external_analyzer = true\nanalyzer_ip = "10.0.0.1"\nlabels = { a = "b" }',
            "one of them",
        ),
        ('labels = { a = "b" }\nudp_port = 9', "udp_port is the Juniper header's"),
        ('labels = { a = "b" }\nvni = 9', 'vtep, vni and mac need next_hop = "static"'),
        (
            'labels = { a = "b" }\njuniper_header = false\nnext_hop = "static"\nvni = 9',
            'next_hop = "static" needs juniper_header = false, and vtep, vni and mac',
        ),
        ('labels = { a = "b" }', "no pool has a member with the labels a=b"),
    ],
)
def test_a_wrong_destination(fields: str, reason: str) -> None:
    found = only(f"[destinations.d]\n{fields}")
    assert found.startswith("m.toml: destinations.d: ")
    assert reason in found


def test_every_mistake_is_told_at_once() -> None:
    lines = mistakes("""
        [tunnels]
        t = "gre://h?kei=1"
        [arp]
        "zz" = "1"
        [pools.p]
        distribution = "x"
        members = [{ ip = "10.0.0.1", weight = -1 }]
        [sessions.s]
        sources = []
        priority = 0
    """)
    assert [line.partition(" ")[2].partition(":")[0] for line in lines] == [
        'tunnels.t = "gre',
        "arp.zz",
        'arp.zz = "1"',
        "pools.p.members[0].weight = -1",
        'pools.p.distribution = "x"',
        "sessions.s.priority = 0",
        "sessions.s.sources",
        "sessions.s.target",
    ]


def test_long_values_are_cut() -> None:
    assert len(only(f'mtu = "{"x" * 500}"')) < 200
