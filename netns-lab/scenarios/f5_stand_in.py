"""F5 and a member two hops away: the stand-in answers ARP for it.

The BIG-IP finds its clone pool member by ARP on the LAN (here the kernel does: nftables ``dup to``).
The member 10.10.10.10 is behind two routers, so tunnelbridge stands in for it: it answers ARP for it,
and carries every frame for its MAC through the member's tunnel.

::

     client                bigip                LAN              stand-in
   192.0.2.1 ─── eth0 192.0.2.2  10.10.10.1 ─── br0 ──── eth1 (no address)
                      dup to 10.10.10.10           10.10.10.10?  up0 203.0.113.2
                                                                  ║ GRE
        member 198.51.100.7 ◀═══ router-2 ◀═══ router-1 ◀═════════╝
"""

from __future__ import annotations

from compare import Frame, difference, tcp
from scene import CLONING, Command, Scene
from unwrap import inner

MAC = "02:00:0a:0a:0a:0a"
MEMBER = bytes.fromhex(MAC.replace(":", ""))
CONFIG = f"""
[tunnels]
dc2 = "gre://198.51.100.7"
[arp]
"10.10.10.10" = "{MAC}"
[fdb]
"{MAC}" = "dc2"
[stand_in]
interface = "eth1"
members = ["10.10.10.10"]
"""
CLONE = """
table ip clone_pool {
    chain incoming {
        type filter hook prerouting priority raw
        iifname "eth0" meta l4proto tcp dup to 10.10.10.10 device "eth1"
    }
    chain outgoing {
        type filter hook output priority raw
        oifname "eth0" meta l4proto tcp dup to 10.10.10.10 device "eth1"
    }
}
"""
SEND = Command(
    "stand-in", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
ARPING = Command("bigip", "ping -n -c 1 -W 1 10.10.10.10")
NEIGHBOUR = Command("bigip", "ip neigh show 10.10.10.10")
POOL = Command("bigip", "nft -f clone-pool.nft")
SERVE = Command("bigip", "nc -v -n -N -l 192.0.2.2 80 < answer.txt")
ASK = Command("client", "nc -n 192.0.2.2 80 < question.txt")
COMMANDS = (SEND, POOL, SERVE, ASK, NEIGHBOUR)
NEEDS = ("nft", "nc", "ping", "tc", "ethtool")
QUESTION = "GET /clone HTTP/1.0\r\n\r\n"
ANSWER = "HTTP/1.0 200 OK\r\n\r\nfrom the virtual server\n"


def build(scene: Scene) -> None:
    scene.hosts("client", "bigip", "lan", "stand-in", "member")
    scene.routers("router-1", "router-2")
    scene.link("client:eth0 192.0.2.1/24", "bigip:eth0 192.0.2.2/24")
    scene.link("bigip:eth1 10.10.10.1/24", "lan:bigip")
    scene.link("stand-in:eth1", "lan:stand-in")
    scene.bridge("lan", "bigip", "stand-in")
    scene.link("stand-in:up0 203.0.113.2/26", "router-1:west 203.0.113.1/26", 1600)
    scene.link("router-1:east 203.0.113.65/26", "router-2:west 203.0.113.66/26", 1600)
    scene.link("router-2:east 198.51.100.1/24", "member:eth0 198.51.100.7/24", 1600)
    scene.route("stand-in", "default", "203.0.113.1")
    scene.route("router-1", "198.51.100.0/24", "203.0.113.66")
    scene.route("router-2", "203.0.113.0/26", "203.0.113.65")
    scene.route("member", "default", "198.51.100.1")
    scene.file("mirror.toml", CONFIG)
    scene.file("clone-pool.nft", CLONE)
    scene.file("question.txt", QUESTION, show=False)
    scene.file("answer.txt", ANSWER, show=False)


def run(scene: Scene) -> None:
    lan, far = scene.wire("stand-in:eth1"), scene.listen("member:eth0")
    cable = scene.listen("client:eth0")
    sender = scene.start(SEND, CLONING)
    scene.do(POOL)
    answer = scene.exchange(SERVE, ASK)
    count = len(tcp(cable.settled(2)))
    clones = scene.until(lambda: whole(tcp(lan.frames()), count), "the bigip's clones")
    scene.until(lambda: len(tcp(inner(far.frames()))) >= len(clones), "the last clone")
    neighbour = scene.do(NEIGHBOUR)
    silence = scene.start(ARPING).wait(10)
    sent = scene.end(sender, "sender.json")

    scene.heading("The bigip's neighbour table")
    scene.show(neighbour.splitlines())
    scene.heading("Is it true?")
    seen = lan.stop()
    scene.check(answer == ANSWER, "the client has its answer: originals are untouched")
    scene.check(MAC in neighbour, f"the bigip has found 10.10.10.10 at {MAC}, by ARP")
    replies = [f.octets for f in seen if f.octets[12:14] == b"\x08\x06" and f.octets[21] == 2]
    scene.check(
        replies
        and all(r[22:28] == MEMBER and r[28:32] == bytes((10, 10, 10, 10)) for r in replies),
        f"ARP replies on the LAN are all for the member: {len(replies)}",
    )
    scene.check(silence == 1, "and nothing else is answered: no reply to a ping")
    original = tcp(cable.stop())
    scene.check(len(tcp(seen)) == len(original), f"the bigip cloned {len(original)} segments")
    arrived = tcp(inner(far.stop()))
    wrong = difference(tcp(seen), arrived)
    scene.check(not wrong, f"all {len(arrived)} are at the member, bit-exact and in order", wrong)
    scene.check({f.octets[:6] for f in arrived} == {MEMBER}, "addressed to the member's MAC")
    scene.check(sent["balanced"], "the ledger balances")


def whole(frames: list[Frame], count: int) -> list[Frame]:
    """Return the frames once there are enough."""
    return frames if len(frames) >= count else []
