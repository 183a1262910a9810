"""NSX clone servers: round robin over three; a sniffer without address.

The service engine clones to servers of a network that it is on. Three servers take turns, packet by
packet, and the counters have NSX's names. A fourth target has a dummy IP and a dummy MAC, as for "no
destination IP": only its subnet is real, and a promiscuous sniffer there sees everything.

::

     client                  se                    switch           clone-1 198.51.100.11
   192.0.2.1 ─── eth0 192.0.2.2  198.51.100.1 ────── br0 ────┬──── clone-2 198.51.100.12
                    ║             eth1                       ├──── clone-3 198.51.100.13
                 mirrored ════════ layer 2, by subnet ══▶    └──── sniffer (no address)
"""

from __future__ import annotations

import json
from typing import Any

import compare
from compare import Frame, tcp
from scene import CLONING, Command, Judge, Scene

SERVERS = {f"198.51.100.{10 + n}": f"02:00:00:00:01:{10 + n}" for n in (1, 2, 3)}
DUMMY = "02:00:00:00:02:50"
CONFIG = """
[pools.clone-servers]
distribution = "round-robin"
members = [{ ip = "198.51.100.11", mac = "02:00:00:00:01:11", subnet = "198.51.100.0/24" },
           { ip = "198.51.100.12", mac = "02:00:00:00:01:12", subnet = "198.51.100.0/24" },
           { ip = "198.51.100.13", mac = "02:00:00:00:01:13", subnet = "198.51.100.0/24" }]
[pools.sniffer]      # no such address: a dummy IP and MAC will do, the subnet is valid
members = [{ ip = "198.51.100.250", mac = "02:00:00:00:02:50", subnet = "198.51.100.0/24" }]
[sessions.vs-1]
sources = ["eth0"]
expression = "icmp"
target = "clone-servers"
[sessions.vs-2]
priority = 2
sources = ["eth0"]
expression = "tcp"
target = "sniffer"
"""
SEND = Command(
    "se", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
PING = Command("client", "ping -n -q -c 150 -i 0.005 192.0.2.2")
SERVE = Command("se", "nc -v -n -N -l 192.0.2.2 80 < answer.txt")
ASK = Command("client", "nc -n 192.0.2.2 80 < question.txt")
SHOW = Command("se", "tunnelbridge show stats --control send.sock")
JSON = Command("se", "tunnelbridge show stats --json --control send.sock")
RESET = Command("se", "tunnelbridge show stats --reset-stats --control send.sock")
COMMANDS = (SEND, PING, SERVE, ASK, SHOW, RESET)
NEEDS = ("nc", "ping", "tc", "ethtool")
EACH = 100
"""Packets for each server: 150 requests and 150 replies, over three."""


def build(scene: Scene) -> None:
    scene.hosts("client", "se", "switch", "clone-1", "clone-2", "clone-3", "sniffer")
    scene.link("client:eth0 192.0.2.1/24", "se:eth0 192.0.2.2/24")
    scene.link("se:eth1 198.51.100.1/24", "switch:se")
    for n, (ip, mac) in enumerate(SERVERS.items(), start=1):
        scene.link(f"clone-{n}:eth0 {ip}/24 {mac}", f"switch:clone-{n}")
    scene.link("sniffer:eth0", "switch:sniffer")
    scene.bridge("switch", "se", "clone-1", "clone-2", "clone-3", "sniffer")
    scene.file("mirror.toml", CONFIG)
    scene.file("question.txt", "GET / HTTP/1.0\r\n\r\n", show=False)
    scene.file("answer.txt", "HTTP/1.0 200 OK\r\n\r\nfrom the pool\n", show=False)


def run(scene: Scene) -> None:
    wire = scene.wire("se:eth0")
    servers = {mac: scene.listen(f"clone-{n}:eth0") for n, mac in enumerate(SERVERS.values(), 1)}
    sniffer = scene.listen("sniffer:eth0")
    sender = scene.start(SEND, CLONING)
    scene.do(PING)
    scene.exchange(SERVE, ASK)
    original = wire.settled(2)
    scene.until(lambda: len(to(DUMMY, sniffer)) >= len(tcp(original)), "the sniffer's clones")
    scene.until(
        lambda: sum(len(to(mac, each)) for mac, each in servers.items()) >= 3 * EACH,
        "the servers' clones",
    )
    told = scene.until(lambda: settled(scene), "the counters")
    shown = scene.do(SHOW).splitlines()
    scene.do(RESET)
    again = counters(scene)
    sent = scene.end(sender, "sender.json")

    scene.heading("The counters, with NSX's names")
    scene.show(shown[shown.index(next(line for line in shown if "vs-1" in line)) :], 20)
    scene.heading("Is it true?")
    got = {mac: to(mac, each) for mac, each in servers.items()}
    counts = [len(frames) for frames in got.values()]
    scene.check(counts == [EACH] * 3, f"tcpdump at the servers: {counts}, exactly a third each")
    original = wire.stop()
    pings = [f for f in original if f.octets[12:14] == b"\x08\x00" and f.octets[23] == 1]
    expected = [
        frame
        for n, mac in enumerate(got)
        for frame in compare.readdressed(pings[n::3], bytes.fromhex(mac.replace(":", "")))
    ]
    scene.same(expected, [f for frames in got.values() for f in frames], "bit-exact, in turns")
    clones = to(DUMMY, sniffer)
    expected = compare.readdressed(tcp(original), bytes.fromhex(DUMMY.replace(":", "")))
    scene.same(expected, clones, "the sniffer without an address sees the TCP connection")
    for ip in SERVERS:
        stats = told.get(ip, {})
        numbers = [stats.get(key) for key in ("num_total_pkts_cloned", "num_succeeded")]
        scene.check(
            numbers == [EACH, EACH], f"{ip}: num_total_pkts_cloned, num_succeeded {numbers}"
        )
    lost = [
        stats["num_mbuf_alloc_failed"] + stats["num_driver_failures"] for stats in told.values()
    ]
    scene.check(not any(lost), "no num_mbuf_alloc_failed, no num_driver_failures", lost)
    left = {ip: again[ip]["num_total_pkts_cloned"] for ip in SERVERS}
    scene.check(not any(left.values()), "--reset-stats begins at 0 again, as NSX does", left)
    arps = [frame for frame in sniffer.stop() if frame.octets[12:14] == b"\x08\x06"]
    scene.check(not arps, "nobody asked by ARP for any of them: static, or a dummy", len(arps))
    scene.check(sent["balanced"], "the ledger balances")


def to(mac: str, judge: Judge) -> list[Frame]:
    """Return the frames to a MAC that a judge has seen."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return [frame for frame in judge.frames() if frame.octets[:6] == octets]


def settled(scene: Scene) -> dict[str, dict[str, Any]]:
    """Return the members' counters once all packets are in them."""
    members = counters(scene)
    total = sum(members.get(ip, {}).get("num_total_pkts_cloned", 0) for ip in SERVERS)
    return members if total >= 3 * EACH else {}


def counters(scene: Scene) -> dict[str, dict[str, Any]]:
    """Return the members' counters by address."""
    shown = json.loads(scene.do(JSON, quiet=True))
    return {
        member["ip"]: member
        for session in shown["traffic_clone_stats"]
        for member in session["clone_srvr_stats"]
    }
