"""Juniper CN2 flow mirroring: a security policy's flows, by policy and by rule.

A policy on a pod's interface names mirror destinations. Rule ``deep`` has its own: an external
analyser that wants Juniper's header. ``static`` has a static next hop without the header (VXLAN),
``dynamic`` one that is found by ARP and FDB. What only the last rule matches falls to the policy's
destination, one of two analysers with a label. A flow is mirrored with both directions once its first
packet has matched, and once only, whichever rules match as well.

::

     client                   node                router            external 10.87.88.88
   192.0.2.1 ─── veth-client   up0 203.0.113.2 ─── 203.0.113.1 ──── UDP 8099, Juniper header
     server                                                   ├──── analyzer-1 198.51.100.65
   192.0.2.65 ─── veth-server, policy "web" mirrors           └──── analyzer-2 198.51.100.129
"""

from __future__ import annotations

from collections import Counter

from compare import Frame, tcp
from scene import CLONING, Command, Scene
from unwrap import unwrap

MAC, FOUND = "02:00:00:00:09:09", "02:00:00:00:08:08"
CONFIG = f"""
[pools.analyzers]
members = [
  {{ ip = "198.51.100.65", via = "vxlan://198.51.100.65?vni=7", labels = {{ role = "analyzer" }} }},
  {{ ip = "198.51.100.129", via = "vxlan://198.51.100.129?vni=7", labels = {{ role = "analyzer" }} }}]
[destinations.labelled]
labels = {{ role = "analyzer" }}
select = "one"
[destinations.external]
external_analyzer = true
analyzer_ip = "10.87.88.88"
udp_port = 8099
juniper_header = true
[destinations.static]
external_analyzer = true
analyzer_ip = "198.51.100.129"
juniper_header = false
next_hop = "static"
vtep = "198.51.100.129"
vni = 9
mac = "{MAC}"
[destinations.dynamic]
external_analyzer = true
analyzer_ip = "10.87.88.99"
juniper_header = false
next_hop = "dynamic"
[arp]
"10.87.88.99" = "{FOUND}"
[fdb]
"{FOUND}" = "vxlan://198.51.100.65?vni=8"
[policies.web]
priority = 10
sources = ["veth-server"]
secondary_action = {{ mirror = "labelled" }}
[[policies.web.rules]]
name = "deep"
action = "pass"
protocol = "tcp"
source = "192.0.2.0/26"
destination = "192.0.2.64/26"
destination_ports = "80"
secondary_action = {{ mirror = "external" }}
[[policies.web.rules]]
name = "static"
action = "pass"
protocol = "tcp"
source = "192.0.2.0/26"
destination = "192.0.2.64/26"
destination_ports = "81"
secondary_action = {{ mirror = "static" }}
[[policies.web.rules]]
name = "dynamic"
action = "pass"
protocol = "tcp"
source = "192.0.2.0/26"
destination = "192.0.2.64/26"
destination_ports = "82"
secondary_action = {{ mirror = "dynamic" }}
[[policies.web.rules]]
name = "all-web"
action = "pass"
protocol = "tcp"
source = "192.0.2.0/26"
destination = "192.0.2.64/26"
destination_ports = "80-89"
"""
SEND = Command(
    "node", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
SERVE = Command("server", "nc -v -n -N -l 192.0.2.65 {0} < answer.txt")
ASK = Command("client", "nc -n 192.0.2.65 {0} < question.txt")
EXPECTED = {
    80: ("juniper", 0, "10.87.88.88"),
    81: ("vxlan", 9, "198.51.100.129"),
    82: ("vxlan", 8, "198.51.100.65"),
    83: ("vxlan", 7, "198.51.100.65"),
    90: None,
}
"""By server port: how the flow must arrive, and where."""
WHY = {
    80: "rule deep: Juniper header, external analyser",
    81: "rule static: VXLAN to a static next hop, no header",
    82: "rule dynamic: by ARP and FDB, no header",
    83: "policy level: one of two by label",
    90: "no rule: not mirrored",
}
COMMANDS = (SEND, *(each.filled(port) for port in EXPECTED for each in (SERVE, ASK)))
NEEDS = ("nc", "tc", "ethtool")


def build(scene: Scene) -> None:
    scene.hosts("client", "server", "external", "analyzer-1", "analyzer-2")
    scene.routers("node", "router")
    scene.link("client:eth0 192.0.2.1/26", "node:veth-client 192.0.2.2/26")
    scene.link("server:eth0 192.0.2.65/26", "node:veth-server 192.0.2.66/26")
    scene.link("node:up0 203.0.113.2/24", "router:west 203.0.113.1/24", 1600)
    scene.link("router:ext 10.87.88.1/24", "external:eth0 10.87.88.88/24", 1600)
    scene.link("router:one 198.51.100.66/26", "analyzer-1:eth0 198.51.100.65/26", 1600)
    scene.link("router:two 198.51.100.130/26", "analyzer-2:eth0 198.51.100.129/26", 1600)
    for host, via in (
        ("client", "192.0.2.2"), ("server", "192.0.2.66"), ("node", "203.0.113.1"),
        ("external", "10.87.88.1"), ("analyzer-1", "198.51.100.66"), ("analyzer-2", "198.51.100.130"),
    ):  # fmt: skip
        scene.route(host, "default", via)
    scene.file("mirror.toml", CONFIG)
    scene.file("question.txt", "GET / HTTP/1.0\r\n\r\n", show=False)
    scene.file("answer.txt", "HTTP/1.0 200 OK\r\n\r\nfrom a pod\n", show=False)


def run(scene: Scene) -> None:
    wire = scene.wire("node:veth-server")
    judges = [scene.listen(f"{each}:eth0") for each in ("external", "analyzer-1", "analyzer-2")]
    sender = scene.start(SEND, CLONING)
    for n, port in enumerate(EXPECTED, start=1):
        scene.exchange(SERVE.filled(port), ASK.filled(port))
        wire.settled(2 * n)
    original = tcp(wire.frames())
    mirrored = sum(port_of(frame) != 90 for frame in original)
    scene.until(
        lambda: sum(len(unwrap(each.frames())) for each in judges) >= mirrored, "the last clone"
    )
    sent = scene.end(sender, "sender.json")

    scene.heading("Is it true?")
    carried = [each for judge in judges for each in unwrap(judge.stop())]
    original = tcp(wire.stop())
    for port, expected in EXPECTED.items():
        here = [each for each in carried if port_of(each.frame) == port]
        ways = {(each.kind, each.identifier, each.destination) for each in here}
        scene.check(ways == ({expected} if expected else set()), f"port {port}: {WHY[port]}", ways)
        if expected:
            frames = [frame for frame in original if port_of(frame) == port]
            scene.check(
                Counter(map(seen, frames)) == Counter(seen(each.frame) for each in here),
                f"port {port}: both directions, each of {len(frames)} packets once, bit-exact",
                f"{len(here)} clones",
            )
    for port, mac in ((81, MAC), (82, FOUND)):
        to = {c.frame.octets[:6].hex(":") for c in carried if port_of(c.frame) == port}
        scene.check(to == {mac}, f"port {port}: addressed to {mac}", to)
    scene.check(sent["balanced"], "the ledger balances")


def port_of(frame: Frame) -> int:
    """Return the server's port of a segment."""
    return min(int.from_bytes(frame.octets[34:36]), int.from_bytes(frame.octets[36:38]))


def seen(frame: Frame) -> bytes:
    """Return a frame without its destination MAC, which is the analyser's where one is given."""
    return frame.octets[6:]
