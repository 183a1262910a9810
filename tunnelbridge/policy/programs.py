"""BPF programs of a source's sessions: one for the kernel, and one for each expression.

The kernel's program lets through whatever a session might mirror, so that the rest costs nothing;
which session that is, :mod:`~tunnelbridge.policy.selection` decides. Interfaces are named in the
calling thread's network namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog

from tunnelbridge.clone.rules import Direction, Rule, reply_to
from tunnelbridge.linux.bpf_join import join
from tunnelbridge.linux.libc import Program
from tunnelbridge.linux.libpcap import compile_filter, kernel_takes, refuse_marked
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.rule_programs import compile_lists


class KernelProgram(NamedTuple):
    """What the kernel gets."""

    program: Program
    is_exact: bool
    """Of a session alone with an expression: what it lets through is what the session takes."""


class SourcePrograms(NamedTuple):
    """The programs of one source."""

    expressions: Mapping[int, Program]
    """By the session's number."""
    kernel: KernelProgram


class Programs:
    """What was compiled since the policy changed; sources whose sessions are equal share it.

    libpcap takes 40 ms for an expression, and says the same for every Ethernet interface.
    """

    def __init__(self) -> None:
        self._expressions: dict[str, Program] = {}
        self._kernel: dict[object, KernelProgram] = {}

    def of_source(
        self, plans: Sequence[SessionPlan], interface: str, direction: Direction
    ) -> SourcePrograms:
        """Return the programs of a source with these sessions; raises UsageError and UserError."""
        compiled, kernel = self._expressions, self._kernel  # a thread may renew them
        for expression in expressions_of(plans):
            if expression not in compiled:
                compiled[expression] = compile_filter(expression, interface=interface)
        expressions = {
            number: compiled[plan.expression]
            for number, plan in enumerate(plans)
            if _has_expression(plan)
        }
        key = (direction, *((each.rules, each.is_stateful, each.expression) for each in plans))
        if key not in kernel:
            kernel[key] = kernel_program(plans, expressions, interface, direction)
        return SourcePrograms(expressions, kernel[key])

    def renew(self, plans: Iterable[SessionPlan]) -> None:
        """Compile the sessions' expressions, because names may mean other addresses by now."""
        self._expressions = {
            each: compile_filter(each, interface="lo") for each in expressions_of(plans)
        }
        self._kernel = {}


def expressions_of(plans: Iterable[SessionPlan]) -> list[str]:
    """Return the sessions' expressions, once each."""
    return list(dict.fromkeys(plan.expression for plan in plans if _has_expression(plan)))


def _has_expression(plan: SessionPlan) -> bool:
    return plan.rules is None and bool(plan.expression.strip())


def expression_programs(plans: Sequence[SessionPlan], interface: str | None) -> dict[int, Program]:
    """Compile each session's expression, by the session's number; raises UsageError."""
    return {
        number: compile_filter(plan.expression, interface=interface)
        for number, plan in enumerate(plans)
        if _has_expression(plan)
    }


def kernel_program(
    plans: Sequence[SessionPlan],
    expressions: Mapping[int, Program],
    interface: str,
    direction: Direction,
) -> KernelProgram:
    """Return one program that refuses our own clones and what no session could mirror."""
    tables = [_table(plan) for plan in plans if plan.rules is not None]
    programs = [*expressions.values(), compile_lists(tables, interface)]
    if any(plan.rules is None and not plan.expression.strip() for plan in plans):
        programs = [compile_filter("")]
    joined = join(programs)
    if joined is not None:
        program = refuse_marked(joined, direction=direction)
        if kernel_takes(program):
            return KernelProgram(program, is_exact=len(plans) == len(expressions) == 1)
    _tell_too_long(interface)
    return KernelProgram(refuse_marked(compile_filter(""), direction=direction), is_exact=False)


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
