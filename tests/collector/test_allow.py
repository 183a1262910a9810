"""The allow-list against the standard library's ipaddress."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.allow import MAPPED, AllowList
from tunnelbridge.errors import UsageError
from tunnelbridge.wire.layer import Kind

v4 = st.integers(0, 2**32 - 1).map(lambda number: ipaddress.IPv4Address(number))
v6 = st.integers(0, 2**128 - 1).map(lambda number: ipaddress.IPv6Address(number))
networks = st.one_of(st.tuples(v4, st.integers(0, 32)), st.tuples(v6, st.integers(0, 128))).map(
    lambda pair: ipaddress.ip_network(f"{pair[0]}/{pair[1]}", strict=False)
)


def column(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> np.ndarray:
    packed = b"".join(
        MAPPED + each.packed if each.version == 4 else each.packed for each in addresses
    )
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


@given(
    st.lists(networks, min_size=1, max_size=5), st.lists(st.one_of(v4, v6), max_size=20), st.data()
)
def test_prefixes(prefixes: list, addresses: list, data: st.DataObject) -> None:
    inside = [data.draw(st.sampled_from([each[0], each[-1]])) for each in prefixes]
    # ::ffff:a.b.c.d never is on a wire: the kernel and we mean IPv4 by it
    addresses = [getattr(each, "ipv4_mapped", None) or each for each in addresses + inside]
    allowed = AllowList([str(each) for each in prefixes]).allows(column(addresses))

    assert allowed.tolist() == [
        any(each.version == network.version and each in network for network in prefixes)
        for each in addresses
    ]


def test_a_host_is_a_prefix_and_an_empty_list_is_no_list() -> None:
    assert AllowList(["192.0.2.1"]).allows(
        column([ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")])
    ).tolist() == [True, False]
    assert not AllowList([])


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--allow 10\.0\.0\.0/33"):
        AllowList(["10.0.0.0/33"])


TUNNELS = [Kind.VXLAN, Kind.VXLAN_GPE, Kind.GENEVE, Kind.ERSPAN1, Kind.ERSPAN2, Kind.ERSPAN3,
           Kind.GRE, Kind.GRE_IP, Kind.MPLS, Kind.TZSP, Kind.IPIP]  # fmt: skip
NAMED = {
    "vni": {Kind.VXLAN, Kind.VXLAN_GPE, Kind.GENEVE},
    "erspan": {Kind.ERSPAN2, Kind.ERSPAN3},
    "key": {Kind.GRE, Kind.GRE_IP},
}


def tunnel_terms() -> st.SearchStrategy:
    number = st.integers(0, 12)
    return st.tuples(st.sampled_from(list(NAMED)), number, number).map(
        lambda term: (term[0], min(term[1:]), max(term[1:]))
    )


rules = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["10.0.0.0/8", "10.9.0.0/16", "fd00::/8"]), max_size=2),
        st.lists(tunnel_terms(), max_size=2),
    ).filter(lambda rule: any(rule)),
    min_size=1,
    max_size=3,
)
frames = st.lists(
    st.tuples(
        st.sampled_from(["10.1.1.1", "10.9.1.1", "192.0.2.1", "fd00::1", "2001:db8::1"]),
        st.sampled_from(TUNNELS),
        st.integers(-1, 13),
    ),
    max_size=20,
)


@given(rules, frames)
def test_rules_of_sources_and_tunnels(rules: list, frames: list) -> None:
    """Any rule allows it: any of its prefixes, and any of its tunnels."""

    def from_here(source: str, prefixes: list[str]) -> bool:
        address = ipaddress.ip_address(source)
        networks = [ipaddress.ip_network(prefix) for prefix in prefixes]
        return not prefixes or any(
            address.version == each.version and address in each for each in networks
        )

    def this_one(kind: Kind, identifier: int, terms: list[tuple[str, int, int]]) -> bool:
        return not terms or any(
            kind in NAMED[name] and first <= identifier <= last for name, first, last in terms
        )

    texts = [
        ",".join([*prefixes, *(f"{name}={first}-{last}" for name, first, last in terms)])
        for prefixes, terms in rules
    ]
    allow = AllowList(texts)
    source = column([ipaddress.ip_address(source) for source, _, _ in frames])
    kinds = np.array([kind for _, kind, _ in frames], np.uint8)
    identifiers = np.array([identifier for _, _, identifier in frames], np.int64)

    assert allow.names_tunnels == any(terms for _, terms in rules)
    assert allow.allows(source).tolist() == [
        any(from_here(source, prefixes) for prefixes, _ in rules) for source, _, _ in frames
    ]
    assert allow.allows_tunnels(source, kinds, identifiers).tolist() == [
        any(from_here(source, prefixes) and this_one(kind, number, terms)
            for prefixes, terms in rules)
        for source, kind, number in frames
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "kind", "identifier", "allowed"),
    [
        ("vni=5", Kind.VXLAN, 5, True),
        ("vni=5", Kind.GENEVE, 6, False),
        ("vni=16777215", Kind.VXLAN_GPE, 0xFFFFFF, True),
        ("erspan=7", Kind.ERSPAN3, 7, True),
        ("erspan=7", Kind.ERSPAN1, -1, False),  # has no session
        ("key=1-3", Kind.GRE, 3, True),
        ("key=1-3", Kind.GRE, 4, False),
        ("key=0", Kind.GRE, -1, False),  # no key is not key 0
        ("key=4294967295", Kind.GRE_IP, 0xFFFFFFFF, True),
        ("key=7", Kind.ERSPAN2, 7, False),
    ],
)
def test_tunnels_by_number(rule: str, kind: Kind, identifier: int, allowed: bool) -> None:
    source = column([ipaddress.ip_address("192.0.2.1")])
    codes, numbers = np.array([kind], np.uint8), np.array([identifier])
    assert AllowList([rule]).allows(source).tolist() == [True]
    assert AllowList([rule]).allows_tunnels(source, codes, numbers).tolist() == [allowed]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("10.0.0.0/33", "does not appear to be an IPv4 or IPv6 network"),
        ("10.0.0.0/8,", "'' does not appear"),
        ("vnet=5", "vnet= is none of vni, erspan, key"),
        ("10.0.0.0/8,vni=", "vni= is neither a number nor a range such as 1-99"),
        ("vni=5-", "vni=5- is neither"),
        ("vni=-5", "vni=-5 is neither"),
        ("vni=0x5", "vni=0x5 is neither"),
        ("vni=٥", "vni=٥ is neither"),
        ("vni=9-5", "vni=9-5 is not within 0-16777215, lowest first"),
        ("vni=16777216", "vni=16777216 is not within 0-16777215"),
        ("erspan=1024", "erspan=1024 is not within 0-1023"),
        ("key=4294967296", "key=4294967296 is not within 0-4294967295"),
    ],
)
def test_what_cannot_be_meant(rule: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        AllowList([rule])
    assert str(error.value).startswith(f"--allow {rule}: ")
    assert words in str(error.value)
