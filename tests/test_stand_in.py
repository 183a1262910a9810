"""Standing in for members, in namespaces: the kernel asks, tcpdump and tshark look on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

import lab
from tunnelbridge import stand_in
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, libpcap, tpacket
from tunnelbridge.stand_in import StandIn

pytestmark = pytest.mark.usefixtures("root")

V4, V6 = "10.77.0.10", "fd77::10"
MAC4, MAC6 = "02:00:0a:00:00:10", "02:00:0a:00:00:16"
MEMBERS = {V4: MAC4, V6: MAC6}


def on_uvloop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test on the loop that the programs run on."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less: the neighbours here answer within microseconds."""
    monkeypatch.setattr(stand_in, "PROBE_INTERVAL", 0.05)
    monkeypatch.setattr(stand_in, "TICK", 0.05)
    monkeypatch.setattr(stand_in, "SECOND_ANNOUNCEMENT", 0.2)


@dataclass
class Lan:
    """Where members are missing, and who looks for them."""

    here: str
    there: str
    interface: str
    asker: str

    def ask(self, *command: str) -> str:
        return lab.run(*command, ns=self.there, check=False)

    def neighbour(self, address: str) -> str:
        return lab.run("ip", "-n", self.there, "neighbour", "show", address)


@pytest.fixture(scope="module")
def spaces(root: None) -> Iterator[tuple[str, str]]:
    with lab.namespace(ipv6=True) as here, lab.namespace(ipv6=True) as there:
        yield here, there


@pytest.fixture
def lan(spaces: tuple[str, str]) -> Iterator[Lan]:
    with lab.veth(*spaces, None, "10.77.0.1/24") as ends:
        lab.run("ip", "-n", spaces[1], "address", "add", "fd77::1/64", "dev", ends[1], "nodad")
        yield Lan(*spaces, *ends)


@contextlib.asynccontextmanager
async def standing(lan: Lan, members: dict[str, str] | None = None, announce: float = 30.0,
                   vlan: int = 0) -> AsyncIterator[StandIn]:  # fmt: skip
    it = StandIn(lan.interface, members or MEMBERS, announce, lan.here, vlan)
    try:
        await it.start()
        yield it
    finally:
        it.close()


async def until(condition: Callable[[], object], what: str, seconds: float = 5.0) -> None:
    """Wait on the loop: what is waited for may be this loop's own work."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def wire(ns: str, interface: str) -> Iterator[socket.socket]:
    """Open a packet socket; it hears what arrives, and its own namespace's words too."""
    sock = lab.in_namespace(ns, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.setsockopt(libc.SOL_PACKET, tpacket.PACKET_IGNORE_OUTGOING, 1)
        sock.setblocking(False)
        sock.bind((interface, tpacket.ETH_P_ALL))
        yield sock


def heard(sock: socket.socket) -> list[Packet]:
    """Return what has arrived so far, but for the noise of a link that comes up."""
    frames: list[Packet] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = Ether(sock.recv(4096))
            if ARP in frame or ICMPv6ND_NA in frame or ICMPv6ND_NS in frame or IP in frame:
                frames.append(frame)
    return frames


async def replies(sock: socket.socket, question: Packet) -> list[Packet]:
    """Send a question, then another one whose answer shows that the first one was dealt with."""
    heard(sock)
    sock.send(bytes(question))
    sock.send(bytes(END))
    found: list[Packet] = []

    def done() -> bool:
        found.extend(heard(sock))
        return any(ARP in each and each[ARP].hwdst == END.hwsrc for each in found)

    await until(done, "the answer to the last question")
    return [each for each in found if not (ARP in each and each[ARP].hwdst == END.hwsrc)]


END = Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:0e:0d") / ARP(
    op=1, hwsrc="02:00:00:00:0e:0d", psrc="10.77.0.254", pdst=V4
)


@on_uvloop
async def test_the_kernel_finds_the_members(lan: Lan) -> None:
    async with standing(lan) as it:
        for address, mac in MEMBERS.items():
            await asyncio.to_thread(lan.ask, "ping", "-c1", "-W0.2", address)
            assert f"lladdr {mac}" in lan.neighbour(address)
            assert "REACHABLE" in lan.neighbour(address)
        assert it.ledger.answered >= 2
        assert (it.ledger.conflicts, it.ledger.unsent, it.given_up) == (0, 0, [])


