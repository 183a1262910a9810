"""Huawei VPC mirroring to a load balancer: a torn connection, and the cure.

The document's test: nc both ways between two ECS, mirrored by VXLAN through a load balancer to two
targets. With (outer) round robin each target gets half a connection, as the document's own captures
show. Then the file says ``flow``, and after a reload every connection is whole at one target.

::

     ecs-test-a                 ecs-source                 router           target-01
   192.168.0.161 ─── eth0 192.168.0.230  203.0.113.2 ─── 203.0.113.1 ──── 198.51.100.11
                      ║                  up0                        ╲
                   mirrored ═════════ VXLAN 1, UDP 4789 ══════════▶  ╲─── 198.51.100.139
                                                                          target-02
"""

from __future__ import annotations

from collections import Counter

from compare import Frame, tcp
from scene import CLONING, Command, Judge, Scene
from unwrap import Carried, unwrap

CONFIG = """
[pools.elb]
distribution = "round-robin"
members = [{ ip = "198.51.100.11", via = "vxlan://198.51.100.11" },
           { ip = "198.51.100.139", via = "vxlan://198.51.100.139" }]
[[filters.mirror-filter-01.inbound]]
priority = 1
action = "accept"
family = "ipv4"
protocol = "tcp"
source = "192.168.0.161/32"
source_ports = "all"
destination = "192.168.0.230/32"
destination_ports = "1234"
[[filters.mirror-filter-01.outbound]]
priority = 1
action = "accept"
family = "ipv4"
protocol = "tcp"
source = "192.168.0.230/32"
source_ports = "1234"
destination = "192.168.0.161/32"
destination_ports = "all"
[sessions.mirror-session-01]
priority = 1
sources = ["eth0"]
filter = "mirror-filter-01"
target = "elb"
vni = 1
packet_length = 96
"""
SEND = Command(
    "ecs-source", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
DUMPS = tuple(
    Command(target, "tcpdump -i eth0 udp port 4789 -nne -l")
    for target in ("target-01", "target-02")
)
SERVE = Command("ecs-source", "nc -v -n -N -l 192.168.0.230 1234 < answer.txt")
TALK = Command("ecs-test-a", "nc -n 192.168.0.230 1234 < question.txt")
OTHER = Command("ecs-test-a", "nc -n -z -w 1 192.168.0.230 1235")
CURE = Command("ecs-source", "sed -i s/round-robin/flow/ mirror.toml")
RELOAD = Command("ecs-source", "tunnelbridge reload --control send.sock")
COMMANDS = (*DUMPS, SEND, SERVE, TALK, OTHER, CURE, RELOAD, SERVE, TALK)
NEEDS = ("nc", "sed", "tc", "ethtool")
CONNECTIONS = 20
PORT = (1234).to_bytes(2)
QUESTION, ANSWER = "hello, source!\n", "hello, test-a!\n"
"""15 octets: a frame of 81 with Ethernet, IPv4, TCP and its timestamps, as in the document."""


def build(scene: Scene) -> None:
    scene.hosts("ecs-test-a", "ecs-source", "target-01", "target-02")
    scene.routers("router")
    scene.link("ecs-test-a:eth0 192.168.0.161/24", "ecs-source:eth0 192.168.0.230/24")
    scene.link("ecs-source:up0 203.0.113.2/24", "router:west 203.0.113.1/24", 1600)
    scene.link("router:one 198.51.100.1/25", "target-01:eth0 198.51.100.11/25", 1600)
    scene.link("router:two 198.51.100.129/25", "target-02:eth0 198.51.100.139/25", 1600)
    scene.route("ecs-source", "default", "203.0.113.1")
    scene.route("target-01", "default", "198.51.100.1")
    scene.route("target-02", "default", "198.51.100.129")
    scene.file("mirror.toml", CONFIG)
    scene.file("question.txt", QUESTION, show=False)
    scene.file("answer.txt", ANSWER, show=False)


def run(scene: Scene) -> None:
    wire = scene.wire("ecs-source:eth0")
    targets = [scene.listen(f"{name}:eth0") for name in ("target-01", "target-02")]
    dumps = [scene.start(each, "listening on") for each in DUMPS]
    sender = scene.start(SEND, CLONING)
    split = connection(scene, wire, targets)
    scene.start(OTHER).wait(10)  # refused; the filter has no rule for its port
    scene.do(CURE)
    changes = scene.do(RELOAD)
    whole = [connection(scene, wire, targets, quiet=n > 0) for n in range(CONNECTIONS)]
    print(f"   … and so {CONNECTIONS} times")
    sent = scene.end(sender, "sender.json")

    scene.heading("tcpdump at target-01, as in the document")
    scene.show(dumps[0].out.read_text().splitlines(), 4)
    scene.heading("reload said")
    scene.show(changes.splitlines())
    scene.heading("Is it true?")
    carried = [each for parts in (split, *whole) for part in parts for each in part]
    counts = [len(part) for part in split]
    scene.check(
        all(counts) and abs(counts[0] - counts[1]) <= 1,
        f"round robin: one connection is torn, {counts[0]} packets here and {counts[1]} there",
    )
    torn = [parts for parts in whole if all(parts)]
    scene.check(
        not torn, f"flow: each of {CONNECTIONS} connections is whole at one target", len(torn)
    )
    spread = [sum(bool(parts[n]) for parts in whole) for n in (0, 1)]
    scene.check(all(spread), f"and both targets have work: {spread[0]} and {spread[1]}")
    wired = tcp(wire.stop())
    originals = Counter(frame.octets for frame in wired if PORT in frame.octets[34:38])
    scene.check(
        Counter(each.frame.octets for each in carried) == originals,
        f"all {len(carried)} clones are bit-exact, and none is of another port",
    )
    lengths = Counter((len(c.frame.octets), len(c.outer.octets)) for c in carried)
    scene.check(lengths[81, 131] and lengths[66, 116], "81 octets are 131 outside, 66 are 116")
    scene.check(all(out - inside == 50 for inside, out in lengths), "50 more for each")
    vnis = {(each.kind, each.identifier, each.source) for each in carried}
    scene.check(vnis == {("vxlan", 1, "203.0.113.2")}, "VXLAN 1, from the source's address")
    flags = {each.outer.octets[42:46] for each in carried}
    scene.check(flags == {b"\x08\0\0\0"}, "flags 0x08, reserved bits zero")
    scene.check(sent["balanced"], "the ledger balances")


def connection(
    scene: Scene, wire: Judge, targets: list[Judge], *, quiet: bool = False
) -> list[list[Carried]]:
    """Let the two talk once; return what each target has got of it."""
    before, already = len(tcp(wire.frames())), [len(unwrap(each.frames())) for each in targets]
    scene.exchange(SERVE, TALK, quiet=quiet)
    packets = scene.until(lambda: whole_connection(tcp(wire.frames())[before:]), "its end")

    def arrived() -> list[list[Carried]]:
        parts = [unwrap(each.frames())[n:] for each, n in zip(targets, already, strict=True)]
        return parts if sum(map(len, parts)) >= len(packets) else []

    return scene.until(arrived, "the clones of a connection")


def whole_connection(frames: list[Frame]) -> list[Frame]:
    """Return the segments if both FINs and the last ACK are among them."""
    fins = sum(frame.octets[47] & 1 for frame in frames)
    return frames if fins >= 2 and not frames[-1].octets[47] & 1 else []
