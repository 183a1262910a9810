"""Everything wrong at once, and still no loop.

Senders a and b mirror the very interface that carries their tunnels, each into a pool that contains
the other and itself, and both hang on one bridge. Neither knows the other's VNI, so each takes the
other's clone for traffic. Sender c also mirrors its uplink, and a router translates its tunnel's
address to c's own, so that every clone comes back unrecognised. No original has more than two clones
(but the very first of c's loop, before which there is nothing to remember).

::

      client                 bridge            a 192.0.2.1
   192.0.2.9 ──────────────── br0 ──────────── eth0 mirrored into the pool {a, b}, VNI 1
                               └────────────── b 192.0.2.2
                                               eth0 mirrored into the pool {a, b}, VNI 2
     router
   203.0.113.1 ─────────────────────────────── c 203.0.113.2
     198.51.100.99 becomes 203.0.113.2         eth0 mirrored to 198.51.100.99
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from compare import Frame
from scene import CLONING, Command, Judge, Scene
from unwrap import inner

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2"}
POOL = """
[pools.everyone]
distribution = "all"
members = [{{ ip = "192.0.2.1", via = "vxlan://192.0.2.1?vni={vni}" }},
           {{ ip = "192.0.2.2", via = "vxlan://192.0.2.2?vni={vni}" }}]
[sessions.uplink]
sources = ["eth0"]
target = "everyone"
"""
RETURNED = """
[tunnels]
away = "vxlan://198.51.100.99?vni=3"
[sessions.uplink]
sources = ["eth0"]
target = "away"
"""
NAT = """
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat
        ip daddr 198.51.100.99 dnat to 203.0.113.2
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        udp dport 4789 masquerade
    }
}
"""
SENDERS = tuple(
    Command(
        name, f"tunnelbridge send --config {name}.toml --control {name}.sock --stats {name}.json"
    )
    for name in "abc"
)
TRANSLATE = Command("router", "nft -f nat.nft")
PINGS = (
    Command("client", "ping -n -q -c 200 -i 0.005 192.0.2.1"),
    Command("client", "ping -n -q -c 20 -i 0.005 192.0.2.2"),
    Command("router", "ping -n -q -c 200 -i 0.005 203.0.113.2"),
)
FIRST = Command("router", "ping -n -q -c 1 203.0.113.2")
COMMANDS = (TRANSLATE, *SENDERS, FIRST, *PINGS)
NEEDS = ("ping", "nft")
ECHO = (0, 8)
MOST = 2
"""Clones of one original."""


def build(scene: Scene) -> None:
    scene.hosts("client", "bridge", *"abc")
    scene.routers("router")
    scene.link("client:eth0 192.0.2.9/24", "bridge:port-c", 1700)
    for name, address in ADDRESSES.items():
        scene.link(f"{name}:eth0 {address}/24", f"bridge:port-{name}", 1700)
    scene.bridge("bridge", "port-c", *(f"port-{name}" for name in ADDRESSES))
    scene.link("router:eth0 203.0.113.1/24", "c:eth0 203.0.113.2/24", 1700)
    scene.route("c", "default", "203.0.113.1")
    for vni, name in enumerate(ADDRESSES, start=1):
        scene.file(f"{name}.toml", POOL.format(vni=vni), show=name == "a")
    scene.file("c.toml", RETURNED)
    scene.file("nat.nft", NAT, show=False)


def run(scene: Scene) -> None:
    cables = [scene.listen(f"bridge:port-{name}") for name in ADDRESSES]
    returned = scene.listen("router:eth0")
    scene.do(TRANSLATE)
    senders = [scene.start(each, CLONING) for each in SENDERS]
    scene.do(FIRST)
    scene.until(lambda: is_quiet(scene, [returned]), "the first loop to end")
    first = len(returned.frames())
    for each in PINGS:
        scene.do(each)
    quiet = scene.until(lambda: is_quiet(scene, [*cables, returned]), "the cables to be quiet")
    sent = [scene.end(p, f"{c.host}.json") for p, c in zip(senders, SENDERS, strict=True)]

    # a clone between a and b passes both their cables, each clone of c goes out and comes back
    paired = told([frame for each in cables for frame in each.stop()])
    alone = told(returned.stop()[first:])
    scene.heading("Echo requests and replies, by tcpdump on the cables")
    for what, (originals, clones) in (("a and b", paired), ("c", alone)):
        scene.report.fact(f"originals of {what}", len(originals))
        scene.report.fact("their clones", clones.total() // 2)
    scene.heading("Is it true?")
    counts = len(paired[0]), len(alone[0])
    scene.check(counts == (440, 400), "every ping has its reply: 440 and 400 originals", counts)
    scene.check(paired[1].keys() == paired[0].keys(), "a and b: every original was mirrored")
    worst = max(paired[1].values(), default=0) // 2
    scene.check(worst <= MOST, f"a and b: none has more than {MOST} clones", worst)
    scene.check(alone[1].keys() == alone[0].keys(), "c: every original was mirrored")
    worst = max(alone[1].values(), default=0) // 2
    scene.check(worst <= MOST, f"c: none has more than {MOST} clones", worst)
    scene.check(quiet, "when the pings ended, so did the clones")
    for name, ledger, reason in zip(
        "abc", sent, ("own-tunnel", "own-tunnel", "loop-breaker"), strict=True
    ):
        count = ledger["refused"].get(reason, 0)
        scene.check(count, f"{name} has refused {count} packets: {reason}", ledger["refused"])
        scene.check(ledger["balanced"], f"{name}'s ledger balances")


def told(frames: list[Frame]) -> tuple[Counter[bytes], Counter[bytes]]:
    """Return how often each echo request or reply passed, bare and in tunnels."""
    bare, tunnelled = Counter[bytes](), Counter[bytes]()
    for frame in frames:
        depth, octets = innermost(frame)
        if octets[12:14] == b"\x08\x00" and octets[23] == 1 and octets[34] in ECHO:
            (tunnelled if depth else bare)[octets[14:]] += 1
    return bare, tunnelled


def innermost(frame: Frame) -> tuple[int, bytes]:
    """Return how many tunnels are around a frame, and its octets without them."""
    depth = 0
    while frames := inner([frame]):
        frame, depth = frames[0], depth + 1
    return depth, frame.octets


def is_quiet(scene: Scene, judges: list[Judge]) -> bool:
    """Tell whether nothing passes the cables while another program starts and ends."""
    before: list[Any] = [len(judge.frames()) for judge in judges]
    scene.do(Command("bridge", "ping -n -q -c 2 -i 0.2 127.0.0.1"), quiet=True)
    return before == [len(judge.frames()) for judge in judges]
