"""What ``tunnelbridge show`` tells of a running sender, as values for JSON."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

from tunnelbridge.errors import UserError
from tunnelbridge.interfaces import Interfaces
from tunnelbridge.ledger import MemberLedger
from tunnelbridge.policy.member import Member
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.session import Group, Session
from tunnelbridge.policy.wishes import Wishes
from tunnelbridge.replay import FileSource
from tunnelbridge.targets import Target


class Status:
    """Answers ``show WHAT``; keeps what NSX's counters were when they were last reset."""

    def __init__(self, wishes: Wishes, policy: Policy, interfaces: Interfaces | FileSource) -> None:
        self.wishes = wishes
        self._policy = policy
        self._interfaces = interfaces
        self._epoch = 0
        self._since = datetime.now(UTC)
        self._base: dict[int, tuple[MemberLedger, MemberLedger]] = {}
        """Ledgers and what they were, by identity; kept, so that no other can lie at their place."""
        self._answers: dict[str, Callable[[], Any]] = {
            "sessions": self.sessions,
            "pools": self.pools,
            "arp": self.arp,
            "fdb": self.fdb,
            "tunnels": self.tunnels,
            "stats": self.stats,
        }

    def show(self, what: str) -> Any:
        """Return what is asked for; raises UserError for what there is not."""
        if what not in self._answers:
            raise UserError(f"cannot show {what}: expected one of {', '.join(self._answers)}")
        return self._answers[what]()

    def sessions(self) -> list[dict[str, Any]]:
        """Return every session and policy, in the order in which they are tried."""
        return [self._session(session) for session in self._policy.sessions]

    def _session(self, session: Session) -> dict[str, Any]:
        plan, ledger = session.plan, session.ledger
        attached = [
            source.ledger.name
            for source in self._interfaces.sources
            if source.ring is not None
            and session in self._policy.for_source(source.namespace, source.name)
        ]
        return {
            "name": plan.name,
            "kind": "policy" if plan.is_stateful else "session",
            "enabled": plan.enabled,
            "priority": plan.priority,
            "sources": list(plan.sources),
            "attached": attached,
            "filter": plan.filter or plan.expression,
            "target": plan.target,
            "identifier": plan.identifier,
            "packet_length": plan.packet_length,
            "matched": ledger.matched,
            "octets": ledger.octets,
            "no_member": ledger.no_member,
            "labels": dict(plan.labels),
        }

    def pools(self) -> list[dict[str, Any]]:
        """Return every group of members with what it got, over all sessions that use it."""
        return [
            {
                "name": group.plan.name,
                "session": session.plan.name,
                "distribution": group.plan.distribution,
                "rewrite": _rewrite(group),
                "members": [self._member(member) for member in group.members],
            }
            for session in self._policy.sessions
            for group in session.groups
        ]

    def _member(self, member: Member) -> dict[str, Any]:
        plan = member.plan
        up = "up" if self._policy.is_up(plan) else "down"
        mac = next((target.mac.hex(":") for target in plan.targets if target.mac), "")
        return {
            "ip": plan.ip,
            "weight": plan.weight,
            "state": "drained" if not plan.weight else up,
            "labels": dict(plan.labels),
            "mac": mac,
            "tunnels": [tunnel.ledger.name for tunnel in member.tunnels],
            **asdict(self._since_reset(member.ledger)),
        }

    def arp(self) -> list[dict[str, Any]]:
        """Return the static ARP and ND table."""
        mirror = self.wishes.mirror
        if mirror is None:
            return self._arp_of_command_line()
        entries = dict(mirror.arp)
        pools: dict[str, list[str]] = {ip: [] for ip in entries}
        for name, pool in mirror.pools.items():
            for member in pool.members:
                if member.mac is not None:
                    entries[member.ip] = member.mac
                if member.ip in entries:
                    pools.setdefault(member.ip, []).append(name)
        return [{"ip": ip, "mac": mac, "used_by": pools[ip]} for ip, mac in entries.items()]

    def fdb(self) -> list[dict[str, Any]]:
        """Return the static FDB."""
        mirror = self.wishes.mirror
        if mirror is not None:
            return [{"mac": mac, "tunnels": list(to)} for mac, to in mirror.fdb.items()]
        return [
            {"mac": entry["mac"], "tunnels": [target.name]}
            for entry, target in zip(self._arp_of_command_line(), self._rewritten(), strict=True)
        ]

    def _arp_of_command_line(self) -> list[dict[str, Any]]:
        return [
            {"ip": target.member, "mac": target.mac.hex(":"), "used_by": ["--to"]}
            for target in self._rewritten()
        ]

    def _rewritten(self) -> list[Target]:
        return [target for target in self._policy.plan.targets if target.mac]

    def _groups(self) -> list[Group]:
        return [group for session in self._policy.sessions for group in session.groups]

    def tunnels(self) -> list[dict[str, Any]]:
        """Return every open tunnel and its counters."""
        return [
            {
                **asdict(tunnel.ledger),
                "encapsulation": tunnel.encapsulation.kind.slug,
                "remote": tunnel.remote,
                "identifier": tunnel.encapsulation.identifier,
                "path_mtu": tunnel.path_mtu,
                "overhead": tunnel.overhead,
                "mtu_policy": str(tunnel.policy),
                "sequence": tunnel.sequence,
            }
            for tunnel in self._policy.tunnels
        ]

    def stats(self) -> dict[str, Any]:
        """Return the ledger, and beside it the numbers under NSX's names."""
        return {
            "ledger": self._policy.ledger.as_dict(),
            "stats_epoch": self._epoch,
            "since": self._since.isoformat(timespec="seconds"),
            "traffic_clone_stats": [self._clone_stats(each) for each in self._policy.sessions],
            "sources": [
                {**asdict(source.ledger), "state": "attached" if source.ring else "waiting"}
                for source in self._interfaces.sources
            ],
        }

    def _clone_stats(self, session: Session) -> dict[str, Any]:
        members = [
            asdict(self._since_reset(member.ledger))
            for group in session.groups
            for member in group.members
        ]
        return {
            "session": session.plan.name,
            "se_uuid": socket.gethostname(),
            "proc_id": "PROC_Aggregate",
            "clone_srvr_stats": members,
        }

    def reset(self) -> None:
        """Count from zero under NSX's names, as NSX does when a profile changes (row N16)."""
        self._base = {
            id(member.ledger): (member.ledger, replace(member.ledger))
            for group in self._groups()
            for member in group.members
        }
        self._epoch += 1
        self._since = datetime.now(UTC)

    def _since_reset(self, ledger: MemberLedger) -> MemberLedger:
        if id(ledger) not in self._base:
            return ledger
        _, base = self._base[id(ledger)]
        counts = {
            each.name: getattr(ledger, each.name) - getattr(base, each.name)
            for each in fields(ledger)
            if each.name != "ip"
        }
        return replace(ledger, **counts)


def _rewrite(group: Group) -> str:
    """Return what clones get of their member, as the configuration calls it."""
    plans = [member.plan for member in group.members]
    if any(plan.address is not None for plan in plans):
        return "mac+ip"
    return "mac" if any(target.mac for plan in plans for target in plan.targets) else "none"
