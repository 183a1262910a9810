"""``tunnelbridge explain``: the chain of decisions for one packet, from session to next hop.

The packet takes the path that every packet takes, through the same pipeline, into tunnels that send
nothing. So what is told is what would happen, not what a second implementation thinks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Batch, from_packets
from tunnelbridge.capture.ethernet import as_ethernet
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.check import describe_target
from tunnelbridge.clone.rules import PROTOCOLS, Direction
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.ledger import told
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.netlink import route
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.packet_text import build
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.captured import Captured
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.programs import expression_programs
from tunnelbridge.policy.selection import Selection, Verdict
from tunnelbridge.policy.session import Group, Session
from tunnelbridge.policy.sources import parse_source
from tunnelbridge.policy.wishes import from_file
from tunnelbridge.targets import Target
from tunnelbridge.tunnel import Numbering, Tunnel
from tunnelbridge.wire.flow import read_flows

_NAMES = {number: name for name, number in PROTOCOLS.items()}


@dataclass(slots=True)
class ExplainOptions:
    """What the command line asked for."""

    config: Path
    packet: str | None = None
    file: Path | None = None
    number: int = 1
    direction: Direction | None = None
    source: str | None = None


class _Dry:
    """Stands where a tunnel's socket is: sends nothing, and everything succeeds."""

    marked = True

    def __init__(self, target: Target) -> None:
        self.endpoint = Endpoint(target.remote, 0)

    def send(self, rows: npt.NDArray[np.uint8], batch: Batch) -> Sent:
        return Sent(packets=len(rows), octets=int(batch.total_length.sum()))

    def path_mtu(self) -> int:
        try:
            return route(self.endpoint.remote).mtu
        except (UserError, OSError, ValueError):
            return 65535

    def close(self) -> None:
        """Nothing is open."""


def explain(options: ExplainOptions) -> list[str]:
    """Return the decisions, line by line; raises UserError and UsageError."""
    wishes = from_file(options.config)
    policy = Policy(wishes.plan, wishes.mtu, opener=_dry_tunnel)
    batch = _packet(options)
    pipeline = Pipeline(policy)
    sessions = _sessions(policy, options.source)
    programs = expression_programs([each.plan for each in sessions], None)
    selection = Selection(sessions, programs)
    captured = Captured(batch, read_flows(batch.memory, batch.start, batch.start + batch.length))
    lines = [f"packet   {_in_words(captured)}"]
    verdicts = selection.verdicts(captured)
    pipeline.process(batch, selection)
    if policy.ledger.refused:
        return [*lines, f"refused  {told(policy.ledger.refused)}: it is not cloned again"]
    frame = int(batch.wire_length[0])
    takers = [session for session in policy.sessions if session.ledger.matched]
    for session in policy.sessions:
        verdict = next((each for each in verdicts if each.session is session), None)
        lines += ["", f"{_kind(session)} {session.plan.name} (priority {session.plan.priority})"]
        lines.append(f"         {_reason(session, verdict, takers)}")
        if session in takers:
            lines += _chain(session, wishes.mtu, frame, wishes.mirror.fdb if wishes.mirror else ())
    if not takers:
        lines += ["", "result   not mirrored"]
    return lines


def _dry_tunnel(
    target: Target, default: MtuPolicy, may_cut: bool, numbering: Numbering | None = None
) -> Tunnel:
    policy, stack = target.plan(default, may_cut)
    return Tunnel(target.name, stack, lambda: _Dry(target), policy, target.ip_header, numbering)


def _packet(options: ExplainOptions) -> Batch:
    """Return a batch of the one packet that is asked about."""
    if options.file is not None and options.packet is not None:
        raise UsageError("give a packet or a file (-r), one of them")
    if options.file is not None:
        batch = _from_file(options.file, options.number)
    elif options.packet is not None:
        batch = from_packets([build(options.packet)])
    else:
        raise UsageError("give a packet ('tcp 192.0.2.1:1234 > 198.51.100.2:80') or a file (-r)")
    if options.direction is not None:
        batch.direction[:] = OUTBOUND if options.direction == "out" else INBOUND
    return batch


def _from_file(path: Path, number: int) -> Batch:
    before = 0
    for captured in open_capture(path).batches():
        count = len(captured.batch)
        if number <= before + count:
            batch = as_ethernet(captured.batch, captured.linktype)
            return batch.select(np.array([number - 1 - before]))
        before += count
    raise UsageError(f"{path} has {before} packets, not {number}")


