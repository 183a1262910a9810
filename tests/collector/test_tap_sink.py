"""The tap sink: frames appear on an interface, here or in a namespace."""

from __future__ import annotations

import socket
from collections import Counter

import outer
import pytest
from delivered import delivery

import lab
from collector.sinks.options import SinkOptions
from collector.sinks.tap import TapSink
from tunnelbridge.batch import from_packets
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.slab import SlabPool

pytestmark = pytest.mark.usefixtures("root")

FRAMES = [outer.frame(outer.ipv4(bytes([n]) * 40, 17, "10.0.0.1", "10.0.0.2")) for n in range(3)]


def test_frames_appear_in_the_namespace() -> None:
    pool = SlabPool(1, 1)
    slab = pool.take()
    assert slab is not None
    name = lab.unique("tap")
    with lab.namespace() as ns:
        sink = TapSink(SinkOptions(f"{ns}:{name}"))
        assert sink.ledger.name == f"tap {ns}:{name}"
        assert name not in [known for _, known in socket.if_nameindex()]
        with lab.in_namespace(ns, socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as ids:
            lab.in_namespace(ns, ids.bind, (name, 3))
            ids.settimeout(5)
            sink.put(delivery(from_packets([FRAMES[0], b"short", *FRAMES[1:]]), slab))
            sink.put(delivery(from_packets([]), slab))
            assert [ids.recv(2000) for _ in FRAMES] == FRAMES
        assert sink.ledger.delivered == 3
        assert sink.ledger.octets == sum(map(len, FRAMES))
        assert sink.ledger.dropped == Counter(short=1)
        sink.close()
        assert name not in lab.run("ip", "-n", ns, "-o", "link")
    slab.release()
    assert pool.free == 1  # a tap keeps nothing


def test_here() -> None:
    with lab.namespace() as ns:
        name = lab.unique("tap")
        sink = lab.in_namespace(ns, TapSink, SinkOptions(name))
        assert sink.ledger.name == f"tap {name}"
        assert name in lab.run("ip", "-n", ns, "-o", "link")
        with pytest.raises(UserError, match=f"tap {name} is in use by another program"):
            TapSink(SinkOptions(f"{ns}:{name}"))
        sink.close()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nosuchnamespace:tap0", UserError, "^no network namespace named nosuchnamespace"),
        (":tap0", UserError, "^no network namespace named "),
        ("a-name-that-is-too-long", UsageError, "cannot name a tap"),
        ("", UsageError, "cannot name a tap"),
    ],
)
def test_mistakes(name: str, error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message):
        TapSink(SinkOptions(name))
