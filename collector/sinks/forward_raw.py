"""The raw forward sink: a load balancer in front of a farm of collectors.

Datagrams go on as they came, UDP to UDP and GRE to GRE, to one of several weighted back ends. The
flow inside chooses: both directions of a connection, its fragments, and whatever tunnels they came
by meet at the same back end. Rendezvous hashing (:mod:`tunnelbridge.clone.rendezvous`) lets several
such balancers agree without talking to each other.

Huawei's traffic mirroring asks for such a front end: a network load balancer with a UDP listener,
weighted back ends, and forwarding to the same port or another.

Sequence numbers go on as they came: where several back ends share a stream each of them sees gaps,
and only the ledger of this collector tells what was lost on the way here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from collector.delivery import Delivery
from collector.sinks.back_ends import OPTION, BackEnd, RawForwarding
from collector.sinks.carried import Carried, read_carried
from collector.sinks.flows import FlowReader
from collector.sinks.forwarding import FarEnds, Heard, count_sent, refuse_own
from collector.sinks.selection import Selection
from tunnelbridge.batch import Column
from tunnelbridge.clone.pool import Wanted, chooser
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.privileges import effective_capabilities
from tunnelbridge.linux.transmit import RawTunnelSocket, TunnelSocket, UdpTunnelSocket
from tunnelbridge.tunnel import SOURCE_GONE
from tunnelbridge.wire.encapsulation import UDP_PROTOCOL

NO_DATAGRAM: Final = "no-datagram"
"""Frames whose datagram is not known any more."""


class ForwardRawSink(FarEnds["_Way"]):
    """Passes datagrams on to back ends.

    Raises UsageError: a wrong filter, or a back end that leads back to what is ``heard`` here;
    UserError: no route.
    """

    def __init__(self, asked: RawForwarding, heard: Heard) -> None:
        for back_end in asked.back_ends:
            _refuse_loop(back_end, heard)
        self._selection = Selection(asked.options)
        self._flows = FlowReader()
        self._choose = chooser(
            "flow",
            "packet",
            [back_end.name for back_end in asked.back_ends],
            [back_end.weight for back_end in asked.back_ends],
        )
        names = ", ".join(back_end.name for back_end in asked.back_ends)
        octets = asked.options.queue_octets
        self._open(
            f"forward-raw {names}",
            [partial(_Way, back_end, heard, octets) for back_end in asked.back_ends],
        )

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
            for way, rows in self._chosen(choice):
                way.send(carried.select(rows))
        self._counts.settle()


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
