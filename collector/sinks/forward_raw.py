"""The raw forward sink: a load balancer in front of a farm of collectors.

Datagrams go on as they came, UDP to UDP and GRE to GRE, to one of several weighted back ends. The
flow inside chooses: both directions of a connection, its fragments, and whatever tunnels they came
by meet at the same back end. Rendezvous hashing (:mod:`tunnelbridge.clone.rendezvous`) lets several
such balancers agree without talking to each other.

Huawei's traffic mirroring asks for such a front end: a network load balancer with a UDP listener,
weighted back ends, and forwarding to the same port or another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import numpy as np

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.carried import Carried, read_carried
from collector.sinks.flows import FlowReader
from collector.sinks.forwarding import (
    ForwardLedger,
    Heard,
    common_options,
    count_sent,
    refuse_own,
)
from collector.sinks.options import LONGEST, SinkOptions, parse_sink
from collector.sinks.selection import Selection
from tunnelbridge.batch import Column
from tunnelbridge.clone.pool import Wanted, chooser
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.names import resolve_host
from tunnelbridge.linux.privileges import effective_capabilities
from tunnelbridge.linux.transmit import RawTunnelSocket, TunnelSocket, UdpTunnelSocket
from tunnelbridge.tunnel import SOURCE_GONE
from tunnelbridge.watch import LossWatch
from tunnelbridge.wire.encapsulation import UDP_PROTOCOL

OPTION: Final = "--forward-raw"
MOST_WEIGHT: Final = 1000
NO_DATAGRAM: Final = "no-datagram"
"""Frames whose datagram is not known any more."""


@dataclass(frozen=True, slots=True)
class BackEnd:
    """One back end as it was asked for."""

    remote: str
    """An IP literal."""
    port: int | None
    """Where UDP goes; None for the port it came to."""
    weight: int = 1

    @property
    def name(self) -> str:
        """What the ledger calls it, and what rendezvous hashing knows it by."""
        if self.port is None:
            return self.remote
        return (
            f"[{self.remote}]:{self.port}" if ":" in self.remote else f"{self.remote}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class RawForwarding:
    """The raw forward sink as it was asked for; nothing is open yet."""

    back_ends: tuple[BackEnd, ...]
    options: SinkOptions
    """Filter and queue; the target in it means nothing."""


def plan_raw_forwarding(texts: Sequence[str]) -> RawForwarding | None:
    """Return the sink of all ``--forward-raw HOST[:PORT][?weight=N&filter=…&queue=…]``.

    None where there is none. Raises UsageError and UserError.
    """
    if not texts:
        return None
    asked = [parse_sink(text, OPTION, ("weight",)) for text in texts]
    back_ends = [_back_end(options) for options in asked]
    for number, back_end in enumerate(back_ends):
        if back_end.name in [other.name for other in back_ends[:number]]:
            raise UsageError(f"{OPTION} {back_end.name} is given twice: add weight=2 to the first")
    if not any(back_end.weight for back_end in back_ends):
        raise UsageError(f"{OPTION}: no back end has a weight: nothing would be forwarded")
    options = common_options(OPTION, asked)
    if options.snaplen < LONGEST:
        raise UsageError(f"{OPTION} {texts[0]}: datagrams go on unchanged: leave snaplen out")
    return RawForwarding(tuple(back_ends), options)


def _back_end(options: SinkOptions) -> BackEnd:
    text, weight = options.target, options.more.get("weight", "1")
    if not (weight.isascii() and weight.isdecimal()) or int(weight) > MOST_WEIGHT:
        raise UsageError(f"{OPTION} {text}: weight={weight}: expected 0 to {MOST_WEIGHT}")
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{OPTION} {text}: {error}") from None
    if not host or parts.netloc != text or "@" in text or port == 0:
        raise UsageError(f"{OPTION} {text}: expected HOST[:PORT], as 192.0.2.7:4789")
    if text.count(":") > 1 and not text.startswith("["):
        raise UsageError(f"{OPTION} {text}: put an IPv6 address in brackets: [2001:db8::1]:4789")
    return BackEnd(resolve_host(host), port, int(weight))


class ForwardRawSink:
    """Passes datagrams on to back ends.

    Raises UsageError: a wrong filter, or a back end that leads back to what is ``heard`` here;
    UserError: no route.
    """

    def __init__(self, asked: RawForwarding, heard: Heard) -> None:
        for back_end in asked.back_ends:
            _refuse_loop(back_end, heard)
        self._selection = Selection(asked.options)
        self._flows = FlowReader()
        self._watch = LossWatch()
        self._choose = chooser(
            "flow",
            "packet",
            [back_end.name for back_end in asked.back_ends],
            [back_end.weight for back_end in asked.back_ends],
        )
        self._ways: list[_Way] = []
        with contextlib.ExitStack() as opening:
            for back_end in asked.back_ends:
                way = _Way(back_end, heard, asked.options.queue_octets)
                opening.callback(way.close)
                self._ways.append(way)
            opening.pop_all()
        names = ", ".join(way.ledger.name for way in self._ways)
        self._counts = ForwardLedger(
            f"forward-raw {names}", far_ends=[way.ledger for way in self._ways]
        )
        self.ledger: SinkLedger = self._counts

    def put(self, delivery: Delivery) -> None:
        """Pass on the datagrams of the frames that the sink wants."""
        delivery = self._selection.apply(delivery, self.ledger)
        if not len(delivery):
            return
        flows = self._flows.read(delivery.frames)
        carried = read_carried(delivery, flows.entropy)
        if carried is None:
            self._counts.not_offered[NO_DATAGRAM] += len(delivery)
        else:
            choice = self._choose.choose(Wanted(flows.hash, delivery.frames.timestamp))
            for number, way in enumerate(self._ways):
                rows = np.flatnonzero(choice == number)
                if rows.size:
                    way.send(carried.select(rows))
        self._counts.settle()

    def tick(self, now: int) -> None:
        """Follow the network's changes, and tell of losses."""
        for way in self._ways:
            with contextlib.suppress(UserError, OSError):  # no route now: sending counts it
                way.refresh()
        self._watch.look(self._counts.far_ends)

    def is_gone(self) -> bool:
        """Never: a back end may come back."""
        return False

    def close(self) -> None:
        """Close the sockets."""
        for way in self._ways:
            way.close()


