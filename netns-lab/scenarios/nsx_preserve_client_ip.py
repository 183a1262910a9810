"""NSX preserve_client_ip: behind source NAT, clones show the client.

The service engine talks to the server from its own address and port (nftables masquerade). Two sessions
mirror the server side: one shows what is on the wire, the other puts the client's address and port
back, in both directions, from the kernel's connection tracking.

::

     client                    se                           server
   192.0.2.1 ─── 192.0.2.2  nft masquerade  203.0.113.1 ─── 203.0.113.7
                                               back0
                                                 ║
                           198.51.100.1       mirrored          ids
                               up0 ═══ VXLAN 1: as seen ════▶ 198.51.100.7
                                   ═══ VXLAN 2: the client ═▶
"""

from __future__ import annotations

from compare import Frame, tcp
from scene import CLONING, Command, Scene
from unwrap import Carried, unwrap

CLIENT, ENGINE, SERVER = "192.0.2.1", "203.0.113.1", "203.0.113.7"
NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "back0" meta l4proto tcp masquerade to :2000-2999
    }
}
"""
CONFIG = """
[pools.as-seen]
members = [{ ip = "198.51.100.7", via = "vxlan://198.51.100.7?vni=1" }]
[pools.with-client]
preserve_client_ip = true
members = [{ ip = "198.51.100.7", via = "vxlan://198.51.100.7?vni=2" }]
[sessions.as-seen]
sources = ["back0"]
expression = "tcp"
target = "as-seen"
mirror_once = false
[sessions.with-client]
sources = ["back0"]
expression = "tcp"
target = "with-client"
mirror_once = false
"""
TRANSLATE = Command("se", "nft -f nat.nft")
SERVE = Command("server", "nc -v -n -N -l 203.0.113.7 80 < answer.txt")
SEND = Command(
    "se", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
ASK = Command("client", "nc -n 203.0.113.7 80 < question.txt")
WRONG = Command(
    "ids",
    "tshark -r ids-eth0.pcap -o ip.check_checksum:TRUE -o tcp.check_checksum:TRUE"
    " -Y '!icmp && (ip.checksum.status==0 || tcp.checksum.status==0)'",
)
COMMANDS = (TRANSLATE, SERVE, SEND, ASK)
NEEDS = ("nft", "nc", "tshark", "tc", "ethtool")
QUESTION = "GET /who-am-i HTTP/1.0\r\n\r\n"
ANSWER = "HTTP/1.0 200 OK\r\n\r\n" + "the answer to the service engine\n" * 200


def build(scene: Scene) -> None:
    scene.hosts("client", "server", "ids")
    scene.routers("se")
    scene.link("client:eth0 192.0.2.1/24", "se:front0 192.0.2.2/24")
    scene.link("se:back0 203.0.113.1/24", "server:eth0 203.0.113.7/24")
    scene.link("se:up0 198.51.100.1/24", "ids:eth0 198.51.100.7/24", 1600)
    scene.route("client", "default", "192.0.2.2")
    scene.file("mirror.toml", CONFIG)
    scene.file("nat.nft", NAT)
    scene.file("question.txt", QUESTION, show=False)
    scene.file("answer.txt", ANSWER, show=False)


def run(scene: Scene) -> None:
    scene.do(TRANSLATE)
    front, ids = scene.listen("client:eth0"), scene.listen("ids:eth0")
    wire = scene.wire("se:back0")
    sender = scene.start(SEND, CLONING)
    answer = scene.exchange(SERVE, ASK)
    count = len(tcp(wire.settled(2)))
    scene.until(lambda: len(unwrap(ids.frames())) >= 2 * count, "the last clone")
    sent = scene.end(sender, "sender.json")
    carried = unwrap(ids.stop())
    wrong = scene.do(WRONG)

    scene.heading("Is it true?")
    scene.check(answer == ANSWER, "the client has its answer: originals are untouched")
    original = tcp(wire.stop())
    scene.same(original, of(carried, 1), "as seen: bit-exact, in order")
    port = int.from_bytes(original[0].octets[34:36])
    scene.check(
        ends(original) == {ENGINE, SERVER} and 2000 <= port <= 2999,
        f"there, the server talks to {ENGINE}, port {port}, and no one else",
    )
    restored = of(carried, 2)
    scene.check(
        len(restored) == len(original) and ends(restored) == {CLIENT, SERVER},
        f"with preserve_client_ip it is {CLIENT}: {len(restored)} of {len(original)} clones",
        ends(restored),
    )
    client_port = tcp(front.stop())[0].octets[34:36]
    ports = {f.octets[34:36] if f.octets[26] == 192 else f.octets[36:38] for f in restored}
    scene.check(ports == {client_port}, "with the client's own port, in both directions")
    same = [f.octets[:14] + f.octets[38:50] + f.octets[52:] for f in original]
    scene.check(
        same == [f.octets[:14] + f.octets[38:50] + f.octets[52:] for f in restored],
        "nothing else in them is changed: MACs, sequence, flags, options and payload",
    )
    scene.check(not wrong, "tshark finds every IP and TCP checksum right", wrong)
    scene.check(sent["balanced"], "the ledger balances")


def of(carried: list[Carried], vni: int) -> list[Frame]:
    """Return the frames of one VXLAN."""
    return [each.frame for each in carried if each.identifier == vni]


def ends(frames: list[Frame]) -> set[str]:
    """Return the IPv4 addresses that talk."""
    found = {octets for f in frames for octets in (f.octets[26:30], f.octets[30:34])}
    return {".".join(map(str, octets)) for octets in found}
