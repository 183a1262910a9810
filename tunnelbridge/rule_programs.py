"""Lists of filter rules as one BPF program, so that the kernel refuses what no list accepts."""

from __future__ import annotations

from collections.abc import Sequence

from tunnelbridge.clone.expression import accepted_expression, odd_expression
from tunnelbridge.clone.rules import Rule
from tunnelbridge.linux.bpf_join import REFUSE_ALL
from tunnelbridge.linux.libc import Program
from tunnelbridge.linux.libpcap import compile_filter, compile_in_turn

EVERYTHING = ""


def compile_rules(rules: Sequence[Rule], interface: str | None = None) -> Program:
    """Compile one list: see :func:`compile_lists`, which is shorter for several."""
    return compile_lists([rules], interface)


def compile_lists(lists: Sequence[Sequence[Rule]], interface: str | None = None) -> Program:
    """Compile lists of rules into one program that accepts every packet that some list accepts.

    It accepts a few more (:mod:`tunnelbridge.clone.expression`), and it may be longer than the kernel
    takes (:func:`tunnelbridge.linux.bpf_join.join` tells). Without an interface, directions cannot be
    told apart: packets are accepted that would be in either.

    Raises UserError as :func:`tunnelbridge.linux.libpcap.compile_filter` does.
    """
    expressions = [_both_directions(rules, interface is not None) for rules in lists]
    accepted = [expression for expression in expressions if expression is not None]
    if not accepted:
        return REFUSE_ALL
    if EVERYTHING in accepted:
        return compile_filter(EVERYTHING)
    odd = odd_expression([rule for rules in lists for rule in rules])
    return compile_in_turn([odd, *dict.fromkeys(accepted)], interface)


def _both_directions(rules: Sequence[Rule], live: bool) -> str | None:
    """Return what the rules accept of the packets that are not odd; None for nothing."""
    inbound, outbound = accepted_expression(rules, "in"), accepted_expression(rules, "out")
    if inbound == outbound:
        return inbound
    halves = []
    for word, accepted in (("inbound", inbound), ("outbound", outbound)):
        if accepted is not None:
            halves.append(" and ".join(filter(None, [word if live else "", accepted])))
    return EVERYTHING if "" in halves else " or ".join(f"({half})" for half in halves)
