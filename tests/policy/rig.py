"""A sender whose tunnels record: configuration in, frames in, what each tunnel got out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import recording

from tunnelbridge.batch import INBOUND, Batch, from_packets
from tunnelbridge.config.load import loads
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.from_config import plan_config
from tunnelbridge.policy.plan import Plan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.programs import expression_programs
from tunnelbridge.policy.selection import Selection
from tunnelbridge.policy.session import Session
from tunnelbridge.targets import Target
from tunnelbridge.tunnel import Numbering, Tunnel


class Rig:
    """A running policy; ``sockets`` by the tunnels' names, closed ones too."""

    def __init__(self, text: str) -> None:
        self.sockets: dict[str, recording.RecordingSocket] = {}
        self.fails = ""
        self.policy = Policy(plan(text), MtuPolicy.FRAGMENT, opener=self._open)
        self.pipeline = Pipeline(self.policy)

    def _open(
        self, target: Target, default: MtuPolicy, may_cut: bool, numbering: Numbering
    ) -> Tunnel:
        if self.fails and self.fails in target.name:
            raise OSError(f"cannot open {target.name}")
        policy, stack = target.plan(default, may_cut)
        sock = self.sockets[target.name] = recording.RecordingSocket()
        self.header = stack.overhead
        return Tunnel(target.name, stack, lambda: sock, policy, target.ip_header, numbering)

    def apply(self, text: str) -> None:
        mirror = loads(text, "test.toml")
        self.policy.apply(plan_config(mirror), mirror.mtu)

    def health(self, ip: str, up: bool) -> None:
        """Be the health check of a member."""
        for watched in self.policy.plan.watched:
            if watched[0] == ip:
                self.policy.set_up(watched, up)

    def feed(
        self,
        frames: Sequence[bytes],
        direction: int | Sequence[int] = INBOUND,
        source: str | None = None,
        now: int = 10**18,
    ) -> None:
        """Take frames through the pipeline as one batch, as from ``source`` or from a file."""
        batch: Batch = from_packets(list(frames), timestamp=now)
        batch.direction[:] = np.array(direction, np.uint8)
        self.pipeline.process(batch, self.selection(source))
        assert self.policy.ledger.balances(), self.policy.ledger.as_dict()

    def selection(self, source: str | None = None) -> Selection:
        sessions: list[Session] = self.policy.for_file()
        if source is not None:
            namespace, _, name = source.rpartition(":")
            sessions = self.policy.for_source(namespace or None, name)
        plans = [session.plan for session in sessions]
        return Selection(sessions, expression_programs(plans, None))

    def sent(self, name: str) -> list[bytes]:
        """Return the frames that left by the tunnel in whose name is ``name``, without headers."""
        (found,) = [each for each in self.sockets if name in each]
        (tunnel,) = [each for each in self.policy.tunnels if each.ledger.name == found]
        overhead = tunnel.encapsulation.overhead
        return [packet[overhead:] for packet in self.sockets[found].packets]

    def counts(self) -> dict[str, int]:
        """Return how many frames each tunnel got."""
        return {name: len(sock.packets) for name, sock in self.sockets.items()}


def plan(text: str) -> Plan:
    return plan_config(loads(text, "test.toml"))
