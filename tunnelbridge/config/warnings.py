"""What a configuration may say and yet looks like a mistake: entries nobody uses, above all."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from tunnelbridge.config.load import key_path
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.rules import SecondaryAction
from tunnelbridge.config.sessions import Identifier, Mirrored
from tunnelbridge.config.targets import parse_selector, resolve, selected
from tunnelbridge.config.values import specify

OPTIONS: Final[dict[Identifier, str]] = {"vni": "vni", "session_id": "session", "key": "key"}
"""A session's identifiers, and the options of tunnels that they replace."""


def warnings(mirror: Mirror) -> list[str]:
    """Return one line for each entry that has no effect, or one that is seldom meant."""
    targets = _Targets(mirror)
    return [
        *_idle(mirror),
        *_unused(mirror, targets),
        *_pools(mirror),
        *_filters(mirror),
        *_identifiers(mirror, targets),
    ]


class _Targets:
    """What sessions, policies and the stand-in make use of, by name."""

    def __init__(self, mirror: Mirror) -> None:
        self.of_session = {name: [one.target] for name, one in mirror.sessions.items()}
        self.of_policy = {
            name: list(_mirrors([one.secondary_action, *(r.secondary_action for r in one.rules)]))
            for name, one in mirror.policies.items()
        }
        self.named = {
            target
            for targets in (*self.of_session.values(), *self.of_policy.values())
            for target in targets
        }
        self.addresses = {address for target in self.named if (address := _canonical(target))}
        if mirror.stand_in is not None:
            self.addresses.update(mirror.stand_in.members)
        self.pools = {name for name in mirror.pools if name in self.named}
        self.pools |= {
            name
            for name, pool in mirror.pools.items()
            if any(member.ip in self.addresses for member in pool.members)
        }
        for labels in self._selections(mirror):
            self.pools |= {pool for pool, _ in selected(mirror, labels)}

    def _selections(self, mirror: Mirror) -> Iterator[dict[str, str]]:
        for target in self.named:
            if target in mirror.destinations:
                if mirror.destinations[target].labels:
                    yield mirror.destinations[target].labels
            elif "=" in target and "://" not in target:
                yield parse_selector(target)


def _mirrors(actions: Iterable[SecondaryAction | None]) -> Iterator[str]:
    return (action.mirror for action in actions if action is not None)


def _canonical(target: str) -> str | None:
    try:
        return str(ipaddress.ip_address(target))
    except ValueError:
        return None


def _idle(mirror: Mirror) -> Iterator[str]:
    if not mirror.sessions and not mirror.policies:
        yield "no session and no policy: nothing is mirrored" + (
            " but what stand_in's members get" if mirror.stand_in else ""
        )


def _unused(mirror: Mirror, targets: _Targets) -> Iterator[str]:
    members = [member for pool in mirror.pools.values() for member in pool.members]
    analyzers = {one.analyzer_ip for one in mirror.destinations.values()}
    resolved = {member.ip for member in members} | targets.addresses | analyzers
    macs = {*mirror.arp.values(), *(member.mac for member in members)}
    tunnels = {name for names in mirror.fdb.values() for name in names} | targets.named
    tunnels |= {name for member in members for name in member.via or ()}
    used: dict[str, set[str] | set[str | None]] = {
        "tunnels": tunnels,
        "arp": resolved,
        "fdb": macs,
        "pools": targets.pools,
        "filters": {session.filter for session in mirror.sessions.values()},
        "destinations": targets.named,
    }
    for table, names in used.items():
        for name in getattr(mirror, table):
            if name not in names:
                yield f"{key_path((table, name))} is not used"


def _pools(mirror: Mirror) -> Iterator[str]:
    for name, pool in mirror.pools.items():
        path = key_path(("pools", name))
        if not any(member.weight for member in pool.members):
            yield f"{path}: every member has weight 0 and gets nothing"
        if pool.distribution.endswith("round-robin") and pool.per == "packet":
            yield (
                f"{path}.distribution = {pool.distribution} per packet: one connection's packets go to"
                ' several members; per = "flow" or distribution = "flow" keep it on one'
            )
        if pool.health.check in ("icmp", "heartbeat"):
            for member in pool.members:
                if not member.via:
                    yield (
                        f"{path}.health.check = {pool.health.check}: {member.ip} is reached by its MAC"
                        " address, but asked by its IP address: is that one routed?"
                    )
        if pool.per == "flow" and not pool.distribution.endswith("round-robin"):
            yield f'{path}.per = "flow" has a meaning for the round robins only'


def _filters(mirror: Mirror) -> Iterator[str]:
    for name, one in mirror.filters.items():
        if not any(rule.action == "accept" for rule in (*one.inbound, *one.outbound)):
            yield f"{key_path(('filters', name))}: no rule accepts, so nothing is mirrored"


def _identifiers(mirror: Mirror, targets: _Targets) -> Iterator[str]:
    """Tell of a vni, session_id or key that no tunnel of the target has."""
    mirrored: list[tuple[str, str, Mirrored, list[str]]] = [
        *(
            ("sessions", name, one, targets.of_session[name])
            for name, one in mirror.sessions.items()
        ),
        *(
            ("policies", name, one, targets.of_policy[name])
            for name, one in mirror.policies.items()
        ),
    ]
    for table, name, one, named in mirrored:
        options = _options(mirror, named) if one.identifiers else set()
        for identifier, value in one.identifiers.items():
            if OPTIONS[identifier] not in options:
                yield f"{key_path((table, name, identifier))} = {value}: no tunnel of its has one"


def _options(mirror: Mirror, targets: Iterable[str]) -> set[str]:
    """Return the options of every tunnel that the targets lead to."""
    urls = {
        url for target in targets for way in resolve(mirror, target).ways for url in way.tunnels
    }
    return {option for url in urls for option in type(specify(url)).model_fields}
