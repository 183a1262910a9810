"""Stacks of headers: overhead, suffix, reuse of rows; the octets are judged by each format's test."""

from __future__ import annotations

import golden
import numpy as np
import pytest

from tunnelbridge.wire.encapsulation import (
    Encapsulation,
    erspan_1,
    erspan_2,
    erspan_3,
    geneve_tunnel,
    gre_ip,
    gre_teb,
    juniper_tunnel,
    tzsp_tunnel,
    vxlan_tunnel,
    wire_itself,
)
from tunnelbridge.wire.layer import Kind

STACKS: list[tuple[Encapsulation, Kind, int, int, int | None, int | None]] = [
    # tunnel, kind, IP protocol, overhead, port, identifier
    (gre_teb(None, False, False), Kind.GRE, 47, 4, None, None),
    (gre_teb(7, True, True), Kind.GRE, 47, 16, None, 7),
    (gre_ip(0, False, False), Kind.GRE_IP, 47, 8, None, 0),
    (erspan_1(), Kind.ERSPAN1, 47, 4, None, None),
    (erspan_2(5, 1), Kind.ERSPAN2, 47, 16, None, 5),
    (erspan_3(5, 1, "100ns"), Kind.ERSPAN3, 47, 20, None, 5),
    (erspan_3(5, 1, "1588"), Kind.ERSPAN3, 47, 28, None, 5),
    (vxlan_tunnel(8472, 9), Kind.VXLAN, 17, 16, 8472, 9),
    (geneve_tunnel(6081, 9, False), Kind.GENEVE, 17, 16, 6081, 9),
    (geneve_tunnel(6081, 9, True), Kind.GENEVE, 17, 44, 6081, 9),
    (tzsp_tunnel(37008, False), Kind.TZSP, 17, 13, 37008, None),
    (tzsp_tunnel(37008, True), Kind.TZSP, 17, 17, 37008, None),
    (juniper_tunnel(8099, None, "", ""), Kind.JUNIPER, 17, 16, 8099, None),
    (
        juniper_tunnel(8099, bytes(4), "ab", "c"),
        Kind.JUNIPER,
        17,
        8 + 6 + 6 + 4 + 3 + 2,
        8099,
        None,
    ),
]


@pytest.mark.parametrize(("tunnel", "kind", "protocol", "overhead", "port", "identifier"), STACKS)
def test_what_a_tunnel_says_of_itself(
    tunnel: Encapsulation,
    kind: Kind,
    protocol: int,
    overhead: int,
    port: int | None,
    identifier: int | None,
) -> None:
    assert (tunnel.kind, tunnel.ip_protocol, tunnel.overhead) == (kind, protocol, overhead)
    assert (tunnel.port, tunnel.identifier) == (port, identifier)
    assert tunnel.bare_ip is (kind == Kind.GRE_IP)
    assert tunnel.rows(golden.clones(2)).shape == (2, overhead)


def test_every_clone_has_its_own_row() -> None:
    tunnel = erspan_2(1, 0)
    tunnel.suffix = b"\x02\x00\x11\x22\x33\x44"
    clones = golden.clones(2000)
    clones.sequence = np.arange(2000)
    rows = tunnel.rows(clones)
    assert rows.flags.c_contiguous
    numbers = np.ascontiguousarray(rows[:, 4:8]).view(">u4")[:, 0]
    assert np.array_equal(numbers, np.arange(2000))
    assert {row.tobytes() for row in rows[:, -6:]} == {tunnel.suffix}


def test_rows_are_reused() -> None:
    tunnel = vxlan_tunnel(4789, 1)
    first = tunnel.rows(golden.clones(10))
    second = tunnel.rows(golden.clones(1000))
    assert np.shares_memory(first, second)
    assert not np.shares_memory(second, tunnel.rows(golden.clones(1025)))


@pytest.mark.parametrize("mac", [b"", b"\x02\x00\x0a\x0a\x0a\x0a"])
@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_on_the_wire_itself_a_row_is_the_new_address_or_nothing(count: int, mac: bytes) -> None:
    stack = wire_itself(vlan=100, priority=5)
    stack.suffix = mac
    for _ in range(2):
        rows = stack.rows(golden.clones(count))
        assert rows.shape == (count, len(mac))
        assert rows.tobytes() == mac * count
    assert (stack.kind, stack.ip_protocol, stack.overhead) == (Kind.ETHERNET, 0, 0)
    assert (stack.has_sequence, stack.bare_ip) == (False, False)
