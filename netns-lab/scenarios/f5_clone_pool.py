"""F5 clone pool across layer 3: static ARP, static FDB, GRE (K17567).

A BIG-IP's clone pool member must be on the same LAN, for its address only serves to find a MAC. Here
the member 10.10.10.10 is beyond a router: a static ARP entry gives its MAC, a static FDB entry the
tunnel behind that MAC. Clones differ from the originals in the destination MAC and in nothing else.

::

     client                bigip                  router                  member 10.10.10.10
   192.0.2.1 ─── eth0 192.0.2.2  203.0.113.2 ─── 203.0.113.1  198.51.100.1 ─── 198.51.100.7
                    ║             up0                                             eth0
                 mirrored ═══════════ GRE (Ethernet inside), over the router ══════▶
"""

from __future__ import annotations

import compare
from compare import tcp
from scene import CLONING, Command, Scene
from unwrap import inner, unwrap

MAC = "02:00:0a:0a:0a:0a"
CONFIG = f"""
[tunnels]
dc2 = "gre://198.51.100.7"
[arp]
"10.10.10.10" = "{MAC}"
[fdb]
"{MAC}" = "dc2"
[pools.clone_pool]
members = [{{ ip = "10.10.10.10" }}]
[sessions.virtual_server]
sources = ["eth0"]
target = "clone_pool"
labels = {{ side = "clientside" }}
"""
WITHOUT_FDB = "".join(CONFIG.partition("[fdb]")[::2]).replace(f'"{MAC}" = "dc2"\n', "")

TRY = Command("bigip", "tunnelbridge send --config without-fdb.toml")
DUMP = Command("member", "tcpdump -n -t -e -l -i eth0 proto gre")
SERVE = Command("bigip", "nc -v -n -N -l 192.0.2.2 80 < answer.txt")
SEND = Command(
    "bigip", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
ASK = Command("client", "nc -n 192.0.2.2 80 < question.txt")
COMMANDS = (TRY, DUMP, SERVE, SEND, ASK)
NEEDS = ("nc", "tc", "ethtool")

QUESTION = "POST /upload HTTP/1.0\r\n\r\n" + "up " * 40_000
ANSWER = "HTTP/1.0 200 OK\r\n\r\n" + "down " * 40_000


def build(scene: Scene) -> None:
    scene.hosts("client", "bigip", "member")
    scene.routers("router")
    scene.link("client:eth0 192.0.2.1/24", "bigip:eth0 192.0.2.2/24")
    scene.link("bigip:up0 203.0.113.2/24", "router:west 203.0.113.1/24", 1600)
    scene.link("router:east 198.51.100.1/24", "member:eth0 198.51.100.7/24", 1600)
    scene.route("bigip", "default", "203.0.113.1")
    scene.route("member", "default", "198.51.100.1")
    scene.file("mirror.toml", CONFIG)
    scene.file("without-fdb.toml", WITHOUT_FDB, show=False)
    scene.file("question.txt", QUESTION, show=False)
    scene.file("answer.txt", ANSWER, show=False)


def run(scene: Scene) -> None:
    refused = scene.start(TRY)
    code = refused.wait(20)
    wire, far = scene.wire("bigip:eth0"), scene.listen("member:eth0")
    dump = scene.start(DUMP, "listening on")
    sender = scene.start(SEND, CLONING)
    answer = scene.exchange(SERVE, ASK)
    original = tcp(wire.settled(2))
    scene.until(lambda: len(tcp(inner(far.frames()))) >= len(original), "the last clone")
    sent = scene.end(sender, "sender.json")
    carried = unwrap(far.frames())
    scene.exchange(SERVE, ASK, quiet=True)
    both = tcp(wire.settled(4))

    scene.heading("tcpdump at the member")
    scene.show(scene.until(lambda: dump.out.read_text().splitlines(), "tcpdump's lines"), 3)
    scene.heading("Is it true?")
    why = refused.last_words()
    told = f"no FDB entry for {MAC}" in why and "K17567" in why and code in (1, 2)
    scene.check(told, "without the FDB entry it is refused, with the reason", why)
    scene.check(answer == ANSWER, "the client has its answer: originals are untouched")
    clones = tcp([each.frame for each in carried])
    member = bytes.fromhex(MAC.replace(":", ""))
    scene.same(
        compare.readdressed(original, member), clones, "bit-exact but for the MAC, and in order"
    )
    ways = {(each.kind, each.source, each.destination) for each in carried}
    scene.check(ways == {("gre", "203.0.113.2", "198.51.100.7")}, "all by GRE to 198.51.100.7")
    largest = max(len(frame.octets) for frame in clones)
    scene.check(
        largest <= 1514, f"super-packets were cut: the largest frame has {largest:,} octets"
    )
    scene.check(sent["balanced"], "the ledger balances")
    wire.stop()
    more = len(unwrap(far.stop())) - len(carried)
    again = len(both) - len(original)
    scene.check(again and not more, f"after its end, of {again} more packets nothing arrives", more)
