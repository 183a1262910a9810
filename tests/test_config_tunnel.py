"""What users write after --to, and the one line they get for a mistake."""

from __future__ import annotations

import pytest

from tunnelbridge.config.tunnel import TUNNELS, MtuPolicy, parse_tunnel
from tunnelbridge.errors import UsageError
from tunnelbridge.wire.layer import Kind


def test_every_option_of_every_tunnel() -> None:
    gre = parse_tunnel(
        "gre://192.0.2.1?key=7&seq=on&csum=on&local=192.0.2.9&ttl=9&dscp=46&mtu=drop"
    )
    erspan = parse_tunnel("erspan3://[2001:db8::1]?session=1023&hwid=63&granularity=1588")
    juniper = parse_tunnel(
        "juniper://192.0.2.1:9000?source_vn=a:b:c&destination_vn=d&host=10.0.0.2"
    )

    assert gre.model_dump() == {
        "remote": "192.0.2.1",
        "local": "192.0.2.9",
        "ttl": 9,
        "dscp": 46,
        "mtu": MtuPolicy.DROP,
        "port": None,
        "key": 7,
        "seq": True,
        "csum": True,
    }
    assert erspan.remote == "2001:db8::1"
    assert erspan.model_dump()["granularity"] == "1588"
    assert juniper.port == 9000
    assert juniper.model_dump()["source_vn"] == "a:b:c"


@pytest.mark.parametrize("scheme", sorted(TUNNELS.keys() - {"ether"}))
def test_every_tunnel_has_defaults(scheme: str) -> None:
    spec = parse_tunnel(f"{scheme}://collector.example")

    assert spec.remote == "collector.example"
    assert spec.encapsulation(may_cut=False).overhead >= 4


def test_the_wire_itself_has_no_headers_but_a_tag() -> None:
    plain = parse_tunnel("ether://eth1.5")
    tagged = parse_tunnel("ether://Wan_é-0?vlan=100&pcp=5&mtu=truncate")

    assert (plain.remote, plain.mtu) == ("eth1.5", None)
    assert (tagged.remote, tagged.mtu) == ("Wan_é-0", MtuPolicy.TRUNCATE)
    for spec, identifier, tag in (
        (plain, None, 0),
        (tagged, 100, 0x8100_A064),  # 802.1Q: PCP 5, VLAN 100
        (parse_tunnel("ether://e?vlan=0&pcp=7"), 0, 0x8100_E000),
        (parse_tunnel("ether://e?vlan=4094"), 4094, 0x8100_0FFE),
    ):
        stack = spec.encapsulation(may_cut=True)
        assert (stack.kind, stack.overhead, stack.bare_ip) == (Kind.ETHERNET, 0, False)
        assert (stack.identifier, stack.tag) == (identifier, tag)


def test_names_as_long_as_their_octet_count_can_say() -> None:
    names = {"source_vn": "é" * 127 + "a", "destination_vn": "b" * 255}
    text = "&".join(f"{option}={name}" for option, name in names.items())

    stack = parse_tunnel(f"juniper://192.0.2.1?{text}").encapsulation(may_cut=False)

    assert stack.overhead == 8 + 6 + 2 * (2 + 255) + 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.1:4789", "expected ENCAP://REMOTE"),
        ("vxlam://192.0.2.1", "unknown encapsulation vxlam; known: gre,"),
        (
            "vxlan://192.0.2.1?vni=16777216",
            "vni=16777216: input should be less than or equal to 16777215",
        ),
        ("vxlan://192.0.2.1?vni=-1", "vni=-1: input should be greater than or equal to 0"),
        (
            "erspan2://192.0.2.1?session=1024",
            "session=1024: input should be less than or equal to 1023",
        ),
        ("erspan2://192.0.2.1?index=1048576", "index=1048576"),
        (
            "erspan3://192.0.2.1?granularity=1ns",
            "granularity=1ns: input should be '100us', '100ns' or",
        ),
        ("gre://192.0.2.1?vni=7", "no option vni; it has csum, dscp, key, local, mtu, seq, ttl"),
        ("gre://192.0.2.1:47", "gre rides in IP itself and has no port"),
        ("gre://192.0.2.1?key=abc", "key=abc: input should be a valid integer"),
        ("gre://192.0.2.1?seq=perhaps", "seq=perhaps: input should be a valid boolean"),
        ("gre://192.0.2.1?ttl=0", "ttl=0"),
        ("gre://192.0.2.1?dscp=64", "dscp=64"),
        ("gre://192.0.2.1?mtu=1400", "mtu=1400: input should be 'fragment', 'truncate' or 'drop'"),
        ("gre://192.0.2.1?local=here", "local=here"),
        ("gre://192.0.2.1?remote=192.0.2.2", "remote belongs in front of the ?"),
        ("gre://2001:db8:3::7", "put an IPv6 address in brackets: gre://[2001:db8::1]"),
        ("vxlan://2001:db8::1?vni=7", "put an IPv6 address in brackets"),
        ("gre://[2001:db8::1", "put an IPv6 address in brackets"),
        ("gre://", "expected ENCAP://REMOTE"),
        ("gre://192.0.2.1/x", "expected ENCAP://REMOTE"),
        ("vxlan://192.0.2.1:70000", "Port out of range"),
        ("vxlan://192.0.2.1?vni", "bad query field: 'vni'"),
        ("juniper://192.0.2.1?host=2001:db8::1", "host=2001:db8::1"),
        (f"juniper://192.0.2.1?source_vn={'é' * 128}", "longer than 255 octets"),
        (f"juniper://192.0.2.1?destination_vn={'a' * 256}", "longer than 255 octets"),
        ("gre://user@192.0.2.1", "no user in front of the remote"),
        ("gre://:word@192.0.2.1", "no user in front of the remote"),
        ("vxlan://192.0.2.1?vni=1&vni=2", "vni is given twice"),
        ("vxlan://192.0.2.1?vni=1&dscp=3&vni=1", "vni is given twice"),
        ("ether://eth1?ttl=3", "no option ttl; it has mtu, pcp, vlan"),
        ("ether://eth1?local=192.0.2.1", "no option local; it has mtu, pcp, vlan"),
        ("ether://eth1?dscp=3", "no option dscp; it has mtu, pcp, vlan"),
        ("ether://eth1?vni=3", "no option vni; it has mtu, pcp, vlan"),
        ("ether://eth1?vlan=4095", "vlan=4095: input should be less than or equal to 4094"),
        ("ether://eth1?vlan=1&pcp=8", "pcp=8: input should be less than or equal to 7"),
        ("ether://eth1?pcp=3", "pcp=3: the priority stands in a tag: add vlan=0"),
        ("ether://eth1?mtu=fragment", "mtu=fragment: frames cannot be fragmented"),
        ("ether://eth1:80", "remote=eth1:80: not the name of an interface"),
        ("ether://sixteen-letters-", "remote=sixteen-letters-: not the name of an interface"),
        ("ether://eth1/x", "expected ENCAP://REMOTE"),
        ("ether://", "expected ENCAP://REMOTE"),
        ("gre://192.0.2.1#x", "nothing can follow a #"),
        ("gre://192.0.2.1?key=7#", "nothing can follow a #"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tunnel(text)

    assert says in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2
