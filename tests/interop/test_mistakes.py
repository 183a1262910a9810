"""What a user does wrong: one line on standard error that says what and what to do; the exit code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import live
import pytest
from live import CHECK, DECAP, FAR4, LISTEN, MIRRORED, SEND, Lab, Net, as_frames, compare

pytestmark = pytest.mark.usefixtures("root")

TO = ("--to", f"gre://{FAR4}")
FEW = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""Still root by name, so that all files can be read, but without a single capability."""


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net
    capture: Path


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        lab.command("ip", "-n", net.host, "route", "add", "unreachable", "192.0.2.128/25")
        yield Place(lab, net, live.write_pcap(lab.folder / "corpus.pcap", live.corpus()))


def line_of(place: Place, status: int, *command: str, namespace: str | None = None) -> str:
    """Run a command that must fail; return the one line it says."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace or place.net.host, *command],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


SENDING = {
    "no such interface": (1, ["-i", "nowhere0", *TO], ["nowhere0", MIRRORED, "up0"]),
    "refused filter": (
        2, ["-i", MIRRORED, "--filter", "tcp and prot 80", *TO], ["prot", "tcp and"],
    ),
    "filter of a file": (2, ["-r", "{capture}", "--filter", "tcp port", *TO], ["tcp port"]),
    "unresolvable name": (
        1, ["-i", MIRRORED, "--to", "gre://no-such-host.invalid"], ["no-such-host.invalid"],
    ),
    "no route": (1, ["-i", MIRRORED, "--to", "gre://192.0.2.200"], ["no route", "192.0.2.200"]),
    "unwritable ledger": (1, ["-i", MIRRORED, *TO, "--stats", "/nowhere/x.json"], ["/nowhere"]),
    "unknown option": (2, ["-i", MIRRORED, *TO, "--frobnicate"], ["--frobnicate", "--help"]),
    "unknown tunnel option": (
        2, ["-i", MIRRORED, "--to", f"gre://{FAR4}?vni=1"], ["vni", "key", "seq"],
    ),
    "option of another tunnel": (
        2, ["-i", MIRRORED, "--to", f"gre://{FAR4}:4789"], ["port"],
    ),
    "wide VNI": (2, ["-i", MIRRORED, "--to", f"vxlan://{FAR4}?vni=16777216"], ["vni", "16777215"]),
    "wide session": (
        2, ["-i", MIRRORED, "--to", f"erspan2://{FAR4}?session=1024"], ["session", "1023"],
    ),
    "one tunnel twice": (2, ["-i", MIRRORED, *TO, *TO], ["same tunnel"]),
    "unknown encapsulation": (2, ["-i", MIRRORED, "--to", f"gray://{FAR4}"], ["gray", "vxlan"]),
    "not a tunnel": (2, ["-i", MIRRORED, "--to", "collector"], ["collector", "://"]),
    "no target": (2, ["-i", MIRRORED], ["--to"]),
    "no source": (2, [*TO], ["-i", "-r"]),
    "two sources": (2, ["-i", MIRRORED, "-r", "{capture}", *TO], ["-i", "-r"]),
    "no ARP entry": (2, ["-i", MIRRORED, "--to", "10.1.2.3"], ["10.1.2.3", "--arp"]),
    "no FDB entry": (
        2,
        ["-i", MIRRORED, "--to", "10.1.2.3", "--arp", "10.1.2.3=02:00:00:00:00:09"],
        ["02:00:00:00:00:09", "--fdb"],
    ),
    "foreign source address": (
        1, ["-i", MIRRORED, "--to", f"gre://{FAR4}?local=192.0.2.77"], ["192.0.2.77"],
    ),
    "no such file": (1, ["-r", "/nowhere/x.pcap", *TO], ["/nowhere/x.pcap"]),
    "not a capture": (1, ["-r", "/etc/passwd", *TO], ["/etc/passwd", "pcap"]),
    "no speed": (2, ["-r", "{capture}", "--speed", "fast", *TO], ["fast", "original"]),
}  # fmt: skip

LISTENING = {
    "unwritable capture": (1, ["--gre", "--pcap", "/nowhere/x.pcap"], ["/nowhere/x.pcap"]),
    "unwritable ledger": (1, ["--gre", "--stats", "/nowhere/x.json"], ["/nowhere"]),
    "not an address": (2, ["--bind", "here"], ["here"]),
    "foreign address": (1, ["--gre", "--bind", "192.0.2.77"], ["192.0.2.77"]),
    "not a prefix": (2, ["--allow", "10.0.0.0/33"], ["10.0.0.0/33"]),
    "unknown kind": (2, ["--udp", "gray:5"], ["gray", "vxlan"]),
    "wide port": (2, ["--vxlan", "65536"], ["--vxlan", "65535"]),
    "no such namespace": (1, ["--gre", "--tap", "nowhere:mon0"], ["nowhere"]),
    "long tap name": (2, ["--gre", "--tap", "a-name-that-is-too-long"], ["15"]),
    "tap on a real interface": (1, ["--gre", "--tap", "eth0"], ["eth0"]),
    "nowhere for the control socket": (1, ["--gre", "--control", "/nowhere/x"], ["/nowhere"]),
    "no port for metrics": (2, ["--gre", "--metrics", "here"], ["here", "PORT"]),
}


@pytest.mark.parametrize("mistake", SENDING)
def test_mistakes_of_sending(place: Place, mistake: str) -> None:
    status, options, words = SENDING[mistake]
    options = [option.format(capture=place.capture) for option in options]
    said = line_of(place, status, *SEND, *options)
    assert said.startswith("tunnelbridge")
    for word in words:
        assert word in said


@pytest.mark.parametrize("mistake", ["no such interface", "wide VNI", "no route", "no such file"])
def test_check_finds_the_same(place: Place, mistake: str) -> None:
    status, options, words = SENDING[mistake]
    said = line_of(place, status, *CHECK, *options)
    for word in words:
        assert word in said


@pytest.mark.parametrize("mistake", LISTENING)
def test_mistakes_of_listening(place: Place, mistake: str) -> None:
    status, options, words = LISTENING[mistake]
    said = line_of(place, status, *LISTEN, *options, namespace=place.net.far)
    assert said.startswith("collector")
    for word in words:
        assert word in said


def test_port_in_use(place: Place) -> None:
    first = live.listen(place.lab, place.net.far, "--vxlan", "4789")
    said = line_of(place, 1, *LISTEN, "--vxlan", "4789", namespace=place.net.far)
    first.end()
    assert "4789" in said
    assert "in use" in said


# --- without capabilities ---


@pytest.mark.parametrize(
    ("command", "capability"),
    [
        ([*SEND, "-i", MIRRORED, *TO], "CAP_NET_RAW"),
        ([*SEND, "-i", MIRRORED, "--to", f"vxlan://{FAR4}"], "CAP_NET_RAW"),
        ([*LISTEN, "--gre"], "CAP_NET_RAW"),
        ([*LISTEN, "--vxlan", "4789", "--tap", "mon0"], "CAP_NET_ADMIN"),
    ],
    ids=["send gre", "capture", "listen gre", "tap"],
)
def test_a_missing_capability_is_named(place: Place, command: list[str], capability: str) -> None:
    live.need("setpriv")
    said = line_of(place, 1, *FEW, *command)
    assert capability in said
    assert "sudo" in said
    assert "setcap" in said


def test_a_file_through_udp_needs_no_capability(place: Place) -> None:
    live.need("setpriv")
    lab, net = place.lab, place.net
    pcap = lab.folder / "unprivileged.pcap"
    collector = live.Program(
        lab, [*FEW, *LISTEN, "--bind", FAR4, "--pcap", str(pcap)], net.far, '"listening"'
    )
    (told,) = [line for line in collector.log if line["event"] == "not listening"]
    assert "CAP_NET_RAW" in told["reason"]
    tunnels = [f"{name}://{FAR4}" for name in ("vxlan", "geneve", "tzsp", "juniper")]
    options = [option for tunnel in tunnels for option in ("--to", tunnel)]
    sender = live.Program(
        lab, [*FEW, *SEND, "-r", str(place.capture), "--speed", "max", *options], net.host, None
    )
    sent = sender.wait()
    live.assert_same(as_frames(live.corpus() * 4), live.collected(pcap, 4 * len(live.corpus())))
    live.assert_nothing_lost(sent, collector.end())


def test_all_as_nobody(place: Place) -> None:
    """As an ordinary user: the same, if that user can read the Python in use."""
    live.need("setpriv")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    can = subprocess.run([*nobody, *SEND, "--help"], capture_output=True, text=True, check=False)
    if can.returncode:
        pytest.skip(f"nobody cannot run this Python: {can.stderr.strip()[-100:]}")
    said = line_of(place, 1, *nobody, *SEND, "-i", MIRRORED, *TO)
    assert "CAP_NET_RAW" in said


# --- damaged captures ---


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_damaged_capture_is_sent_up_to_the_damage(place: Place, kind: str) -> None:
    lab, net = place.lab, place.net
    whole = place.capture
    if kind == "pcapng":
        live.need("editcap")
        whole = lab.folder / "whole.pcapng"
        lab.command("editcap", "-F", "pcapng", str(place.capture), str(whole))
    damaged = lab.folder / f"damaged.{kind}"
    damaged.write_bytes(whole.read_bytes()[:-20])
    pcap = lab.folder / f"from-{kind}.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))

    sender = live.send(lab, net.host, "-r", str(damaged), "--speed", "max", *TO)
    sent = sender.wait()
    complete = live.corpus()[:-1]
    live.assert_same(as_frames(complete), live.collected(pcap, len(complete)))
    collector.end()
    assert sent["cloned"] == len(complete)
    (told,) = [line for line in sender.log if line["level"] == "warning"]
    assert str(damaged) in told["event"]
    assert any(word.strip(",.;:").isdecimal() for word in told["event"].split())


def test_a_damaged_capture_is_decapsulated_up_to_the_damage(place: Place, captures: Path) -> None:
    live.need("tshark")
    lab = place.lab
    whole = captures / "zeek" / "vxlan.pcap"
    damaged, out = lab.folder / "damaged-vxlan.pcap", lab.folder / "out.pcap"
    damaged.write_bytes(whole.read_bytes()[:-7])
    done = subprocess.run(
        [*DECAP, str(damaged), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert str(damaged) in last
    record = len(compare.read(whole)[-1].octets) + 16
    assert str(whole.stat().st_size - record) in last
    assert len(compare.read(out)) == len(compare.read(whole)) - 1
