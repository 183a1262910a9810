"""The kernel's vxlan device as the peer, both ways, over IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import live
import pytest
from live import FAR4, FAR6, HOST4, HOST6, MIRRORED, Lab, Net, as_frames, remote, truth, wait_until

pytestmark = pytest.mark.usefixtures("root")

VNI = 4242
OUTER = pytest.mark.parametrize(
    ("local", "far"), [(HOST4, FAR4), (HOST6, FAR6)], ids=["ipv4", "ipv6"]
)


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        yield Place(lab, net)


@pytest.fixture
def device(place: Place, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name a vxlan device that the test makes; it is deleted afterwards."""
    name = "vx0"
    yield name
    for namespace in (place.net.host, place.net.far):
        place.lab.command("ip", "-n", namespace, "link", "delete", name, check=False)


def make_vxlan(place: Place, namespace: str, name: str, local: str, *more: str) -> None:
    """Make a vxlan device that learns nothing and says nothing."""
    place.lab.setting(namespace, "net/ipv6/conf/default/disable_ipv6", "1")
    place.lab.command(
        "ip", "-n", namespace, "link", "add", name, "mtu", "1500", "type", "vxlan", "id", str(VNI),
        "dstport", "4789", "local", local, "nolearning", *more,
    )  # fmt: skip
    place.lab.setting(namespace, "net/ipv6/conf/default/disable_ipv6", "0")
    place.lab.command("ip", "-n", namespace, "link", "set", name, "up")


@OUTER
def test_what_we_send_comes_out_of_the_kernels_device(
    place: Place, device: str, local: str, far: str
) -> None:
    lab, net = place.lab, place.net
    make_vxlan(place, net.far, device, far)
    recorder, out = truth.capture(lab, f"vxlan-{far.count(':')}", net.far, device)
    sender = live.send(lab, net.host, "-i", MIRRORED, "--to", f"vxlan://{remote(far)}?vni={VNI}")

    live.inject(net.source, "eth0", live.corpus())
    got = live.collected(out, len(live.corpus()))
    ledger = sender.end()
    recorder.stop()

    live.assert_same(as_frames(live.corpus()), got)
    live.assert_nothing_lost(ledger)
    assert ledger["cloned"] == len(live.corpus())


@OUTER
def test_the_device_takes_its_own_network_only(
    place: Place, device: str, local: str, far: str
) -> None:
    lab, net = place.lab, place.net
    make_vxlan(place, net.far, device, far)
    recorder, out = truth.capture(lab, f"vni-{far.count(':')}", net.far, device)
    first, second = live.corpus()[:2]
    to = f"vxlan://{remote(far)}?vni="
    for vni, frame in ((VNI + 1, first), (VNI, second)):
        capture = live.write_pcap(lab.folder / "one.pcap", [frame])
        live.send(lab, net.host, "-r", str(capture), "--to", f"{to}{vni}").wait()

    got = live.collected(out, 1)
    recorder.stop()
    live.assert_same(as_frames([second]), got)


@OUTER
def test_what_the_kernel_mirrors_comes_out_of_our_collector(
    place: Place, device: str, local: str, far: str
) -> None:
    lab, net = place.lab, place.net
    if ":" in far:  # the device has outer IPv4 fragmented, but drops what is too long for IPv6
        for namespace, interface in live.path(net):
            lab.command("ip", "-n", namespace, "link", "set", interface, "mtu", "1600")
    make_vxlan(place, net.host, device, local)
    lab.command(
        "bridge", "-n", net.host, "fdb", "append", "00:00:00:00:00:00", "dev", device, "dst", far
    )
    pcap = lab.folder / f"from-kernel-{far.count(':')}.pcap"
    collector = live.listen(lab, net.far, "--vxlan", "4789", "--pcap", str(pcap))
    mirror = ("tc", "-n", net.host)
    lab.command(*mirror, "qdisc", "add", "dev", MIRRORED, "clsact")
    try:
        lab.command(
            *mirror, "filter", "add", "dev", MIRRORED, "ingress", "protocol", "all", "u32",
            "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", device,
        )  # fmt: skip
        live.inject(net.source, "eth0", live.corpus())
        got = live.collected(pcap, len(live.corpus()))
    finally:
        lab.command(*mirror, "qdisc", "delete", "dev", MIRRORED, "clsact")
        for namespace, interface in live.path(net):
            lab.command("ip", "-n", namespace, "link", "set", interface, "mtu", "1500")
    ledger = collector.end()

    live.assert_same(as_frames(live.corpus()), got)
    assert ledger["balanced"]
    assert ledger["rejected"] == {}
    (stream,) = ledger["streams"]
    assert (stream["source"], stream["encapsulation"], stream["identifier"]) == (
        local,
        "vxlan",
        VNI,
    )
    assert stream["packets"] == len(live.corpus())


def test_both_directions_at_once_through_one_port(place: Place, device: str) -> None:
    """A kernel device and our collector cannot share a port: the collector says whose it is."""
    lab, net = place.lab, place.net
    make_vxlan(place, net.far, device, FAR4)
    collector = live.listen(lab, net.far)

    told = wait_until(
        lambda: [line for line in collector.log if line["event"] == "not listening"], 3, "a remark"
    )
    assert "4789" in told[0]["reason"]
    assert "in use" in told[0]["reason"]
    collector.end()
