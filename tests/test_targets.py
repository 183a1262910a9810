"""Targets: tunnels and pool members, and one line for each way they can be wrong."""

from __future__ import annotations

import socket

import pytest
import recording

from tunnelbridge import targets
from tunnelbridge.clone.neighbours import is_member
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.transmit import RawTunnelSocket, UdpTunnelSocket
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, Plan, SessionPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.targets import Target, open_tunnel, resolve_targets
from tunnelbridge.tunnel import Tunnel
from tunnelbridge.wire.layer import Kind


def open_tunnels(targets: list[Target], mtu: MtuPolicy, snaplen: int | None) -> list[Tunnel]:
    """Open the tunnels of one session that sends to all of them."""
    members = tuple(MemberPlan(target.name, (target,)) for target in targets)
    session = SessionPlan("test", (GroupPlan("test", members),), packet_length=snaplen)
    return Policy(Plan((session,)), mtu).tunnels


MEMBER, MAC = "10.10.10.10", "02:00:0a:0a:0a:0a"
ARP = [f"{MEMBER}={MAC}"]
FDB = [f"{MAC}=vxlan://192.0.2.9?vni=7"]


def test_a_tunnel_and_a_member() -> None:
    plain, member = resolve_targets(["gre://[2001:DB8::0:9]?key=5", MEMBER], ARP, FDB)

    assert (plain.remote, plain.member, plain.mac) == ("2001:db8::9", None, b"")
    assert plain.ip_header == 40
    assert member.name == f"{MEMBER} via vxlan://192.0.2.9?vni=7"
    assert (member.remote, member.member) == ("192.0.2.9", MEMBER)
    assert member.mac == bytes.fromhex(MAC.replace(":", ""))
    assert member.ip_header == 20
    assert member.encapsulation(False).suffix == member.mac
    assert plain.encapsulation(False).suffix == b""


@pytest.mark.parametrize(
    ("arp", "fdb", "message"),
    [
        ([], FDB, rf"^no ARP entry for {MEMBER}: add --arp {MEMBER}=MAC .*\(gre://{MEMBER}\)$"),
        (ARP, [], rf"^no FDB entry for {MAC} \(member {MEMBER}\): .* add --fdb {MAC}=TUNNEL$"),
        (ARP, [f"{MAC}=gre-ip://192.0.2.9"], r"^gre-ip://192\.0\.2\.9 carries bare IP: .*rewrite$"),
        (ARP, [f"{MAC}=vxlan://"], r"^tunnel vxlan://: expected ENCAP://REMOTE"),
        (ARP, [f"{MAC}={MEMBER}"], rf"^tunnel {MEMBER}: expected ENCAP://REMOTE"),
    ],
)
def test_what_is_missing_is_named(arp: list[str], fdb: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        resolve_targets([MEMBER], arp, fdb)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "pair",
    [
        ("gre://192.0.2.9", "gre://192.0.2.9?ttl=3"),
        ("vxlan://192.0.2.9", "vxlan://192.0.2.9:4789?vni=1"),
        ("erspan2://192.0.2.9?session=5", "erspan2://192.0.2.9?session=5&index=9"),
        ("gre://[2001:db8::9]", "gre://[2001:db8:0::9]"),
        (MEMBER, MEMBER),
    ],
)
def test_one_and_the_same_tunnel_twice(pair: tuple[str, str]) -> None:
    entries = (ARP, FDB) if MEMBER in pair else ((), ())
    with pytest.raises(UsageError, match=r"are one and the same tunnel: .*another identifier$"):
        resolve_targets(pair, *entries)


@pytest.mark.parametrize(
    "pair",
    [
        ("gre://192.0.2.9", "gre://192.0.2.8"),
        ("gre://192.0.2.9", "gre://192.0.2.9?key=0"),
        ("gre://192.0.2.9", "gre-ip://192.0.2.9"),
        ("vxlan://192.0.2.9", "vxlan://192.0.2.9:8472"),
        ("vxlan://192.0.2.9?vni=7", "vxlan://192.0.2.9?vni=8"),
        (MEMBER, "vxlan://192.0.2.9?vni=7"),
        (MEMBER, "10.10.10.11"),
    ],
)
def test_tunnels_that_the_far_end_can_tell_apart(pair: tuple[str, str]) -> None:
    other = "02:00:0a:0a:0a:0b"
    arp = [*ARP, f"10.10.10.11={other}"]
    fdb = [*FDB, f"{other}=vxlan://192.0.2.9?vni=7"]
    count = sum(is_member(each) for each in pair)  # the second only with the first
    arp, fdb = arp[:count], fdb[:count]

    assert len(resolve_targets(pair, arp, fdb)) == 2


