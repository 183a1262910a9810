"""All sessions at once: opens tunnels, follows a new plan, enables and disables sessions.

A reload keeps what is equal in both plans: sockets and their sequence numbers, counters, remembered
flows, turns of round robins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace

from tunnelbridge.clone.guard import LoopGuard, Signature
from tunnelbridge.clone.nat import NatTable
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError
from tunnelbridge.ledger import SenderLedger, SessionLedger, TunnelLedger
from tunnelbridge.policy.clients import Clients
from tunnelbridge.policy.member import Member
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, Plan, SessionPlan, Watched
from tunnelbridge.policy.programs import Programs
from tunnelbridge.policy.session import Group, Session
from tunnelbridge.policy.sources import applies
from tunnelbridge.targets import Target, open_tunnel, refuse_a_port_of_two_kinds
from tunnelbridge.tunnel import Numbering, Tunnel

TunnelKey = tuple[Target, bool, MtuPolicy]
"""A target, whether its clones may be cut by their session, and the MTU policy in force."""
Opener = Callable[[Target, MtuPolicy, bool, Numbering], Tunnel]


class Policy:
    """The running sessions and their tunnels."""

    def __init__(
        self,
        plan: Plan,
        mtu: MtuPolicy,
        clients: Clients | None = None,
        opener: Opener = open_tunnel,
    ) -> None:
        self.ledger = SenderLedger()
        self.plan = Plan(())
        self.sessions: list[Session] = []
        self.guard = LoopGuard([])
        self.clients = clients
        self.programs = Programs()
        self._open = opener
        self._tunnels: dict[TunnelKey, Tunnel] = {}
        self._numberings: dict[Signature, Numbering] = {}
        self._down: set[Watched] = set()
        self._removed: SessionLedger | None = None
        self._closed: TunnelLedger | None = None
        self.apply(plan, mtu)

    @property
    def tunnels(self) -> list[Tunnel]:
        """Every open tunnel, once."""
        return list(self._tunnels.values())

    def apply(self, plan: Plan, mtu: MtuPolicy) -> None:
        """Follow a plan; on an error nothing has changed. Raises UsageError and UserError.

        ``mtu`` is the policy of tunnels that have none of their own.
        """
        refuse_a_port_of_two_kinds(plan.targets)
        for session in plan.sessions:
            self._nat(session, session.groups)
        keys = _keys(plan, mtu)
        fresh = self._open_missing(keys)
        former = {session.plan.name: session for session in self.sessions}
        unused = [self._tunnels.pop(key) for key in self._tunnels.keys() - keys.keys()]
        self._tunnels |= fresh
        self._mtu = mtu
        self.sessions = [self._session(each, former.pop(each.name, None)) for each in plan.sessions]
        self.plan = plan
        self.guard.watch_for([target.signature() for target in plan.targets])
        self._follow_health()
        if self.clients is not None:
            self.clients.keep(plan.sessions)
        self._list_in_ledger(former.values(), unused)
        for tunnel in unused:
            tunnel.close()

    def enable(self, name: str, enabled: bool) -> bool:
        """Switch a session on or off; False if it was so already. Raises UsageError: no such one."""
        for number, session in enumerate(self.sessions):
            if session.plan.name == name:
                changed = session.plan.enabled != enabled
                session.plan = replace(session.plan, enabled=enabled)
                sessions = list(self.plan.sessions)
                sessions[number] = session.plan
                self.plan = replace(self.plan, sessions=tuple(sessions))
                return changed
        known = ", ".join(session.plan.name for session in self.sessions)
        raise UsageError(f"no session named {name} (there are: {known or 'none'})")

    def for_source(self, namespace: str | None, interface: str) -> list[Session]:
        """Return the enabled sessions that mirror an interface, in order."""
        return [
            session
            for session in self.sessions
            if session.plan.enabled and applies(session.plan.sources, namespace, interface)
        ]

    def for_file(self) -> list[Session]:
        """Return the enabled sessions: a file stands for the source of each."""
        return [session for session in self.sessions if session.plan.enabled]

    def set_up(self, watched: Watched, up: bool) -> None:
        """Follow the health of a member, in whatever pools it is checked like that."""
        (self._down.discard if up else self._down.add)(watched)
        self._follow_health()

    def is_up(self, member: MemberPlan) -> bool:
        """Tell whether a member takes clones, as far as its health check knows."""
        return member.watched not in self._down

    @property
    def down(self) -> frozenset[Watched]:
        """The members that take no clones now."""
        return frozenset(self._down)

    def close(self) -> None:
        """Close every tunnel, and what tells of clients."""
        if self.clients is not None:
            self.clients.close()
        for tunnel in self.tunnels:
            tunnel.close()

    def _follow_health(self) -> None:
        for session in self.sessions:
            for group in session.groups:
                group.set_up(self.is_up)

    def _open_missing(self, keys: Iterable[TunnelKey]) -> dict[TunnelKey, Tunnel]:
        """Open all tunnels that are not open yet, or none."""
        opened: dict[TunnelKey, Tunnel] = {}
        with contextlib.ExitStack() as opening:
            for key in keys:
                if key in self._tunnels:
                    continue
                target, may_cut, mtu = key
                numbering = self._numberings.setdefault(target.signature(), Numbering())
                opened[key] = self._open(target, mtu, may_cut, numbering)
                opening.callback(opened[key].close)
            opening.pop_all()
        return opened

    def _session(self, plan: SessionPlan, former: Session | None) -> Session:
        """Return the session of a plan, with all that it has in common with a former one."""
        known = former.groups if former else []
        before = {group.plan.name: group for group in known}
        if len(known) == len(plan.groups) == 1:  # by whatever name
            before = {plan.groups[0].name: known[0]}
        groups = [self._group(plan, each, before.get(each.name)) for each in plan.groups]
        return Session(plan, groups, former)

    def _group(self, session: SessionPlan, plan: GroupPlan, former: Group | None) -> Group:
        cut = _may_cut(session)
        members = [
            Member(each, [self._tunnels[_key(target, cut, self._mtu)] for target in each.targets])
            for each in plan.members
        ]
        group = Group(plan, members, self._nat(session, (plan,)))
        if former is None:
            return group
        if former.is_like(group):
            return former
        group.follow(former)
        return group

    def _nat(self, session: SessionPlan, groups: Iterable[GroupPlan]) -> NatTable | None:
        """Return the table of clients if one of the groups wants it; raises UserError."""
        if self.clients is None or not any(group.preserve_client_ip for group in groups):
            return None
        return self.clients.table(session)

    def _list_in_ledger(self, removed: Iterable[Session], closed: Iterable[Tunnel]) -> None:
        """List what runs; what does not any more stays in one entry each, so that sums balance."""
        for session in removed:
            self._removed = self._removed or SessionLedger("removed sessions")
            self._removed.absorb(session.ledger)
        for tunnel in closed:
            self._closed = self._closed or TunnelLedger("closed tunnels")
            self._closed.absorb(tunnel.ledger)
        self.ledger.sessions = [session.ledger for session in self.sessions]
        self.ledger.tunnels = [tunnel.ledger for tunnel in self.tunnels]
        if self._removed is not None:
            self.ledger.sessions.append(self._removed)
        if self._closed is not None:
            self.ledger.tunnels.append(self._closed)


def _may_cut(session: SessionPlan) -> bool:
    """Whether the session cuts: some encapsulations then tell the original length."""
    return session.packet_length is not None


def _key(target: Target, may_cut: bool, default: MtuPolicy) -> TunnelKey:
    policy, _ = target.plan(default, may_cut)
    return target, may_cut, policy


def _keys(plan: Plan, mtu: MtuPolicy) -> dict[TunnelKey, None]:
    """Return the tunnels that a plan needs, in order, once each."""
    return {
        _key(target, _may_cut(session), mtu): None
        for session in plan.sessions
        for group in session.groups
        for member in group.members
        for target in member.targets
    }
