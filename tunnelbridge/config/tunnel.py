"""Read what a user says of tunnels: ``ENCAP://REMOTE[:PORT][?option=value&…]``.

``ether://INTERFACE`` is the one without outer headers: its clones leave on layer 2.

Every mistake is one line that names the tunnel, the option, its value and the reason.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tunnelbridge.errors import UsageError
from tunnelbridge.wire import encapsulation as wire
from tunnelbridge.wire import erspan2, erspan3, vxlan

LONGEST_NAME: Final = 255
"""Octets of a network's name in the Juniper header: its length is one octet."""
LONGEST_INTERFACE: Final = 15
"""Octets of an interface's name (IFNAMSIZ with its zero)."""
LAST_VLAN: Final = 4094
"""IEEE 802.1Q reserves 4095; 0 is a priority tag, of no VLAN."""


class MtuPolicy(StrEnum):
    """What happens to a clone that does not fit the path with its outer headers."""

    FRAGMENT = "fragment"
    TRUNCATE = "truncate"
    DROP = "drop"


class Outer(BaseModel):
    """Options of every tunnel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    remote: str
    local: str | None = None
    ttl: int | None = Field(default=None, ge=1, le=255)
    dscp: int = Field(default=0, ge=0, le=63)
    mtu: MtuPolicy | None = None
    port: None = None

    unused: ClassVar[frozenset[str]] = frozenset()
    """Options that mean nothing to this kind of tunnel."""

    @field_validator("local")
    @classmethod
    def _local_is_an_address(cls, value: str | None) -> str | None:
        return None if value is None else str(ipaddress.ip_address(value))

    @classmethod
    def options(cls) -> list[str]:
        """Return the options that may stand behind the ?, in alphabetical order."""
        return sorted(set(cls.model_fields) - {"remote", "port"} - cls.unused)

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return the outer headers; ``may_cut`` where clones can be truncated."""
        raise NotImplementedError


class Gre(Outer):
    """GRE with Ethernet inside (transparent Ethernet bridging)."""

    key: int | None = Field(default=None, ge=0, le=0xFFFFFFFF)
    seq: bool = False
    csum: bool = False

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return GRE-TEB."""
        return wire.gre_teb(self.key, self.seq, self.csum)


class GreIp(Gre):
    """GRE with bare IP inside."""

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return GRE of IPv4 and IPv6."""
        return wire.gre_ip(self.key, self.seq, self.csum)


class Erspan1(Outer):
    """ERSPAN type I, which has no options."""

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return ERSPAN type I."""
        return wire.erspan_1()


class Erspan2(Outer):
    """ERSPAN type II."""

    session: int = Field(default=1, ge=0, le=erspan2.MAX_SESSION)
    index: int = Field(default=0, ge=0, le=erspan2.MAX_INDEX)

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return ERSPAN type II."""
        return wire.erspan_2(self.session, self.index)


class Erspan3(Outer):
    """ERSPAN type III."""

    session: int = Field(default=1, ge=0, le=erspan2.MAX_SESSION)
    hwid: int = Field(default=0, ge=0, le=erspan3.MAX_HWID)
    granularity: Literal["100us", "100ns", "1588"] = "100us"

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return ERSPAN type III."""
        return wire.erspan_3(self.session, self.hwid, self.granularity)


class Vxlan(Outer):
    """VXLAN."""

    port: int = Field(default=4789, ge=1, le=65535)  # type: ignore[assignment]
    vni: int = Field(default=1, ge=0, le=vxlan.MAX_VNI)

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return VXLAN."""
        return wire.vxlan_tunnel(self.port, self.vni)


class Geneve(Outer):
    """GENEVE with Ethernet inside."""

    port: int = Field(default=6081, ge=1, le=65535)  # type: ignore[assignment]
    vni: int = Field(default=1, ge=0, le=vxlan.MAX_VNI)

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return GENEVE."""
        return wire.geneve_tunnel(self.port, self.vni, may_cut)


class Tzsp(Outer):
    """TZSP."""

    port: int = Field(default=37008, ge=1, le=65535)  # type: ignore[assignment]

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return TZSP."""
        return wire.tzsp_tunnel(self.port, may_cut)