@on_uvloop
async def test_a_neighbour_that_is_confirmed_by_unicast_stays_reachable(lan: Lan) -> None:
    async with standing(lan) as it:
        for address, mac in MEMBERS.items():
            change = ("ip", "-n", lan.there, "neighbour", "replace", address, "lladdr", mac,
                      "dev", lan.asker, "nud", "probe")  # fmt: skip
            with wire(lan.here, lan.interface) as sock:
                lab.run(*change)
                await until(lambda a=address: "REACHABLE" in lan.neighbour(a), "reachable")  # type: ignore[misc]
                asked = [each for each in heard(sock) if ARP in each or ICMPv6ND_NS in each]
            assert [each.dst for each in asked] == [mac], "the kernel asks the member itself"
        assert it.ledger.answered == 2


@on_uvloop
async def test_nothing_but_questions_for_the_members_is_answered(lan: Lan) -> None:
    asker = "02:00:00:00:00:aa"
    to4, to6 = Ether(dst=MAC4, src=asker), Ether(dst=MAC6, src=asker)
    everybody = Ether(dst="ff:ff:ff:ff:ff:ff", src=asker)
    questions = [
        to4 / IP(src="10.77.0.1", dst=V4) / TCP(dport=80, flags="S"),
        to6 / IPv6(src="fd77::1", dst=V6) / TCP(dport=80, flags="S"),
        to4 / IP(src="10.77.0.1", dst=V4) / ICMP(),
        to6 / IPv6(src="fd77::1", dst=V6) / ICMPv6EchoRequest(),
        everybody / ARP(op=1, hwsrc=asker, psrc="10.77.0.1", pdst="10.77.0.11"),
        Ether(dst="02:00:00:00:00:77", src=asker) / ARP(op=1, hwsrc=asker, psrc="1.2.3.4", pdst=V4),
        Ether(dst="33:33:ff:00:00:11", src=asker)
        / IPv6(src="fd77::1", dst="ff02::1:ff00:11", hlim=255)
        / ICMPv6ND_NS(tgt="fd77::11"),
    ]
    async with standing(lan) as it:
        with wire(lan.there, lan.asker) as sock:
            for question in questions:
                assert await replies(sock, question) == []
        assert it.ledger.answered == len(questions)  # to the question behind each


@on_uvloop
async def test_what_is_said_reads_as_it_should(lan: Lan) -> None:
    lab.need("tcpdump")
    looking = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", lan.there, "tcpdump", "-i", lan.asker, "-Q", "in", "-lnev", "-c", "10",
        f"ether src {MAC4} or ether src {MAC6} or arp or (icmp6 and ip6[40] == 135)",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert looking.stderr is not None
    try:
        await looking.stderr.readline()  # "listening on …"
        async with standing(lan) as it:
            printed, _ = await asyncio.wait_for(looking.communicate(), 10)
            assert it.ledger.announced == 4
    finally:
        if looking.returncode is None:
            looking.kill()
            await looking.wait()
    said = " ".join(printed.decode().split())
    assert said.count(f"who-has {V4} tell 0.0.0.0") == 3
    assert said.count(":: > ff02::1:ff00:10: [icmp6 sum ok] ICMP6, neighbor solicitation") == 3
    assert said.count(f"{MAC4} > ff:ff:ff:ff:ff:ff") == 2, "at once and, should that be lost, again"
    assert said.count(f"who-has {V4} tell {V4}") == 2
    assert said.count(f"{MAC6} > 33:33:00:00:00:01") == 2
    assert said.count(
        f"{V6} > ff02::1: [icmp6 sum ok] ICMP6, neighbor advertisement, length 32, tgt is {V6},"
        f" Flags [override] destination link-address option (2), length 8 (1): {MAC6}"
    ) == 2  # fmt: skip


