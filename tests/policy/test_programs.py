"""The kernel's program lets through whatever a session mirrors, and little else."""

from __future__ import annotations

import itertools

import numpy as np
import outer
import pytest
from rig import Rig
from test_policies import POOLS, TO_ONE, WEB, policy, reply, tcp
from test_sessions import ARP, TUNNELS, session, udp

from tunnelbridge import bpf
from tunnelbridge.batch import INBOUND, OUTBOUND, from_packets
from tunnelbridge.policy.programs import common_direction, expression_programs, kernel_program

pytestmark = pytest.mark.usefixtures("root")

RULES = """
[filters.f]
inbound  = [{ priority = 1, action = "reject", protocol = "tcp", destination_ports = "22" },
            { priority = 2, action = "accept", protocol = "tcp", source = "10.0.0.0/24" }]
outbound = [{ priority = 1, action = "accept", protocol = "udp", destination_ports = "53-60" }]
"""
WHOLE = outer.ipv4(outer.udp(bytes(64), 53, 53), 17, "10.0.0.1", "10.0.0.2")
FRAMES = [
    *(tcp(1000, port) for port in (22, 80, 443)),
    *(reply(1000, port) for port in (22, 80, 443)),
    *(udp(port) for port in (9, 53, 60, 61)),
    *(outer.frame(part) for part in outer.fragments(WHOLE, 16, 7)),
    outer.frame(WHOLE, 7),
    outer.frame(WHOLE, 7, 8),
    outer.frame(outer.ipv6(outer.udp(b"6", 1, 53), 17, "2001:db8::1", "2001:db8::2")),
    ARP,
]
TEXTS = {
    "rules": TUNNELS + RULES + session("s", "a", 'filter = "f"'),
    "guest": TUNNELS + RULES + session("s", "a", 'filter = "f"\nviewpoint = "guest"'),
    "policy": POOLS + policy(WEB, TO_ONE),
    "deny first": POOLS + policy('{ action = "deny", protocol = "udp" }, ' + WEB, TO_ONE),
    "expression": TUNNELS + session("s", "a", 'expression = "vlan and udp"'),
    "one way": TUNNELS + session("s", "a", 'expression = "tcp"\ndirection = "out"'),
    "everything": TUNNELS + session("s", "a") + session("t", "b", 'expression = "tcp"'),
    "all kinds": POOLS
    + RULES
    + policy(WEB, TO_ONE, priority=3)
    + session("s", "two", 'filter = "f"\npriority = 2')
    + session("t", "two", 'expression = "arp"\nmirror_once = false'),
    "nothing": TUNNELS + session("s", "a", "enabled = false"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_mirrored_comes_through(name: str) -> None:
    rig = Rig(TEXTS[name])
    plans = [each.plan for each in rig.policy.for_file()]
    expressions = expression_programs(plans, "lo")
    program = kernel_program(plans, expressions, "lo", common_direction(plans)).program
    refused = 0
    for frame, direction in itertools.product(FRAMES, (INBOUND, OUTBOUND)):
        batch = from_packets([frame], direction=direction)
        passes = bool(bpf.run(program, batch)[0])
        before = rig.policy.ledger.cloned
        rig.feed([frame], direction)
        mirrored = rig.policy.ledger.cloned > before
        assert passes or not mirrored, (frame.hex(), direction)
        refused += not passes
    if name != "everything":
        assert refused > len(FRAMES) // 2, "the kernel hands over what nobody wants"


def test_replies_of_a_policys_flows_come_through() -> None:
    rig = Rig(TEXTS["policy"])
    plans = [each.plan for each in rig.policy.for_file()]
    program = kernel_program(plans, {}, "lo", "both").program
    frames = [tcp(1000, 80), reply(1000, 80), tcp(1000, 443), reply(1000, 443)]
    assert (bpf.run(program, from_packets(frames)) > 0).tolist() == [True, True, False, False]


def test_fifty_sessions_of_ten_rules_fit_the_kernel() -> None:
    rules = ", ".join(
        f'{{ priority = {number}, action = "accept", protocol = "tcp",'
        f' destination = "10.{{0}}.{number}.0/24", destination_ports = "{8000 + number}" }}'
        for number in range(1, 11)
    )
    text = TUNNELS
    for number in range(50):
        text += f"[filters.f{number}]\ninbound = [{rules.replace('{0}', str(number))}]\n"
        text += session(f"s{number}", "a", f'filter = "f{number}"\npriority = {number + 1}')
    rig = Rig(text)
    plans = [each.plan for each in rig.policy.for_file()]
    program = kernel_program(plans, {}, "lo", "both").program
    assert len(program) <= 4096
    wanted = tcp(1, 8003, "192.0.2.1", "10.49.3.7")
    verdict = bpf.run(program, from_packets([wanted, tcp(1, 8003, "192.0.2.1", "10.49.4.7")]))
    assert np.array_equal(verdict > 0, [True, False])
