"""A mirror session at work: what becomes of its packets, and to which members they go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tunnelbridge.batch import Column, Flags
from tunnelbridge.clone.flow_table import FlowTable, flow_key
from tunnelbridge.clone.nat import NatTable
from tunnelbridge.clone.pool import Chooser, InTurnPerFlow, Wanted, chooser
from tunnelbridge.ledger import SessionLedger
from tunnelbridge.policy.captured import Captured
from tunnelbridge.policy.member import Member
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, SessionPlan
from tunnelbridge.restore.readdress import readdress
from tunnelbridge.tunnel import Frames


class Group:
    """The members that get a session's clones: one of them, or all."""

    def __init__(self, plan: GroupPlan, members: list[Member], nat: NatTable | None) -> None:
        self.plan = plan
        self.members = members
        self.nat = nat
        self._up: Flags = np.ones(len(members), np.bool_)
        self._takers = _takers(members, self._up)
        self._choose: Chooser | None = None
        if plan.distribution != "all":
            self._choose = chooser(
                plan.distribution,
                "flow" if plan.per_flow else "packet",
                [member.plan.ip for member in members],
                [member.plan.weight for member in members],
            )

    def is_like(self, other: Group) -> bool:
        """Tell whether both send the same to the same tunnels: then turns go on with either."""
        return (
            self.plan == other.plan
            and self.nat is other.nat
            and all(
                mine.tunnels == others.tunnels
                for mine, others in zip(self.members, other.members, strict=True)
            )
        )

    def follow(self, former: Group) -> None:
        """Take over what counts on for a group that was changed: its members' counters, its flows."""
        before = {member.plan.ip: number for number, member in enumerate(former.members)}
        now = [before.get(member.plan.ip) for member in self.members]
        for member, number in zip(self.members, now, strict=True):
            if number is not None:
                member.ledger = former.members[number].ledger
        if isinstance(self._choose, InTurnPerFlow) and isinstance(former._choose, InTurnPerFlow):
            self._choose.follow(former._choose, now)

    def set_up(self, is_up: Callable[[MemberPlan], bool]) -> None:
        """Follow the members' health; ``is_up`` is asked for each."""
        up: Flags = np.array([is_up(member.plan) for member in self.members], np.bool_)
        if self._choose is not None and (up != self._up).any():  # buckets take 10 ms
            self._choose.set_available(up)
        self._up = up
        self._takers = _takers(self.members, up)

    def send(self, frames: Frames, captured: Captured, ledger: SessionLedger) -> None:
        """Give every frame to its member, or to all of them."""
        if self.nat is not None:
            frames = self._with_client_addresses(frames, captured, self.nat)
        if self._choose is None:
            for member in self._takers:
                ledger.copies += member.send(frames)
            ledger.no_member += 0 if self._takers else len(frames.batch)
        elif len(self._takers) == 1 and not self.plan.per_flow:  # flows are remembered for later
            ledger.copies += self._takers[0].send(frames)
        else:
            self._send_to_chosen(
                frames, self._choose.choose(self._wanted(frames, captured)), ledger
            )

    def _send_to_chosen(self, frames: Frames, choice: Column, ledger: SessionLedger) -> None:
        for number, member in enumerate(self.members):
            rows = np.flatnonzero(choice == number)
            if rows.size:
                ledger.copies += member.send(frames.select(rows))
        ledger.no_member += int((choice < 0).sum())

    def _wanted(self, frames: Frames, captured: Captured) -> Wanted:
        """Return what the distribution chooses by."""
        origin, flows = frames.origin, captured.flows
        by_source = self.plan.distribution == "source-ip"
        return Wanted(
            hash=flows.hash[origin],
            source_hash=captured.source_hash[origin] if by_source else None,
            flow_key=flow_key(flows)[origin] if self.plan.per_flow else None,
            now=frames.batch.timestamp,
        )

    def _with_client_addresses(self, frames: Frames, captured: Captured, nat: NatTable) -> Frames:
        """Undo source NAT in the clones."""
        new = nat.look_up(captured.echo_tuples_of(frames.origin))
        return frames.with_batch(
            readdress(frames.batch, frames.header_length, frames.ethertype, new)
        )


def _takers(members: list[Member], up: Flags) -> list[Member]:
    """Return the members that take clones: those that are up and not drained."""
    return [
        member for member, is_up in zip(members, up, strict=True) if is_up and member.plan.weight
    ]


class Session:
    """Takes the frames that a selection gave to it."""

    def __init__(
        self, plan: SessionPlan, groups: list[Group], former: Session | None = None
    ) -> None:
        self.plan = plan
        self.groups = groups
        self.ledger: SessionLedger = former.ledger if former else SessionLedger(plan.name)
        self.ledger.members = [member.ledger for group in groups for member in group.members]
        self.flows: FlowTable | None = None
        if plan.is_stateful:
            keeps = former is not None and former.plan.rules == plan.rules
            self.flows = former.flows if former is not None and keeps else FlowTable()

    def mirror(self, frames: Frames, rule: Column, captured: Captured) -> None:
        """Clone frames; ``rule`` is the number of the rule that accepted each frame's packet."""
        self.ledger.frames += len(frames.batch)
        if self.plan.packet_length is not None:
            frames = frames.with_batch(frames.batch.cut(self.plan.packet_length))
        if len(self.groups) == 1:
            self.groups[0].send(frames, captured, self.ledger)
            return
        group = np.array(self.plan.group_of_rule, np.int64)[rule]
        for number, each in enumerate(self.groups):
            rows = np.flatnonzero(group == number)
            if rows.size:
                each.send(frames.select(rows), captured, self.ledger)
