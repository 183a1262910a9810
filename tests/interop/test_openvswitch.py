"""Open vSwitch's userspace datapath as the peer, both ways: GRE, ERSPAN II and III, VXLAN, GENEVE.

``far`` has a switch of its own (private database and sockets): ``br-phy`` holds eth0 and the
addresses, ``br-int`` a tunnel port and an internal port ``inner``; flows join those two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import live
import pytest
from live import FAR4, HOST4, MIRRORED, Lab, Net, as_frames, truth, wait_until

pytestmark = pytest.mark.usefixtures("root")

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


@dataclass(frozen=True)
class Peer:
    """How Open vSwitch and we configure the same tunnel."""

    port: str
    tunnel: str
    identifier: int
    encapsulation: str
    match: str
    """What the switch must read in our headers, as OpenFlow fields."""


PEERS = {
    "gre": Peer("type=gre options:key=77 options:seq=true", "gre://{}?key=77&seq=on", 77, "gre", ""),
    "erspan ver 1": Peer(
        "type=erspan options:key=1000 options:erspan_ver=1 options:erspan_idx=5",
        "erspan2://{}?session=1000&index=5", 1000, "erspan2",
        ",tun_erspan_ver=1,tun_erspan_idx=5",
    ),
    "erspan ver 2": Peer(
        "type=erspan options:key=9 options:erspan_ver=2 options:erspan_dir=1 options:erspan_hwid=7",
        "erspan3://{}?session=9&hwid=33", 9, "erspan3",
        ",tun_erspan_ver=2,tun_erspan_dir=0,tun_erspan_hwid=33",
    ),
    "vxlan": Peer(
        "type=vxlan options:key=16777215", "vxlan://{}?vni=16777215", 16777215, "vxlan", ""
    ),
    "geneve": Peer("type=geneve options:key=4", "geneve://{}?vni=4", 4, "geneve", ""),
}  # fmt: skip


class Switch:
    """A running Open vSwitch in ``far``."""

    def __init__(self, lab: Lab, net: Net) -> None:
        self.lab, self.net = lab, net
        folder = str(lab.folder)
        self._env = [
            "env", f"OVS_RUNDIR={folder}", f"OVS_LOGDIR={folder}", f"OVS_DBDIR={folder}",
            f"OVS_SYSCONFDIR={folder}",
        ]  # fmt: skip
        database, remote = f"{folder}/conf.db", f"unix:{folder}/db.sock"
        self._vsctl = ["ovs-vsctl", f"--db={remote}", "--timeout=10"]
        lab.command("ovsdb-tool", "create", database, str(SCHEMA))
        self._start("ovsdb-server", database, f"--remote=p{remote}", folder)
        wait_until(lambda: Path(folder, "db.sock").exists(), 10, "the database's socket")
        self.set("--no-wait", "init")
        self._start("ovs-vswitchd", remote, "--disable-system", folder)
        self._build()

    def _start(self, program: str, *argv: str) -> None:
        *options, folder = argv
        self.lab.start(
            program,
            [*self._env, program, *options, f"--pidfile={folder}/{program}.pid", "-vconsole:warn"],
            self.net.far,
        )

    def set(self, *command: str) -> str:
        """Run ovs-vsctl."""
        return self._run(*self._vsctl, *command)

    def flow(self, *command: str) -> str:
        """Run ovs-ofctl."""
        return self._run("ovs-ofctl", *command)

    def tell(self, *command: str) -> str:
        """Run ovs-appctl."""
        return self._run("ovs-appctl", "--timeout=10", *command)

    def _run(self, *command: str) -> str:
        return self.lab.command(*self._env, *command, namespace=self.net.far)

    def _build(self) -> None:
        lab, far = self.lab, self.net.far
        for bridge in ("br-phy", "br-int"):
            self.set("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        lab.command("ip", "-n", far, "address", "flush", "dev", "eth0")
        self.set("add-port", "br-phy", "eth0")
        self.set(
            "add-port", "br-int", "inner", "--", "set", "interface", "inner", "type=internal",
            "ofport_request=2",
        )  # fmt: skip
        for name in ("br-phy", "inner"):
            lab.command("ip", "-n", far, "link", "set", name, "up", "mtu", "1600")
        lab.address(far, "br-phy", f"{FAR4}/24")
        lab.route(far, "default", via="198.51.100.1")

    def add_tunnel(self, peer: Peer) -> None:
        """Make a tunnel port to the host and join it with ``inner``."""
        port = ["set", "interface", "tun", "ofport_request=1", *peer.port.split()]
        self.set("add-port", "br-int", "tun", "--", *port, f"options:remote_ip={HOST4}")
        self.flow("del-flows", "br-int")
        match = f"in_port=1,tun_id={peer.identifier},tun_src={HOST4}{peer.match}"
        self.flow("add-flow", "br-int", f"{match},actions=output:2")
        self.flow("add-flow", "br-int", "in_port=2,actions=output:1")
        wait_until(lambda: "_sys" in self.tell("tnl/ports/show"), 5, "the tunnel port")

    def remove_tunnel(self) -> None:
        """Take the tunnel port away."""
        self.set("--if-exists", "del-port", "br-int", "tun")


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net
    switch: Switch


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    live.need("ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "ovs-ofctl", "ovs-appctl")
    if not SCHEMA.exists():
        pytest.skip(f"needs {SCHEMA} of openvswitch-common")
    with live.routed() as (lab, net):
        # it does not put outer fragments together
        for namespace, interface in live.path(net):
            lab.command("ip", "-n", namespace, "link", "set", interface, "mtu", "1600")
        lab.setting(net.far, "net/ipv6/conf/default/disable_ipv6", "1")
        switch = Switch(lab, net)
        live.reach(net.host, FAR4)
        # its own neighbour table, so that no frame waits for an answer
        shown = lab.command("ip", "-n", net.router, "-o", "link", "show", "dev", "far0")
        (mac,) = re.findall(r"link/ether (\S+)", shown)
        switch.tell("tnl/neigh/set", "br-phy", "198.51.100.1", mac)
        yield Place(lab, net, switch)


@pytest.fixture
def peer(place: Place, request: pytest.FixtureRequest) -> Iterator[Peer]:
    chosen = PEERS[request.param]
    with live.ended(place.lab):
        try:
            place.switch.add_tunnel(chosen)
            yield chosen
        finally:
            place.switch.remove_tunnel()


ALL = pytest.mark.parametrize("peer", PEERS, indirect=True)


@ALL
def test_what_we_send_comes_out_of_its_port(place: Place, peer: Peer) -> None:
    lab, net = place.lab, place.net
    recorder, path = truth.capture(lab, f"to-{peer.encapsulation}", net.far, "inner")
    to = peer.tunnel.format(FAR4)
    sender = live.send(lab, net.host, "-i", MIRRORED, "--to", to)

    live.inject(net.source, "eth0", live.corpus())
    got = live.collected(path, len(live.corpus()))
    ledger = sender.end()
    recorder.stop()

    live.assert_same(as_frames(live.corpus()), got)
    live.assert_nothing_lost(ledger)


@ALL
def test_what_it_sends_comes_out_of_our_collector(place: Place, peer: Peer) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / f"from-{peer.encapsulation}.pcap"
    collector = live.listen(lab, net.host, "--pcap", str(pcap))

    live.inject(net.far, "inner", live.corpus())
    got = live.collected(pcap, len(live.corpus()))
    ledger = collector.end()

    live.assert_same(as_frames(live.corpus()), got)
    assert ledger["balanced"]
    (stream,) = ledger["streams"]
    assert stream["source"] == FAR4
    assert stream["encapsulation"] == peer.encapsulation
    assert stream["identifier"] == peer.identifier
    assert stream["packets"] == len(live.corpus())
    assert stream["lost"] == stream["reordered"] == stream["duplicate"] == 0
