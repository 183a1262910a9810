"""Standing in for members, in namespaces: the kernel asks, tcpdump and tshark look on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
import uvloop
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Padding

import lab
from tunnelbridge import stand_in
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, tpacket
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
    monkeypatch.setattr(stand_in, "PROBE_INTERVAL", 0.1)
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


async def replies(sock: socket.socket, question: Packet, seconds: float = 0.05) -> list[Packet]:
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
            await asyncio.to_thread(lan.ask, "ping", "-c1", "-W1", address)
            assert f"lladdr {mac}" in lan.neighbour(address)
            assert "REACHABLE" in lan.neighbour(address)
        assert it.ledger.answered >= 2
        assert (it.ledger.conflicts, it.ledger.unsent, it.given_up) == (0, 0, [])
