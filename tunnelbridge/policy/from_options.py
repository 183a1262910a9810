"""The plan of a command line: one session, and every target gets every clone."""

from __future__ import annotations

from collections.abc import Sequence

from tunnelbridge.clone.rules import Direction
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, Plan, SessionPlan
from tunnelbridge.targets import resolve_targets

NAME = "command line"


def plan_options(
    interfaces: Sequence[str],
    to: Sequence[str],
    arp: Sequence[str],
    fdb: Sequence[str],
    expression: str = "",
    direction: Direction = "both",
    snaplen: int | None = None,
) -> Plan:
    """Return the plan of ``-i``, ``--to``, ``--arp``, ``--fdb``; raises UsageError and UserError."""
    members = tuple(
        MemberPlan(target.member or target.name, (target,))
        for target in resolve_targets(to, arp, fdb)
    )
    session = SessionPlan(
        NAME,
        (GroupPlan(NAME, members),),
        tuple(interfaces),
        expression=expression,
        direction=direction,
        packet_length=snaplen,
        target=", ".join(to),
    )
    return Plan((session,))
