"""Juniper CN2 and Contrail: YAML of MirrorDestination and of security policies with secondaryAction.

Documents stand one behind the other, separated by ``---``. Source: CN2's feature guide, "Flow-Based
Mirroring" and "Port-Based Mirroring" (juniper.net, cn-cloud-native23.2): MirrorDestination with the
label core.juniper.net/analyzer-pod-selector and the fields externalAnalyzer, analyzerIP,
juniperHeader, udpPort, nextHopMode and staticNextHopHeader (vTEPDestinationIP, vTEPDestinationMac,
vxlanID); security policies whose rules have an action, and whose secondaryAction, at policy or rule
level, names a destination. A rule's ends are read in each of the forms in use: srcEP and dstEP with
ipBlock (CN2), from and to (Kubernetes), endpoint1 and endpoint2 with subnet, and service (Contrail).

What a pod selector selects is known in the cluster only: its rule is left out, because without the
selector it would mirror more than was asked for; and where a rule that denies is left out, the policy
stays disabled.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import yaml

from tunnelbridge.config.pools import Destination
from tunnelbridge.config.rules import PolicyRule
from tunnelbridge.config.sessions import Policy
from tunnelbridge.importers.draft import Draft, refusals, without_none
from tunnelbridge.importers.values import network, unknown_host, whole

SELECTOR: Final = "core.juniper.net/analyzer-pod-selector"
ANALYZER: Final = "core.juniper.net/analyzer-pod"
"""The label of an analyser's pod that the selector goes by."""
SOURCE: Final = "POD-INTERFACE"
_POLICIES: Final = ("SecurityPolicy", "FirewallPolicy", "NetworkPolicy")
_ENDS: Final = {
    "source": ("srcEP", "from", "endpoint1", "src"),
    "destination": ("dstEP", "to", "endpoint2", "dst"),
}
_ACTIONS: Final = {
    "pass": "pass",
    "allow": "pass",
    "deny": "deny",
    "drop": "deny",
    "reject": "deny",
}


def read(text: str, draft: Draft) -> None:
    """Fill ``draft`` from the documents; raises ValueError where there is nothing to mirror."""
    try:
        documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
    except yaml.YAMLError as error:
        raise ValueError(" ".join(f"is not YAML: {error}".split())) from None
    objects = [each for one in documents for each in _items(one)]
    destinations = [one for one in objects if one.get("kind") == "MirrorDestination"]
    policies = [one for one in objects if str(one.get("kind", "")).endswith(_POLICIES)]
    if not (destinations or policies):
        raise ValueError("has neither a MirrorDestination nor a security policy")
    names: dict[str, str] = {}
    for one in destinations:
        _destination(one, names, draft)
    for one in policies:
        _policy(one, names, draft)
    for one in objects:
        if one not in destinations and one not in policies:
            draft.lost(f"{one.get('kind', 'object')} {_name(one)}", "is not taken over")


