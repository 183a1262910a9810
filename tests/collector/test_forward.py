"""Forwarding into tunnels: what goes out, which tunnel gets what, and every frame accounted for."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import forwarded
import numpy as np
import outer
import pytest
from forwarded import Recording, deliver, flow, flow6, vxlan
from hypothesis import given
from hypothesis import strategies as st

import lab
from collector.delivery import Delivery
from collector.sinks import forward as module
from collector.sinks.forward import ForwardSink, plan_forwarding
from collector.sinks.forwarding import Heard
from tunnelbridge.batch import OUTBOUND
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.wire.layer import Kind

NOTHING = Heard()
FAR = "192.0.2.77"
Make = Callable[..., tuple[ForwardSink, list[Recording]]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return what makes a sink, and the sockets that record what its tunnels send."""
    sinks = []

    def forward(*texts: str, by: str | None = None, mtu: int = 1500) -> tuple[ForwardSink, list]:
        sockets = []

        def opened(*_: object) -> Recording:
            sockets.append(Recording(mtu))
            return sockets[-1]

        monkeypatch.setattr(module, "open_socket", opened)
        (asked,) = plan_forwarding(texts, by)
        sinks.append(ForwardSink(asked, NOTHING))
        return sinks[-1], sockets

    yield forward
    for sink in sinks:
        sink.close()


def forwarded_in_vxlan(sock: Recording) -> list[bytes]:
    """Return what is behind 8 octets of UDP and 8 of VXLAN."""
    return [packet[16:] for packet in sock.packets]


def balanced(sink: ForwardSink, given: int) -> bool:
    to = sink.ledger.as_dict()["to"]
    return sink.ledger.total() == given and sink.ledger.delivered == sum(
        each["delivered"] for each in to
    )


# --- what goes out ---


def all_kinds() -> tuple[list[bytes], list[bytes]]:
    """Return datagrams of which some give bare IP or an untagged frame, and the frames in them."""
    tagged = outer.frame(outer.ipv4(outer.udp(b"tagged", 7, 8), 17, "10.0.0.1", "10.0.0.2"), 0x6005)
    untagged = tagged[:12] + tagged[16:]
    four, six = flow(1)[0], flow6(1)[0]
    datagrams = [
        vxlan(four),
        forwarded.gre(0x0800, four[14:]),
        forwarded.untagged_erspan2(untagged, 0x6005),
        forwarded.gre(0x86DD, six[14:]),
        forwarded.erspan3(six),
    ]
    synthetic = bytes.fromhex("020000000002 020000000001")
    return datagrams, [four, synthetic + four[12:], tagged, synthetic + six[12:], six]