@on_uvloop
async def test_announcements_go_on_and_correct_who_knows_another_address(lan: Lan) -> None:
    async with standing(lan, announce=0.1) as it:
        for address in MEMBERS:
            lab.run("ip", "-n", lan.there, "neighbour", "replace", address, "lladdr",
                    "02:00:00:00:00:99", "dev", lan.asker, "nud", "stale")  # fmt: skip
        for address, mac in MEMBERS.items():
            await until(lambda a=address, m=mac: m in lan.neighbour(a), "the new address")  # type: ignore[misc]
        before = it.ledger.announced
        await until(lambda: it.ledger.announced >= before + 4, "two more rounds")
    assert it.ledger.unsent == 0


@pytest.mark.parametrize(("address", "prefix"), [(V4, "/24"), (V6, "/64")])
@on_uvloop
async def test_an_address_that_somebody_has_is_refused_with_its_mac(
    lan: Lan, address: str, prefix: str
) -> None:
    nodad = ["nodad"] if ":" in address else []
    lab.run("ip", "-n", lan.there, "address", "add", address + prefix, "dev", lan.asker, *nodad)
    mac = link_address(lan.there, lan.asker)
    before = lab.descriptors()
    with wire(lan.there, lan.asker) as sock:
        says = f"^{address} on {lan.interface} is in use by {mac}: "
        with pytest.raises(UserError, match=says):
            async with standing(lan):
                pass
        said = heard(sock)
    assert said, "probes"
    assert not [each for each in said if each.src in (MAC4, MAC6)], "nothing in the owner's place"
    assert not lab.left_open(before)


@on_uvloop
async def test_two_stand_ins_do_not_answer_for_the_same_member(lan: Lan) -> None:
    async with standing(lan):
        second = StandIn(lan.asker, {V4: MAC4}, 30.0, lan.there)
        with pytest.raises(UserError, match=f"^{V4} on {lan.asker} is in use by {MAC4}: "):
            await second.start()


@on_uvloop
async def test_who_probes_for_a_member_learns_that_it_is_taken(lan: Lan) -> None:
    async with standing(lan):
        lab.run("sysctl", "-qw", f"net.ipv6.conf.{lan.asker}.accept_dad=1", ns=lan.there)
        lab.run("ip", "-n", lan.there, "address", "add", f"{V6}/64", "dev", lan.asker)
        show = ("ip", "-n", lan.there, "-6", "address", "show", "dev", lan.asker)
        await until(lambda: "dadfailed" in lab.run(*show), "duplicate address detection")
        with wire(lan.there, lan.asker) as sock:
            probe = ARP(op=1, hwsrc="02:00:00:00:00:aa", psrc="0.0.0.0", pdst=V4)
            (reply,) = await replies(sock, Ether(dst="ff:ff:ff:ff:ff:ff", src=probe.hwsrc) / probe)
        assert (reply.src, reply[ARP].psrc, reply[ARP].hwsrc) == (MAC4, V4, MAC4)


@on_uvloop
async def test_a_conflict_is_defended_once_then_given_way_to_then_taken_back(lan: Lan) -> None:
    thief = "02:00:00:00:00:99"
    theft = Ether(dst="ff:ff:ff:ff:ff:ff", src=thief) / ARP(op=1, hwsrc=thief, psrc=V4, pdst=V4)
    async with standing(lan, {V4: MAC4, "10.77.0.12": MAC6}) as it:
        await until(lambda: it.ledger.announced == 4, "the second announcement")
        with wire(lan.there, lan.asker) as sock:
            sock.send(bytes(theft))
            await until(lambda: it.ledger.announced == 5, "the defence")
            (defence,) = heard(sock)
            assert (defence[ARP].psrc, defence[ARP].pdst, defence[ARP].hwsrc) == (V4, V4, MAC4)
            sock.send(bytes(theft))
            await until(lambda: it.given_up == [V4], "giving up")
            assert (it.ledger.conflicts, it.ledger.announced) == (2, 5)
            other = END.copy()
            other[ARP].pdst = "10.77.0.12"
            sock.send(bytes(END))
            sock.send(bytes(other))
            await until(lambda: it.ledger.answered, "the other member's answer")
            assert [each[ARP].psrc for each in heard(sock)] == ["10.77.0.12"]

            it._announce = 0.2  # from here on it looks whether the address is free
            it._next_announcement = 0
            answer = Ether(dst="ff:ff:ff:ff:ff:ff", src=thief) / ARP(
                op=2, hwsrc=thief, psrc=V4, pdst="0.0.0.0"
            )
            probes: list[Packet] = []

            def probed() -> bool:
                probes.extend(each for each in heard(sock) if each[ARP].psrc == "0.0.0.0")
                return bool(probes)

            await until(probed, "the probe")
            sock.send(bytes(answer))
            await until(lambda: it.ledger.conflicts == 3, "the objection")
            assert it.given_up == [V4]
            await until(lambda: it.given_up == [], "nobody objects any more")
            heard(sock)
            sock.send(bytes(END))
            await until(lambda: any(each[ARP].op == 2 for each in heard(sock)), "an answer")