class _Way:
    """The sockets to one back end: raw ones by IP protocol, or plain UDP ones by port.

    Without CAP_NET_RAW nothing but UDP was received, and source ports are the sockets' own.
    """

    def __init__(self, back_end: BackEnd, heard: Heard, queue_octets: int) -> None:
        self.ledger = TunnelLedger(back_end.name)
        self._back_end = back_end
        self._queue_octets = queue_octets
        self._is_raw = "CAP_NET_RAW" in effective_capabilities()
        if self._is_raw:
            wanted = heard.protocols | ({UDP_PROTOCOL} if heard.ports else set())
        else:
            wanted = heard.ports if back_end.port is None else frozenset({back_end.port})
        self._source_gone = 0
        self._sockets: dict[int, TunnelSocket] = {}
        self._open(sorted(wanted))

    def send(self, carried: Carried) -> None:
        """Send datagrams, and count."""
        number = carried.protocol if self._is_raw else self._ports(carried)
        for each in np.unique(number).tolist():
            share = carried.select(np.flatnonzero(number == each))
            if self._is_raw and each != UDP_PROTOCOL:
                rows = np.zeros((len(share.protocol), 0), np.uint8)
            else:
                rows = share.udp_headers(self._back_end.port)
            sent = self._sockets[each].send(rows, share.payload)
            count_sent(self.ledger, len(rows), sent)

    def refresh(self) -> None:
        """Open new sockets once the host has lost the address that the old ones send from."""
        gone = self.ledger.errors[SOURCE_GONE]
        if gone > self._source_gone:
            self._source_gone = gone
            before = self._sockets
            self._open(sorted(before))
            for sock in before.values():
                sock.close()

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def _open(self, numbers: Sequence[int]) -> None:
        with contextlib.ExitStack() as opening:
            opened = {number: opening.enter_context(self._socket(number)) for number in numbers}
            opening.pop_all()
        self._sockets = opened

    def _socket(self, number: int) -> TunnelSocket:
        """Open the socket for an IP protocol, or for a UDP port."""
        if self._is_raw:
            sock: TunnelSocket = RawTunnelSocket(Endpoint(self._back_end.remote, number))
        else:
            sock = UdpTunnelSocket(Endpoint(self._back_end.remote, UDP_PROTOCOL), number)
        return sock.never_wait(self._queue_octets)

    def _ports(self, carried: Carried) -> Column:
        port = self._back_end.port
        return carried.destination if port is None else np.full_like(carried.destination, port)


def _refuse_loop(back_end: BackEnd, heard: Heard) -> None:
    name = f"{OPTION} {back_end.name}"
    ports = heard.ports if back_end.port is None else frozenset({back_end.port})
    if heard.ports:
        refuse_own(name, back_end.remote, UDP_PROTOCOL, ports, heard)
    for protocol in sorted(heard.protocols):
        refuse_own(name, back_end.remote, protocol, frozenset(), heard)