@pytest.mark.parametrize("count", [0, 1, 5, 1024, 1025])
def test_any_tunnel_in_vxlan_out(make: Make, count: int) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}?vni=77")
    datagrams, frames = all_kinds()
    times = -(-count // len(frames))

    delivery = deliver((datagrams * times)[:count])
    sink.put(delivery)

    assert forwarded_in_vxlan(sock) == (frames * times)[:count]
    for packet in sock.packets:
        _, port, length, _ = struct.unpack(">HHHH", packet[:8])
        assert (port, length) == (4789, len(packet))
        assert packet[8:16] == bytes.fromhex("0800000000004d00")
    assert sink.ledger.delivered == count
    assert sink.ledger.octets == sum(map(len, (frames * times)[:count]))
    assert balanced(sink, count)


def test_entropy_is_that_of_the_flow_whatever_head_the_frame_has(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}")
    there, back = flow(7)
    sink.put(
        deliver(
            [
                vxlan(there),
                vxlan(back),
                forwarded.gre(0x0800, there[14:]),
                forwarded.gre(0x0800, back[14:]),
                forwarded.untagged_erspan2(there, 0x2003),
                vxlan(flow(8)[0]),
            ]
        )
    )

    ports = [int.from_bytes(packet[:2]) for packet in sock.packets]
    assert len(set(ports[:5])) == 1
    assert ports[5] != ports[0]
    assert all(port >= 49152 for port in ports)


def test_the_shortest_packets_have_their_ports_too(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}")
    packet = outer.ipv4(outer.udp(b"", 1000, 2000), 17, "10.0.0.1", "10.0.0.2")
    sink.put(deliver([vxlan(outer.frame(packet)), forwarded.gre(0x0800, packet)]))
    ports = [int.from_bytes(packet[:2]) for packet in sock.packets]
    assert ports[0] == ports[1]


def test_heads_that_nobody_has_any_more(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}")
    frame = flow(1)[0]
    delivery = deliver([forwarded.gre(0x0800, frame[14:]), vxlan(frame)])
    sink.put(delivery.select(np.array([1])))
    sink.put(delivery.select(np.array([], np.int64)))
    assert forwarded_in_vxlan(sock) == [frame]


def test_frames_near_the_end_of_memory_are_read_no_further(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}")
    bare = outer.ipv4(outer.udp(b"", 1, 2), 17, "10.0.0.1", "10.0.0.2")
    sink.put(deliver([forwarded.gre(0x0800, bare)]))
    assert forwarded_in_vxlan(sock)[0][14:] == bare


def test_what_the_outgoing_format_can_tell_goes_on(make: Make) -> None:
    whole, cut = flow(1)[0], flow(2)[0][:50]
    datagrams = [forwarded.erspan3(whole, egress=True), forwarded.erspan3(cut, cut=True)]
    out, (sock,) = make(f"erspan3://{FAR}?session=3")
    out.put(deliver(datagrams))
    _, first, _, _, flags = struct.unpack(">HHIHH", sock.packets[0][8:20])
    _, second, _, _, more = struct.unpack(">HHIHH", sock.packets[1][8:20])
    assert (first & 0x3FF, first >> 10 & 1, flags >> 3 & 1) == (3, 0, 1)
    assert (second & 0x3FF, second >> 10 & 1, more >> 3 & 1) == (3, 1, 0)
    assert [packet[20:] for packet in sock.packets] == [whole, cut]


def test_cut_by_an_unknown_number_of_octets_is_still_told(make: Make) -> None:
    unreadable = bytes(60)  # no IP header that would tell its length
    sink, (sock,) = make(f"erspan2://{FAR}")
    sink.put(deliver([forwarded.erspan3(unreadable, cut=each) for each in (False, True)]))
    told = [int.from_bytes(packet[10:12]) >> 10 & 1 for packet in sock.packets]
    assert told == [0, 1]


@pytest.mark.parametrize(("out", "place"), [("geneve", 24), ("tzsp", 14)])
def test_original_length_goes_on(make: Make, out: str, place: int) -> None:
    # GENEVE: 8 UDP, 8 header, 4 option, 4 sequence; TZSP: 8 UDP, 4 header, tag and length
    sink, (sock,) = make(f"{out}://{FAR}")
    frame = flow(3)[0]
    sink.put(deliver([forwarded.tzsp(frame, 1400), forwarded.tzsp(frame, len(frame))]))
    told = [int.from_bytes(packet[place : place + 2]) for packet in sock.packets]
    assert told == [1400, len(frame)]


def test_snap_length_cuts_and_says_so(make: Make) -> None:
    sink, (sock,) = make(f"tzsp://{FAR}?snaplen=40")
    frame = flow(3, 100)[0]
    sink.put(deliver([vxlan(frame)]))
    (packet,) = sock.packets
    assert packet[17:] == frame[:40]
    assert int.from_bytes(packet[14:16]) == len(frame)
    assert sink.ledger.as_dict()["to"][0]["truncated"] == 1


def test_bare_ip_tunnels_leave_out_what_is_not_ip(make: Make) -> None:
    sink, (sock,) = make(f"gre-ip://{FAR}")
    arp = outer.MACS + b"\x08\x06" + bytes(28)
    frame = flow(1)[0]
    sink.put(deliver([vxlan(arp), vxlan(frame)]))
    assert [packet[4:] for packet in sock.packets] == [frame[14:]]
    assert sink.ledger.dropped == {"not-ip": 1}
    assert balanced(sink, 2)


# --- which tunnel ---


def test_all_is_a_sink_for_each() -> None:
    plans = plan_forwarding([f"vxlan://{FAR}", f"gre://{FAR}"], "all")
    assert [len(plan.targets) for plan in plans] == [1, 1]
    assert [plan.name for plan in plans] == [f"forward vxlan://{FAR}", f"forward gre://{FAR}"]


def test_several_share_by_flow_unless_told_otherwise() -> None:
    texts = [f"vxlan://{FAR}", f"gre://{FAR}"]
    assert [plan.by for plan in plan_forwarding(texts)] == ["flow"]
    assert [plan.by for plan in plan_forwarding(texts[:1])] == ["all"]
    assert plan_forwarding([]) == []


def test_by_flow_both_directions_meet_and_nothing_is_lost(make: Make) -> None:
    sink, sockets = make(*(f"vxlan://{FAR}?vni={vni}" for vni in (1, 2, 3)))
    flows = [pair for number in range(100) for pair in (flow(number), flow6(number))]
    sent = [frame for pair in flows for frame in pair]
    order = np.random.default_rng(1).permutation(len(sent)).tolist()
    for part in np.array_split(order, 5):
        sink.put(deliver([vxlan(sent[each]) for each in part.tolist()]))

    at = [set(forwarded_in_vxlan(sock)) for sock in sockets]
    assert Counter(frame for sock in sockets for frame in forwarded_in_vxlan(sock)) == Counter(sent)
    for there, back in flows:
        (number,) = [each for each, frames in enumerate(at) if there in frames]
        assert back in at[number]
    assert all(len(frames) > len(sent) // 6 for frames in at)
    assert balanced(sink, len(sent))


def test_by_flow_fragments_follow_their_first(make: Make) -> None:
    sink, sockets = make(*(f"vxlan://{FAR}?vni={vni}" for vni in range(1, 9)))
    sent = []
    for number in range(40):
        datagram = outer.udp(bytes(64), 3000 + number, 53)
        whole = outer.ipv4(datagram, 17, "10.0.0.1", "10.0.0.2", number)
        sent.append([outer.frame(each) for each in outer.fragments(whole, 32, number)])
    for batch in zip(*sent, strict=True):
        sink.put(deliver([vxlan(frame) for frame in batch]))

    at = [set(forwarded_in_vxlan(sock)) for sock in sockets]
    assert len([frames for frames in at if frames]) > 4
    for first, later in sent:
        assert [first in frames for frames in at] == [later in frames for frames in at]


def test_round_robin_takes_turns_across_batches(make: Make) -> None:
    sink, sockets = make(*(f"vxlan://{FAR}?vni={vni}" for vni in (1, 2, 3)), by="round-robin")
    frames = [flow(number)[0] for number in range(7)]
    for size in (1, 0, 2, 4):
        sink.put(deliver([vxlan(frames.pop(0)) for _ in range(size)]))
    assert [len(sock.packets) for sock in sockets] == [3, 2, 2]
    assert balanced(sink, 7)


# --- options and counters ---


def test_the_filter_is_the_sinks_and_counted(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}?vni=9&filter=udp and port 53&queue=5MB")
    tcp, udp = flow(1)[0], flow6(1)[0]
    sink.put(deliver([vxlan(tcp), vxlan(udp), forwarded.gre(0x86DD, udp[14:])]))
    assert len(sock.packets) == 2
    assert (sink.ledger.filtered, sink.ledger.delivered) == (1, 2)
    assert balanced(sink, 3)
    assert sock.octets == 5_000_000
    assert sink.ledger.name == f"forward vxlan://{FAR}?vni=9"


causes = st.sampled_from(["", "", "queue-full", "no-route", "no-buffers", "einval"])


@given(batches=st.lists(st.lists(causes, max_size=9), max_size=4))
def test_what_the_socket_refuses_is_dropped_by_cause(batches: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sock = Recording()
        patch.setattr(module, "open_socket", lambda *_: sock)
        sink = ForwardSink(plan_forwarding([f"vxlan://{FAR}"])[0], NOTHING)
        for batch in batches:
            fates = iter(batch)
            sock.fate = lambda _, fates=fates: next(fates)
            sink.put(deliver([vxlan(flow(number)[0]) for number in range(len(batch))]))
        sink.close()
    counted = Counter(cause for batch in batches for cause in batch)
    assert sink.ledger.delivered == counted.pop("", 0)
    assert sink.ledger.dropped == counted
    assert sink.ledger.total() == sum(map(len, batches))


def test_what_is_too_long_is_dropped_where_the_policy_says_so(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}?mtu=drop")
    short, full = flow(1)[0], flow(2, 1460)[0]
    sink.put(deliver([vxlan(short), vxlan(full)]))
    assert forwarded_in_vxlan(sock) == [short]
    assert sink.ledger.dropped == {"mtu": 1}
    assert balanced(sink, 2)


def test_a_lost_source_address_gets_a_new_socket(make: Make) -> None:
    sink, sockets = make(f"vxlan://{FAR}?queue=1MB")
    sockets[0].fate = lambda _: "einval"
    sink.put(deliver([vxlan(flow(1)[0])]))
    sink.tick(0)
    sink.put(deliver([vxlan(flow(1)[0])]))
    assert [sock.is_closed for sock in sockets] == [True, False]
    assert [sock.octets for sock in sockets] == [1_000_000] * 2
    assert (sink.ledger.delivered, sink.ledger.dropped) == (1, {"einval": 1})


def test_what_was_opened_is_closed_when_the_next_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Recording()
    sockets = iter([first])

    def opened(*_: object) -> Recording:
        try:
            return next(sockets)
        except StopIteration:
            raise UserError("no route") from None

    monkeypatch.setattr(module, "open_socket", opened)
    (asked,) = plan_forwarding([f"vxlan://{FAR}", f"gre://{FAR}"])
    with pytest.raises(UserError, match="no route"):
        ForwardSink(asked, NOTHING)
    assert first.is_closed


def test_sinks_share_a_delivery_and_change_nothing(make: Make) -> None:
    datagrams, frames = all_kinds()
    delivery = deliver(datagrams)
    delivery.frames.memory.flags.writeable = False
    delivery.frames.head.flags.writeable = False
    for text in ("gre-ip://", "vxlan://", "erspan2://", "gre://"):
        sink, _ = make(f"{text}{FAR}?snaplen=30")
        sink.put(delivery)
    assert forwarded.frames_of(delivery) == frames


# --- mistakes ---


@pytest.mark.parametrize(
    ("texts", "by", "told"),
    [
        (["192.0.2.1"], None, "expected ENCAP://"),
        (["wire://192.0.2.1"], None, "unknown encapsulation wire"),
        (["vxlan://192.0.2.1?vni=x"], None, "vni=x"),
        (["vxlan://192.0.2.1?key=1"], None, "no option key"),
        (["vxlan://192.0.2.1?snaplen=13"], None, "snaplen=14 at least"),
        (["vxlan://192.0.2.1?queue=many"], None, "size many"),
        (["vxlan://192.0.2.1", "vxlan://192.0.2.1?vni=1"], None, "another identifier"),
        (["vxlan://192.0.2.1", "vxlan://192.0.2.1"], "all", "another identifier"),
        (["vxlan://192.0.2.1?filter=tcp", "vxlan://192.0.2.2"], None, "share the frames"),
        (["vxlan://192.0.2.1"], "random", "expected all, flow, round-robin"),
        ([], "flow", "add --forward"),
        (["vxlan://0.0.0.0"], None, "nobody's address"),
    ],
)
def test_mistakes_are_told(texts: list[str], by: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        plan_forwarding(texts, by)
    assert "\n" not in str(raised.value)


def test_a_wrong_filter_is_told() -> None:
    (asked,) = plan_forwarding([f"vxlan://{FAR}?filter=tcp port"])
    with pytest.raises(UsageError, match="tcp port"):
        ForwardSink(asked, NOTHING)


def test_options_of_the_tunnel_may_come_first() -> None:
    (asked,) = plan_forwarding([f"juniper://{FAR}?source_vn=a&filter=tcp"])
    assert (asked.options.expression, asked.targets[0].spec.source_vn) == ("tcp", "a")


def test_options_of_tunnel_and_sink_stand_in_any_order() -> None:
    text = "juniper://[2001:db8::7]:99?snaplen=64&filter=host 1.2.3.4 && tcp&source_vn=a%26b&ttl=9"
    (asked,) = plan_forwarding([text])
    (target,) = asked.targets
    assert (asked.options.snaplen, asked.options.expression) == (64, "host 1.2.3.4 && tcp")
    assert (target.spec.ttl, target.spec.source_vn, target.spec.port) == (9, "a&b", 99)
    assert target.remote == "2001:db8::7"


# --- never a loop ---

ALL = Heard(frozenset({4789, 6081}), frozenset({47}))


@pytest.fixture(scope="module")
def ns(root: None) -> Iterator[str]:
    with lab.namespace(ipv6=True) as name, lab.veth(name, name, "192.0.2.2/24") as (end, _):
        lab.run("ip", "-n", name, "address", "add", "2001:db8::2/64", "dev", end, "nodad")
        yield name


@pytest.mark.parametrize(
    ("text", "heard", "is_loop"),
    [
        ("vxlan://192.0.2.2", ALL, True),
        ("vxlan://192.0.2.2:6081", ALL, True),  # whatever listens there
        ("vxlan://192.0.2.2:5000", ALL, False),
        ("vxlan://127.3.2.1", ALL, True),
        ("vxlan://[2001:db8::2]", ALL, True),
        ("vxlan://[::1]", ALL, True),
        ("gre://192.0.2.2?key=5", ALL, True),
        ("erspan3://192.0.2.2", ALL, True),
        ("gre://192.0.2.2", replace(ALL, protocols=frozenset()), False),
        ("vxlan://192.0.2.3", ALL, False),
        ("vxlan://[2001:db8::3]", ALL, False),
        ("vxlan://192.0.2.2", replace(ALL, addresses=("127.0.0.1",)), False),
        ("vxlan://192.0.2.2", replace(ALL, addresses=("127.0.0.1", "192.0.2.2")), True),
        ("vxlan://192.0.2.2", replace(ALL, addresses=("0.0.0.0",)), True),
        ("vxlan://[2001:db8::2]", replace(ALL, addresses=("0.0.0.0",)), False),
    ],
)
def test_a_tunnel_that_leads_back_is_refused(
    ns: str, text: str, heard: Heard, is_loop: bool
) -> None:
    (asked,) = plan_forwarding([text])
    if is_loop:
        with pytest.raises(UsageError, match="leads back to this collector"):
            lab.in_namespace(ns, ForwardSink, asked, heard)
    else:
        lab.in_namespace(ns, ForwardSink, asked, heard).close()


def test_what_is_sent_carries_the_mark(ns: str) -> None:
    sink = lab.in_namespace(ns, ForwardSink, plan_forwarding(["vxlan://192.0.2.3"])[0], ALL)
    assert all(tunnel.is_marked for tunnel in sink._far_ends)
    assert all(tunnel.policy is MtuPolicy.FRAGMENT for tunnel in sink._far_ends)
    sink.close()


# --- congestion ---


def test_a_congested_tunnel_drops_and_nobody_waits(root: None) -> None:
    with (
        lab.namespace() as a,
        lab.namespace() as b,
        lab.veth(a, b, "10.99.0.1/24", "10.99.0.2/24") as (end, _),
    ):
        lab.run("ping", "-c1", "-W2", "10.99.0.2", ns=a)  # the neighbour is known
        slow = ("rate", "80kbit", "burst", "1600", "limit", "100m")
        lab.run("tc", "qdisc", "add", "dev", end, "root", "tbf", *slow, ns=a)
        (asked,) = plan_forwarding(["vxlan://10.99.0.2?queue=100k"])
        sink = lab.in_namespace(a, ForwardSink, asked, ALL)
        delivery = deliver([vxlan(flow(number, 1000)[0]) for number in range(1000)])

        began = time.monotonic()
        for _ in range(20):
            sink.put(delivery)
        took = time.monotonic() - began

        assert sink.ledger.total() == 20_000
        assert 0 < sink.ledger.delivered < 1000
        assert set(sink.ledger.dropped) == {"queue-full"}
        assert took < 1.5, "20 batches would wait 2 s with the sender's patience"

        lab.run("tc", "qdisc", "delete", "dev", end, "root", ns=a)  # what waited is gone with it
        lone = deliver([vxlan(flow(1)[0])])
        before = sink.ledger.delivered
        lab.until(lambda: delivers(sink, lone) > before, what="room in the queue again")
        sink.close()


def delivers(sink: ForwardSink, delivery: Delivery) -> int:
    sink.put(delivery)
    return sink.ledger.delivered


def test_direction_is_the_delivered_one(make: Make) -> None:
    sink, (sock,) = make(f"erspan3://{FAR}")
    sink.put(deliver([vxlan(flow(1)[0])], direction=OUTBOUND))
    assert int.from_bytes(sock.packets[0][18:20]) >> 3 & 1 == 1


def test_plain_udp_sockets_deliver_the_same(make: Make) -> None:
    sink, (sock,) = make(f"vxlan://{FAR}")
    frame = flow(1)[0]
    sink.put(deliver([vxlan(frame)[28:]], first=Kind.VXLAN, port=4789))
    assert forwarded_in_vxlan(sock) == [frame]
