"""The joint ledger: sums by hand, and of a real sender and collector over a link that loses packets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

import lab
from collector import cli
from collector.ledger import CollectorLedger, SinkLedger, StreamLedger
from collector.reconcile import Hop, Joint, load, reconcile
from tunnelbridge.errors import UserError
from tunnelbridge.ledger import SenderLedger, TunnelLedger

Run = Callable[..., tuple[int, str, str]]


def sender(*tunnels: TunnelLedger, **counts: Any) -> dict[str, Any]:
    return SenderLedger(tunnels=list(tunnels), **counts).as_dict()


def tunnel(
    kind: str, sent: int, identifier: int | None = 7, sequence: int | None = None, **more: Any
) -> TunnelLedger:
    outer = {"encapsulation": kind, "identifier": identifier, "remote": more.pop("remote", "192.0.2.9"),
             "local": more.pop("local", None), "sequence": sequence}  # fmt: skip
    return TunnelLedger("t", clones=more.pop("clones", sent), sent=sent, outer=outer, **more)


def collector(*streams: StreamLedger, **counts: Any) -> dict[str, Any]:
    packets = sum(each.packets for each in streams)
    refused = counts.pop("refused", ())
    ledger = CollectorLedger(received=packets, decapsulated=packets, **counts)
    return ledger.as_dict("collector listen", streams, refused)


def stream(kind: str, packets: int, **more: Any) -> StreamLedger:
    source = more.pop("source", "192.0.2.1")
    return StreamLedger(source, kind, more.pop("identifier", 7), packets=packets, **more)


def hop(joint: Joint, part: str) -> Hop:
    (found,) = [each for each in joint.hops if part in each.name]
    return found


def test_all_arrived() -> None:
    joint = reconcile(sender(tunnel("vxlan", 9)), collector(stream("vxlan", 9)))
    assert joint.is_explained
    assert (hop(joint, "network").came, hop(joint, "network").went) == (9, 9)
    assert joint.remarks == []


def test_numbers_tell_of_every_loss() -> None:
    """Ten numbers taken: 0 before the collector, 3 and 5 lost, 8 and 9 after it."""
    arrived = stream("erspan2", 5, lost=2, sequence_first=1, sequence_next=8)
    joint = reconcile(sender(tunnel("erspan2", 10, sequence=10)), collector(arrived))
    assert joint.is_explained
    assert hop(joint, "network").causes == {"lost": 2, "before the first": 1, "after the last": 2}


def test_clones_not_sent_are_not_lost_twice() -> None:
    """A number whose clone was dropped by the sender is a gap at the collector."""
    sent = tunnel("erspan2", 7, sequence=10, clones=10, queue_dropped=3)
    arrived = stream("erspan2", 6, lost=3, sequence_first=0, sequence_next=9)
    joint = reconcile(sender(sent), collector(arrived))
    assert joint.is_explained
    assert hop(joint, "network").causes == {"lost": 0, "before the first": 0, "after the last": 1}
    assert hop(joint, "7, sender").causes == {"queue dropped": 3}


def test_numbers_that_do_not_add_up_are_told() -> None:
    arrived = stream("erspan2", 5, lost=2, sequence_first=0, sequence_next=8)  # 5 + 2 is not 8
    joint = reconcile(sender(tunnel("erspan2", 8, sequence=8)), collector(arrived))
    assert not joint.is_explained
    assert hop(joint, "network").unexplained == 1


def test_duplicates_and_wrapped_numbers() -> None:
    arrived = stream("gre", 12, duplicate=2, sequence_first=0, sequence_next=10)
    wrapped = (1 << 32) + 10
    assert reconcile(sender(tunnel("gre", 10, sequence=wrapped)), collector(arrived)).is_explained


@pytest.mark.parametrize(
    ("dropped", "failed", "explained"), [(3, 0, True), (1, 2, True), (2, 0, False)]
)
def test_without_numbers_the_sockets_may_explain(
    dropped: int, failed: int, explained: bool
) -> None:
    beside = collector(stream("vxlan", 7), socket_dropped=dropped, reassembly_failed=failed)
    joint = reconcile(sender(tunnel("vxlan", 10)), beside)
    assert joint.is_explained is explained
    assert hop(joint, "network").unexplained == (0 if explained else 1)


def test_more_than_was_sent_is_not_explained() -> None:
    joint = reconcile(sender(tunnel("vxlan", 10)), collector(stream("vxlan", 11), socket_dropped=5))
    assert hop(joint, "network").unexplained == -1


def test_nothing_arrived_because_it_was_refused() -> None:
    from collector.ledger import RefusedSender

    refused = RefusedSender("192.0.2.1", "vxlan", "not-allowed", 10)
    other = RefusedSender("192.0.2.1", "geneve", "not-allowed", 10)
    sent = sender(tunnel("vxlan", 10, local="192.0.2.1"))
    for entry, explained in ((refused, True), (other, False)):
        assert reconcile(sent, collector(refused=[entry])).is_explained is explained
    assert not reconcile(sent, collector()).is_explained


def test_streams_are_matched_by_all_that_is_known() -> None:
    tunnels = [
        tunnel("vxlan", 1, 7), tunnel("vxlan", 2, 8), tunnel("geneve", 4, 7),
        tunnel("gre", 8, None, local="192.0.2.1"), tunnel("gre", 16, None, local="192.0.2.2"),
    ]  # fmt: skip
    streams = [
        stream("gre", 16, identifier=None, source="192.0.2.2"), stream("geneve", 4),
        stream("gre", 8, identifier=None), stream("vxlan", 2, identifier=8), stream("vxlan", 1),
        stream("tzsp", 32, identifier=None),
    ]  # fmt: skip
    joint = reconcile(sender(*tunnels), collector(*streams))
    assert joint.is_explained
    assert joint.remarks == ["tzsp from 192.0.2.1 is not of this sender"]


def test_tunnels_that_are_one_stream_are_added_up() -> None:
    tunnels = [tunnel("erspan2", 4, sequence=9), tunnel("erspan2", 6, sequence=10)]
    arrived = stream("erspan2", 10, sequence_first=0, sequence_next=10)
    assert reconcile(sender(*tunnels), collector(arrived)).is_explained


def test_choosing_by_address() -> None:
    tunnels = [tunnel("vxlan", 4), tunnel("vxlan", 6, remote="192.0.2.10")]
    streams = [stream("vxlan", 4), stream("vxlan", 5, source="192.0.2.77")]
    one, other = sender(*tunnels), collector(*streams)
    assert "several sources" in " ".join(reconcile(one, other).remarks)
    assert not reconcile(one, other).is_explained
    assert reconcile(one, other, "192.0.2.1", "192.0.2.9").is_explained
    assert reconcile(one, other, remote="203.0.113.1").remarks[0] == (
        "the sender has no tunnel to 203.0.113.1"
    )


def test_sums_within_a_program_are_checked_too() -> None:
    wrong = sender(tunnel("vxlan", 9, clones=10), received=5, cloned=3, not_matched=1)
    joint = reconcile(wrong, collector(stream("vxlan", 9), sinks=[SinkLedger("x", 8, queued=2)]))
    assert [each.unexplained for each in joint.hops] == [1, 1, 0, 0, -1]


def test_all_that_happens_to_frames_before_and_in_sinks() -> None:
    sink = SinkLedger("x", delivered=1, queued=2, filtered=3)
    sink.dropped["queue-full"] = 4
    joint = reconcile(
        sender(tunnel("vxlan", 21)),
        collector(stream("vxlan", 21), sinks=[sink], deduplicated=5, waiting=6),
    )
    assert joint.is_explained
    assert hop(joint, "sink x").causes == {
        "filtered": 3, "queued": 2, "deduplicated": 5, "waiting": 6, "dropped queue-full": 4,
    }  # fmt: skip


# --- the command ---


@pytest.fixture
def command(runner_of: Callable[..., Run]) -> Run:
    return runner_of(cli.main, "collector")


def files(folder: Path, *ledgers: dict[str, Any]) -> list[str]:
    paths = [folder / f"{number}.json" for number in range(len(ledgers))]
    for path, ledger in zip(paths, ledgers, strict=True):
        path.write_text(json.dumps(ledger))
    return [str(path) for path in paths]


def test_the_table_and_exit_codes(command: Run, tmp_path: Path) -> None:
    sent = sender(tunnel("vxlan", 9))
    code, out, err = command("reconcile", *files(tmp_path, sent, collector(stream("vxlan", 9))))
    assert (code, err) == (0, "")
    assert "every packet is accounted for" in out
    code, out, err = command("reconcile", *files(tmp_path, sent, collector(stream("vxlan", 8))))
    assert code == 1
    assert err == "collector: some packets are not accounted for: see the last column\n"
    (line,) = [line for line in out.splitlines() if "network" in line]
    assert line.split()[-1] == "1"
    assert max(map(len, out.splitlines())) <= 80


def test_json(command: Run, tmp_path: Path) -> None:
    paths = files(tmp_path, sender(tunnel("vxlan", 9)), collector(stream("vxlan", 8)))
    code, out, _ = command("reconcile", *paths, "--json")
    found = json.loads(out)
    assert (code, found["explained"]) == (1, False)
    assert [each["unexplained"] for each in found["hops"]] == [0, 0, 1, 0]


def test_what_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not JSON")
    (tmp_path / "list").write_text("[]")
    swapped = files(tmp_path, collector(), sender())
    for name in ("text", "list", "0.json"):
        with pytest.raises(UserError, match="is no ledger of tunnelbridge send"):
            load(tmp_path / name, "sender")
    with pytest.raises(UserError, match="is no ledger of collector listen"):
        load(Path(swapped[1]), "collector")
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        load(tmp_path / "none", "sender")


def test_a_ledger_that_does_not_say_what_its_tunnels_are() -> None:
    with pytest.raises(UserError, match="does not say what tunnel old is"):
        reconcile(sender(TunnelLedger("old")), collector())


# --- live ---

SENT = 3000


@pytest.fixture(scope="module")
def link(root: None) -> Iterator[tuple[str, str]]:
    """Two namespaces with a link, the second of which drops what nft says."""
    lab.need("nft")
    with ExitStack() as stack:
        a, b = stack.enter_context(lab.namespace()), stack.enter_context(lab.namespace())
        stack.enter_context(lab.veth(a, b, "192.0.2.1/24", "192.0.2.2/24", mtu=9000))
        lab.run("nft", "add table ip loss", ns=b)
        lab.run("nft", "add chain ip loss way { type filter hook prerouting priority -300; }", ns=b)
        yield a, b


@pytest.mark.parametrize("to", ["gre://192.0.2.2?key=5&seq=true", "erspan2://192.0.2.2?session=9"])
@pytest.mark.parametrize("nth", [0, 2, 7])
def test_a_lossy_link_balances_to_the_packet(
    link: tuple[str, str], tmp_path: Path, to: str, nth: int
) -> None:
    """What the kernel counts as dropped on the way is what the joint ledger says."""
    a, b = link
    capture = tmp_path / "in.pcap"
    wrpcap(str(capture), [
        Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
        / IP(src="10.0.0.1", dst="10.0.0.2", id=number) / UDP(sport=number, dport=9)
        for number in range(SENT)
    ])  # fmt: skip
    lab.run("nft", "flush chain ip loss way", ns=b)
    if nth:
        rule = f"add rule ip loss way ip protocol gre numgen inc mod {nth} == 1 counter drop"
        lab.run("nft", rule, ns=b)
    control = tmp_path / "c.sock"
    program = [sys.executable, "-m", "collector.cli", "listen", "--gre", "--control", str(control)]
    listening = subprocess.Popen(
        ["ip", "netns", "exec", b, *program], stderr=subprocess.DEVNULL, text=True
    )
    try:
        lab.until(control.exists, 15, "the collector's control socket")
        stats = tmp_path / "sent.json"
        lab.run(sys.executable, "-m", "tunnelbridge.cli", "send", "-r", str(capture), "--to", to,
                "--speed", "8000", "--stats", str(stats), ns=a)  # fmt: skip
        ledger = load(stats, "sender")
        dropped = _dropped(b)

        def settled() -> dict[str, Any] | None:
            found = load(control, "collector")
            came = sum(each["packets"] for each in found["streams"])
            return found if came >= SENT - dropped else None

        found = lab.until(settled, 10, "all that was not dropped")
    finally:
        listening.send_signal(signal.SIGINT)
        listening.wait(10)
    joint = reconcile(ledger, found)
    assert joint.is_explained, joint.as_dict()
    way = hop(joint, "network")
    assert (way.came, way.went) == (SENT, SENT - dropped)
    assert way.is_exact
    assert sum(way.causes.values()) == dropped
    assert dropped == (len(range(1, SENT, nth)) if nth else 0)


def _dropped(ns: str) -> int:
    rules = json.loads(lab.run("nft", "-j", "list", "chain", "ip", "loss", "way", ns=ns))
    counters = [
        part["counter"]["packets"]
        for each in rules["nftables"]
        for part in each.get("rule", {}).get("expr", ())
        if "counter" in part
    ]
    return sum(counters)
