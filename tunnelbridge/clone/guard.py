"""Never a loop: refuse frames that are, carry or quote one of our own tunnels.

Theory of operation. A clone must not be cloned again, wherever it is met:

1. On its way out of this host the kernel tells: tunnel sockets carry an SO_MARK that the capture
   filter refuses first. That costs nothing and is not this module.
2. Where the mark is gone (another namespace, another host, on its way back inside somebody else's
   tunnel) the octets tell: outer destination, protocol, port and identifier of one of our tunnels,
   four tunnels deep, in first fragments and in the packets that ICMP errors quote. Later fragments
   are told by addresses, protocol and identification of a first one that was refused.
3. Where even that is hidden (an address translated on the way), the **breaker** sees the same packet
   come back inside a tunnel: its generation is one more than that of the packet inside. The second
   return is refused, so no original has more than two clones. It starts to remember clones when the
   first tunnelled frame is seen, so hosts without tunnels pay nothing (and the very first packet of a
   loop may have three).

Never the crude ``not host X``: everything else that the host behind a tunnel does stays visible.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Flags, Octets, zeros
from tunnelbridge.clone.breaker import LAST_GENERATION, Breaker, Tunnelled
from tunnelbridge.clone.innermost import Innermost
from tunnelbridge.wire import icmp, ipv4, udp
from tunnelbridge.wire.flow import ADDRESSES6, MACS, Flows
from tunnelbridge.wire.layer import UNKNOWN, Codes, Kind
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason
from tunnelbridge.wire.walk import Step, walk

REMEMBERED_FRAGMENTS: Final = 4096
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_SUSPECT: Final = np.isin(
    np.arange(256), (Kind.GRE, Kind.IPV4, Kind.IPV6, Kind.ETHERIP, Kind.MPLS, Kind.ETHERNET)
)
_CARRIED: Final = np.isin(np.arange(256), (Kind.ETHERNET, Kind.IPV4, Kind.IPV6))
_NO_PACKETS: Final = Innermost(zeros(0), zeros(0), zeros(0), np.zeros(0, np.uint8))
_CUT: Final = (
    Reason.GRE_SHORT,
    Reason.ERSPAN_SHORT,
    Reason.VXLAN_SHORT,
    Reason.GENEVE_SHORT,
    Reason.TZSP_SHORT,
    Reason.TZSP_TAGS,
    Reason.JUNIPER_TLVS,
)
"""An ICMP error may quote no more than eight octets behind the IP header."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What one of our tunnels looks like from outside."""

    remote: str
    kind: Kind
    port: int | None = None
    identifier: int | None = None
    mac: bytes = b""
    """Of clones on layer 2: the destination MAC address that they are given, if any."""

    @property
    def address(self) -> tuple[int, int]:
        """Return the remote as two 64-bit numbers; IPv4 has 0 as the first."""
        number = int(ipaddress.ip_address(self.remote))
        return number >> 64, number & 0xFFFFFFFFFFFFFFFF


class Checked(NamedTuple):
    """What the guard found out about a batch of n frames."""

    reason: Codes
    """Shape (n,): 0, OWN_TUNNEL or LOOP_BREAKER."""
    innermost: Innermost
    """The innermost IP packets of those frames that carry tunnels."""


@dataclass(slots=True)
class _Seen:
    """Where the walk is in each of k suspects, columns of shape (k,)."""

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    """The destination of the IP header last seen, as two numbers."""
    port: Column
    own: Flags
    first_fragments: list[tuple[Column, npt.NDArray[np.uint64]]]
    """Suspects, and the keys of the first fragments seen in them; one may hold another."""
    later_fragment: npt.NDArray[np.uint64]
    """Key of a later fragment seen, 0 without one."""
    tunnelled: list[Tunnelled]
    """What was found inside tunnels; ``frame`` numbers the suspects."""
    innermost: Innermost
    """The IP header that the walk saw last, with a row for each suspect; the outer one at first."""
    quoted: Flags
    """What the walk sees now is what an ICMP error quotes, and carries nothing."""