def test_one_port_is_one_encapsulation() -> None:
    with pytest.raises(
        UsageError, match=r"^geneve://192\.0\.2\.8:5000 and vxlan://192\.0\.2\.9:5000"
    ):
        resolve_targets(["vxlan://192.0.2.9:5000", "geneve://192.0.2.8:5000"], [], [])
    with pytest.raises(UsageError, match="two encapsulations through UDP port 4789"):
        resolve_targets(["tzsp://192.0.2.8:4789", MEMBER], ARP, FDB)
    assert len(resolve_targets(["vxlan://192.0.2.8", "vxlan://192.0.2.9"], [], [])) == 2
    assert len(resolve_targets(["gre://192.0.2.8", "erspan1://192.0.2.8"], [], [])) == 2


@pytest.mark.parametrize(
    ("arp", "fdb", "message"),
    [
        ([*ARP, f"{MEMBER}=02:00:00:00:00:01"], FDB, rf"^--arp names {MEMBER} twice"),
        ([*ARP, f"{MEMBER}={MAC.upper()}"], FDB, rf"^--arp names {MEMBER} twice"),
        (ARP, [*FDB, f"{MAC.replace(':', '-')}=gre://192.0.2.9"], rf"^--fdb names {MAC} twice"),
        ([*ARP, f"10.10.10.11={MAC}"], FDB, r"^no --to uses --arp 10\.10\.10\.11="),
        (ARP, [*FDB, "02:00:00:00:00:01=gre://192.0.2.9"], "^no --to uses --fdb 02:00:00:00:00:01"),
    ],
)
def test_entries_that_mean_nothing(arp: list[str], fdb: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        resolve_targets([MEMBER], arp, fdb)
    assert "\n" not in str(told.value)


def test_entries_without_a_member() -> None:
    for arp, fdb in ((ARP, []), ([], FDB), (ARP, FDB)):
        with pytest.raises(UsageError, match=r"^no --to uses --"):
            resolve_targets(["gre://192.0.2.1"], arp, fdb)


@pytest.mark.parametrize(
    ("tunnel", "numbered"),
    [
        ("erspan2://127.0.0.1", [[0, 1], [2], [3, 4, 5], [6]]),
        ("gre://127.0.0.1?seq=on", [[0, 1], [2], [3, 4, 5], [6]]),
    ],
)
def test_members_behind_one_tunnel_share_its_sequence(
    monkeypatch: pytest.MonkeyPatch, tunnel: str, numbered: list[list[int]]
) -> None:
    sockets = [recording.RecordingSocket() for _ in range(3)]
    opened = iter(sockets)
    monkeypatch.setattr(targets, "open_socket", lambda *_: next(opened))
    other = "02:00:0a:0a:0a:0b"
    arp = [*ARP, f"10.10.10.11={other}"]
    fdb = [f"{MAC}={tunnel}", f"{other}={tunnel}"]
    alone = tunnel.replace(".0.1", ".0.2")
    chosen = resolve_targets([MEMBER, "10.10.10.11", alone], arp, fdb)
    one, two, third = open_tunnels(chosen, MtuPolicy.FRAGMENT, None)

    for sender, batch in zip((one, two, one, two), numbered, strict=True):
        sender.send(recording.frames([bytes(60)] * len(batch)))
    third.send(recording.frames([bytes(60)] * 2))

    def sequence(sock: recording.RecordingSocket) -> list[int]:
        return [int.from_bytes(packet[4:8]) for packet in sock.packets]

    assert sequence(sockets[0]) == numbered[0] + numbered[2]
    assert sequence(sockets[1]) == numbered[1] + numbered[3]
    assert sequence(sockets[2]) == [0, 1]


def test_a_tunnel_without_sequence_numbers_uses_none_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = [recording.RecordingSocket() for _ in range(2)]
    opened = iter(sockets)
    monkeypatch.setattr(targets, "open_socket", lambda *_: next(opened))
    chosen = resolve_targets([MEMBER, "gre://127.0.0.1"], ARP, [f"{MAC}=gre://127.0.0.1?seq=on"])
    numbered, plain = open_tunnels(chosen, MtuPolicy.FRAGMENT, None)

    for tunnel in (numbered, plain, numbered):
        tunnel.send(recording.frames([bytes(60)]))

    assert [int.from_bytes(packet[4:8]) for packet in sockets[0].packets] == [0, 1]


def test_what_was_opened_is_closed_when_the_next_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = recording.RecordingSocket()
    opened = iter([first])

    def open_socket(*_: object) -> recording.RecordingSocket:
        for sock in opened:
            return sock
        raise UserError("no")

    monkeypatch.setattr(targets, "open_socket", open_socket)
    chosen = resolve_targets(["gre://127.0.0.1", "gre://127.0.0.2"], [], [])
    with pytest.raises(UserError):
        open_tunnels(chosen, MtuPolicy.FRAGMENT, None)
    assert first.is_closed


def test_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(name)
        if name == "nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 0, 0, "", ("192.0.2.77", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    (target,) = resolve_targets(["gre://ids.example"], [], [])
    assert (target.remote, asked) == ("192.0.2.77", ["ids.example"])
    assert target.signature().remote == "192.0.2.77"
    with pytest.raises(UsageError, match="one and the same"):
        resolve_targets(["gre://ids.example", "gre://192.0.2.77"], [], [])
    with pytest.raises(UserError, match=r"cannot resolve nowhere\.example: .*known; give an IP"):
        resolve_targets(["gre://nowhere.example"], [], [])


def test_what_the_loop_guard_looks_for() -> None:
    (target,) = resolve_targets(["geneve://192.0.2.9:6000?vni=3"], [], [])

    signature = target.signature()

    assert (signature.kind, signature.port, signature.identifier) == (Kind.GENEVE, 6000, 3)


def test_the_endpoint_gets_the_options() -> None:
    (target,) = resolve_targets(["vxlan://192.0.2.9?local=192.0.2.1&ttl=9&dscp=46"], [], [])

    end = targets.endpoint(target)

    assert (end.remote, end.local, end.ttl, end.dscp) == ("192.0.2.9", "192.0.2.1", 9, 46)
    assert end.protocol == 17


@pytest.mark.parametrize(
    ("snaplen", "default", "option", "policy", "has_length"),
    [
        (None, MtuPolicy.FRAGMENT, "", MtuPolicy.FRAGMENT, False),
        (None, MtuPolicy.TRUNCATE, "", MtuPolicy.TRUNCATE, True),
        (None, MtuPolicy.FRAGMENT, "&mtu=truncate", MtuPolicy.TRUNCATE, True),
        (None, MtuPolicy.TRUNCATE, "&mtu=drop", MtuPolicy.DROP, False),
        (128, MtuPolicy.FRAGMENT, "", MtuPolicy.FRAGMENT, True),
    ],
)
def test_the_original_length_is_carried_where_frames_may_be_cut(
    monkeypatch: pytest.MonkeyPatch,
    snaplen: int | None,
    default: MtuPolicy,
    option: str,
    policy: MtuPolicy,
    has_length: bool,
) -> None:
    monkeypatch.setattr(targets, "effective_capabilities", frozenset)
    (target,) = resolve_targets([f"geneve://127.0.0.1?vni=1{option}"], [], [])

    tunnel = open_tunnel(target, default, snaplen)
    tunnel.close()

    assert tunnel.policy is policy
    assert (tunnel.encapsulation.overhead > 8 + 8) == has_length


def test_without_the_right_only_udp_can_be_sent(
    monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    gre, vxlan = resolve_targets(["gre://127.0.0.1", "vxlan://127.0.0.1"], [], [])
    for capabilities, kind in (
        ({"CAP_NET_RAW"}, RawTunnelSocket),
        (set(), UdpTunnelSocket),
    ):
        monkeypatch.setattr(targets, "effective_capabilities", lambda c=capabilities: c)
        tunnel = open_tunnel(vxlan, MtuPolicy.FRAGMENT, None)
        assert type(tunnel._socket) is kind
        tunnel.close()
    tunnel = open_tunnel(gre, MtuPolicy.FRAGMENT, None)  # raw in any case: the kernel decides
    assert type(tunnel._socket) is RawTunnelSocket
    tunnel.close()
