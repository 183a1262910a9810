"""A list of rules as a tcpdump expression, and the packets that need a closer look than it takes.

The expression never refuses what the list accepts. It accepts more where pcap-filter(7) looks at a
packet differently than we do: those *odd* packets come first in the expression, whatever the rules
say of them, and the rules follow exactly. Odd are:

* Tags that are in the frame's octets: rules look behind them.
* IP headers that are cut off, or of another version or length than they should be.
* IPv6 extension headers: libpcap's ``tcp`` looks behind none but the fragment header.
* Where ports matter, later fragments (whose first one may tell their ports), packets too short for
  ports, and DCCP and UDP-Lite, whose ports libpcap does not look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, Literal

from tunnelbridge.clone.rules import PORT_PROTOCOLS, Rule
from tunnelbridge.wire import ethernet, ipv6

EVERYTHING: Final = ""
NOTHING: Final = None

_MAC_HEADER: Final = ethernet.HEADER.itemsize
_FIXED4, _FIXED6 = 20, ipv6.HEADER.itemsize
_LIBPCAP_PORTS: Final = {6: "tcp", 17: "udp", 132: "sctp"}
_LENGTH4: Final = "((ip[0] & 0xf) << 2)"
_TAGGED: Final = tuple(f"ether[12:2] = {tpid:#x}" for tpid in ethernet.TAG_TYPES)
_ODD4: Final = (
    f"len < {_MAC_HEADER + _FIXED4}",
    "ip[0] & 0xf0 != 0x40",
    "ip[0] & 0xf < 5",
    f"ip[2:2] < {_LENGTH4}",
    f"len < {_LENGTH4} + {_MAC_HEADER}",
)
_ODD6: Final = (
    f"len < {_MAC_HEADER + _FIXED6}",
    "ip6[0] & 0xf0 != 0x60",
    *(f"ip6[6] = {number}" for number in sorted((*ipv6.EXTENSIONS, ipv6.FRAGMENT))),
)
_OTHER_PORTS: Final = sorted(set(PORT_PROTOCOLS) - set(_LIBPCAP_PORTS))
_ODD4_PORTS: Final = (
    "ip[6:2] & 0x1fff != 0",
    f"ip[2:2] < {_LENGTH4} + 4",
    f"len < {_LENGTH4} + {_MAC_HEADER + 4}",
    *(f"ip[9] = {number}" for number in _OTHER_PORTS),
)
_ODD6_PORTS: Final = (
    "ip6[4:2] < 4",
    f"len < {_MAC_HEADER + _FIXED6 + 4}",
    *(f"ip6[6] = {number}" for number in _OTHER_PORTS),
)


def accepted_expression(rules: Sequence[Rule], direction: Literal["in", "out"]) -> str | None:
    """Return what accepts the packets of ``direction`` that ``rules`` accept, but for odd ones.

    The empty expression accepts everything; None stands for nothing, which libpcap cannot say.
    """
    return _first_match([rule for rule in rules if rule.direction in ("both", direction)])


def odd_expression(rules: Sequence[Rule]) -> str:
    """Return what accepts the packets that libpcap does not look at as these rules do."""
    ported = any(rule.has_ports for rule in rules)
    odd4 = _any(_ODD4 + _ODD4_PORTS if ported else _ODD4)
    odd6 = _any(_ODD6 + _ODD6_PORTS if ported else _ODD6)
    return f"({' or '.join(_TAGGED)} or (ip and {odd4}) or (ip6 and {odd6}))"


def _first_match(rules: Sequence[Rule]) -> str | None:
    """Return what the rules accept, the last ones innermost."""
    expression: str | None = NOTHING
    for accepts, run in reversed([(key, list(run)) for key, run in groupby(rules, _accepts)]):
        outcome = EVERYTHING if accepts else NOTHING
        matching = _any([_words(rule) for rule in run])
        if any(rule.matches_all for rule in run):
            expression = outcome
        elif expression in (EVERYTHING, NOTHING):
            if expression != outcome:
                expression = matching if accepts else f"(not {matching})"
        elif accepts:
            expression = f"({matching} or {expression})"
        else:
            expression = f"(not {matching} and {expression})"
    return expression


def _accepts(rule: Rule) -> bool:
    return rule.accept


def _words(rule: Rule) -> str:
    """Return the expression of one rule's fields; of packets that are not odd."""
    family = {4: "ip", 6: "ip6"}.get(rule.any_family)
    terms = [family or "(ip or ip6)"]
    if rule.protocol is not None:
        terms = [f"{family or ''} proto {rule.protocol}".strip()]
    for side, network in (("src", rule.source), ("dst", rule.destination)):
        if network is not None and network.prefixlen:
            terms.append(f"{family} {side} net {network}")
    if rule.protocol not in _OTHER_PORTS:  # those are odd where ports matter
        name = _LIBPCAP_PORTS.get(rule.protocol or 0, "")
        for side, ranges in (("src", rule.source_ports), ("dst", rule.destination_ports)):
            if ranges is not None:
                ports = [f"{name} {side} portrange {low}-{high}".strip() for low, high in ranges]
                terms.append(_any(ports))
    return f"({' and '.join(terms)})"


def _any(terms: Sequence[str]) -> str:
    return terms[0] if len(terms) == 1 else f"({' or '.join(terms)})"
