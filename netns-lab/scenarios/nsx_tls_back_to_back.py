"""NSX back-to-back services: TLS outside, the clear middle is cloned.

Two real HAProxy: vs1 takes TLS from the client, vs1-a makes TLS to the server. Between them HTTP is
in the clear, and vs1 clones that link to an IDS beyond a router. The same serves F5's SSL offload.

::

    client ──TLS── vs1 ────────clear──────── vs1-a ──TLS── server
   192.0.2.1     :443  203.0.113.1   203.0.113.2:8080     203.0.113.66:443
                    ║     mid0 mirrored
                    ╚═══ GRE, over the router ══════════▶ ids 198.51.100.66
"""

from __future__ import annotations

from compare import Frame, holds, tcp
from scene import CLONING, Command, Scene
from unwrap import inner

SECRET = "the balance of account 4711 is 12,345.67"
DEFAULTS = """
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
"""
VS1 = f"""{DEFAULTS}
frontend vs1
    bind 192.0.2.2:443 ssl crt vs1.pem
    default_backend vs1-a
backend vs1-a
    server vs1-a 203.0.113.2:8080
"""
VS1_A = f"""{DEFAULTS}
frontend vs1-a
    bind 203.0.113.2:8080
    default_backend app
backend app
    server app 203.0.113.66:443 ssl verify none
"""
CONFIG = """
[tunnels]
ids = "gre://198.51.100.66"
[sessions.decrypted]
sources = ["mid0"]
target = "ids"
expression = "tcp port 8080"
labels = { decrypted = "true" }
"""
CERTIFY = Command(
    "vs1",
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    " -subj /CN=vs1.example.org -keyout key.pem -out cert.pem",
)
JOIN = Command("vs1", "cat cert.pem key.pem > vs1.pem")
SERVE = Command(
    "server",
    "openssl s_server -quiet -WWW -accept 203.0.113.66:443 -cert cert.pem -key key.pem",
)
SECOND = Command("vs1-a", "haproxy -db -f vs1-a.cfg")
FIRST = Command("vs1", "haproxy -db -f vs1.cfg")
SEND = Command(
    "vs1", "tunnelbridge send --config mirror.toml --control send.sock --stats sender.json"
)
ASK = Command("client", "openssl s_client -quiet -connect 192.0.2.2:443 < request.txt")
READ = Command(
    "ids",
    "tshark -r ids-eth0.pcap -Y 'http && !icmp' -T fields -E occurrence=l -e ip.src -e http.request.uri"
    " -e http.response.code -e http.file_data",
)
COMMANDS = (CERTIFY, JOIN, SERVE, SECOND, FIRST, SEND, ASK)
NEEDS = ("haproxy", "openssl", "tshark", "tc", "ethtool", "ss")


def build(scene: Scene) -> None:
    scene.hosts("client", "vs1", "vs1-a", "server", "ids")
    scene.routers("router")
    scene.link("client:eth0 192.0.2.1/24", "vs1:eth0 192.0.2.2/24")
    scene.link("vs1:mid0 203.0.113.1/26", "vs1-a:mid0 203.0.113.2/26")
    scene.link("vs1-a:back0 203.0.113.65/26", "server:eth0 203.0.113.66/26")
    scene.link("vs1:up0 198.51.100.1/26", "router:west 198.51.100.2/26", 1600)
    scene.link("router:east 198.51.100.65/26", "ids:eth0 198.51.100.66/26", 1600)
    scene.route("vs1", "198.51.100.64/26", "198.51.100.2")
    scene.route("ids", "default", "198.51.100.65")
    scene.file("mirror.toml", CONFIG)
    scene.file("vs1.cfg", VS1, show=False)
    scene.file("vs1-a.cfg", VS1_A, show=False)
    scene.file("account.txt", SECRET, show=False)
    scene.file("request.txt", "GET /account.txt HTTP/1.0\r\n\r\n", show=False)


def run(scene: Scene) -> None:
    outside = [scene.listen("client:eth0"), scene.listen("server:eth0")]
    wire, ids = scene.wire("vs1:mid0"), scene.listen("ids:eth0")
    scene.do(CERTIFY)
    scene.do(JOIN)
    for command, port in ((SERVE, 443), (SECOND, 8080), (FIRST, 443)):
        scene.start(command)
        scene.wait_for_port(command.host, port)
    sender = scene.start(SEND, CLONING)
    answer = scene.do(ASK)
    count = len(tcp(wire.settled(2)))
    scene.until(lambda: len(inner(ids.frames())) >= count, "the last clone")
    sent = scene.end(sender, "sender.json")
    clones = inner(ids.stop())
    read = scene.do(READ)

    scene.heading("HTTP at the IDS, by tshark: source, request, code, body")
    scene.show(read.splitlines())
    scene.heading("Is it true?")
    scene.check(SECRET in answer, "the client has its answer over TLS")
    for judge, leg in zip(outside, ("client to vs1", "vs1-a to server"), strict=True):
        frames = judge.stop()
        hidden = is_tls(frames) and not holds(frames, b"4711") and not holds(frames, b"GET /")
        scene.check(hidden, f"{leg} is TLS, and shows nothing: {len(tcp(frames))} segments")
    scene.check(holds(clones, b"GET /account.txt"), "the clone shows the request in the clear")
    scene.check(holds(clones, SECRET.encode()), "the clone shows the answer in the clear")
    both = "/account.txt" in read and "\t200\t" in read
    scene.check(both, "tshark reads both as HTTP")
    scene.same(tcp(wire.stop()), clones, "every frame of the middle bit-exact, in order")
    scene.check(sent["balanced"], "the ledger balances")


def is_tls(frames: list[Frame]) -> bool:
    """Tell whether some segment begins with a TLS handshake record."""
    for frame in tcp(frames):
        at = 34 + 4 * (frame.octets[46] >> 4)
        if frame.octets[at : at + 2] == b"\x16\x03":
            return True
    return False
