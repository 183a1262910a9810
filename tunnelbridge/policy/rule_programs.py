"""Lists of filter rules as one classic BPF program, so that the kernel refuses what no list accepts.

Packets that are odd (:mod:`tunnelbridge.clone.expression`) are accepted first. Of the others, the
fields that rules look at are loaded once into memory cells, and the rules of the packet's family and
direction are tried in turn. libpcap would load the fields again for each rule, and a load is ten
instructions of those the kernel translates to and has little room for (``libpcap.kernel_takes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunnelbridge.clone.expression import EVERYTHING, odd_expression
from tunnelbridge.clone.rules import Network, Ranges, Rule
from tunnelbridge.linux import bpf_assembler as asm
from tunnelbridge.linux.bpf_join import REFUSE_ALL, add_program
from tunnelbridge.linux.libc import Program
from tunnelbridge.linux.libpcap import SKF_AD_PKTTYPE, SNAP_LENGTH, compile_filter
from tunnelbridge.linux.tpacket import PACKET_OUTGOING

Table = list[Rule]

_ETHERTYPE: Final = 12
_IP: Final = 14
_FAMILIES: Final = {4: 0x0800, 6: 0x86DD}
_PROTOCOL_AT: Final = {4: _IP + 9, 6: _IP + 6}
_SOURCE_AT: Final = {4: _IP + 12, 6: _IP + 8}
_WORDS: Final = {4: 1, 6: 4}
"""32-bit words of an address."""
_HEADER6: Final = 40
_WITH_PORTS: Final = (6, 17, 132)
"""Others with ports are odd where ports matter."""

# Memory cells
_PROTOCOL, _SOURCE_PORT, _DESTINATION_PORT = 0, 1, 2
_SOURCE, _DESTINATION = 4, 8
_OF_PROTOCOL: Final = 12
"""So far behind the cell of a port is that of protocol << 16 | port: one test instead of two."""
_NO_PORT: Final = 0xFFFF_FFFF
"""Above all ports, also those of a protocol."""


def compile_lists(lists: Sequence[Sequence[Rule]], interface: str | None = None) -> Program:
    """Compile lists of rules into one program that accepts every packet that some list accepts.

    It may be longer than the kernel takes (:func:`~tunnelbridge.linux.bpf_join.join` tells). Without
    an interface, directions cannot be told apart: packets are accepted that would be in either.

    Raises UserError where libpcap is missing.
    """
    ways = _ways(lists, directed=interface is not None)
    tables = [_tables(way, family) for way in ways for family in (0, *_FAMILIES)]
    if not any(tables):
        return REFUSE_ALL
    if all(_accept_all(table) for table in tables):
        return compile_filter(EVERYTHING)
    assembly = asm.Assembly()
    odd = odd_expression([rule for rules in lists for rule in rules])
    add_program(assembly, compile_filter(odd))
    if len(ways) == 2:
        outbound = assembly.label()
        assembly.add(asm.LOAD_WORD, SKF_AD_PKTTYPE)
        assembly.add(asm.JUMP_EQUAL, PACKET_OUTGOING, outbound)
        _add_families(assembly, ways[0])
        assembly.mark(outbound)
    _add_families(assembly, ways[-1])
    return assembly.program()


def _ways(lists: Sequence[Sequence[Rule]], *, directed: bool) -> list[list[Table]]:
    """Return the lists of inbound and of outbound packets; one for both where nothing differs."""
    inbound = [[rule for rule in rules if rule.direction != "out"] for rules in lists]
    outbound = [[rule for rule in rules if rule.direction != "in"] for rules in lists]
    if inbound == outbound:
        return [inbound]
    return [inbound, outbound] if directed else [[*inbound, *outbound]]


def _tables(lists: list[Table], family: int) -> list[Table]:
    """Return what the lists say of one family, without what cannot matter and what is empty."""
    found = [_reduced(rules, family) for rules in lists]
    if any(rules and _is_final(rules[0]) for rules in found):
        return [[Rule()]]
    return [rules for rules in found if rules]


def _reduced(rules: Table, family: int) -> Table:
    """Return the rules that matter to one family: up to one that matches all of it."""
    found: Table = []
    for rule in rules:
        if rule.any_family in (0, family) if family else rule.matches_all:
            found.append(rule)
            if _is_final(rule):
                break
    ends_all = bool(found) and _is_final(found[-1]) and found[-1].accept
    last = found[-1:] if ends_all else []
    found = found[:-1] if ends_all else found
    while found and found[-1].accept == ends_all:  # what comes after decides the same
        found.pop()
    return found + last


def _is_final(rule: Rule) -> bool:
    """Tell whether every packet of the rule's family matches."""
    networks = (rule.source, rule.destination)
    is_open = rule.protocol is None and not rule.has_ports
    return is_open and not any(network and network.prefixlen for network in networks)


def _accept_all(tables: list[Table]) -> bool:
    return bool(tables) and tables[0] == [Rule()]


def _add_families(assembly: asm.Assembly, lists: list[Table]) -> None:
    """Append the rules of all families, each ending with a return."""
    assembly.add(asm.LOAD_HALF, _ETHERTYPE)
    for family, ethertype in _FAMILIES.items():
        other = assembly.label()
        assembly.add(asm.JUMP_EQUAL, ethertype, None, other)
        _add_tables(assembly, _tables(lists, family), family)
        assembly.mark(other)
    _add_tables(assembly, _tables(lists, 0), 0)


