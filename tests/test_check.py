"""``check`` says what ``send`` would do; its arithmetic is that of the tunnel itself."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pcap_files
import pytest
import recording

import lab
from tunnelbridge import targets
from tunnelbridge.check import check
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.sender import SendOptions

pytestmark = pytest.mark.usefixtures("root")

MEMBER, MAC = "10.10.10.10", "02:00:0a:0a:0a:0a"


@pytest.fixture(scope="module")
def here(root: None) -> Iterator[tuple[str, str]]:
    """Return a namespace with a route to 192.0.2.0/24 and 2001:db8::/64, and its interface."""
    with (
        lab.namespace(ipv6=True) as ns,
        lab.namespace(ipv6=True) as peer,
        lab.veth(ns, peer, "10.99.0.1/24", "10.99.0.2/24") as (near, _),
    ):
        lab.run("ip", "-n", ns, "route", "add", "192.0.2.0/24", "via", "10.99.0.2")
        lab.run("ip", "-n", ns, "address", "add", "fd99::1/64", "dev", near, "nodad")
        lab.run("ip", "-n", ns, "route", "add", "2001:db8::/64", "dev", near)
        yield ns, near


def report(here: tuple[str, str], **options: Any) -> str:
    ns, near = here
    chosen = {"interfaces": [near]} | options
    return "\n".join(lab.in_namespace(ns, check, SendOptions(**chosen)))


def test_a_tunnel_and_its_way(here: tuple[str, str]) -> None:
    text = report(here, to=["vxlan://192.0.2.9?vni=7"], expression="tcp", direction="in")

    assert f"source   {here[1]}, MTU 1500, up, direction in" in text
    assert "filter   tcp" in text
    assert "tunnel   vxlan://192.0.2.9?vni=7" in text
    assert f"from 10.99.0.1 to 192.0.2.9 by {here[1]}, via 10.99.0.2" in text
    assert "overhead 36 octets (IPv4 20, vxlan 16)" in text
    assert (
        "a 1514-octet frame becomes a 1550-octet packet, 50 too long for the path:"
        " sent in IP fragments (--mtu fragment)"
    ) in text


def test_over_ipv6(here: tuple[str, str]) -> None:
    text = report(here, to=["gre://[2001:db8::9]"])

    assert f"from fd99::1 to 2001:db8::9 by {here[1]}, directly connected" in text
    assert "overhead 44 octets (IPv6 40, gre 4)" in text


def test_a_member_behind_static_tables(here: tuple[str, str]) -> None:
    text = report(here, to=[MEMBER], arp=[f"{MEMBER}={MAC}"], fdb=[f"{MAC}=gre://192.0.2.9"])

    assert f"tunnel   {MEMBER} via gre://192.0.2.9" in text
    assert f"static ARP: {MEMBER} is at {MAC}; clones go to {MAC}" in text


@pytest.mark.parametrize("delta", [0, 1])
@pytest.mark.parametrize("policy", list(MtuPolicy))
@pytest.mark.parametrize(
    "target", ["vxlan://192.0.2.9", "gre-ip://192.0.2.9", "gre://[2001:db8::9]"]
)
def test_the_fate_of_a_frame_is_what_the_tunnel_does(
    here: tuple[str, str], target: str, policy: MtuPolicy, delta: int
) -> None:
    tunnel, sock = recording.tunnel(target, policy, 1500)
    bare = 14 if tunnel.encapsulation.bare_ip else 0
    octets = 1500 - tunnel.overhead + bare + delta
    frame = bytes(12) + b"\x08\0" + bytes(octets - 14)

    text = report(here, to=[target], mtu=policy, snaplen=octets)
    tunnel.send(recording.frames([frame]))

    fate = re.search(r"a (\d+)-octet frame becomes a (\d+)-octet packet(.*)", text)
    assert fate is not None
    assert int(fate[2]) == 1500 + delta
    assert int(fate[1]) == octets - bare
    sent = sock.packets[0][tunnel.encapsulation.overhead :] if sock.packets else b""
    if not delta:
        assert fate[3] == ": fits"
    elif policy is MtuPolicy.TRUNCATE:
        assert fate[3].endswith(f"cut to {len(sent)} octets of the frame (--mtu truncate)")
    else:
        word = {MtuPolicy.FRAGMENT: "sent in IP fragments", MtuPolicy.DROP: "dropped"}[policy]
        assert f"{fate[3]}" == f", 1 too long for the path: {word} (--mtu {policy})"
        assert len(sent) == (0 if policy is MtuPolicy.DROP else octets - bare)


def test_no_room_for_a_frame_at_all(here: tuple[str, str]) -> None:
    lab.run("ip", "-n", here[0], "route", "add", "192.0.2.77", "via", "10.99.0.2", "mtu", "552")
    target = f"juniper://192.0.2.77?source_vn={'a' * 255}&destination_vn={'b' * 255}&mtu=truncate"

    assert "dropped (--mtu truncate)" in report(here, to=[target])


def test_a_tunnels_own_policy_comes_first(here: tuple[str, str]) -> None:
    text = report(here, to=["gre://192.0.2.9?mtu=drop", "gre://192.0.2.8"], mtu=MtuPolicy.TRUNCATE)

    assert text.index("dropped (--mtu drop)") < text.index("cut to 1476 octets of the frame")


def test_an_interface_that_is_down_and_has_large_frames(here: tuple[str, str]) -> None:
    with lab.veth(here[0], here[0], mtu=9000) as (large, _):
        lab.run("ip", "-n", here[0], "link", "set", large, "down")
        text = report(here, interfaces=[large], to=["gre://192.0.2.9"])

    assert f"source   {large}, MTU 9000, DOWN: nothing will be seen until it is up" in text
    assert "a 9014-octet frame becomes a 9038-octet packet" in text


def test_a_file(here: tuple[str, str], tmp_path: Path) -> None:
    path = pcap_files.write(tmp_path / "x.pcap", [])
    text = report(here, interfaces=[], file=path, to=["gre://192.0.2.9"], snaplen=96, speed="max")

    assert f"source   {path}, at max speed" in text
    assert "filter   none: every packet" in text
    assert "snaplen  96 octets of each frame" in text
    assert "a 96-octet frame becomes a 120-octet packet: fits" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interfaces": ["nosuch0"]}, UserError, "no interface named nosuch0"),
        ({"to": ["gre://198.51.100.1"]}, UserError, "no route to 198.51.100.1"),
        ({"expression": "tcp port"}, UsageError, 'filter "tcp port"'),
        ({"to": [MEMBER]}, UsageError, "no ARP entry"),
        ({"interfaces": []}, UsageError, "one of them"),
        ({"to": ["vxlan://192.0.2.9?local=203.0.113.1"]}, UserError, "not an address of this host"),
        ({"stats": "/nosuch/x.json"}, UserError, "cannot write /nosuch/x.json"),
    ],
)
def test_what_would_stop_send_stops_check(
    here: tuple[str, str], options: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        report(here, **{"to": ["gre://192.0.2.9"]} | options)


@pytest.mark.parametrize("option", ["interface", "tunnel"])
def test_a_missing_right(
    here: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    real = socket.socket

    def without_right(family: int = -1, kind: int = -1, *rest: int) -> socket.socket:
        if kind == socket.SOCK_RAW and family in (socket.AF_INET, socket.AF_PACKET):
            raise PermissionError
        return real(family, kind, *rest)

    path = pcap_files.write(tmp_path / "x.pcap", [])
    options = {"file": path, "interfaces": []} if option == "tunnel" else {}
    tunnel = "gre://192.0.2.9" if option == "tunnel" else "vxlan://192.0.2.9"
    monkeypatch.setattr(targets, "effective_capabilities", frozenset)
    monkeypatch.setattr(socket, "socket", without_right)
    with pytest.raises(UserError, match="needs CAP_NET_RAW"):
        report(here, to=[tunnel], **options)
    if option == "tunnel":
        assert "vxlan" in report(here, to=["vxlan://192.0.2.9"], **options)


def test_interfaces_that_are_not_plain_ethernet(here: tuple[str, str]) -> None:
    text = report(here, interfaces=["lo"], to=["gre://192.0.2.9"])
    assert "direction in (loopback shows each packet twice)" in text
    text = report(here, interfaces=["lo"], to=["gre://192.0.2.9"], direction="out")
    assert "up, direction out\n" in text

    lab.run("ip", "-n", here[0], "tuntap", "add", "dev", "tun5", "mode", "tun")
    with pytest.raises(UserError, match=r"^interface tun5 carries no Ethernet frames"):
        report(here, interfaces=["tun5"], to=["gre://192.0.2.9"])


def test_nothing_stays_open(here: tuple[str, str]) -> None:
    report(here, to=["gre://192.0.2.9", "vxlan://192.0.2.9"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    report(here, to=["gre://192.0.2.9", "vxlan://192.0.2.9"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_none(here: tuple[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "x.txt"
    wrong.write_text("no capture")
    for path, message in ((wrong, "not a pcap or pcapng file"), (tmp_path / "y", "cannot read")):
        with pytest.raises(UserError, match=message):
            report(here, interfaces=[], file=path, to=["gre://192.0.2.9"])