@on_uvloop
async def test_down_and_up(lan: Lan) -> None:
    async with standing(lan) as it:
        await until(lambda: it.ledger.announced == 4, "both announcements")
        lab.run("ip", "-n", lan.here, "link", "set", lan.interface, "down")
        await until(lambda: it._is_down, "noticing")
        with wire(lan.there, lan.asker) as sock:
            lab.run("ip", "-n", lan.here, "link", "set", lan.interface, "up")
            await until(lambda: it.ledger.announced == 6, "announcements")
            assert {each.src for each in heard(sock)} >= {MAC4, MAC6}
            assert await replies(sock, END) == []  # the last question was answered
        assert it.ledger.unsent == 0


@on_uvloop
async def test_the_cable_is_pulled_at_the_other_end(lan: Lan) -> None:
    async with standing(lan) as it:
        lab.run("ip", "-n", lan.there, "link", "set", lan.asker, "down")
        await until(lambda: it._is_down, "noticing")
        lab.run("ip", "-n", lan.there, "link", "set", lan.asker, "up")
        await until(lambda: not it._is_down, "coming back")
        with wire(lan.there, lan.asker) as sock:
            assert await replies(sock, END) == []


@on_uvloop
async def test_deleted_and_made_again(lan: Lan) -> None:
    async with standing(lan) as it:
        lab.run("ip", "-n", lan.here, "link", "delete", lan.interface)
        await until(lambda: it._is_down, "noticing")
        lab.run("ip", "-n", lan.here, "link", "add", lan.interface, "type", "veth",
                "peer", "name", lan.asker, "netns", lan.there)  # fmt: skip
        for ns, name in ((lan.there, lan.asker), (lan.here, lan.interface)):
            lab.run("ip", "-n", ns, "link", "set", name, "up")
        await until(lambda: not it._is_down, "coming back")
        assert promiscuity(lan) == 1
        assert it._socket is not None
        assert not it._socket.is_stale(), "the new one is known"
        with wire(lan.there, lan.asker) as sock:
            assert await replies(sock, END) == []
            unicast = END.copy()
            unicast.dst = MAC4
            unicast.src = unicast[ARP].hwsrc = "02:00:00:00:00:ab"
            (reply,) = await replies(sock, unicast)
            assert reply.dst == "02:00:00:00:00:ab"


@on_uvloop
async def test_on_a_bridge_the_members_own_addresses_are_heard_too(spaces: tuple[str, str]) -> None:
    here, there = spaces
    bridge = lab.unique("br")
    with lab.veth(here, there, None, "10.77.0.1/24") as (port, asker):
        lab.run("ip", "-n", here, "link", "add", bridge, "type", "bridge")
        try:
            lab.run("ip", "-n", here, "link", "set", port, "master", bridge)
            lab.run("ip", "-n", here, "link", "set", bridge, "up")
            await until(lambda: lab.carrier(here, bridge), "carrier")
            async with standing(Lan(here, there, bridge, asker), {V4: MAC4}):
                with wire(there, asker) as sock:
                    unicast = END.copy()
                    unicast.dst = MAC4
                    unicast.src = unicast[ARP].hwsrc = "02:00:00:00:00:ab"
                    assert len(await replies(sock, unicast)) == 1
        finally:
            lab.run("ip", "-n", here, "link", "delete", bridge)


