"""VMware vDS ERSPAN: two VMs of one host, and a Wireshark that only looks.

The VMs talk over the host's virtual switch, and no physical wire sees them. The host mirrors the
port of one of them by ERSPAN type II and type III to a workstation where nothing listens: tshark
captures there, its kernel even answers "protocol unreachable", and the session goes on.

::

      vm-a                      esxi                      router               wireshark
   192.0.2.1 ── vif-a ═ br0 ─ vif-b   203.0.113.2 ─── 203.0.113.1  198.51.100.1 ─── 198.51.100.9
                  ║             │       up0                                          eth0, passive
      vm-b        ║             │                                                       ▲
   192.0.2.2 ─────║─────────────┘                                                       ║
                  ╚══ mirrored ══════ ERSPAN II, session 2, and III, session 3 ═════════╝
"""

from __future__ import annotations

from pathlib import Path

import compare
from compare import Frame, tcp
from scene import CLONING, Command, Scene
from unwrap import unwrap

LOOK = Command("wireshark", "tshark -q -i eth0 -f 'proto gre' -F pcap -w erspan.pcap")
SERVE = Command("vm-b", "nc -v -n -N -l 192.0.2.2 80 < page.html")
SEND = Command(
    "esxi",
    "tunnelbridge send -i vif-a --to 'erspan2://198.51.100.9?session=2'"
    " --to 'erspan3://198.51.100.9?session=3&granularity=1588' --stats sender.json",
)
GET = Command("vm-a", "nc -n 192.0.2.2 80 < request.txt")
SPLIT = Command("wireshark", "tshark -r erspan.pcap -Y erspan.spanid=={0} -F pcap -w {0}.pcap")
FOLLOW = Command("wireshark", "tshark -r {0}.pcap -q -z follow,tcp,raw,0")
COMMANDS = (LOOK, SERVE, SEND, GET, *(c.filled(n) for n in (2, 3) for c in (SPLIT, FOLLOW)))
NEEDS = ("tshark", "nc", "tc", "ethtool")

REQUEST = "GET /esxi.html HTTP/1.0\r\nHost: vm-b.example.org\r\n\r\n"
PAGE = "HTTP/1.0 200 OK\r\n\r\n" + "".join(f"<p>line {n} of the page</p>\n" for n in range(600))


def build(scene: Scene) -> None:
    scene.hosts("esxi", "vm-a", "vm-b", "wireshark")
    scene.routers("router")
    scene.link("vm-a:eth0 192.0.2.1/24", "esxi:vif-a")
    scene.link("vm-b:eth0 192.0.2.2/24", "esxi:vif-b")
    scene.bridge("esxi", "vif-a", "vif-b")
    scene.link("esxi:up0 203.0.113.2/24", "router:west 203.0.113.1/24", 1600)
    scene.link("router:east 198.51.100.1/24", "wireshark:eth0 198.51.100.9/24", 1600)
    scene.route("esxi", "default", "203.0.113.1")
    scene.route("wireshark", "default", "198.51.100.1")
    scene.file("request.txt", REQUEST, show=False)
    scene.file("page.html", PAGE, show=False)


def run(scene: Scene) -> None:
    wire, up = scene.wire("esxi:vif-a"), scene.listen("esxi:up0")
    looking = scene.start(LOOK, "Capturing on")
    sender = scene.start(SEND, CLONING)
    page = scene.exchange(SERVE, GET)
    original = tcp(wire.settled(2))
    seen = scene.folder / "erspan.pcap"
    scene.until(lambda: len(carried(seen)) >= 2 * len(original), "the clones in tshark's file")
    sent = scene.end(sender, "sender.json")
    looking.stop()
    streams = {}
    for session in (2, 3):
        scene.do(SPLIT.filled(session))
        streams[session] = followed(scene.do(FOLLOW.filled(session)))

    scene.heading("The page, followed by tshark in session 3")
    scene.show(streams[3][1].decode(errors="replace").splitlines(), 4)
    scene.heading("Is it true?")
    scene.check(page == PAGE, "vm-a has the page: originals are untouched")
    original = tcp(wire.stop())
    for kind, session in (("erspan2", 2), ("erspan3", 3)):
        of_session = [c for c in unwrap(compare.read(seen)) if c.identifier == session]
        clones = tcp([each.frame for each in of_session])
        scene.check({each.kind for each in of_session} == {kind}, f"session {session} is {kind}")
        scene.same(original, clones, f"session {session}: every frame bit-exact, in order")
        asked, answered = streams[session]
        scene.check(
            (asked, answered) == (REQUEST.encode(), PAGE.encode()),
            f"session {session}: tshark's followed TCP stream equals the payload, both ways",
        )
    refusals = [each for each in up.stop() if is_unreachable(each)]
    scene.check(refusals, f"{len(refusals)} times the workstation's kernel said: no such protocol")
    scene.check(sent["balanced"], "the ledger balances")


def carried(path: Path) -> list[Frame]:
    """Return the TCP segments carried so far."""
    return tcp([each.frame for each in unwrap(compare.read(path))])


def followed(text: str) -> tuple[bytes, bytes]:
    """Return what ``-z follow,tcp,raw`` printed, of the side that spoke first and of the other."""
    lines = [line for line in text.splitlines() if line.strip("\t0123456789abcdef") == "" and line]
    first = "".join(line for line in lines if not line.startswith("\t"))
    other = "".join(line.strip() for line in lines if line.startswith("\t"))
    return bytes.fromhex(first), bytes.fromhex(other)


def is_unreachable(frame: Frame) -> bool:
    """Tell whether it is an ICMP "protocol unreachable"."""
    octets = frame.octets
    return octets[12:14] == b"\x08\x00" and octets[23] == 1 and octets[34:36] == b"\x03\x02"
