"""Amazon VPC traffic mirroring: what ``aws ec2 describe-traffic-mirror-*`` prints, in any order.

Sessions, filters and targets, and the network interfaces of targets if they are there
(``describe-network-interfaces``). Source: the EC2 API reference (TrafficMirrorSession,
TrafficMirrorFilter, TrafficMirrorFilterRule, TrafficMirrorTarget) and the AWS CLI's examples
(aws/aws-cli: awscli/examples/ec2/describe-traffic-mirror-sessions.rst and its siblings).

A session without PacketLength mirrors whole packets. Rule numbers are priorities, lowest first; a
protocol is a number, and a rule without one is for all.
"""

from __future__ import annotations

from typing import Any

from tunnelbridge.config.rules import FilterRule
from tunnelbridge.importers.draft import Draft
from tunnelbridge.importers.values import by_id, in_url, json_objects, listed, network, unknown_host

_VXLAN = "vxlan://"


def read(text: str, draft: Draft) -> None:
    """Fill ``draft`` from the document; raises ValueError where it is none of EC2's."""
    objects = json_objects(text)
    sessions = list(listed(objects, "TrafficMirrorSessions", "TrafficMirrorSession"))
    filters = by_id(listed(objects, "TrafficMirrorFilters", "TrafficMirrorFilter"), _id("Filter"))
    targets = by_id(listed(objects, "TrafficMirrorTargets", "TrafficMirrorTarget"), _id("Target"))
    interfaces = by_id(listed(objects, "NetworkInterfaces"), "NetworkInterfaceId")
    if not (sessions or filters):
        raise ValueError("has neither TrafficMirrorSessions nor TrafficMirrorFilters")
    named = {key: draft.add("filters", key, _filter(one, draft)) for key, one in filters.items()}
    for session in sessions:
        _session(session, named, targets, interfaces, draft)


def _id(what: str) -> str:
    return f"TrafficMirror{what}Id"


def _filter(one: dict[str, Any], draft: Draft) -> dict[str, Any]:
    name = one[_id("Filter")]
    for service in one.get("NetworkServices", []):
        draft.lost(
            f"filter {name}", f"{service} is a service of the cloud: write a rule for its address"
        )
    tables = (("inbound", "IngressFilterRules"), ("outbound", "EgressFilterRules"))
    return {
        side: [
            rule
            for each in one.get(key, [])
            if (rule := _rule(each, f"filter {name}, {side} rule {each.get('RuleNumber')}", draft))
        ]
        for side, key in tables
    }


def _rule(rule: dict[str, Any], what: str, draft: Draft) -> dict[str, Any] | None:
    ours = {
        "priority": rule.get("RuleNumber"),
        "action": rule.get("RuleAction"),
        "protocol": rule.get("Protocol"),
        "source": network(rule.get("SourceCidrBlock")),
        "source_ports": _ports(rule.get("SourcePortRange")),
        "destination": network(rule.get("DestinationCidrBlock")),
        "destination_ports": _ports(rule.get("DestinationPortRange")),
    }
    found = draft.valid(FilterRule, ours, what)
    if found is None and rule.get("RuleAction") != "accept":
        draft.leaking.add(str(rule.get(_id("Filter"))))
    return found


def _ports(ports: dict[str, Any] | None) -> str | None:
    return f"{ports.get('FromPort', 0)}-{ports.get('ToPort', 65535)}" if ports else None


def _session(
    session: dict[str, Any],
    filters: dict[str, str],
    targets: dict[str, dict[str, Any]],
    interfaces: dict[str, dict[str, Any]],
    draft: Draft,
) -> None:
    identifier = str(session.get(_id("Session"), "session"))
    what = f"session {identifier}"
    source = str(session.get("NetworkInterfaceId", ""))
    filter_id = session.get(_id("Filter"), "")
    is_whole = draft.has_filter(filter_id, filter_id in filters, what)
    names = [tag.get("Value") for tag in session.get("Tags", []) if tag.get("Key") == "Name"]
    draft.add(
        "sessions",
        next(iter(names), None) or identifier,
        {
            "enabled": is_whole,
            "priority": session.get("SessionNumber", 1),
            "sources": [draft.stands_for(source, what)],
            **({"filter": filters[filter_id]} if filter_id in filters else {}),
            "target": _target(str(session.get(_id("Target"), "")), targets, interfaces, draft),
            **_optional("vni", session.get("VirtualNetworkId")),
            **_optional("packet_length", draft.packet_length(session.get("PacketLength"), what)),
            "labels": {
                "id": identifier,
                "source": source,
                **_optional("description", session.get("Description") or None),
            },
        },
    )


def _optional(key: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {key: value}


def _target(
    identifier: str,
    targets: dict[str, dict[str, Any]],
    interfaces: dict[str, dict[str, Any]],
    draft: Draft,
) -> str:
    """Return the name of the tunnel to a target, made when first asked for."""
    if identifier in draft.tables["tunnels"]:
        return identifier
    target = targets.get(identifier, {})
    interface = interfaces.get(target.get("NetworkInterfaceId", ""), {})
    address = interface.get("PrivateIpAddress")
    if address is None:
        address = unknown_host(identifier)
        is_what = next(
            (
                f"is {target[key]}"
                for key in (
                    "NetworkInterfaceId",
                    "NetworkLoadBalancerArn",
                    "GatewayLoadBalancerEndpointId",
                )
                if target.get(key)
            ),
            "is not in the document",
        )
        draft.lost(f"target {identifier}", f"{is_what}: write its address in place of {address}")
    if target.get("Type") == "gateway-load-balancer-endpoint":
        draft.lost(f"target {identifier}", "a GWLB endpoint is reached from inside its VPC only")
    return draft.add("tunnels", identifier, f"{_VXLAN}{in_url(address)}")
