"""The allow-list against the standard library's ipaddress."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.allow import MAPPED, AllowList
from tunnelbridge.errors import UsageError

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
