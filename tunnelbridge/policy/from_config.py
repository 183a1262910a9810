"""The plan of a configuration file: names become addresses, subnets become interfaces.

What the file says was checked when it was loaded; this asks the host: for addresses of names, and for
the interface on which a subnet is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tunnelbridge.clone.rules import TURNED, Direction, Rule, swapped
from tunnelbridge.config import targets as ways
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.pools import Health, StandIn
from tunnelbridge.config.sessions import Identifier, Mirrored, Policy, Session
from tunnelbridge.config.tunnel import Outer, parse_tunnel
from tunnelbridge.errors import UserError
from tunnelbridge.linux.netlink import route
from tunnelbridge.policy.plan import (
    GroupPlan,
    HealthPlan,
    MemberPlan,
    Plan,
    SessionPlan,
    StandInPlan,
)
from tunnelbridge.targets import Target, far_end

STAND_IN = "stand-in "
"""How the sessions begin that carry what is sent to stood-in members."""


def plan_config(mirror: Mirror) -> Plan:
    """Return the plan; raises UserError for what this host does not know a way to."""
    models: list[tuple[str, Session | Policy]] = [
        *mirror.sessions.items(),
        *mirror.policies.items(),
    ]
    models.sort(key=lambda pair: pair[1].priority)
    sessions = tuple(
        _policy(mirror, name, model) if isinstance(model, Policy) else _session(mirror, name, model)
        for name, model in models
    )
    return Plan((*_stand_in_sessions(mirror), *sessions), _stand_in(mirror))


def _session(mirror: Mirror, name: str, model: Session) -> SessionPlan:
    rules = None
    if model.filter is not None:
        rules = _seen(mirror.filters[model.filter].rules(), model)
        if model.direction != "both":
            rules = tuple(
                rule for rule in rules if rule.direction in ("both", _seen_direction(model))
            )
    group = _group(mirror, model.target, model)
    plan = _common(name, model, (group,))
    return replace(
        plan,
        rules=rules,
        expression=model.expression or "",
        direction=_seen_direction(model),
        filter=model.filter or "",
        target=model.target,
    )


def _seen_direction(model: Session) -> Direction:
    return TURNED[model.direction] if model.viewpoint == "guest" else model.direction


def _policy(mirror: Mirror, name: str, model: Policy) -> SessionPlan:
    decisions = model.decisions()
    names = list(dict.fromkeys(each.mirror for each in decisions if each.mirror is not None))
    plan = _common(name, model, tuple(_group(mirror, target, model) for target in names))
    return replace(
        plan,
        rules=_seen([each.rule for each in decisions], model),
        group_of_rule=tuple(
            -1 if each.mirror is None else names.index(each.mirror) for each in decisions
        ),
        is_stateful=True,
        filter=f"{len(decisions)} rules",
        target=", ".join(names),
    )


def _common(name: str, model: Mirrored, groups: tuple[GroupPlan, ...]) -> SessionPlan:
    return SessionPlan(
        name,
        groups,
        tuple(model.sources),
        priority=model.priority,
        mirror_once=model.mirror_once,
        packet_length=model.packet_length,
        enabled=model.enabled,
        labels=dict(model.labels),
        identifier=", ".join(f"{kind} {value}" for kind, value in model.identifiers.items()),
    )


def _seen(rules: list[Rule], model: Mirrored) -> tuple[Rule, ...]:
    """Return the rules as the interface sees directions: a guest's cable has two ends."""
    return tuple(swapped(rules) if model.viewpoint == "guest" else rules)


def _group(mirror: Mirror, target: str, model: Mirrored) -> GroupPlan:
    found = ways.resolve(mirror, target)
    return GroupPlan(
        found.name,
        tuple(_member(mirror, way, model.identifiers) for way in found.ways),
        found.distribution,
        found.per == "flow",
        found.preserve_client_ip,
    )


def _member(mirror: Mirror, way: ways.Way, identifiers: Mapping[Identifier, int]) -> MemberPlan:
    urls = way.tunnels or (f"ether://{_interface(way)}",)
    return MemberPlan(
        way.name,
        tuple(_target(mirror, url, way, identifiers) for url in urls),
        way.weight,
        way.address,
        _health(way.health),
        _labels(mirror, way.name),
    )


def _labels(mirror: Mirror, ip: str) -> dict[str, str]:
    """Return what a member is labelled in whatever pools it is."""
    labels: dict[str, str] = {}
    for pool in mirror.pools.values():
        for member in pool.members:
            labels |= member.labels if member.ip == ip else {}
    return labels


def _interface(way: ways.Way) -> str:
    """Return the interface on whose network a member's subnet is (NSX: "no destination IP")."""
    assert way.subnet is not None, "a member without tunnel has a subnet"
    network = way.subnet.partition("/")[0]
    found = route(network)
    if found.gateway is not None:
        raise UserError(
            f"member {way.name}: {way.subnet} is not on an interface of this host (it is beyond"
            f" {found.gateway} by {found.interface}): give the member a tunnel with via"
        )
    return found.interface


def _target(
    mirror: Mirror, url: str, way: ways.Way, identifiers: Mapping[Identifier, int]
) -> Target:
    spec, overridden = _with_identifier(parse_tunnel(url), identifiers)
    names = {each: name for name, each in mirror.tunnels.items()}
    name = names.get(url, url)
    if way.name not in (url, name):
        name = f"{way.name} via {name}"
    if overridden:
        name = f"{name} {overridden}"
    mac = bytes.fromhex(way.mac.replace(":", "")) if way.mac else b""
    return Target(name, spec, far_end(name, spec), way.name, mac)


def _with_identifier(spec: Outer, identifiers: Mapping[Identifier, int]) -> tuple[Outer, str]:
    """Return the tunnel with the session's identifier, if it has one of that kind."""
    kinds = {"vni": "vni", "session_id": "session", "key": "key"}
    for kind, value in identifiers.items():
        if kinds[kind] in type(spec).model_fields and getattr(spec, kinds[kind]) != value:
            return spec.model_copy(update={kinds[kind]: value}), f"{kind} {value}"
    return spec, ""


def _health(health: Health) -> HealthPlan | None:
    if health.check == "off":
        return None
    return HealthPlan(
        health.check, health.interval, health.timeout, health.fall, health.rise, health.port
    )


def _stand_in_sessions(mirror: Mirror) -> list[SessionPlan]:
    """Return a session for each member that is stood in for: it takes the frames for its MAC."""
    wanted = mirror.stand_in
    if wanted is None:
        return []
    found = []
    for ip, mac in _stood_in(mirror, wanted).items():
        way = replace(ways.way_to(mirror, ip), mac=None, address=None)
        member = _member(mirror, way, {})
        found.append(
            SessionPlan(
                f"{STAND_IN}{ip}",
                (GroupPlan(ip, (member,)),),
                (wanted.interface,),
                expression=f"ether dst {mac}",
                direction="in",
                mirror_once=False,
                priority=0,
                target=ip,
            )
        )
    return found


def _stand_in(mirror: Mirror) -> StandInPlan | None:
    wanted = mirror.stand_in
    if wanted is None:
        return None
    return StandInPlan(wanted.interface, _stood_in(mirror, wanted), wanted.announce)


def _stood_in(mirror: Mirror, wanted: StandIn) -> dict[str, str]:
    """Return address and MAC address of the members to stand in for."""
    macs = {ip: ways.mac_of(mirror, ip) for ip in wanted.members}
    return {ip: mac for ip, mac in macs.items() if mac is not None}
