"""The values of the configuration: addresses, names, ports, labels; each with one reason when wrong.

Validators raise ValueError whose text completes ``KEY = VALUE: …``; what they return is canonical, so
that two spellings of one address are one key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
)
from pydantic_core import core_schema

from tunnelbridge.clone.rules import parse_ports, protocol_number
from tunnelbridge.config.tunnel import LONGEST_INTERFACE, Outer, parse_tunnel
from tunnelbridge.errors import UsageError

_MAC: Final = re.compile(r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
_SOURCE: Final = re.compile(r"(?:[^\s/:]+:)?[^\s/:]+")


class Table(BaseModel):
    """A table of the configuration: unknown keys are refused, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Between:
    """A range, both ends included."""

    low: float
    high: float

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "minimum": self.low, "maximum": self.high}

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self.low} to {self.high}")
        return value


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address") from None
    if "%" in text:
        raise ValueError("has a zone: leave out the % and what follows")
    return str(address)


def _ipv4(text: str) -> str:
    if ":" in _address(text):
        raise ValueError("must be an IPv4 address")
    return _address(text)


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise ValueError("is not a MAC address (as in 02:00:0a:0a:0a:0a)")
    return text.lower().replace("-", ":")


def _unicast(text: str) -> str:
    mac = _mac(text)
    if mac == "00:00:00:00:00:00":
        raise ValueError("nobody has this MAC address")
    if int(mac[:2], 16) & 1:
        raise ValueError("is a group MAC address, no member has it")
    return mac


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not a network (as in 192.0.2.0/24)") from None
    raise ValueError(f"has bits behind its prefix length: is {meant} meant?")


def _prefix(text: str) -> str:
    return "all" if text.lower() in ("all", "any") else _network(text)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            "a name is of letters, digits, - _ and . and begins with a letter or digit"
        )
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text
    raise ValueError("a name cannot be an IP address: targets tell members by it")


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("a label's name is of letters, digits, - _ . and /")
    return text


def _label_value(text: str) -> str:
    if "," in text or "=" in text:
        raise ValueError("a selector could not name a label value with , or =")
    return text


def _source(text: str) -> str:
    if not _SOURCE.fullmatch(text):
        raise ValueError("must be an interface, a glob, or NETNS:INTERFACE")
    interface = text.rpartition(":")[2]
    if len(interface) > LONGEST_INTERFACE and not set("*?[") & set(interface):
        raise ValueError(f"no interface name is longer than {LONGEST_INTERFACE} octets")
    return text


def _interface(text: str) -> str:
    if not _SOURCE.fullmatch(text) or ":" in text or len(text) > LONGEST_INTERFACE:
        raise ValueError("is not the name of an interface")
    return text


def _is_word(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("must be a number or text in quotes")
    return str(value)


def _ports(text: str) -> str:
    parse_ports(text)
    return text.strip().lower()


def _protocol(text: str) -> str:
    protocol_number(text)
    return text.strip().lower()


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("is empty: it needs at least one")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if value.count(one) > 1:
            raise ValueError(f"has {one} twice")
    return value


def specify(url: str) -> Outer:
    """Return the tunnel of a URL; raises ValueError with the reason alone."""
    try:
        return parse_tunnel(url)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"tunnel {url}: ")) from None


def _tunnel(url: str) -> str:
    specify(url)
    return url


def keys_once(canonical: Callable[[str], str]) -> Callable[[Any], Any]:
    """Return a check that refuses a table in which two spellings of one key stand."""

    def check(table: Any) -> Any:
        seen: dict[str, str] = {}
        for key in table if isinstance(table, dict) else ():
            try:
                value = canonical(key)
            except ValueError:
                continue  # is told of by its own key
            if value in seen:
                raise ValueError(f"{seen[value]} and {key} are the same: leave one entry")
            seen[value] = key
        return table

    return check


Address = Annotated[str, AfterValidator(_address)]
"""An IPv4 or IPv6 address without a zone."""
Address4 = Annotated[str, AfterValidator(_ipv4)]
Mac = Annotated[str, AfterValidator(_unicast)]
"""A member's MAC address, in lower case with colons."""
Network = Annotated[str, AfterValidator(_network)]
"""A prefix without bits behind it; a bare address is the network of that one address."""
Prefix = Annotated[str, AfterValidator(_prefix)]
"""A network, or ``all``."""
Ports = Annotated[str, BeforeValidator(_is_word, str | int), AfterValidator(_ports)]
"""As ``clone.rules.parse_ports`` takes them."""
Protocol = Annotated[str, BeforeValidator(_is_word, str | int), AfterValidator(_protocol)]
"""As ``clone.rules.protocol_number`` takes it."""
Name = Annotated[str, AfterValidator(_name)]
Labels = dict[Annotated[str, AfterValidator(_label)], Annotated[str, AfterValidator(_label_value)]]
FreeLabels = dict[Annotated[str, AfterValidator(_label)], str]
"""Labels that nothing selects by: any text."""
Source = Annotated[str, AfterValidator(_source)]
Interface = Annotated[str, AfterValidator(_interface)]
TunnelUrl = Annotated[str, AfterValidator(_tunnel)]
Several = BeforeValidator(_several, str | list[str])
"""One, or a list of them."""
Some = AfterValidator(_some)
"""At least one; after validation, so that a wrong element is not told of twice."""
Distinct = AfterValidator(_distinct)
Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Priority = Annotated[Int, Between(1, 32766)]
"""The range of Huawei's and AWS's session numbers."""
Port = Annotated[Int, Between(1, 65535)]
Arp = Annotated[dict[Address, Mac], BeforeValidator(keys_once(_address), dict[str, str])]
Fdb = Annotated[
    dict[Mac, Annotated[tuple[str, ...], Several, Some, Distinct]],
    BeforeValidator(keys_once(_mac), dict[str, str | list[str]]),
]
