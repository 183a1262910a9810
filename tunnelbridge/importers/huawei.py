"""Huawei Cloud VPC traffic mirroring: sessions, filters and rules as the VPC API (v3) prints them.

Lists (``traffic_mirror_sessions``, ``traffic_mirror_filters``, ``traffic_mirror_filter_rules``) and
single objects (``traffic_mirror_session``, …), one behind the other. Source: the API reference
(support.huaweicloud.com, api-vpc: CreateTrafficMirrorSession, CreateTrafficMirrorFilterRule) and
huaweicloud-sdk-python-v3, model/traffic_mirror_session.py and traffic_mirror_filter_rule.py, which also
say the defaults: VNI 1, packet length 96, not enabled.
"""

from __future__ import annotations

from typing import Any, Final

from tunnelbridge.config.rules import FilterRule
from tunnelbridge.importers.draft import Draft
from tunnelbridge.importers.values import by_id, json_objects, listed, network, unknown_host, whole

DEFAULT_VNI: Final = 1
DEFAULT_LENGTH: Final = 96
_FAMILIES: Final = {"ipv4": "ipv4", "ipv6": "ipv6"}
_SIDES: Final = {"ingress": "inbound", "egress": "outbound"}


def read(text: str, draft: Draft) -> None:
    """Fill ``draft`` from the document; raises ValueError where it is none of the VPC API's."""
    objects = json_objects(text)
    sessions = list(listed(objects, "traffic_mirror_sessions", "traffic_mirror_session"))
    filters = by_id(listed(objects, "traffic_mirror_filters", "traffic_mirror_filter"), "id")
    rules = list(listed(objects, "traffic_mirror_filter_rules", "traffic_mirror_filter_rule"))
    if not (sessions or filters or rules):
        raise ValueError("has no traffic_mirror_sessions, _filters or _filter_rules")
    for rule in rules:  # a rule can come without its filter
        filters.setdefault(str(rule.get("traffic_mirror_filter_id")), {})
    named = {}
    for key, one in filters.items():
        loose = [rule for rule in rules if str(rule.get("traffic_mirror_filter_id")) == key]
        name = one.get("name") or key
        named[key] = draft.add("filters", name, _filter(name, _rules_of(one, loose), draft))
    for session in sessions:
        _session(session, named, draft)


def _rules_of(one: dict[str, Any], loose: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a filter's rules, inside it or beside it, each once."""
    inside = [*(one.get("ingress_rules") or []), *(one.get("egress_rules") or [])]
    known = {rule.get("id") for rule in inside}
    return [*inside, *(rule for rule in loose if rule.get("id") is None or rule["id"] not in known)]


def _filter(name: str, rules: list[dict[str, Any]], draft: Draft) -> dict[str, Any]:
    tables: dict[str, list[dict[str, Any]]] = {"inbound": [], "outbound": []}
    for rule in rules:
        side = _SIDES.get(str(rule.get("direction")).lower())
        what = f"filter {name}, {side or 'directionless'} rule of priority {rule.get('priority')}"
        if side is None:
            draft.lost(f"{what} is left out", f"direction {rule.get('direction')} is unknown")
        elif ours := draft.valid(FilterRule, _rule(rule), what):
            tables[side].append(ours)
            continue
        if str(rule.get("action")).lower() != "accept":
            draft.leaking.add(str(rule.get("traffic_mirror_filter_id")))
    return tables


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    family = str(rule.get("ethertype", "")).lower()
    return {
        "priority": whole(rule.get("priority")),
        "action": str(rule.get("action")).lower(),
        "family": _FAMILIES.get(family, "any"),
        "protocol": str(rule.get("protocol") or "all").lower(),
        "source": network(rule.get("source_cidr_block")),
        "source_ports": rule.get("source_port_range") or None,
        "destination": network(rule.get("destination_cidr_block")),
        "destination_ports": rule.get("destination_port_range") or None,
    }


def _session(session: dict[str, Any], filters: dict[str, str], draft: Draft) -> None:
    name = str(session.get("name") or session.get("id") or "session")
    what = f"session {name}"
    length = whole(session.get("packet_length"))
    filter_id = str(session.get("traffic_mirror_filter_id"))
    is_whole = draft.has_filter(filter_id, filter_id in filters, what)
    sources = [str(source) for source in session.get("traffic_mirror_sources") or []]
    if not sources:
        draft.lost(f"{what} is left out", "it has no sources")
        return
    vni = whole(session.get("virtual_network_id"))
    enabled = str(session.get("enabled", False)).lower() == "true"
    draft.add(
        "sessions",
        name,
        {
            "enabled": enabled and is_whole,
            "priority": whole(session.get("priority")) or 1,
            "sources": _sources(sources, what, draft),
            **({"filter": filters[filter_id]} if filter_id in filters else {}),
            "target": _target(session, draft),
            "vni": DEFAULT_VNI if vni is None else vni,
            "packet_length": draft.packet_length(
                DEFAULT_LENGTH if length is None else length, what
            ),
            "labels": {"sources": ",".join(sources)},
        },
    )


def _sources(identifiers: list[str], what: str, draft: Draft) -> list[str]:
    """Return names for the sources, each its own: identifiers may begin alike."""
    return list(dict.fromkeys(draft.stands_for(one, what) for one in identifiers))


def _target(session: dict[str, Any], draft: Draft) -> str:
    """Return the name of the tunnel to a session's target, made when first asked for."""
    identifier = str(session.get("traffic_mirror_target_id") or "target")
    if identifier not in draft.tables["tunnels"]:
        kinds = {"eni": "a network interface", "elb": "a load balancer"}
        kind = kinds.get(str(session.get("traffic_mirror_target_type")), "of unknown type")
        host = unknown_host(identifier)
        draft.lost(f"target {identifier}", f"is {kind}: write its address in place of {host}")
        return draft.add("tunnels", identifier, f"vxlan://{host}")
    return identifier
