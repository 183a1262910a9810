"""The forward sink: frames into another tunnel, any tunnel in, any tunnel out.

The sender's own tunnels do it, a batch at a time: direction, original length and truncation go on
where the outgoing format can tell them. What does not fit into a socket's send buffer (``queue``) is
dropped and counted at once, so nobody waits for a congested tunnel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import quote

import numpy as np

from collector.delivery import Delivery
from collector.sinks.flows import FlowReader
from collector.sinks.forwarding import FarEnds, Heard, common_options, refuse_own
from collector.sinks.options import LONGEST, SinkOptions, parse_sink
from collector.sinks.selection import Selection
from tunnelbridge.clone.pool import Wanted, chooser
from tunnelbridge.config.tunnel import TUNNELS, MtuPolicy, parse_tunnel
from tunnelbridge.errors import UsageError
from tunnelbridge.targets import Target, far_end, open_socket
from tunnelbridge.tunnel import Frames, Tunnel
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.flow import Flows

OPTION: Final = "--forward"
BY: Final = ("all", "flow", "round-robin")
"""Which of several tunnels gets a frame."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """One forward sink as it was asked for; nothing is open yet."""

    targets: tuple[Target, ...]
    options: SinkOptions
    """Filter, snap length and queue; the target in it means nothing."""
    by: str = "all"

    @property
    def name(self) -> str:
        """What the ledger calls it."""
        names = ", ".join(target.name for target in self.targets)
        return f"forward {names}" + (f" by {self.by}" if len(self.targets) > 1 else "")


def plan_forwarding(texts: Sequence[str], by: str | None = None) -> list[Forwarding]:
    """Return the sinks of all ``--forward TUNNEL[?filter=…&snaplen=…&queue=…]``.

    One for each tunnel that gets every frame (``all``, the default for a single one); one for all
    tunnels that share the frames (``flow``, the default for several, or ``round-robin``).
    Raises UsageError and UserError.
    """
    if by is not None and by not in BY:
        raise UsageError(f"--forward-by {by}: expected {', '.join(BY)}")
    if by is not None and not texts:
        raise UsageError(f"--forward-by {by} says how frames are shared: add {OPTION} TUNNEL")
    asked = [_parse(text) for text in texts]
    targets = [target for target, _ in asked]
    for number, target in enumerate(targets):
        if target.signature() in [other.signature() for other in targets[:number]]:
            raise UsageError(
                f"{OPTION} {target.name}: the far end could not tell it from another one:"
                " give it another identifier"
            )
    by = by or ("flow" if len(asked) > 1 else "all")
    if by == "all" or not asked:
        return [Forwarding((target,), options) for target, options in asked]
    options = common_options(OPTION, [options for _, options in asked])
    return [Forwarding(tuple(targets), options, by)]


def _parse(text: str) -> tuple[Target, SinkOptions]:
    """Tell the options of the tunnel from those of the sink."""
    model = TUNNELS.get(text.partition("://")[0].lower())
    options = parse_sink(text, OPTION, () if model is None else model.options())
    pairs = [f"{name}={quote(value, safe='')}" for name, value in options.more.items()]
    url = options.target + ("?" + "&".join(pairs) if pairs else "")
    spec = parse_tunnel(url)
    if options.snaplen < ethernet.HEADER.itemsize:
        raise UsageError(f"{OPTION} {text}: a tunnel carries MAC headers: snaplen=14 at least")
    return Target(url, spec, far_end(url, spec)), options


class ForwardSink(FarEnds[Tunnel]):
    """Encapsulates frames again and sends them.

    Raises UsageError: a wrong filter, or a tunnel that leads back to what is ``heard`` here;
    UserError: no route, no privilege.
    """

    def __init__(self, asked: Forwarding, heard: Heard) -> None:
        for target in asked.targets:
            _refuse_loop(target, heard)
        self._snaplen = asked.options.snaplen
        self._selection = Selection(replace(asked.options, snaplen=LONGEST))
        self._flows = FlowReader()
        self._choose = None
        if len(asked.targets) > 1:
            names = [target.name for target in asked.targets]
            self._choose = chooser(asked.by, "packet", names, [1] * len(names))
        octets = asked.options.queue_octets
        self._open(asked.name, [partial(_open, target, octets) for target in asked.targets])

    def put(self, delivery: Delivery) -> None:
        """Send what the sink wants of the frames."""
        delivery = self._selection.apply(delivery, self.ledger)
        if not len(delivery):
            return
        flows = self._flows.read(delivery.frames)
        frames = Frames(
            batch=delivery.frames.cut(self._snaplen),
            ethertype=flows.ethertype,
            tag=flows.tag,
            header_length=flows.payload - flows.start,
            entropy=flows.entropy,
            origin=np.arange(len(delivery)),
            incomplete=delivery.truncated,
        )
        for tunnel, share in self._shares(frames, flows):
            tunnel.send(share)
        self._counts.settle()

    def _shares(self, frames: Frames, flows: Flows) -> Iterator[tuple[Tunnel, Frames]]:
        if self._choose is None:
            yield self._far_ends[0], frames
            return
        choice = self._choose.choose(Wanted(flows.hash, frames.batch.timestamp))
        for tunnel, rows in self._chosen(choice):
            yield tunnel, frames.select(rows)


def _refuse_loop(target: Target, heard: Heard) -> None:
    if target.is_ether:
        return
    outer = target.spec.encapsulation(may_cut=False)
    ports = frozenset() if outer.port is None else frozenset({outer.port})
    refuse_own(f"{OPTION} {target.name}", target.remote, outer.ip_protocol, ports, heard)


def _open(target: Target, queue_octets: int) -> Tunnel:
    """Open a tunnel that never waits; its headers tell of cut frames, which may come at any time."""
    policy, stack = target.plan(MtuPolicy.FRAGMENT, may_cut=True)
    return Tunnel(
        target.name,
        stack,
        lambda: open_socket(target, stack).never_wait(queue_octets),
        policy,
        target.ip_header,
    )