def _sessions(policy: Policy, source: str | None) -> list[Session]:
    if source is None:
        return policy.for_file()
    pattern = parse_source(source)
    return policy.for_source(pattern.namespace, pattern.name)


def _in_words(captured: Captured) -> str:
    """Return the packet as a line: what filters look at."""
    tuples, batch = captured.tuples, captured.batch
    way = "going out" if batch.direction[0] == OUTBOUND else "coming in"
    size = f"{int(batch.wire_length[0])} octets, {way}"
    family = int(tuples.family[0])
    if not family:
        return f"no IP (EtherType {int(captured.flows.ethertype[0]):#06x}), {size}"
    protocol = int(tuples.protocol[0])
    source = _end(tuples.source_high[0], tuples.source_low[0], tuples.source_port[0], family)
    destination = _end(
        tuples.destination_high[0], tuples.destination_low[0], tuples.destination_port[0], family
    )
    return f"{_NAMES.get(protocol, f'protocol {protocol}')} {source} > {destination}, {size}"


def _end(high: np.uint64, low: np.uint64, port: np.int64, family: int) -> str:
    """Return ADDRESS:PORT."""
    number = int(high) << 64 | int(low)
    address = ipaddress.IPv4Address(number) if family == 4 else ipaddress.IPv6Address(number)
    if port < 0:
        return str(address)
    return f"[{address}]:{port}" if family == 6 else f"{address}:{port}"


def _kind(session: Session) -> str:
    return "policy  " if session.plan.is_stateful else "session "


def _reason(session: Session, verdict: Verdict | None, takers: list[Session]) -> str:
    """Say why a session mirrors the packet, or why not."""
    plan = session.plan
    if not plan.enabled:
        return "disabled"
    if verdict is None:
        return f"not for this source: its sources are {', '.join(plan.sources)}"
    what = f"filter {plan.filter}: " if plan.rules is not None and plan.filter else ""
    if plan.rules is None:
        what = f"expression {plan.expression!r} " if plan.expression else "every packet, "
        decided = f"{what}{'accepts' if verdict.accepts else 'does not accept'}"
    elif verdict.rule is None:
        decided = f"{what}no rule matches"
    else:
        decided = f"{what}{verdict.rule.name} {'accepts' if verdict.accepts else 'does not mirror'}"
    if not verdict.accepts:
        return f"{decided}: not mirrored"
    if session not in takers:
        return f"{decided}, but the packet is mirrored once, by {takers[0].plan.name}"
    return f"{decided}: mirrored"


def _chain(session: Session, mtu: MtuPolicy, frame: int, tables: Container[str]) -> Iterator[str]:
    """Describe what becomes of the clone: cut, pool, member, ARP, FDB, tunnel, route, MTU.

    ``tables`` tells which MAC addresses have an FDB entry.
    """
    cut = session.plan.packet_length
    if cut is not None:
        yield f"         the clone keeps {min(cut, frame)} of {frame} octets"
        frame = min(frame, cut)
    for group in session.groups:
        for member in group.members:
            if not member.ledger.num_total_pkts_cloned:
                continue
            yield f"member   {member.plan.ip} of {group.plan.name}, {_choice(group)}"
            if member.plan.address is not None:
                yield f"         the clone's destination address becomes {member.plan.address}"
            for target in member.plan.targets:
                mac, tunnel = target.mac.hex(":"), target.name.rpartition(" via ")[2]
                if mac and mac in tables:
                    yield f"ARP      {member.plan.ip} is at {mac}"
                    yield f"FDB      {mac} is behind {tunnel}"
                elif mac:
                    yield f"MAC      clones are addressed to {mac}"
                described = describe_target(target, mtu, cut is not None, frame)
                yield from (line for line in described if line and "static ARP" not in line)
    if session.ledger.no_member:
        yield "member   none: all are down or drained"


def _choice(group: Group) -> str:
    members = len(group.members)
    if members == 1:
        return "the only one"
    if group.plan.distribution == "all":
        return f"as each of the {members}"
    if group.plan.distribution in ("flow", "source-ip"):
        return f"by {group.plan.distribution}: the same for the whole flow"
    return f"by {group.plan.distribution}: turns depend on the packets before"
