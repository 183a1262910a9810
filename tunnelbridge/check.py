"""``tunnelbridge check``: say what would be cloned, where to and by which way; send nothing."""

from __future__ import annotations

from typing import Final

from tunnelbridge import console
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.linux.libpcap import compile_filter, refuse_marked
from tunnelbridge.linux.netlink import Link, Route, route
from tunnelbridge.linux.tpacket import open_socket
from tunnelbridge.sender import SendOptions
from tunnelbridge.source import mirrorable, seen_direction
from tunnelbridge.targets import Target, open_tunnels, resolve_targets
from tunnelbridge.tunnel import LARGEST_OUTER
from tunnelbridge.wire import ethernet

MAC_HEADER: Final = ethernet.HEADER.itemsize
FULL_FRAME: Final = 1514


def check(options: SendOptions) -> list[str]:
    """Return the report, line by line; raises UserError for what would stop ``send``."""
    options.validate()
    console.check_writable(options.stats)
    lines: list[str] = []
    frame = FULL_FRAME
    if options.file is not None:
        open_capture(options.file)
        compile_filter(options.expression)
        lines.append(f"source   {options.file}, at {options.speed} speed")
    for name in options.interfaces:
        found = mirrorable(name)
        frame = max(frame, found.mtu + MAC_HEADER)
        lines.append(_describe_interface(found, options))
    lines.append(f"filter   {options.expression or 'none: every packet'}")
    if options.snaplen is not None:
        lines.append(f"snaplen  {options.snaplen} octets of each frame")
        frame = min(frame, options.snaplen)
    targets = resolve_targets(options.to, options.arp, options.fdb)
    for tunnel in open_tunnels(targets, options.mtu, options.snaplen):
        tunnel.close()
    for target in targets:
        lines += _describe(target, options, frame)
    return lines


def _describe_interface(found: Link, options: SendOptions) -> str:
    """Describe an interface; its socket is opened as ``send`` does, but it captures nothing."""
    direction = seen_direction(found, options.direction)
    program = compile_filter(options.expression, interface=found.name)
    open_socket(found.name, refuse_marked(program, direction=direction), False).close()
    state = "up" if found.up else "DOWN: nothing will be seen until it is up"
    why = "" if direction == options.direction else " (loopback shows each packet twice)"
    return f"source   {found.name}, MTU {found.mtu}, {state}, direction {direction}{why}"


def _describe(target: Target, options: SendOptions, frame: int) -> list[str]:
    """Describe one target: its chain, its route, and the fate of a full-size frame."""
    policy, stack = target.plan(options.mtu, options.snaplen)
    lines = ["", f"tunnel   {target.name}"]
    if target.member is not None:
        mac = target.mac.hex(":")
        lines.append(f"         static ARP: {target.member} is at {mac}; clones go to {mac}")
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
