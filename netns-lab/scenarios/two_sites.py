"""Two sites, asymmetric routing: each sees one direction, one member gets both.

Requests pass site A, answers come back by site B. A sender at each mirrors what it sees, with the
same file and without talking to the other. Both halves of a connection must reach the same one of
the two analysers.

::

                     ┌─▶ site-a ──┐                            ids-1 198.51.100.65
    client ──────────┤            ├──────── server       ┌───▶
   192.0.2.129       └── site-b ◀─┘      203.0.113.129   │     ids-2 198.51.100.129
                           ║  each mirrors c0             │   ▶
                           ╚═════ VXLAN ═══▶ core ════════╧═══╝
"""

from __future__ import annotations

from collections import defaultdict

from compare import Frame, tcp
from scene import CLONING, Command, Scene
from unwrap import inner

CONFIG = """
[pools.ids]
distribution = "flow"
members = [{ ip = "198.51.100.65", via = "vxlan://198.51.100.65?vni=7" },
           { ip = "198.51.100.129", via = "vxlan://198.51.100.129?vni=7" }]
[sessions.both-sites]
sources = ["c0"]
target = "ids"
expression = "tcp port 80"
"""
SENDERS = tuple(
    Command(
        site, f"tunnelbridge send --config mirror.toml --control {site}.sock --stats {site}.json"
    )
    for site in ("site-a", "site-b")
)
SERVE = Command("server", "nc -v -n -k -l 203.0.113.129 80")
CONNECT = Command("client", "nc -n -N -s 192.0.2.129 203.0.113.129 80 < request.txt")
COMMANDS = (*SENDERS, SERVE, CONNECT)
NEEDS = ("nc",)
CONNECTIONS = 20
MEMBERS = ("ids-1", "ids-2")


def build(scene: Scene) -> None:
    scene.hosts("client", "server", *MEMBERS)
    scene.routers("site-a", "site-b", "core")
    for site, net in (("site-a", 0), ("site-b", 64)):
        end_of = site[-1]
        scene.link(f"client:{end_of}0 192.0.2.{net + 1}/26", f"{site}:c0 192.0.2.{net + 2}/26")
        scene.link(f"server:{end_of}0 203.0.113.{net + 1}/26", f"{site}:s0 203.0.113.{net + 2}/26")
        n = 1 if site == "site-a" else 9
        scene.link(f"{site}:up0 198.51.100.{n}/29", f"core:{end_of}0 198.51.100.{n + 1}/29", 1600)
        scene.route(site, "198.51.100.0/24", f"198.51.100.{n + 1}")
        scene.route(site, "192.0.2.129", f"192.0.2.{net + 1}")
        scene.route(site, "203.0.113.129", f"203.0.113.{net + 1}")
    for member, address in zip(MEMBERS, (65, 129), strict=True):
        scene.link(
            f"core:{member} 198.51.100.{address + 1}/26",
            f"{member}:eth0 198.51.100.{address}/26",
            1600,
        )
        scene.route(member, "default", f"198.51.100.{address + 1}")
    for host, service, there, way in (
        ("client", "192.0.2.129", "203.0.113.129", "192.0.2.2"),
        ("server", "203.0.113.129", "192.0.2.129", "203.0.113.66"),
    ):
        namespace = scene.namespaces[host]
        scene.lab.address(namespace, "lo", f"{service}/32")
        scene.ip(namespace, f"route add {there} via {way} src {service}")
    for namespace in scene.namespaces.values():
        for each in ("all", "default"):
            scene.lab.setting(namespace, f"net/ipv4/conf/{each}/rp_filter", "0")
    scene.file("mirror.toml", CONFIG)
    scene.file("request.txt", "which way do you answer?\n", show=False)


def run(scene: Scene) -> None:
    sights = {name: scene.listen(f"{name}:eth0") for name in MEMBERS}
    links = {site: scene.listen(f"{site}:c0") for site in ("site-a", "site-b")}
    senders = [scene.start(each, CLONING) for each in SENDERS]
    scene.start(SERVE, "Listening")
    for n in range(CONNECTIONS):
        scene.do(CONNECT, quiet=n > 0)
    print(f"   … and so {CONNECTIONS} times")
    scene.until(lambda: all(ended(tcp(link.frames())) for link in links.values()), "the ends")
    seen = {site: tcp(link.frames()) for site, link in links.items()}
    total = sum(map(len, seen.values()))
    scene.until(
        lambda: sum(len(tcp(inner(each.frames()))) for each in sights.values()) >= total,
        "the last clone",
    )
    sent = [scene.end(p, f"{c.host}.json") for p, c in zip(senders, SENDERS, strict=True)]

    scene.heading("Is it true?")
    for site, frames in seen.items():
        ways = {frame.octets[26:30] for frame in frames}
        scene.check(len(ways) == 1, f"{site} saw one direction only: {len(frames)} packets")
    at = {name: flows(tcp(inner(each.stop()))) for name, each in sights.items()}
    both = [name for name in at for halves in at[name].values() if len(halves) == 2]
    scene.check(
        len(both) == CONNECTIONS, f"each of {CONNECTIONS} connections has both halves at one member",
        f"{len(both)} have",
    )  # fmt: skip
    shared = at["ids-1"].keys() & at["ids-2"].keys()
    scene.check(not shared, "none is seen by both members", f"{len(shared)} are")
    spread = {name: len(found) for name, found in at.items()}
    scene.check(all(spread.values()), f"and both members have work: {spread}")
    arrived = sum(sum(found.values()) for members in at.values() for found in members.values())
    scene.check(arrived == total, f"all {total} packets arrived once", arrived)
    scene.check(all(ledger["balanced"] for ledger in sent), "both ledgers balance")


def flows(frames: list[Frame]) -> dict[frozenset[bytes], dict[bytes, int]]:
    """Return the packets of each direction of each connection."""
    found: dict[frozenset[bytes], dict[bytes, int]] = defaultdict(lambda: defaultdict(int))
    for frame in frames:
        octets = frame.octets
        source, destination = octets[26:30] + octets[34:36], octets[30:34] + octets[36:38]
        found[frozenset((source, destination))][source] += 1
    return found


def ended(frames: list[Frame]) -> bool:
    """Tell whether every connection's FIN has passed in this direction."""
    return sum(frame.octets[47] & 1 for frame in frames) >= CONNECTIONS
