"""What one part of the configuration names in another: does it exist, and does it lead anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.rules import SecondaryAction
from tunnelbridge.config.targets import (
    check_tunnel,
    mac_of,
    resolve,
    selected,
    way_of_member,
    way_to,
)

Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """One mistake: where it stands, what stands there (None where that says nothing), and why."""

    path: Path
    value: Any
    reason: str


def problems(mirror: Mirror) -> list[Problem]:
    """Return every reference that leads nowhere, in the order of the model's tables."""
    return [
        *_names(mirror),
        *_tunnels(mirror),
        *_members(mirror),
        *_sessions(mirror),
        *_policies(mirror),
        *_destinations(mirror),
        *_stand_in(mirror),
    ]


def _tried(path: Path, value: Any, check: Callable[..., object], *args: Any) -> Iterator[Problem]:
    try:
        check(*args)
    except ValueError as error:
        yield Problem(path, value, str(error))


def _names(mirror: Mirror) -> Iterator[Problem]:
    """Find names that could mean two things: as a target, or to enable and disable."""
    for tables in (("pools", "destinations", "tunnels"), ("sessions", "policies")):
        seen: dict[str, str] = {}
        for table in tables:
            for name in getattr(mirror, table):
                if name in seen:
                    reason = f"[{seen[name]}] has this name too: rename one"
                    yield Problem((table, name), None, reason)
                seen.setdefault(name, table)


def _tunnels(mirror: Mirror) -> Iterator[Problem]:
    for mac, tunnels in mirror.fdb.items():
        for tunnel in tunnels:
            yield from _tried(("fdb", mac), tunnel, check_tunnel, mirror, tunnel)


def _members(mirror: Mirror) -> Iterator[Problem]:
    for name, pool in mirror.pools.items():
        for number, member in enumerate(pool.members):
            path = ("pools", name, "members", number)
            for tunnel in member.via or ():
                yield from _tried((*path, "via"), tunnel, check_tunnel, mirror, tunnel)
            yield from _tried(path, None, way_of_member, mirror, pool, member)


def _sessions(mirror: Mirror) -> Iterator[Problem]:
    for name, session in mirror.sessions.items():
        path = ("sessions", name)
        if session.filter is not None and session.filter not in mirror.filters:
            known = ", ".join(mirror.filters) or "it is empty"
            yield Problem((*path, "filter"), session.filter, f"is not in [filters] ({known})")
        yield from _tried((*path, "target"), session.target, check_target, mirror, session.target)


def _policies(mirror: Mirror) -> Iterator[Problem]:
    for name, policy in mirror.policies.items():
        path: Path = ("policies", name)
        actions: list[tuple[Path, SecondaryAction | None]] = [(path, policy.secondary_action)]
        for number, rule in enumerate(policy.rules):
            actions.append(((*path, "rules", number), rule.secondary_action))
        for where, action in actions:
            if action is not None:
                place = (*where, "secondary_action", "mirror")
                yield from _tried(place, action.mirror, check_target, mirror, action.mirror)


def check_target(mirror: Mirror, target: str) -> None:
    """Raise ValueError where ``target`` leads nowhere and no other table's mistake is the reason."""
    if target in mirror.pools or target in mirror.destinations or target in mirror.tunnels:
        return
    if "://" in target:
        check_tunnel(mirror, target)
    elif not any(member.ip == target for pool in mirror.pools.values() for member in pool.members):
        resolve(mirror, target)


def _destinations(mirror: Mirror) -> Iterator[Problem]:
    """Check what destinations select; the ways to pools' members are checked there."""
    for name, destination in mirror.destinations.items():
        if not (destination.labels and any(selected(mirror, destination.labels))):
            yield from _tried(("destinations", name), None, resolve, mirror, name)


def _stand_in(mirror: Mirror) -> Iterator[Problem]:
    if mirror.stand_in is None:
        return
    for address in mirror.stand_in.members:
        path = ("stand_in", "members")
        if mac_of(mirror, address) is None:
            reason = (
                f'no ARP entry for {address}: add "{address}" = "MAC" to [arp], or give the pool\'s'
                " member a mac: it is what is answered"
            )
            yield Problem(path, address, reason)
        elif not any(m.ip == address for pool in mirror.pools.values() for m in pool.members):
            yield from _tried(path, address, way_to, mirror, address)
