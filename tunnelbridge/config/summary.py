"""What a configuration does, in a few lines."""

from __future__ import annotations

from collections.abc import Iterable

from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.sessions import Policy, Session
from tunnelbridge.config.targets import Group, resolve


def summary(mirror: Mirror) -> list[str]:
    """Return a line for each session and policy, in the order in which they are tried."""
    lines = []
    tried: list[tuple[str, Session | Policy]] = [*mirror.sessions.items(), *mirror.policies.items()]
    for name, one in sorted(tried, key=lambda pair: pair[1].priority):
        kind, what, targets = _policy(one) if isinstance(one, Policy) else _session(mirror, one)
        state = "" if one.enabled else " (disabled)"
        lines.append(
            f"{kind} {name}{state}, priority {one.priority}: {what} of {_list(one.sources)}"
        )
        lines += [f"  → {_group(resolve(mirror, target))}" for target in targets]
    if mirror.stand_in is not None:
        stand_in = mirror.stand_in
        lines.append(f"stand-in on {stand_in.interface} for {_list(stand_in.members)}")
    return lines or ["nothing is mirrored"]


def _session(mirror: Mirror, one: Session) -> tuple[str, str, list[str]]:
    side = {"both": "", "in": " that come in", "out": " that go out"}[one.direction]
    what = f"all packets{side}"
    if one.filter is not None:
        count = len(mirror.filters[one.filter].rules())
        what = f"packets{side} that filter {one.filter} ({_rules(count)}) accepts"
    elif one.expression is not None:
        what = f"packets{side} with {one.expression}"
    return "session", what, [one.target]


def _policy(one: Policy) -> tuple[str, str, list[str]]:
    decisions = one.decisions()
    targets = dict.fromkeys(each.mirror for each in decisions if each.mirror is not None)
    return "policy", f"flows by {_rules(len(decisions))}", list(targets)


def _group(group: Group) -> str:
    ways = [
        f"{way.name} ({_list(way.tunnels) if way.tunnels else f'on layer 2 in {way.subnet}'})"
        if (way.name,) != way.tunnels
        else way.name
        for way in group.ways
    ]
    how = "" if len(ways) == 1 else f" ({group.distribution})"
    return f"{group.name}{how}: {', '.join(ways)}" if ways != [group.name] else group.name


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"


def _list(values: Iterable[str]) -> str:
    return ", ".join(values)
