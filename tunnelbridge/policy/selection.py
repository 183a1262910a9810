"""Which session mirrors a packet: one source's sessions, in the order of their priority.

A packet goes to the first session that accepts it. Sessions with ``mirror_once = false`` stand beside:
they mirror what they accept whoever else does. Policies (``is_stateful``) remember the flows that
their rules decided, so that replies follow the packet that began the flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tunnelbridge import bpf
from tunnelbridge.batch import INBOUND, OUTBOUND, Column, Flags
from tunnelbridge.clone.classifier import Bits, Classifier
from tunnelbridge.clone.flow_table import FlowTable, flow_key
from tunnelbridge.clone.rules import Direction, Rule
from tunnelbridge.policy.captured import Captured
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.session import Session

EVERYTHING = Rule(name="every packet")


class Chosen(NamedTuple):
    """What one session mirrors of a batch."""

    session: int
    """Which of the selection's sessions."""
    rows: Column
    rule: Column
    """For each row the number of the session's rule that accepted it."""


class Verdict(NamedTuple):
    """What one session's filter says of a packet."""

    session: Session
    rule: Rule | None
    """The rule that decided; None where no rule matches, and for expressions."""
    accepts: bool


class Selection:
    """Decides for the packets of one source.

    Args:
        sessions: those that apply to this source, in order.
        programs: the BPF program of each session with an expression, by its number.

    Attributes:
        exact_from: the kernel has applied the only session's filter to packets that came at or after
            this time (ns): nothing is left to decide. None: it does not (files, several sessions).

    """

    def __init__(
        self,
        sessions: Sequence[Session],
        programs: Mapping[int, bpf.Program],
    ) -> None:
        self.sessions = sessions
        self._programs = programs
        self.exact_from: int | None = None
        self._takes_all = len(sessions) == 1 and sessions[0].plan.takes_everything
        lists = [_rules_of(session.plan) for session in sessions]
        self._classifier = Classifier(lists)
        sizes = [1 if rules is None else len(rules) for rules in lists]
        self._first_rule = np.cumsum([0, *sizes])[:-1]
        self._once = np.array([session.plan.mirror_once for session in sessions], np.bool_)

    def choose(self, captured: Captured) -> list[Chosen]:
        """Return what each session mirrors, sessions that mirror nothing left out."""
        batch = captured.batch
        count = len(batch)
        if not count or not self.sessions:
            return []
        if self._takes_all or self._is_decided(int(batch.timestamp[0])):
            rows = np.arange(count)
            return [Chosen(0, rows, np.zeros(count, np.int64))]
        bits = self._candidates(captured)
        chosen = []
        if self._once.any():
            rule = self._classifier.first_accept(bits, self._once)
            chosen += self._by_session(rule)
        for number in np.flatnonzero(~self._once).tolist():
            chosen += self._by_session(self._classifier.in_list(bits, number))
        return chosen

    def verdicts(self, captured: Captured) -> list[Verdict]:
        """Return what each session's filter says of the first packet; for explanations."""
        bits, classifier = self._candidates(captured), self._classifier
        found = []
        for number, session in enumerate(self.sessions):
            decided = int(classifier.decided_by(bits, number)[0])
            rule = classifier.rules[decided][1] if decided >= 0 else None
            accepts = decided >= 0 and bool(classifier.accepts[decided])
            found.append(Verdict(session, rule, accepts))
        return found

    def _is_decided(self, timestamp: int) -> bool:
        return self.exact_from is not None and timestamp >= self.exact_from

    def _candidates(self, captured: Captured) -> Bits:
        """Return the rules that match each packet, expressions and known flows included."""
        batch, classifier = captured.batch, self._classifier
        bits = classifier.candidates(batch.direction, captured.tuples)
        for number, program in self._programs.items():
            accepts: Flags = bpf.run(program, batch) != 0
            accepts &= _goes(self.sessions[number].plan.direction, batch.direction)
            classifier.set_opaque(bits, number, accepts)
        for number, session in enumerate(self.sessions):
            if session.flows is not None:
                self._follow(bits, number, session.flows, captured)
        return bits

    def _follow(self, bits: Bits, number: int, table: FlowTable, captured: Captured) -> None:
        """Let the packets of a known flow have the rule that its first packet had."""
        first = int(self._first_rule[number])
        key, now = flow_key(captured.flows), captured.batch.timestamp
        decided = self._classifier.decided_by(bits, number)
        known = table.look_up(key, now)
        fresh = np.flatnonzero((known < 0) & (decided >= 0))
        if fresh.size:
            table.insert(key[fresh], decided[fresh] - first, now[fresh])
            known = table.look_up(key, now)
        rows = np.flatnonzero(known >= 0)
        if rows.size:
            self._classifier.force(bits, number, rows, known[rows] + first)

    def _by_session(self, rule: Column) -> list[Chosen]:
        """Split packets by the session to which the rule that accepted them belongs."""
        rows = np.flatnonzero(rule >= 0)
        if not rows.size:
            return []
        session = self._classifier.list_of[rule[rows]]
        first = int(session[0])
        if (session == first).all():
            return [self._chosen(first, rows, rule)]
        order = np.argsort(session, kind="stable")
        parts = np.split(rows[order], np.flatnonzero(np.diff(session[order])) + 1)
        numbers = np.unique(session).tolist()
        return [
            self._chosen(number, part, rule) for number, part in zip(numbers, parts, strict=True)
        ]

    def _chosen(self, session: int, rows: Column, rule: Column) -> Chosen:
        return Chosen(session, rows, rule[rows] - self._first_rule[session])


def _rules_of(plan: SessionPlan) -> Sequence[Rule] | None:
    """Return a session's rules, None for an expression."""
    if plan.rules is not None:
        return plan.rules
    if plan.expression.strip():
        return None
    return [EVERYTHING] if plan.direction == "both" else [Rule(direction=plan.direction)]


def _goes(wanted: Direction, direction: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Flags:
    if wanted == "both":
        return np.ones(len(direction), np.bool_)
    goes: Flags = direction == (INBOUND if wanted == "in" else OUTBOUND)
    return goes