def _add_tables(assembly: asm.Assembly, tables: list[Table], family: int) -> None:
    if family:
        _load_fields(assembly, [rule for table in tables for rule in table], family)
    for table in tables:
        rejected = assembly.label()
        for rule in table:
            differs = assembly.label()
            _test(assembly, rule, differs)
            if rule.accept:
                assembly.add(asm.RETURN, SNAP_LENGTH)
            else:
                assembly.add(asm.JUMP, then=rejected)
            assembly.mark(differs)
        assembly.mark(rejected)
    assembly.add(asm.RETURN, 0)


def _load_fields(assembly: asm.Assembly, rules: Table, family: int) -> None:
    """Put the fields that the rules look at into their cells."""
    octets = 4 * _WORDS[family]
    source, destination = _SOURCE_AT[family], _SOURCE_AT[family] + octets
    wanted = [(rule.source, _SOURCE, source) for rule in rules]
    wanted += [(rule.destination, _DESTINATION, destination) for rule in rules]
    cells = {
        (cell + word, at + 4 * word)
        for network, cell, at in wanted
        for word, _, _ in _words(network)
    }
    for cell, at in sorted(cells):
        assembly.add(asm.LOAD_WORD, at)
        assembly.add(asm.STORE, cell)
    has_ports = any(rule.has_ports for rule in rules)
    if has_ports or any(rule.protocol is not None for rule in rules):
        assembly.add(asm.LOAD_OCTET, _PROTOCOL_AT[family])
        assembly.add(asm.STORE, _PROTOCOL)
    if has_ports:
        _load_ports(assembly, family)


def _load_ports(assembly: asm.Assembly, family: int) -> None:
    """Put the ports into their cells, of packets whose protocol is in A."""
    known, loaded = assembly.label(), assembly.label()
    for protocol in _WITH_PORTS:
        assembly.add(asm.JUMP_EQUAL, protocol, known)
    ports = (_SOURCE_PORT, _IP), (_DESTINATION_PORT, _IP + 2)
    assembly.add(asm.LOAD_NUMBER, _NO_PORT)
    for cell, _ in ports:
        assembly.add(asm.STORE, cell)
        assembly.add(asm.STORE, cell + _OF_PROTOCOL)
    assembly.add(asm.JUMP, then=loaded)
    assembly.mark(known)
    if family == 4:
        assembly.add(asm.LOAD_HEADER_LENGTH, _IP)
    for cell, at in ports:
        if family == 4:
            assembly.add(asm.LOAD_HALF_X, at)
        else:
            assembly.add(asm.LOAD_HALF, at + _HEADER6)
        assembly.add(asm.STORE, cell)
    assembly.add(asm.LOAD_CELL, _PROTOCOL)
    assembly.add(asm.SHIFT_LEFT, 16)
    assembly.add(asm.COPY_TO_X)
    for cell, _ in ports:
        assembly.add(asm.LOAD_CELL, cell)
        assembly.add(asm.OR_X)
        assembly.add(asm.STORE, cell + _OF_PROTOCOL)
    assembly.mark(loaded)


def _test(assembly: asm.Assembly, rule: Rule, differs: int) -> None:
    """Go on if all fields match, else to ``differs``; first what tells most packets apart."""
    for network, cell in ((rule.destination, _DESTINATION), (rule.source, _SOURCE)):
        for word, mask, value in reversed(_words(network)):
            assembly.add(asm.LOAD_CELL, cell + word)
            if mask != 0xFFFF_FFFF:
                assembly.add(asm.AND, mask)
            assembly.add(asm.JUMP_EQUAL, value, None, differs)
    for ranges, cell in (
        (rule.destination_ports, _DESTINATION_PORT),
        (rule.source_ports, _SOURCE_PORT),
    ):
        if ranges is not None:
            _test_ports(assembly, ranges, rule.protocol, cell, differs)
    if rule.protocol is not None and not rule.has_ports:
        assembly.add(asm.LOAD_CELL, _PROTOCOL)
        assembly.add(asm.JUMP_EQUAL, rule.protocol, None, differs)


def _test_ports(
    assembly: asm.Assembly, ranges: Ranges, protocol: int | None, cell: int, differs: int
) -> None:
    base = 0 if protocol is None else protocol << 16
    matches = assembly.label()
    assembly.add(asm.LOAD_CELL, cell if protocol is None else cell + _OF_PROTOCOL)
    for number, (low, high) in enumerate(ranges, 1):
        beside = assembly.label() if number < len(ranges) else differs
        if low == high:
            assembly.add(asm.JUMP_EQUAL, base + low, matches, beside)
        else:
            assembly.add(asm.JUMP_AT_LEAST, base + low, None, beside)
            assembly.add(asm.JUMP_ABOVE, base + high, beside, matches)
        if beside != differs:
            assembly.mark(beside)
    assembly.mark(matches)


def _words(network: Network | None) -> list[tuple[int, int, int]]:
    """Return what a prefix says of an address: (which word, mask, value under the mask)."""
    if network is None:
        return []
    count = _WORDS[network.version]
    found = []
    for word in range(-(-network.prefixlen // 32)):
        shift = 32 * (count - 1 - word)
        mask = int(network.netmask) >> shift & 0xFFFF_FFFF
        found.append((word, mask, int(network.network_address) >> shift & 0xFFFF_FFFF))
    return found
