"""``tunnelbridge check``: say what would be cloned, where to and by which way; send nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from tunnelbridge import console
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.clone.expression import accepted_expression
from tunnelbridge.clone.rules import Rule
from tunnelbridge.config.tunnel import Ether, MtuPolicy
from tunnelbridge.interfaces import check_named, patterns
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.netlink import Link, Route, link, route
from tunnelbridge.linux.tpacket import open_socket
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, SessionPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.programs import common_direction, expression_programs, kernel_program
from tunnelbridge.policy.wishes import Wishes
from tunnelbridge.sender import SendOptions
from tunnelbridge.source import mirrorable, seen_direction
from tunnelbridge.targets import Target
from tunnelbridge.tunnel import LARGEST_OUTER
from tunnelbridge.wire import ethernet

MAC_HEADER: Final = ethernet.HEADER.itemsize
FULL_FRAME: Final = 1514
_WAYS: Final[tuple[Literal["in", "out"], ...]] = ("in", "out")


def check(options: SendOptions) -> list[str]:
    """Return the report, line by line; raises UserError for what would stop ``send``."""
    options.validate()
    console.check_writable(options.stats)
    wishes = options.wishes()
    lines, frame = _sources(options, wishes)
    Policy(wishes.plan, wishes.mtu).close()  # opens what send would open
    for session in wishes.plan.sessions:
        cut = session.packet_length
        longest = frame if cut is None else min(frame, cut)
        if wishes.mirror is not None:
            lines += ["", *_describe_session(session)]
        for group in session.groups:
            for member in group.members:
                if wishes.mirror is not None:
                    lines += ["", _describe_member(group, member)]
                for target in member.targets:
                    lines += describe_target(target, wishes.mtu, cut is not None, longest)
    if wishes.mirror is not None:
        lines += [f"warning  {warning}" for warning in wishes.mirror.warnings()]
    return lines


def _sources(options: SendOptions, wishes: Wishes) -> tuple[list[str], int]:
    """Describe what is mirrored, and return the longest frame that it may give."""
    sessions = wishes.plan.sessions
    frame, lines = FULL_FRAME, []
    if options.file is not None:
        open_capture(options.file)
        expression_programs(sessions, None)
        lines.append(f"source   {options.file}, at {options.speed} speed")
    else:
        check_named(sessions)
        for pattern in dict.fromkeys(patterns(sessions)):
            name = pattern.name if pattern.namespace is None else ":".join(map(str, pattern))
            if pattern.is_glob:
                lines.append(f"source   {name}, whatever matches while it runs")
                continue
            plans = [each for each in sessions if pattern in patterns([each])]
            describe = partial(_describe_interface, pattern.name, plans)
            found, line = in_thread(describe, pattern.namespace)
            lines.append(line if pattern.namespace is None else f"{line}, in {pattern.namespace}")
            frame = max(frame, found.mtu + MAC_HEADER)
    if wishes.mirror is None:
        lines.append(f"filter   {options.expression or 'none: every packet'}")
        if options.snaplen is not None:
            lines.append(f"snaplen  {options.snaplen} octets of each frame")
    return lines, frame


def _describe_interface(name: str, plans: list[SessionPlan]) -> tuple[Link, str]:
    """Describe an interface; its socket is opened as ``send`` does, but it captures nothing."""
    found = mirrorable(name)
    wanted = common_direction(plans)
    direction = seen_direction(found, wanted)
    kernel = kernel_program(plans, expression_programs(plans, name), name, direction)
    open_socket(found.name, kernel.program, False).close()
    state = "up" if found.up else "DOWN: nothing will be seen until it is up"
    why = "" if direction == wanted else " (loopback shows each packet twice)"
    return found, f"source   {found.name}, MTU {found.mtu}, {state}, direction {direction}{why}"


def _describe_session(session: SessionPlan) -> list[str]:
    kind = "policy" if session.is_stateful else "session"
    state = "" if session.enabled else " (disabled)"
    sources = ", ".join(session.sources)
    lines = [f"{kind:8s} {session.name}{state}: priority {session.priority}, sources {sources}"]
    lines.append(f"         filter {session.filter or session.expression or 'none: every packet'}")
    if session.rules is not None and not session.is_stateful:
        lines += [
            f"         {way}bound, as tcpdump says it: {_as_tcpdump(session.rules, way)}"
            for way in _WAYS
        ]
    if session.packet_length is not None:
        lines.append(f"         {session.packet_length} octets of each frame")
    return lines


def _as_tcpdump(rules: Sequence[Rule], direction: Literal["in", "out"]) -> str:
    expression = accepted_expression(rules, direction)
    return {None: "nothing", "": "everything"}.get(expression, expression or "")


def _describe_member(group: GroupPlan, member: MemberPlan) -> str:
    weight = f", weight {member.weight}" if member.weight != 1 else ""
    return f"member   {member.ip} of {group.name} ({group.distribution}){weight}"


def describe_target(target: Target, default: MtuPolicy, may_cut: bool, frame: int) -> list[str]:
    """Describe one target: its chain, its route, and the fate of a frame of that length."""
    policy, stack = target.plan(default, may_cut)
    lines = ["", f"tunnel   {target.name}"]
    if target.mac:
        mac = target.mac.hex(":")
        lines.append(f"         static ARP: {target.member} is at {mac}; clones go to {mac}")
    if isinstance(target.spec, Ether):
        return [*lines, *_on_layer_2(target.spec, policy, frame)]
    way = route(target.remote)
    lines.append(f"         {_route_in_words(target, way)}")
    overhead = target.ip_header + stack.overhead
    lines.append(
        f"         overhead {overhead} octets"
        f" (IPv{'6' if target.ip_header == 40 else '4'} {target.ip_header},"
        f" {stack.kind.slug} {stack.overhead})"
    )
    if stack.bare_ip:
        frame -= MAC_HEADER
    return [*lines, f"         {_fate(frame, overhead, way.mtu, policy)}"]


def _on_layer_2(spec: Ether, policy: MtuPolicy, frame: int) -> list[str]:
    tag = "" if spec.vlan is None else f", with a tag of VLAN {spec.vlan}"
    longest = link(spec.remote).mtu + MAC_HEADER
    fate = (
        "fits" if frame <= longest else "is cut" if policy is MtuPolicy.TRUNCATE else "is dropped"
    )
    return [
        f"         on layer 2 by {spec.remote}{tag}",
        f"         a {frame}-octet frame {fate}: the interface takes {longest} octets",
    ]


def _route_in_words(target: Target, way: Route) -> str:
    via = f"via {way.gateway}" if way.gateway else "directly connected"
    neighbour = f" at {way.next_hop_mac}" if way.next_hop_mac else ""
    source = target.spec.local or way.source
    return f"from {source} to {target.remote} by {way.interface}, {via}{neighbour}, MTU {way.mtu}"


def _fate(frame: int, overhead: int, mtu: int, policy: MtuPolicy) -> str:
    outer = frame + overhead
    becomes = f"a {frame}-octet frame becomes a {outer}-octet packet"
    if outer <= mtu:
        return f"{becomes}: fits"
    if outer > LARGEST_OUTER and policy is MtuPolicy.FRAGMENT:
        return f"{becomes}, longer than any IP packet: dropped"
    room = mtu - overhead
    outcomes = {
        MtuPolicy.FRAGMENT: "sent in IP fragments",
        MtuPolicy.TRUNCATE: f"cut to {room} octets of the frame"
        if room >= MAC_HEADER
        else "dropped",
        MtuPolicy.DROP: "dropped",
    }
    return f"{becomes}, {outer - mtu} too long for the path: {outcomes[policy]} (--mtu {policy})"
