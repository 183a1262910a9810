"""Everything wrong at once, and still no loop.

Two senders mirror the very interface that carries their tunnels, each into a pool that contains the
other and itself, and both hang on one bridge. Neither knows the other's VNI, so each takes the other's
clone for traffic. An original may become two clones (one by each sender), never more.

::

      client                   bridge                      a 192.0.2.1
   192.0.2.9 ──────────────────  br0  ───────────────────   eth0 mirrored into the pool {b, a}, VNI 1
                                  │
                                  └──────────────────────  b 192.0.2.2
                                                            eth0 mirrored into the pool {a, b}, VNI 2
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from compare import Frame
from process import wait_until
from report import end
from scene import Command, Scene
from unwrap import inner

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2"}
CONFIG = """
[pools.everyone]
distribution = "all"
members = [{{ ip = "192.0.2.1", via = "vxlan://192.0.2.1?vni={vni}" }},
           {{ ip = "192.0.2.2", via = "vxlan://192.0.2.2?vni={vni}" }}]
[sessions.uplink]
sources = ["eth0"]
target = "everyone"
"""
SENDERS = tuple(
    Command(
        name, f"tunnelbridge send --config {name}.toml --control {name}.sock --stats {name}.json"
    )
    for name in ADDRESSES
)
PING = Command("client", "ping -n -q -c 200 -i 0.005 192.0.2.1")
AGAIN = Command("client", "ping -n -q -c 20 -i 0.005 192.0.2.2")
COMMANDS = (*SENDERS, PING, AGAIN)
NEEDS = ("ping",)
MOST = 2
"""Clones of one original on the cables."""


def build(scene: Scene) -> None:
    scene.hosts("bridge", "client", *ADDRESSES)
    scene.link("client:eth0 192.0.2.9/24", "bridge:client")
    for name, address in ADDRESSES.items():
        scene.link(f"{name}:eth0 {address}/24", f"bridge:{name}", 1700)
    scene.bridge("bridge", "client", *ADDRESSES)
    for vni, name in enumerate(ADDRESSES, start=1):
        scene.file(f"{name}.toml", CONFIG.format(vni=vni), show=name == "a")


def run(scene: Scene) -> None:
    cables = {name: scene.listen(f"bridge:{name}") for name in ADDRESSES}
    senders = [scene.start(each, "cloning") for each in SENDERS]
    scene.do(PING)
    scene.do(AGAIN)
    quiet = wait_until(lambda: settled(scene, cables), 20, "the cables to be quiet")
    ledgers = [
        end(p, scene.folder / f"{c.host}.json") for p, c in zip(senders, SENDERS, strict=True)
    ]

    scene.heading("Packets on the two cables, by tcpdump")
    originals, clones = Counter[bytes](), Counter[bytes]()
    for judge in cables.values():
        for frame in judge.stop():
            depth, octets = innermost(frame)
            if octets[12:14] == b"\x08\x00" and octets[23] == 1:
                (clones if depth else originals)[octets[14:]] += 1
    scene.report.fact("originals", len(originals), "200 and 20 pings, their replies")
    scene.report.fact("clones", clones.total())
    scene.heading("Is it true?")
    scene.check(len(originals) == 440, "all originals were answered: 440", len(originals))
    worst = max(clones[each] / MOST for each in originals) * MOST if originals else 0
    scene.check(clones.keys() == originals.keys(), "every original was mirrored")
    # a clone passes both cables: out of one, into the other
    crossings = 2 * MOST
    scene.check(
        max(clones.values(), default=0) <= crossings,
        f"none has more than {MOST} clones (each passes two cables: {worst:g} crossings at most)",
        clones.most_common(1),
    )
    scene.check(quiet, "when the pings ended, so did the clones")
    for (name, _), ledger in zip(ADDRESSES.items(), ledgers, strict=True):
        refused = ledger["refused"]
        loops = sum(count for reason, count in refused.items() if "loop" in reason)
        scene.check(loops, f"{name}'s guard refused {loops} packets as clones of its own", refused)
        scene.check(ledger["balanced"], f"{name}'s ledger balances", ledger)


def innermost(frame: Frame) -> tuple[int, bytes]:
    """Return how many tunnels are around a frame, and its octets without them."""
    depth = 0
    while frames := inner([frame]):
        frame, depth = frames[0], depth + 1
    return depth, frame.octets


def settled(scene: Scene, cables: dict[str, Any]) -> bool:
    """Tell whether nothing but silence comes after a last mark of ours: two looks alike."""
    before = [len(judge.frames()) for judge in cables.values()]
    scene.do(AGAIN.__class__("client", "ping -n -q -c 1 192.0.2.9"), quiet=True)
    return before == [len(judge.frames()) for judge in cables.values()]
