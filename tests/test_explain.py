"""``explain``: the chain for one packet, as the pipeline itself decides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import outer
import pcap_files
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tunnelbridge import cli
from tunnelbridge.errors import UsageError
from tunnelbridge.packet_text import build

CONFIG = """
[tunnels]
dc2 = "gre://127.0.0.2?key=7"
[arp]
"10.10.10.10" = "02:00:0a:0a:0a:0a"
[fdb]
"02:00:0a:0a:0a:0a" = "dc2"
[pools.ids]
members = [{ ip = "10.10.10.10" }]
[filters.f]
inbound  = [{ priority = 5, action = "accept", protocol = "tcp", destination_ports = "80" },
            { priority = 1, action = "reject", protocol = "tcp", source = "192.0.2.66/32" }]
[sessions.web]
sources = ["eth0"]
filter = "f"
target = "ids"
packet_length = 50
[sessions.dns]
sources = ["eth1"]
priority = 2
expression = "udp port 53"
target = "vxlan://127.0.0.9?vni=4"
[sessions.rest]
priority = 3
sources = ["eth0", "eth1"]
expression = "tcp"
target = "vxlan://127.0.0.9?vni=5"
[sessions.off]
enabled = false
sources = ["eth0"]
target = "dc2"
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(runner_of: Callable[..., Run], tmp_path: Path) -> Run:
    path = tmp_path / "mirror.toml"
    path.write_text(CONFIG)
    call = runner_of(cli.main, "tunnelbridge")
    return lambda *arguments: call("explain", "--config", str(path), *arguments)


def test_the_whole_chain(run: Run) -> None:
    code, text, _ = run("tcp 192.0.2.1:1234 > 198.51.100.2:80")
    assert code == 0
    for line in (
        "tcp 192.0.2.1:1234 > 198.51.100.2:80, 54 octets, coming in",
        "filter f: inbound rule 1 (priority 5) accepts: mirrored",
        "the clone keeps 50 of 54 octets",
        "10.10.10.10 of ids, the only one",
        "10.10.10.10 is at 02:00:0a:0a:0a:0a",
        "02:00:0a:0a:0a:0a is behind dc2",
        "from 127.0.0.1 to 127.0.0.2 by lo, directly connected",
        "a 50-octet frame becomes a 78-octet packet: fits",
        "expression 'tcp' accepts, but the packet is mirrored once, by web",
        "expression 'udp port 53' does not accept: not mirrored",
        "disabled",
    ):
        assert line in text, text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tcp 192.0.2.66:1 > 198.51.100.2:80"], "inbound rule 2 (priority 1) does not mirror"),
        (["tcp 192.0.2.1:1 > 198.51.100.2:81"], "filter f: no rule matches: not mirrored"),
        (["tcp 192.0.2.1:1 > 198.51.100.2:80", "--direction", "out"], "no rule matches"),
        (["udp 192.0.2.1:1 > 198.51.100.2:53", "-i", "eth0"], "result   not mirrored"),
        (["udp 192.0.2.1:1 > 198.51.100.2:53", "-i", "eth0"], "its sources are eth1"),
        (["udp [2001:db8::1]:1 > [2001:db8::2]:53"], "expression 'udp port 53' accepts: mirrored"),
        (["icmp 192.0.2.1 > 198.51.100.2"], "icmp 192.0.2.1 > 198.51.100.2, 42 octets"),
    ],
)
def test_why_and_why_not(run: Run, arguments: list[str], expected: str) -> None:
    code, text, _ = run(*arguments)
    assert code == 0
    assert expected in text


def test_a_packet_of_a_file(run: Run, tmp_path: Path) -> None:
    def frame(port: int) -> bytes:
        return outer.frame(outer.ipv4(outer.tcp(b"x", 9, port), 6, "192.0.2.1", "192.0.2.2"))

    own = outer.frame(
        outer.ipv4(bytes.fromhex("2000655800000007") + frame(1), 47, "192.0.2.1", "127.0.0.2")
    )
    path = pcap_files.write(tmp_path / "x.pcap", [frame(81), frame(80), own])

    assert "no rule matches" in run("-r", str(path))[1]
    assert "inbound rule 1 (priority 5) accepts: mirrored" in run("-r", str(path), "-n", "2")[1]
    assert "refused  own-tunnel 1" in run("-r", str(path), "-n", "3")[1]
    code, _, error = run("-r", str(path), "-n", "4")
    assert code == 2
    assert error.endswith("x.pcap has 3 packets, not 4\n")


def test_nothing_is_sent_and_nothing_to_explain_is_an_error(run: Run) -> None:
    code, _, error = run()
    assert code == 2
    assert "give a packet" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp 192.0.2.1:1234 > 198.51.100.2:80", Ether() / IP() / TCP(sport=1234, dport=80)),
        ("udp [2001:db8::1]:53 > [2001:db8::2]:99", Ether() / IPv6() / UDP(sport=53, dport=99)),
        ("icmp 192.0.2.1 > 198.51.100.2", Ether() / IP() / ICMP(type=8)),
    ],
)
def test_packets_from_text_as_scapy_reads_them(text: str, expected: Ether) -> None:
    found = Ether(build(text))
    while expected:
        assert type(found) is type(expected)
        for name in ("sport", "dport", "type"):
            if name in expected.fields:
                assert getattr(found, name) == getattr(expected, name)
        found, expected = found.payload, expected.payload
    assert not found.payload


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tcp 192.0.2.1:1234", "expected PROTOCOL SOURCE"),
        ("tcp 192.0.2.1:1 > 2001:db8::1", "two IP versions"),
        ("tcp 192.0.2.300:1 > 192.0.2.1:2", "192.0.2.300:1 is not an address"),
        ("tcp 192.0.2.1:70000 > 192.0.2.1:2", "at most 65535"),
        ("icmp 192.0.2.1:1 > 192.0.2.1", "icmp has no ports"),
        ("nothing 192.0.2.1 > 192.0.2.1", "nothing"),
        ("all 192.0.2.1 > 192.0.2.1", "name one protocol"),
    ],
)
def test_texts_that_are_no_packet(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build(text)