class Juniper(Outer):
    """The Juniper header of Contrail and CN2."""

    port: int = Field(default=8099, ge=1, le=65535)  # type: ignore[assignment]
    host: str | None = None
    source_vn: str = ""
    destination_vn: str = ""

    @field_validator("host")
    @classmethod
    def _host_is_ipv4(cls, value: str | None) -> str | None:
        return None if value is None else str(ipaddress.IPv4Address(value))

    @field_validator("source_vn", "destination_vn")
    @classmethod
    def _name_fits(cls, value: str) -> str:
        if len(value.encode()) > LONGEST_NAME:
            raise ValueError(f"longer than {LONGEST_NAME} octets")
        return value

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return the Juniper header."""
        host = None if self.host is None else ipaddress.IPv4Address(self.host).packed
        return wire.juniper_tunnel(self.port, host, self.source_vn, self.destination_vn)


class Ether(Outer):
    """The wire itself: clones leave by the interface ``remote`` as they are (RSPAN: with a tag).

    Frames are not fragmented: without ``mtu`` those that are too long are dropped.
    """

    unused = frozenset({"local", "ttl", "dscp"})

    vlan: int | None = Field(default=None, ge=0, le=LAST_VLAN)
    pcp: int = Field(default=0, ge=0, le=7)

    @field_validator("remote")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _INTERFACE.fullmatch(value) or len(value.encode()) > LONGEST_INTERFACE:
            raise ValueError("not the name of an interface, as in ether://eth1")
        return value

    @field_validator("mtu")
    @classmethod
    def _frames_stay_whole(cls, value: MtuPolicy | None) -> MtuPolicy | None:
        if value is MtuPolicy.FRAGMENT:
            raise ValueError("frames cannot be fragmented: take truncate or drop")
        return value

    @field_validator("pcp")
    @classmethod
    def _pcp_needs_a_tag(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("vlan") is None:
            raise ValueError("the priority stands in a tag: add vlan=0 for a tag of no VLAN")
        return value

    def encapsulation(self, may_cut: bool) -> wire.Encapsulation:
        """Return no headers, but the tag to push."""
        return wire.wire_itself(self.vlan, self.pcp)


TUNNELS: Final[dict[str, type[Outer]]] = {
    "gre": Gre,
    "gre-ip": GreIp,
    "erspan1": Erspan1,
    "erspan2": Erspan2,
    "erspan3": Erspan3,
    "vxlan": Vxlan,
    "geneve": Geneve,
    "tzsp": Tzsp,
    "juniper": Juniper,
    "ether": Ether,
}

_INTERFACE: Final = re.compile(r"[^\s/:]+")
"""What Linux takes as a name (dev_valid_name, net/core/dev.c)."""

_BRACKETED: Final = re.compile(r"[^:]*(:\d+)?([/?#]|$)|[^\[]*\[[^\]]+\]")
"""A remote in which colons are in their places: host, host:port, or an address in brackets."""


def parse_tunnel(text: str) -> Outer:
    """Return the tunnel that ``text`` describes; raises UsageError in one line."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise UsageError(
            f"tunnel {text}: expected ENCAP://REMOTE[:PORT][?option=value], ENCAP one of "
            + ", ".join(TUNNELS)
        )
    model = TUNNELS.get(scheme.lower())
    if model is None:
        raise UsageError(
            f"tunnel {text}: unknown encapsulation {scheme}; known: {', '.join(TUNNELS)}"
        )
    if rest.count(":") > 1 and not _BRACKETED.match(rest):
        raise UsageError(
            f"tunnel {text}: put an IPv6 address in brackets: {scheme}://[2001:db8::1]"
        )
    try:
        parts = urlsplit(f"//{rest}")
        pairs = parse_qsl(parts.query, True, True) if parts.query else []
        remote, port = _far_end(parts, model)
    except ValueError as error:
        raise UsageError(f"tunnel {text}: {error}") from None
    values: dict[str, Any] = dict(pairs)
    _refuse_what_means_nothing(text, parts, [option for option, _ in pairs])
    if not remote or parts.path not in ("", "/"):
        raise UsageError(f"tunnel {text}: expected ENCAP://REMOTE[:PORT][?option=value&…]")
    for reserved in ("remote", "port"):
        if reserved in values:
            raise UsageError(f"tunnel {text}: {reserved} belongs in front of the ?")
    for option in sorted(values.keys() & model.unused):
        raise UsageError(f"tunnel {text}: {_no_option(option, model)}")
    if port is not None:
        if not model.model_fields["port"].default:
            raise UsageError(f"tunnel {text}: {scheme} rides in IP itself and has no port")
        values["port"] = port
    try:
        return model(remote=remote, **values)
    except ValidationError as error:
        raise UsageError(f"tunnel {text}: {_first_problem(error, model)}") from None


def _far_end(parts: SplitResult, model: type[Outer]) -> tuple[str | None, int | None]:
    """Return remote and port; an interface's name keeps its capitals."""
    if model is Ether:
        return parts.netloc, None
    return parts.hostname, parts.port


def _refuse_what_means_nothing(text: str, parts: SplitResult, options: list[str]) -> None:
    """Refuse the parts of a URL that a tunnel has no use for, and options that come twice."""
    if "@" in parts.netloc:
        raise UsageError(f"tunnel {text}: a tunnel has no user in front of the remote and its @")
    if "#" in text:
        raise UsageError(f"tunnel {text}: nothing can follow a #; write %23 for one in a value")
    for option in options:
        if options.count(option) > 1:
            raise UsageError(f"tunnel {text}: {option} is given twice")


def _first_problem(error: ValidationError, model: type[Outer]) -> str:
    problem = error.errors()[0]
    option = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _no_option(option, model)
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{option}={problem['input']}: {reason[0].lower()}{reason[1:]}"


def _no_option(option: str, model: type[Outer]) -> str:
    return f"no option {option}; it has {', '.join(model.options())}"