@pytest.mark.parametrize("tag", [Dot1Q(vlan=0, prio=5), Dot1Q(vlan=7, prio=3), Dot1AD(vlan=7)])
@on_uvloop
async def test_an_answer_has_the_tag_that_the_kernel_took_out(lan: Lan, tag: Packet) -> None:
    async with standing(lan, vlan=tag.vlan) as it:
        with wire(lan.there, lan.asker) as sock:
            sock.setsockopt(libc.SOL_PACKET, 8, 1)  # PACKET_AUXDATA
            question = bytes(END)
            octets = bytes(Ether(dst=END.dst, src=END.src) / tag)
            sock.send(octets[:16] + question[12:])
            await until(lambda: it.ledger.answered == 1, "the answer")
            sock.send(octets[:14] + b"\x00\x09" + question[12:])  # VLAN 9 is not ours
            frame, control, _, _ = sock.recvmsg(4096, 64)
            tci, tpid = struct.unpack("12x4xHH", control[0][2])
        assert Ether(frame)[ARP].psrc == V4
        assert (tpid, tci) == (octets[12] << 8 | octets[13], octets[14] << 8 | octets[15])
    assert it.ledger.answered == 1


@on_uvloop
async def test_our_own_captures_refuse_what_is_said(lan: Lan) -> None:
    program = libpcap.refuse_marked(libpcap.compile_filter("ether src " + MAC4))
    with (
        wire(lan.here, lan.interface) as ours,
        wire(lan.there, lan.asker) as far,
    ):
        ours.setsockopt(libc.SOL_PACKET, tpacket.PACKET_IGNORE_OUTGOING, 0)
        libc.attach_filter(ours.fileno(), program)
        async with standing(lan):
            await replies(far, END)
            assert heard(ours) == []


@on_uvloop
async def test_the_interface_is_promiscuous_for_as_long_as_it_takes(lan: Lan) -> None:
    assert promiscuity(lan) == 0
    async with standing(lan):
        assert promiscuity(lan) == 1
    assert promiscuity(lan) == 0


@on_uvloop
async def test_solicited_node_groups_are_joined_where_there_is_ipv6(lan: Lan) -> None:
    async with standing(lan):
        assert "ff02::1:ff00:10" in lab.run(
            "ip", "-n", lan.here, "maddress", "show", "dev", lan.interface
        )


@on_uvloop
async def test_interfaces_on_which_nobody_can_be_asked(lan: Lan) -> None:
    before = lab.descriptors()
    lab.run("ip", "-n", lan.here, "address", "add", "10.77.0.66/24", "dev", lan.interface)
    for interface, members, says in (
        ("nowhere0", MEMBERS, r"^no interface named nowhere0 \(there are: .*lo"),
        ("lo", MEMBERS, "^interface lo carries no Ethernet frames"),
        (lan.interface, {"10.77.0.66": MAC4}, "^10.77.0.66 on .* is this host's own address: "),
    ):
        with pytest.raises(UserError, match=says):
            await StandIn(interface, members, 30.0, lan.here).start()
    lab.run("ip", "-n", lan.there, "link", "set", lan.asker, "down")
    with pytest.raises(UserError, match=f"^interface {lan.interface} is down or has no carrier: "):
        await StandIn(lan.interface, MEMBERS, 30.0, lan.here).start()
    assert not lab.left_open(before)


@on_uvloop
async def test_closing_ends_it(lan: Lan) -> None:
    async with standing(lan, announce=0.1) as it:
        pass
    it.close()  # twice is no harm
    assert it._timer is not None
    assert it._timer.cancelled()
    with wire(lan.there, lan.asker) as sock:
        sock.send(bytes(END))
        for _ in range(10):
            await asyncio.sleep(0)  # turns of the loop
        assert heard(sock) == []


def link_address(ns: str, interface: str) -> str:
    return json.loads(lab.run("ip", "-j", "-n", ns, "link", "show", "dev", interface))[0]["address"]


def promiscuity(lan: Lan) -> int:
    show = ("ip", "-j", "-d", "-n", lan.here, "link", "show", "dev", lan.interface)
    return json.loads(lab.run(*show))[0]["promiscuity"]
