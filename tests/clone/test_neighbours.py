"""Static ARP and FDB, as in F5 K17567: member, MAC address, tunnel; every missing link is named."""

from __future__ import annotations

import pytest

from tunnelbridge.clone.neighbours import Adjacency, Neighbours, is_member
from tunnelbridge.errors import UsageError

MAC = "02:00:0a:0a:0a:0a"
TUNNEL = "vxlan://198.51.100.9?vni=7"


@pytest.mark.parametrize(
    ("arp", "fdb", "member"),
    [
        (f"10.0.0.5={MAC}", f"{MAC}={TUNNEL}", "10.0.0.5"),
        (f"10.0.0.5={MAC.upper()}", f"{MAC.replace(':', '-')}={TUNNEL}", "10.0.0.5"),
        (f"2001:DB8::0:5={MAC}", f"{MAC}={TUNNEL}", "2001:db8::5"),
        (f"2001:db8::5={MAC}", f"{MAC}={TUNNEL}", "2001:db8:0::5"),
    ],
)
def test_member_to_mac_to_tunnel(arp: str, fdb: str, member: str) -> None:
    neighbours = Neighbours([arp], [fdb])
    expected = Adjacency(bytes([2, 0, 10, 10, 10, 10]), TUNNEL)
    assert neighbours.resolve(member) == expected


def test_tables_are_there_to_show() -> None:
    neighbours = Neighbours([f"10.0.0.5={MAC}", f"10.0.0.6={MAC}"], [f"{MAC}={TUNNEL}"])
    assert neighbours.arp == {"10.0.0.5": MAC, "10.0.0.6": MAC}
    assert neighbours.fdb == {MAC: TUNNEL}


@pytest.mark.parametrize(
    ("arp", "fdb", "words"),
    [
        ([], [], ["no ARP entry for 10.0.0.5", "--arp 10.0.0.5=MAC"]),
        ([f"10.0.0.6={MAC}"], [f"{MAC}={TUNNEL}"], ["no ARP entry for 10.0.0.5"]),
        ([f"10.0.0.5={MAC}"], [], [f"no FDB entry for {MAC}", f"--fdb {MAC}=TUNNEL", "K17567"]),
        ([f"10.0.0.5={MAC}"], [f"02:00:00:00:00:01={TUNNEL}"], [f"no FDB entry for {MAC}"]),
    ],
)
def test_a_missing_link_is_named(arp: list[str], fdb: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        Neighbours(arp, fdb).resolve("10.0.0.5")
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert raised.value.status == 2


@pytest.mark.parametrize(
    ("arp", "fdb", "words"),
    [
        (["10.0.0.5"], [], ["--arp 10.0.0.5", "IP=MAC"]),
        ([f"={MAC}"], [], ["IP=MAC"]),
        (["10.0.0.5="], [], ["IP=MAC"]),
        ([f"10.0.0.500={MAC}"], [], ["10.0.0.500 is not an IP address"]),
        (["10.0.0.5=02:00:0a:0a:0a"], [], ["02:00:0a:0a:0a is not a MAC address"]),
        (["10.0.0.5=02:00:0a:0a:0a:0g"], [], ["is not a MAC address"]),
        (["10.0.0.5=02:00:0a:0a:0a:0a:0a"], [], ["is not a MAC address"]),
        ([], [MAC], [f"--fdb {MAC}", "MAC=TUNNEL"]),
        ([], [f"10.0.0.5={TUNNEL}"], ["10.0.0.5 is not a MAC address"]),
    ],
)
def test_a_wrong_entry_is_named(arp: list[str], fdb: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        Neighbours(arp, fdb)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("target", "member"),
    [("10.0.0.5", True), ("2001:db8::5", True), ("gre://10.0.0.5", False), ("ids", False)],
)
def test_a_member_is_an_address(target: str, member: bool) -> None:
    assert is_member(target) is member
