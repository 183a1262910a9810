"""What ``--forward-raw`` asks for: weighted back ends, and what of the frames they get."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from collector.sinks.forwarding import common_options
from collector.sinks.options import LONGEST, SinkOptions, parse_sink
from tunnelbridge.errors import UsageError
from tunnelbridge.linux.names import resolve_host

OPTION: Final = "--forward-raw"
MOST_WEIGHT: Final = 1000


@dataclass(frozen=True, slots=True)
class BackEnd:
    """One back end as it was asked for."""

    remote: str
    """An IP literal."""
    port: int | None
    """Where UDP goes; None for the port it came to."""
    weight: int = 1

    @property
    def name(self) -> str:
        """What the ledger calls it, and what rendezvous hashing knows it by."""
        if self.port is None:
            return self.remote
        return (
            f"[{self.remote}]:{self.port}" if ":" in self.remote else f"{self.remote}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class RawForwarding:
    """The raw forward sink as it was asked for; nothing is open yet."""

    back_ends: tuple[BackEnd, ...]
    options: SinkOptions
    """Filter and queue; the target in it means nothing."""


def plan_raw_forwarding(texts: Sequence[str]) -> RawForwarding | None:
    """Return the sink of all ``--forward-raw HOST[:PORT][?weight=N&filter=…&queue=…]``.

    None where there is none. Raises UsageError and UserError.
    """
    if not texts:
        return None
    asked = [parse_sink(text, OPTION, ("weight",)) for text in texts]
    back_ends = [_back_end(options) for options in asked]
    for number, back_end in enumerate(back_ends):
        if back_end.name in [other.name for other in back_ends[:number]]:
            raise UsageError(f"{OPTION} {back_end.name} is given twice: add weight=2 to the first")
    if not any(back_end.weight for back_end in back_ends):
        raise UsageError(f"{OPTION}: no back end has a weight: nothing would be forwarded")
    options = common_options(OPTION, asked)
    if options.snaplen < LONGEST:
        raise UsageError(f"{OPTION} {texts[0]}: datagrams go on unchanged: leave snaplen out")
    return RawForwarding(tuple(back_ends), options)


def _back_end(options: SinkOptions) -> BackEnd:
    text, weight = options.target, options.more.get("weight", "1")
    if not (weight.isascii() and weight.isdecimal()) or int(weight) > MOST_WEIGHT:
        raise UsageError(f"{OPTION} {text}: weight={weight}: expected 0 to {MOST_WEIGHT}")
    if text.count(":") > 1 and "[" not in text and "/" not in text:
        raise UsageError(f"{OPTION} {text}: put an IPv6 address in brackets: [2001:db8::1]:4789")
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{OPTION} {text}: {error}") from None
    if not host or parts.netloc != text or "@" in text or port == 0:
        raise UsageError(f"{OPTION} {text}: expected HOST[:PORT], as 192.0.2.7:4789")
    remote = resolve_host(host)
    if ipaddress.ip_address(remote).is_unspecified:
        raise UsageError(f"{OPTION} {text}: {remote} is nobody's address: name the back end's")
    return BackEnd(remote, port, int(weight))
