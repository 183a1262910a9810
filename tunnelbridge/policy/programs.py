"""BPF programs of a source's sessions: one for the kernel, and one for each expression.

The kernel's program lets through whatever a session might mirror, so that the rest costs nothing;
which session that is, :mod:`~tunnelbridge.policy.selection` decides. Interfaces are named in the
calling thread's network namespace.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from tunnelbridge.clone.rules import Direction, Rule, reply_to
from tunnelbridge.linux.bpf_join import join
from tunnelbridge.linux.libc import Program
from tunnelbridge.linux.libpcap import compile_filter, kernel_takes, refuse_marked
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.rule_programs import compile_lists


def expression_programs(plans: Sequence[SessionPlan], interface: str | None) -> dict[int, Program]:
    """Compile each session's expression, by the session's number; raises UsageError."""
    return {
        number: compile_filter(plan.expression, interface=interface)
        for number, plan in enumerate(plans)
        if plan.rules is None and plan.expression.strip()
    }


def kernel_program(
    plans: Sequence[SessionPlan],
    expressions: dict[int, Program],
    interface: str,
    direction: Direction,
) -> Program:
    """Return one program that refuses our own clones and what no session could mirror."""
    tables = [_table(plan) for plan in plans if plan.rules is not None]
    programs = [*expressions.values(), compile_lists(tables, interface)]
    if any(plan.rules is None and not plan.expression.strip() for plan in plans):
        programs = [compile_filter("")]
    joined = join(programs)
    if joined is not None:
        program = refuse_marked(joined, direction=direction)
        if kernel_takes(program):
            return program
    _tell_too_long(interface)
    return refuse_marked(compile_filter(""), direction=direction)


def _tell_too_long(interface: str) -> None:
    structlog.get_logger().warning(
        "the sessions' filters are longer than the kernel takes: every packet comes to user space and"
        " is decided there",
        interface=interface,
    )


def common_direction(plans: Sequence[SessionPlan]) -> Direction:
    """Return the direction that all sessions agree on, else both."""
    directions = {plan.direction for plan in plans}
    return directions.pop() if len(directions) == 1 else "both"


def _table(plan: SessionPlan) -> tuple[Rule, ...]:
    """Return the rules by which the kernel lets packets through; replies follow a policy's flows."""
    rules = plan.rules or ()
    if not plan.is_stateful:
        return rules
    accepting = [rule for rule in rules if rule.accept]
    return (*accepting, *map(reply_to, accepting))
