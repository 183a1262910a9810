"""Stand in for members on a LAN: probe, announce, answer, and give way to who has an address.

``clone/stand_in`` makes the frames, ``linux/neighbour_socket`` carries them; this is the loop around
them. What is then sent to the members' MAC addresses is captured and cloned as any other traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from tunnelbridge.clone.defence import Defence, Step
from tunnelbridge.clone.stand_in import Answers, Claim
from tunnelbridge.errors import UserError
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.neighbour_socket import NeighbourSocket

PROBES: Final = 3
PROBE_INTERVAL: Final = 0.3
"""Seconds to wait for an objection after each probe: RFC 5227 §2.1.1 shortened (it has one or two, and
two after the last), because neighbours on a LAN answer within milliseconds."""
SECOND_ANNOUNCEMENT: Final = 2.0
"""Seconds after the first one (RFC 5227 §2.3): either may be lost."""
TICK: Final = 0.5
FRAMES_AT_ONCE: Final = 64
"""Per wake-up, so that a storm does not keep the loop from packets that matter."""


@dataclass(slots=True)
class StandInLedger:
    """What was said and heard, in frames."""

    answered: int = 0
    announced: int = 0
    conflicts: int = 0
    """Frames in which somebody else used a member's address."""
    unsent: int = 0
    """Frames of ours that the interface did not take."""


class StandIn:
    """Answers for ``members`` (address → MAC address) on ``interface`` while it is started.

    Every member is announced again each ``announce`` seconds, so that switches know where its MAC
    address is. ``vlan`` is for trunks without an interface for the VLAN; 0 is untagged.
    """

    def __init__(
        self,
        interface: str,
        members: Mapping[str, str],
        announce: float = 30.0,
        namespace: str | None = None,
        vlan: int = 0,
    ) -> None:
        self.ledger = StandInLedger()
        self._interface = interface
        self._announce = announce
        self._namespace = namespace
        self._answers = Answers(members, vlan)
        self._defence = Defence()
        self._socket: NeighbourSocket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next_announcement = 0.0
        self._rival: asyncio.Future[Claim] | None = None
        """Who answered our probes; None once they are over."""
        self._is_down = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(interface=interface)

    @property
    def given_up(self) -> list[str]:
        """Members' addresses that somebody else uses, and that are not answered for now."""
        return self._defence.given_up

    async def start(self) -> None:
        """Probe, then announce and answer until :meth:`close`.

        Raises UserError: a member's address is in use; the interface is missing, down or without
        a carrier; no CAP_NET_RAW.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._socket = in_thread(
                lambda: NeighbourSocket(
                    self._interface, [member for member in self._answers.members if ":" in member]
                ),
                self._namespace,
            )
            await self._probe(self._socket)
        except BaseException:
            self.close()
            raise
        self._say(self._answers.announcements())
        self._next_announcement = self._loop.time() + min(SECOND_ANNOUNCEMENT, self._announce)
        self._timer = self._loop.call_later(TICK, self._tick)

    def close(self) -> None:
        """Answer no more; who has asked forgets in its own time."""
        sock, self._socket = self._socket, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None and self._loop is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()

    async def _probe(self, sock: NeighbourSocket) -> None:
        """Raise UserError if anybody has a member's address."""
        for member in self._answers.members:
            if member in sock.own_addresses:
                raise UserError(
                    f"{member} on {self._interface} is this host's own address: a stand-in is for"
                    " members that are elsewhere"
                )
        if not sock.is_running():
            raise UserError(
                f"interface {self._interface} is down or has no carrier: without it nobody can be"
                f" asked who has {self._answers.members[0]}"
            )
        loop = asyncio.get_running_loop()
        self._rival = loop.create_future()
        loop.add_reader(sock.fileno(), self._read)
        for _ in range(PROBES):
            for frame in self._answers.probes(sock.mac):
                if not sock.send(frame):
                    raise UserError(f"interface {self._interface} takes no frames: is it down?")
            await asyncio.wait([self._rival], timeout=PROBE_INTERVAL)
            self._read()  # on a late loop the timer comes before the answer that has arrived
            if self._rival.done():
                address, mac = self._rival.result()
                raise UserError(
                    f"{address} on {self._interface} is in use by {mac}: give the member another"
                    " address, or take that one out of service"
                )
        self._rival = None

    def _read(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            if self._socket is None:
                return
            try:
                frame = self._socket.receive()
            except OSError as error:
                self._lose(error.strerror)
                return
            if frame is None:
                return
            self._hear(self._socket, frame)

    def _hear(self, sock: NeighbourSocket, frame: bytes) -> None:
        if self._rival is not None:
            claim = self._answers.rival(frame, sock.mac)
            if claim is not None and not self._rival.done():
                self._rival.set_result(claim)
            return
        conflict = self._answers.conflict(frame)
        if conflict is not None:
            self._contest(conflict)
        reply = self._answers.answer(frame)
        if reply is not None:
            self.ledger.answered += self._send(reply)

    def _contest(self, conflict: Claim) -> None:
        """Defend an address once, then give it up (RFC 5227 §2.4 (b))."""
        self.ledger.conflicts += 1
        address, mac = conflict
        step = self._defence.meet(address, asyncio.get_running_loop().time())
        if step is Step.DEFEND:
            self._log.warning("somebody else uses a member's address", address=address, mac=mac)
            self._say([self._answers.announcement(address)])
        elif step is Step.GIVE_UP:
            self._answers.silence(address, True)
            self._log.error("a member's address is given up to its other user",
                            address=address, mac=mac)  # fmt: skip

    def _tick(self) -> None:
        """Follow the interface, announce when it is time."""
        loop, sock = self._loop, self._socket
        if loop is None or sock is None:
            return
        self._timer = loop.call_later(TICK, self._tick)
        if not sock.is_running():
            self._lose("no carrier")
        elif self._is_down or sock.is_stale():
            self._return(loop, sock)
        elif loop.time() >= self._next_announcement:
            self._announce_all(loop, sock)

    def _lose(self, cause: str | None) -> None:
        """Say so once; libuv has stopped to poll a descriptor that reported an error."""
        if self._loop is None or self._socket is None or self._is_down:
            return
        self._is_down = True
        self._loop.remove_reader(self._socket.fileno())
        self._log.warning("nobody can ask for the members", cause=cause)

    def _return(self, loop: asyncio.AbstractEventLoop, sock: NeighbourSocket) -> None:
        """Listen again; the interface may be another one of the same name."""
        try:
            if sock.is_stale():
                sock.attach()
        except (UserError, OSError):  # gone at once; the next tick looks again
            return
        self._is_down = False
        loop.remove_reader(sock.fileno())
        loop.add_reader(sock.fileno(), self._read)
        self._log.info("the members can be asked for again")
        self._announce_all(loop, sock)

    def _announce_all(self, loop: asyncio.AbstractEventLoop, sock: NeighbourSocket) -> None:
        """Announce what is ours; ask whether what was given up is free again."""
        self._next_announcement = loop.time() + self._announce
        regained, contested = self._defence.review()
        for address in regained:
            self._answers.silence(address, False)
            self._log.info("a member's address is free again", address=address)
        self._say(self._answers.announcements())
        for address in contested:
            self._send(self._answers.probe(address, sock.mac))

    def _say(self, announcements: list[bytes]) -> None:
        for frame in announcements:
            self.ledger.announced += self._send(frame)

    def _send(self, frame: bytes) -> bool:
        done = self._socket is not None and self._socket.send(frame)
        self.ledger.unsent += not done
        return done
