"""Open vSwitch: ``ovs-vsctl --format=json list mirror``, with the tables port, interface and bridge.

The tables stand one behind the other: ``for t in mirror port interface bridge; do ovs-vsctl
--format=json list $t; done``. Source: ovs-vswitchd.conf.db(5), tables Mirror, Port, Interface; values
are in the notation of RFC 7047 §5.1 (a set of one is the value itself).

A mirror selects packets as they enter a port (``select_src_port``) or leave by it
(``select_dst_port``). What the switch receives on an interface is our ``in``; for a port of type
internal the host's end is the other one.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from tunnelbridge.config.tunnel import LONGEST_INTERFACE, TUNNELS
from tunnelbridge.importers.draft import Draft
from tunnelbridge.importers.values import in_url, json_objects, whole

Row = dict[str, Any]
Direction = Literal["in", "out"]
_TABLES: Final = {
    "mirror": "output_port",
    "port": "bond_mode",
    "interface": "mtu_request",
    "bridge": "datapath_type",
}
"""A column that only this table has."""
_TURNED: Final[dict[Direction, Direction]] = {"in": "out", "out": "in"}


def read(text: str, draft: Draft) -> None:
    """Fill ``draft`` from the document; raises ValueError where it has no table of mirrors."""
    tables = {name: _table(json_objects(text), column) for name, column in _TABLES.items()}
    if not tables["mirror"]:
        raise ValueError("has no mirrors: is it from ovs-vsctl --format=json list mirror?")
    for mirror in tables["mirror"].values():
        _Mirror(mirror, tables, draft).write()


def _table(objects: list[Row], column: str) -> dict[str, Row]:
    """Return the rows of the table that has ``column``, by UUID."""
    rows: dict[str, Row] = {}
    for one in objects:
        headings, data = one.get("headings"), one.get("data")
        if not isinstance(headings, list) or not isinstance(data, list):
            raise ValueError("is not what ovs-vsctl --format=json prints (headings and data)")
        if column in headings:
            for cells in data:
                row = dict(zip(headings, map(_value, cells), strict=True))
                rows[str(row["_uuid"])] = row
    return rows


def _value(cell: Any) -> Any:
    """Return a value of RFC 7047's notation: sets as lists, maps as dicts, an UUID as text."""
    if isinstance(cell, list) and len(cell) == 2:
        tag, value = cell
        if tag == "set":
            return [_value(each) for each in value]
        if tag == "map":
            return dict(value)
        if tag in ("uuid", "named-uuid"):
            return value
    return cell


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Mirror:
    """One mirror on its way to sessions: one for each direction, as its ports differ."""

    def __init__(self, mirror: Row, tables: dict[str, dict[str, Row]], draft: Draft) -> None:
        self.row, self.tables, self.draft = mirror, tables, draft
        self.name = str(mirror.get("name") or mirror["_uuid"])
        self.what = f"mirror {self.name}"

    def write(self) -> None:
        """Add the mirror's tunnel and sessions, unless it has no target or no source."""
        target = self._target()
        if target is None:
            return
        if _several(self.row.get("select_vlan", [])):
            self.draft.lost(self.what, "select_vlan is not taken over: every VLAN is mirrored")
        sources = self._sources()
        if not any(sources.values()):
            self.draft.lost(f"{self.what} is left out", "it selects no port")
            return
        length = next(iter(_several(self.row.get("snaplen", []))), None)
        length = self.draft.packet_length(whole(length), self.what)
        both = [name for name in sources["in"] if name in sources["out"]]
        sides = {
            "both": both,
            "in": [name for name in sources["in"] if name not in both],
            "out": [name for name in sources["out"] if name not in both],
        }
        several = sum(map(bool, sides.values())) > 1
        for direction, names in sides.items():
            if names:
                session: Row = {"sources": names, "direction": direction, "target": target}
                if length is not None:
                    session["packet_length"] = length
                name = f"{self.name}-{direction}" if several else self.name
                self.draft.add("sessions", name, session)

    def _sources(self) -> dict[Direction, list[str]]:
        """Return the interfaces to mirror, by our direction, the target's own left out."""
        found: dict[Direction, list[str]] = {"in": [], "out": []}
        if self.row.get("select_all") is True:
            ports: dict[Direction, list[str]] = {"in": self._all_ports(), "out": []}
        else:
            ports = {
                "in": _several(self.row.get("select_src_port", [])),
                "out": _several(self.row.get("select_dst_port", [])),
            }
        for direction, identifiers in ports.items():
            for identifier in identifiers:
                for interface in self._interfaces(str(identifier)):
                    name = str(interface["name"])
                    internal = interface.get("type") == "internal"
                    side = found[_TURNED[direction] if internal else direction]
                    if len(name) > LONGEST_INTERFACE:
                        self.draft.lost(self.what, f"{name} is no interface of the host")
                    elif name not in side:
                        side.append(name)
        return found

    def _all_ports(self) -> list[str]:
        """Return every port of the mirror's bridge but the output: each packet enters by one."""
        output = self.row.get("output_port")
        for bridge in self.tables["bridge"].values():
            if self.row["_uuid"] in _several(bridge.get("mirrors", [])):
                return [port for port in _several(bridge.get("ports", [])) if port != output]
        self.draft.lost(self.what, "select_all needs the bridge: list mirror port interface bridge")
        return []

    def _interfaces(self, port: str) -> list[Row]:
        """Return a port's interfaces; without the table of interfaces the port's name is one's."""
        row = self.tables["port"].get(port)
        if row is None:
            self.draft.lost(self.what, f"port {port} is not in the document: add list port")
            return []
        rows = [self.tables["interface"].get(str(one)) for one in _several(row["interfaces"])]
        return [one for one in rows if one is not None] or [{"name": row["name"]}]

    def _target(self) -> str | None:
        vlan = _several(self.row.get("output_vlan", []))
        if vlan:
            why = f'write target = "ether://INTERFACE?vlan={vlan[0]}" with the VLAN\'s trunk'
            self.draft.lost(
                f"{self.what} is left out", f"output_vlan {vlan[0]} names no port: {why}"
            )
            return None
        for port in _several(self.row.get("output_port", [])):
            for interface in self._interfaces(str(port)):
                return self._tunnel(interface)
        self.draft.lost(f"{self.what} is left out", "it has no output port in the document")
        return None

    def _tunnel(self, interface: Row) -> str | None:
        name, options = str(interface["name"]), dict(interface.get("options") or {})
        kind = interface.get("type") or "ether"
        if kind in ("ether", "internal", "system", "tap"):
            return self.draft.add("tunnels", name, f"ether://{name}")
        remote = options.pop("remote_ip", "flow")
        scheme = f"erspan{int(options.pop('erspan_ver', 1)) + 1}" if kind == "erspan" else str(kind)
        scheme = scheme.removeprefix("ip6")
        if scheme not in TUNNELS or remote == "flow":
            why = f"output port {name} is {kind} to {remote}, which no tunnel of ours is"
            self.draft.lost(f"{self.what} is left out", why)
            return None
        return self.draft.add("tunnels", name, self._url(scheme, str(remote), options, name))

    def _url(self, scheme: str, remote: str, options: dict[str, str], name: str) -> str:
        """Return a tunnel's URL; options of the switch that mean nothing here are noted."""
        identifier = {"gre": "key", "vxlan": "vni", "geneve": "vni"}.get(scheme, "session")
        ours = {
            "key": identifier,
            "local_ip": "local",
            "ttl": "ttl",
            "seq": "seq",
            "csum": "csum",
            "erspan_hwid": "hwid",
        }
        port = f":{options.pop('dst_port')}" if "dst_port" in options else ""
        query = []
        for option, value in sorted(options.items()):
            if option == "erspan_idx":
                query.append(f"index={int(value, 0)}")
            elif (
                option in ours and ours[option] in TUNNELS[scheme].model_fields and value != "flow"
            ):
                query.append(f"{ours[option]}={value}")
            else:
                self.draft.lost(f"port {name}", f"option {option}={value} is not taken over")
        return f"{scheme}://{in_url(remote)}{port}" + (f"?{'&'.join(query)}" if query else "")
