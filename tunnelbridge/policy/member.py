"""A pool member at work: its tunnels and what became of the clones for it."""

from __future__ import annotations

from tunnelbridge.ledger import MemberLedger
from tunnelbridge.policy.plan import MemberPlan
from tunnelbridge.restore.readdress import to_member
from tunnelbridge.tunnel import Frames, Tunnel


class Member:
    """Sends frames into the member's tunnels, each of them, and counts."""

    def __init__(self, plan: MemberPlan, tunnels: list[Tunnel]) -> None:
        self.plan = plan
        self.tunnels = tunnels
        self.ledger = MemberLedger(plan.ip)

    def send(self, frames: Frames) -> int:
        """Clone frames to the member; return how many copies went to tunnels."""
        if self.plan.address is not None:
            batch, _ = to_member(
                frames.batch, frames.header_length, frames.ethertype, self.plan.address
            )
            frames = frames.with_batch(batch)
        copies, ledger = 0, self.ledger
        for tunnel in self.tunnels:
            outcome = tunnel.send(frames)
            copies += outcome.offered
            ledger.num_total_pkts_cloned += outcome.offered
            ledger.num_mbuf_alloc_failed += outcome.queue_dropped
            ledger.num_driver_failures += outcome.failed
            ledger.num_succeeded += outcome.sent
            ledger.octets += outcome.octets
        return copies
