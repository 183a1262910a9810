"""F5 remote tcpdump: raw packets over GRE to a plain receiver.

``tcpdump -i 0.0 -s 0 --remote-dest 198.51.100.7`` on a BIG-IP sends frames in GRE to a Linux host
that needs nothing but GRE. Ours has the same octets, so the same receivers take it: here a bare raw
socket, and ``collector listen`` with the tap ``tun0`` in the place of a ``gretap`` device. The
interface that carries the tunnel is mirrored too, as ``-i 0.0`` does, and nothing loops.

::

     client                bigip                  router                  receiver
   192.0.2.1 ─── eth0 192.0.2.2  203.0.113.2 ─── 203.0.113.1  198.51.100.1 ─── 198.51.100.7
                    ║             up0 ║                                          ║
                 mirrored ═════ mirrored ═══ GRE, ttl 255, over the router ═══▶ tun0
"""

from __future__ import annotations

import socket

from compare import tcp
from netlab import inside
from process import Process
from scene import CLONING, Command, Scene
from unwrap import inner, unwrap

RECEIVE = Command("receiver", "collector listen --gre --tap tun0 --stats collector.json")
DUMP = Command("receiver", "tcpdump -n -t -q -l -i tun0 tcp")
SERVE = Command("bigip", "nc -v -n -N -l 192.0.2.2 8080 < answer.txt")
SEND = Command(
    "bigip",
    "tunnelbridge send -i eth0 -i up0 --to 'gre://198.51.100.7?ttl=255' --stats sender.json",
)
ASK = Command("client", "nc -n 192.0.2.2 8080 < question.txt")
COMMANDS = (RECEIVE, DUMP, SERVE, SEND, ASK)
NEEDS = ("nc", "tc", "ethtool")

GRE_HEADER = bytes.fromhex("00006558")
QUESTION = "GET /virtual-server HTTP/1.0\r\n\r\n"
ANSWER = "HTTP/1.0 200 OK\r\n\r\nanswered by the pool member\n"


def build(scene: Scene) -> None:
    scene.hosts("client", "bigip", "receiver")
    scene.routers("router")
    scene.link("client:eth0 192.0.2.1/24", "bigip:eth0 192.0.2.2/24")
    scene.link("bigip:up0 203.0.113.2/24", "router:west 203.0.113.1/24", 1600)
    scene.link("router:east 198.51.100.1/24", "receiver:eth0 198.51.100.7/24", 1600)
    scene.route("bigip", "default", "203.0.113.1")
    scene.route("receiver", "default", "198.51.100.1")
    scene.file("question.txt", QUESTION, show=False)
    scene.file("answer.txt", ANSWER, show=False)


def run(scene: Scene) -> None:
    with inside(scene.namespaces["receiver"], _raw_socket) as plain:
        wire, far = scene.wire("bigip:eth0"), scene.listen("receiver:eth0")
        collector = scene.start(RECEIVE, "listening")
        dump = scene.start(DUMP, "listening on")
        sender = scene.start(SEND, CLONING)
        answer = scene.exchange(SERVE, ASK)
        original = tcp(wire.settled(2))
        scene.until(lambda: len(tcp(inner(far.frames()))) >= len(original), "the last clone")
        lines = scene.until(lambda: _lines(dump, len(original)), "tcpdump's lines")
        sent = scene.end(sender, "sender.json")
        received = scene.end(collector, "collector.json")
        datagrams = _read_all(plain)

    scene.heading("tcpdump on tun0 of the receiver")
    scene.show(lines)
    scene.heading("Is it true?")
    original = tcp(wire.stop())
    carried = [each for each in unwrap(far.stop()) if tcp([each.frame])]
    scene.check(answer == ANSWER, "the client has its answer: originals are untouched")
    scene.same(original, [each.frame for each in carried])
    raw = {packet[24:] for packet in datagrams if packet[20:24] == GRE_HEADER}
    scene.check(
        {frame.octets for frame in original} <= raw,
        "a plain raw socket gets them behind four octets of GRE (type 0x6558)",
    )
    scene.check(all(each.outer.octets[22] == 254 for each in carried), "TTL 255, one router less")
    own = [octets for octets in raw if octets[12:14] == b"\x08\x00" and octets[23] == 47]
    scene.check(not own, "no clone of a clone, although the uplink is mirrored too", len(own))
    arrived = sum(each["sent"] for each in sent["tunnels"])
    scene.check(received["received"] == arrived, f"all {arrived} clones sent are received")
    scene.check(sent["balanced"] and received["balanced"], "both ledgers balance")


def _lines(dump: Process, count: int) -> list[str]:
    lines = dump.out.read_text().splitlines()
    return lines if len(lines) >= count else []


def _raw_socket() -> socket.socket:
    plain = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
    plain.setblocking(False)
    return plain


def _read_all(plain: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(plain.recv(65535))
        except BlockingIOError:
            return packets