class LoopGuard:
    """Refuses what would loop; remembers the first fragments it refused."""

    def __init__(self, signatures: list[Signature]) -> None:
        self.watch_for(signatures)
        self._fragments = np.zeros(REMEMBERED_FRAGMENTS, np.uint64)
        self._next_fragment = 0
        self.breaker = Breaker()

    def watch_for(self, signatures: list[Signature]) -> None:
        """Know these tunnels from now on; fragments and clones stay remembered."""
        self.signatures = [each for each in signatures if each.kind != Kind.ETHERNET]
        self._macs = np.array(
            sorted({int.from_bytes(each.mac) for each in signatures if each.mac}), np.uint64
        )
        told = {each.port: each.kind for each in signatures if each.port is not None}
        self._ports = udp.port_table(udp.PORTS | told)

    def check(self, batch: Batch, flows: Flows) -> Checked:
        """Tell what would loop, and what is inside tunnels."""
        innermost = _NO_PACKETS
        reason = np.zeros(len(batch), np.uint8)
        generation = np.zeros(len(batch), np.uint8)
        suspects = np.flatnonzero(self._is_suspect(batch.memory, flows))
        if suspects.size:
            seen = self._search(batch, flows, suspects)
            generation[suspects] = self.breaker.generations(
                batch.memory, seen.tunnelled, len(suspects)
            )
            reason[generation == LAST_GENERATION] = Reason.LOOP_BREAKER
            reason[suspects[seen.own]] = Reason.OWN_TUNNEL
            innermost = seen.innermost.select(seen.innermost.start != flows.payload[suspects])
        if self._macs.size:
            macs = load(batch.memory, batch.start, MACS)["high"] >> np.uint64(16)
            reason[np.isin(macs, self._macs)] = Reason.OWN_TUNNEL
        self.breaker.remember(batch.memory, flows, reason == 0, generation)
        return Checked(reason, innermost)

    def _is_suspect(self, memory: Octets, flows: Flows) -> Flags:
        """Tell which frames could be or quote a tunnel, at the cost of one look-up each."""
        suspect: Flags = _SUSPECT[flows.kind] | flows.fragment
        is_udp = np.flatnonzero(flows.kind == Kind.UDP)
        if is_udp.size:
            header = load(memory, flows.transport[is_udp], udp.HEADER)
            suspect[is_udp] = self._ports[header["destination"]] != Kind.NONE
        is_icmp = np.flatnonzero(flows.kind == Kind.ICMP)
        if is_icmp.size:
            header = load(memory, flows.transport[is_icmp], icmp.HEADER)
            suspect[is_icmp] = icmp.IS_ERROR[header["type"]]
        return suspect

    def _search(self, batch: Batch, flows: Flows, suspects: Column) -> _Seen:
        """Walk into the suspects and find what is ours."""
        count = len(suspects)
        seen = _Seen(
            high=np.zeros(count, np.uint64),
            low=np.zeros(count, np.uint64),
            port=np.full(count, UNKNOWN, np.int64),
            own=np.zeros(count, np.bool_),
            first_fragments=[],
            later_fragment=np.zeros(count, np.uint64),
            tunnelled=[],
            innermost=Innermost(
                suspects, flows.payload[suspects], flows.end[suspects], np.zeros(count, np.uint8)
            ),
            quoted=np.zeros(count, np.bool_),
        )
        start = batch.start[suspects]
        end = start + batch.length[suspects]
        for step in walk(batch.memory, start, end, Kind.ETHERNET, self._ports, searching=True):
            if step.kind in (Kind.IPV4, Kind.IPV6):
                self._visit_ip(batch.memory, seen, step)
                _note_innermost(seen, step)
            elif step.kind == Kind.UDP:
                port = load(batch.memory, step.start, udp.HEADER)["destination"]
                seen.port[step.index] = port
            elif step.kind == Kind.ICMP:
                seen.quoted[step.index] = True
            elif step.kind != Kind.ETHERNET:
                self._visit_tunnel(seen, step)
        for suspect, key in seen.first_fragments:
            self._remember_fragments(key[seen.own[suspect]])
        later = np.flatnonzero(seen.later_fragment)  # even of a first one further back in the batch
        seen.own[later] |= np.isin(seen.later_fragment[later], self._fragments)
        return seen

    def _visit_ip(self, memory: Octets, seen: _Seen, step: Step) -> None:
        """Note the destination, and which fragment of what it is.

        What else tells the fragments of one packet from others: source and, in IPv4, protocol
        (RFC 791 §3.2, RFC 8200 §4.5).
        """
        index, layer = step.index, step.layer
        if step.kind == Kind.IPV4:
            header = load(memory, step.start, ipv4.HEADER)
            seen.high[index] = 0
            seen.low[index] = header["destination"]
            others = [header["source"], header["protocol"]]
        else:
            addresses = load(memory, step.start + 8, ADDRESSES6)
            destination, source = addresses["destination"], addresses["source"]
            seen.high[index], seen.low[index] = destination[:, 0], destination[:, 1]
            others = [source[:, 0], source[:, 1]]
        if layer.fragment is None or layer.first_fragment is None:
            return
        key = _mixed(seen.high[index], seen.low[index], *others, layer.fragment)
        is_fragment = layer.fragment != UNKNOWN
        first = np.flatnonzero(layer.first_fragment)
        if first.size:
            seen.first_fragments.append((np.arange(len(seen.own))[index][first], key[first]))
        later = is_fragment & ~layer.first_fragment
        seen.later_fragment[index] = np.where(later, key, seen.later_fragment[index])

    def _visit_tunnel(self, seen: _Seen, step: Step) -> None:
        """Compare a tunnel's header with ours, and note what is inside."""
        index, layer = step.index, step.layer
        count = len(layer.reason)
        kind = np.full(count, step.kind, np.uint8)
        if layer.encapsulation is not None:
            kind = layer.encapsulation
        told = np.full(count, UNKNOWN) if layer.identifier is None else layer.identifier
        cut = np.isin(layer.reason, _CUT)  # a quote that ends before the identifier may be ours
        carries = (layer.reason == 0) & _CARRIED[layer.kind]
        for signature in self.signatures:
            identifier = UNKNOWN if signature.identifier is None else signature.identifier
            matches = cut | (carries & (told == identifier))
            seen.own[index] |= matches & (kind == signature.kind) & _is_to(signature, seen, index)
        inside = np.flatnonzero(carries)
        if inside.size:
            frame = inside if isinstance(index, slice) else index[inside]
            where = layer.payload[inside], layer.end[inside], layer.kind[inside]
            seen.tunnelled.append(Tunnelled(frame, *where))

    def _remember_fragments(self, keys: npt.NDArray[np.uint64]) -> None:
        for key in np.unique(keys)[:REMEMBERED_FRAGMENTS]:
            self._fragments[self._next_fragment] = key
            self._next_fragment = (self._next_fragment + 1) % REMEMBERED_FRAGMENTS


def _note_innermost(seen: _Seen, step: Step) -> None:
    """Note where IP packets are; those further in come later and replace those around them."""
    layer = step.layer
    packet = (layer.reason == 0) | (layer.reason == Reason.IP_FRAGMENT)
    packet &= ~seen.quoted[step.index]
    if not packet.any():
        return
    index = np.flatnonzero(packet) if isinstance(step.index, slice) else step.index[packet]
    seen.innermost.start[index] = step.start[packet]
    seen.innermost.end[index] = layer.end[packet]
    seen.innermost.kind[index] = step.kind


def _mixed(*columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return a hash of each row, 64 bits, that depends on the columns' order."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        key = (key ^ column.astype(np.uint64)) * _ODD
        key ^= key >> np.uint64(29)
    return key


def _is_to(signature: Signature, seen: _Seen, index: Column | slice) -> Flags:
    """Tell which suspects' last IP header (and UDP header) lead to this tunnel's end."""
    high, low = signature.address
    to: Flags = (seen.high[index] == high) & (seen.low[index] == low)
    if signature.port is not None:
        to &= seen.port[index] == signature.port
    return to