def _items(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a document, or what is in it if it is a list as kubectl prints it."""
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        return [one for one in items if isinstance(one, dict)]
    return [document]


def _name(one: dict[str, Any]) -> str:
    return str((one.get("metadata") or {}).get("name") or "unnamed")


def _destination(one: dict[str, Any], names: dict[str, str], draft: Draft) -> None:
    name, spec = _name(one), one.get("spec") or {}
    what = f"destination {name}"
    labels = dict((one.get("metadata") or {}).get("labels") or {})
    header = bool(spec.get("juniperHeader", True))
    ours: dict[str, Any] = {"juniper_header": header}
    if spec.get("externalAnalyzer"):
        ours |= {"external_analyzer": True, "analyzer_ip": spec.get("analyzerIP")}
    else:
        ours["labels"] = {ANALYZER: str(labels.get(SELECTOR, name))}
    if header:
        ours["udp_port"] = whole(spec.get("udpPort"))
    elif spec.get("nextHopMode") == "static":
        static = spec.get("staticNextHopHeader") or spec.get("staticNhHeader") or {}
        ours |= {
            "next_hop": "static",
            "vtep": static.get("vTEPDestinationIP"),
            "vni": whole(static.get("vxlanID")),
            "mac": static.get("vTEPDestinationMac"),
        }
    if spec.get("nicAssistedMirroring"):
        vlan = spec.get("nicAssistedVlanID")
        draft.lost(what, f'NIC-assisted mirroring: write target = "ether://INTERFACE?vlan={vlan}"')
    if spec.get("trafficDirection", "both") != "both":
        draft.lost(what, f"trafficDirection {spec['trafficDirection']}: flows have both directions")
    found = draft.valid(Destination, ours, what)
    if found is None:
        return
    names[name] = draft.add("destinations", name, found)
    if "labels" in found:
        _analyzer(found["labels"], header, what, draft)
    elif not header and found.get("next_hop") != "static":
        _dynamic(found["analyzer_ip"], what, draft)


def _analyzer(labels: dict[str, str], header: bool, what: str, draft: Draft) -> None:
    """Add a pool with a member that has the labels; only the cluster knows its address."""
    pools = draft.tables["pools"]
    if any(member["labels"] == labels for pool in pools.values() for member in pool["members"]):
        return
    label, address = next(iter(labels.values())), f"192.0.2.{len(pools) + 1}"
    draft.lost(what, f"selects pods labelled {label}: write the analyser's address for {address}")
    via = f"{'juniper' if header else 'vxlan'}://{address}"
    draft.add("pools", label, {"members": [{"ip": address, "via": via, "labels": labels}]})


def _dynamic(address: str, what: str, draft: Draft) -> None:
    """Add the ARP and FDB entries that a dynamic next hop is found by."""
    mac = f"02:00:00:00:00:{len(draft.tables['arp']) + 1:02x}"
    host = unknown_host(f"vtep-of-{address}")
    draft.lost(
        what, f"its next hop is dynamic: write {address}'s MAC for {mac}, its tunnel for {host}"
    )
    draft.tables["arp"].setdefault(address, mac)
    draft.tables["fdb"].setdefault(draft.tables["arp"][address], f"vxlan://{host}")


def _policy(one: dict[str, Any], names: dict[str, str], draft: Draft) -> None:
    name, spec = _name(one), one.get("spec") or {}
    what = f"policy {name}"
    rules: list[dict[str, Any]] = []
    is_whole = True
    for number, rule in enumerate(spec.get("rules") or [], 1):
        where = f"{what}, rule {rule.get('name') or number}"
        try:
            rules += _rules(rule, names)
        except ValueError as error:
            draft.lost(f"{where} is left out", str(error))
            is_whole &= _ACTIONS.get(str(rule.get("action") or "pass").lower()) == "pass"
    for key in ("podSelector", "namespaceSelector", "selectors", "selector"):
        if spec.get(key):
            draft.lost(
                what, f"{key} is known in the cluster only: its pods are the sources to write"
            )
    policy: dict[str, Any] = {"enabled": is_whole, "sources": [SOURCE], "rules": rules}
    try:
        policy["secondary_action"] = _mirror(spec, names)
    except ValueError as error:
        draft.lost(what, str(error))
    if not rules:
        draft.lost(f"{what} is left out", "none of its rules can be expressed")
    elif found := draft.valid(Policy, policy, what):
        draft.lost(what, f"write the pods' interfaces on this host in place of {SOURCE}")
        if not is_whole:
            draft.lost(what, "a rule that denies is left out, so the policy is left disabled")
        draft.add("policies", name, found)


def _rules(rule: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Return a rule of ours for each combination of a rule's ends and services."""
    action = str(rule.get("action") or "pass").lower()
    if action not in _ACTIONS:
        raise ValueError(f"action {action} is unknown")
    name = "".join(each if each.isalnum() else "-" for each in str(rule.get("name") or "")).strip(
        "-"
    )
    common = {
        "name": name or None,
        "action": _ACTIONS[action],
        "secondary_action": _mirror(rule, names),
    }
    ends = itertools.product(
        _networks(rule, "source"), _networks(rule, "destination"), _services(rule)
    )
    found = [
        {**common, "source": source, "destination": destination, **service}
        for source, destination, service in ends
    ]
    for ours in found:
        refused = refusals(PolicyRule, ours)
        if refused:
            raise ValueError(", ".join(refused))
    return [without_none(ours) for ours in found]


def _mirror(holder: dict[str, Any], names: dict[str, str]) -> dict[str, str] | None:
    """Return the secondary action of a policy or rule; raises ValueError for an unknown one."""
    action = holder.get("secondaryAction")
    if not action:
        return None
    found = action
    if isinstance(action, dict):
        found = action.get("mirrorDestination") or action.get("mirror")
    if isinstance(found, dict):
        found = found.get("name") or (found.get("metadata") or {}).get("name")
    if found not in names:
        raise ValueError(f"mirror destination {found} is not in the document")
    return {"mirror": names[found]}


def _networks(rule: dict[str, Any], side: str) -> list[str | None]:
    """Return the prefixes of one end; [None] for any."""
    found: list[str | None] = []
    for key in _ENDS[side]:
        ends = rule.get(key)
        for end in ends if isinstance(ends, list) else [ends] if ends else []:
            found += _prefixes(end)
    return found or [None]


def _prefixes(end: Any) -> list[str | None]:
    if not isinstance(end, dict):
        raise ValueError(f"endpoint {end} is not understood")
    if end.get("any"):
        return [None]
    known = {"ipBlock", "ipBlocks", "subnet", "endPoints", "endpoints", "cidr"}
    if set(end) - known:
        keys = ", ".join(sorted(set(end) - known))
        raise ValueError(
            f"{keys}: known in the cluster only; write the addresses as source or destination"
        )
    nested = end.get("endPoints") or end.get("endpoints") or []
    found = [prefix for each in nested for prefix in _prefixes(each)]
    for key in ("ipBlock", "ipBlocks"):
        blocks = end.get(key) or []
        for block in blocks if isinstance(blocks, list) else [blocks]:
            if isinstance(block, dict) and block.get("except"):
                raise ValueError("ipBlock.except: write rules that deny before this one")
            found.append(network(block.get("cidr") if isinstance(block, dict) else block))
    if "cidr" in end:
        found.append(network(end["cidr"]))
    if "subnet" in end:
        subnet = end["subnet"]
        prefix = (
            f"{subnet['ip_prefix']}/{subnet['ip_prefix_len']}"
            if isinstance(subnet, dict)
            else subnet
        )
        found.append(network(prefix))
    return found


def _services(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """Return protocol and ports of a rule: CN2's ports, or Contrail's service."""
    found: list[dict[str, Any]] = []
    service = rule.get("service") or {}
    if service:
        found.append(
            {
                "protocol": _word(service.get("protocol")),
                "source_ports": _ports(service.get("src_ports") or service.get("srcPorts")),
                "destination_ports": _ports(service.get("dst_ports") or service.get("dstPorts")),
            }
        )
    for port in rule.get("ports") or []:
        last = port.get("endPort")
        number = port.get("port")
        ports = None if number is None else f"{number}-{last}" if last else str(number)
        found.append({"protocol": _word(port.get("protocol")), "destination_ports": ports})
    return found or [{}]


def _word(protocol: Any) -> str | None:
    return None if protocol is None else str(protocol).lower()


def _ports(ports: Any) -> str | None:
    """Return Contrail's port ranges; -1 to -1 and 0 to 65535 are all."""
    if not ports:
        return None
    found = []
    for one in ports if isinstance(ports, list) else [ports]:
        first = one.get("start_port", one.get("startPort"))
        last = one.get("end_port", one.get("endPort", first))
        if first in (None, -1):
            return None
        found.append(f"{first}-{last}")
    return ",".join(found)
