"""NSX Advanced Load Balancer (Avi): ``trafficcloneprofile`` objects as its REST API prints them.

One object, or the list that ``GET /api/trafficcloneprofile`` returns. Source: the API's data
structure TrafficCloneProfile (developer.broadcom.com, vmware-avi-load-balancer) and the documentation
of Ansible's avi_trafficcloneprofile: clone servers have ip_address{addr, type}, mac, network_ref and
subnet{ip_addr{addr}, mask}; they take turns; preserve_client_ip is false by default.

A profile does not say what is mirrored (virtual services refer to it): its session has a source that
must be edited.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunnelbridge.config.pools import Member
from tunnelbridge.importers.draft import Draft
from tunnelbridge.importers.values import in_url, json_objects, listed, network

SOURCE = "SE-INTERFACE"


def read(text: str, draft: Draft) -> None:
    """Fill ``draft`` from the document; raises ValueError where it holds no profile."""
    objects = json_objects(text)
    profiles = [*listed(objects, "results"), *(one for one in objects if "results" not in one)]
    profiles = [one for one in profiles if "clone_servers" in one]
    if not profiles:
        raise ValueError("has no traffic clone profile (an object with clone_servers)")
    for profile in profiles:
        _profile(profile, draft)


def _profile(profile: dict[str, Any], draft: Draft) -> None:
    name = str(profile.get("name") or "profile")
    members: dict[str, dict[str, Any]] = {}
    for number, server in enumerate(profile["clone_servers"] or [], 1):
        member = _member(server, f"profile {name}, clone server {number}", draft)
        if member is not None and member["ip"] in members:
            draft.lost(f"profile {name}", f"{member['ip']} is there twice, one of them is left out")
        elif member is not None:
            members[member["ip"]] = member
    for key in ("cloud_ref", "tenant_ref"):
        if profile.get(key):
            draft.lost(
                f"profile {name}", f"{key.removesuffix('_ref')} {_named(profile[key])} has no like"
            )
    if not members:
        draft.lost(f"profile {name} is left out", "it has no clone server")
        return
    pool = draft.add(
        "pools",
        name,
        {
            "distribution": "round-robin",
            "preserve_client_ip": bool(profile.get("preserve_client_ip", False)),
            "members": list(members.values()),
        },
    )
    draft.lost(
        f"profile {name}",
        f"it does not say what is mirrored: write the virtual service's interfaces for {SOURCE}",
    )
    draft.add("sessions", name, {"sources": [SOURCE], "target": pool})


def _member(server: dict[str, Any], what: str, draft: Draft) -> dict[str, Any] | None:
    """Return a member on its subnet: as in NSX, frames go to its MAC on layer 2."""
    subnet = _subnet(server.get("subnet"))
    address = _address(server.get("ip_address"), subnet, what, draft)
    if address is None:
        return None
    mac = server.get("mac") or None
    member: dict[str, Any] = {"ip": address, "mac": mac, "subnet": subnet}
    if server.get("network_ref"):
        member["network"] = _named(server["network_ref"])
    if subnet is None:
        member["via"] = f"vxlan://{in_url(address)}"
        draft.lost(what, f"it has no subnet: it is reached through {member['via']}, not on layer 2")
    elif mac is None:
        member["mac"] = _dummy_mac(address)
        draft.lost(what, f"NSX asks ARP for its MAC: write it in place of {member['mac']}")
    return draft.valid(Member, member, what)


def _address(
    given: dict[str, Any] | None, subnet: str | None, what: str, draft: Draft
) -> str | None:
    """Return the server's address; NSX's "no destination IP" gets one of its subnet."""
    text = str((given or {}).get("addr") or "")
    if text:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            draft.lost(
                f"{what} is left out", f"{text} is a name: write its address as a member's ip"
            )
            return None
    if subnet is None:
        draft.lost(f"{what} is left out", "it has neither IP address nor subnet")
        return None
    found = ipaddress.ip_network(subnet)
    return str(found[min(found.num_addresses - 2, 254) if found.num_addresses > 2 else 0])


def _subnet(given: dict[str, Any] | None) -> str | None:
    if not given:
        return None
    return network(f"{(given.get('ip_addr') or {}).get('addr')}/{given.get('mask')}")


def _dummy_mac(address: str) -> str:
    """Return a locally administered MAC address with the end of the IP address in it."""
    return ":".join(
        f"{octet:02x}" for octet in b"\x02\x00" + ipaddress.ip_address(address).packed[-4:]
    )


def _named(reference: str) -> str:
    """Return the name in a reference such as ``/api/network/?name=tap`` or ``…/network-uuid#tap``."""
    parts = urlsplit(reference)
    return parts.fragment or next(iter(parse_qs(parts.query).get("name", [])), reference)
