"""The tap: what an AF_PACKET reader in the namespace hears, and that the tap itself is silent."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import uvloop

import lab
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import tap as tap_module
from tunnelbridge.linux.tap import Tap, TapResult, open_tap

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def ns(root: None) -> Iterator[str]:
    with lab.namespace(ipv6=True) as name:  # so that there is something to silence
        yield name


@pytest.fixture
def tap(ns: str) -> Iterator[Tap]:
    with closing(open_tap("mirror0", ns)) as opened:
        yield opened


@pytest.fixture
def reader(ns: str, tap: Tap) -> Iterator[socket.socket]:
    with lab.in_namespace(ns, _listen, tap.name) as sock:
        yield sock


def _listen(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind((interface, 3))
    sock.settimeout(5)
    return sock


def frames(*sizes: int) -> list[bytes]:
    """Frames of an unassigned type from one unicast address to another."""
    header = bytes.fromhex("02000000000b 02000000000a 88b5")
    return [(header + os.urandom(max(size - 14, 0)))[:size] for size in sizes]


def test_frames_of_every_size_come_out_as_they_went_in(tap: Tap, reader: socket.socket) -> None:
    sent = frames(14, 15, 59, 60, 1514, 1518, 9014, 65521, 65534, 65535, 65536, 65549)
    assert tap.write(from_packets(sent)) == TapResult(len(sent), sum(map(len, sent)), {})
    assert [reader.recv(1 << 17) for _ in sent] == sent


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_batches_of_every_size(tap: Tap, reader: socket.socket, count: int) -> None:
    sent = frames(*range(60, 60 + count))
    assert tap.write(from_packets(sent)) == TapResult(count, sum(map(len, sent)), {})
    assert [reader.recv(2000) for _ in sent] == sent


def with_heads(heads: list[bytes], bodies: list[bytes]) -> Batch:
    batch, front = from_packets(bodies), from_packets(heads)
    batch.head, batch.head_start, batch.head_length = front.memory, front.start, front.length
    return batch


def test_heads_go_in_front(tap: Tap, reader: socket.socket) -> None:
    whole = frames(60, 61, 62, 63)
    cuts = [14, 0, 62, 20]  # a head, none, nothing but a head
    heads = [frame[:cut] for frame, cut in zip(whole, cuts, strict=True)]
    bodies = [frame[cut:] for frame, cut in zip(whole, cuts, strict=True)]
    assert tap.write(with_heads(heads, bodies)) == TapResult(4, sum(map(len, whole)), {})
    assert [reader.recv(2000) for _ in whole] == whole


def test_a_read_only_memory_will_do(tap: Tap, reader: socket.socket) -> None:
    batch = from_packets(frames(100))
    batch.memory.flags.writeable = False
    assert tap.write(batch).delivered == 1
    assert reader.recv(2000) == batch.octets(0)


def test_too_short_and_too_long_are_counted_and_the_rest_arrives(
    tap: Tap, reader: socket.socket
) -> None:
    sent = frames(60, 13, 65550, 0, 14, 70_000, 61)
    good = [sent[0], sent[4], sent[6]]
    expected = TapResult(3, 60 + 14 + 61, {"short": 2, "too-long": 2})
    assert tap.write(from_packets(sent)) == expected
    assert tap.write(with_heads([b""] * 7, sent)) == expected
    assert [reader.recv(2000) for _ in range(6)] == good * 2


def test_short_is_judged_with_the_head(tap: Tap, reader: socket.socket) -> None:
    frame = frames(14)[0]
    assert tap.write(with_heads([frame[:10]], [frame[10:]])).delivered == 1
    assert reader.recv(2000) == frame


def test_down_is_counted_and_up_works_again(ns: str, tap: Tap, reader: socket.socket) -> None:
    sent = frames(60, 61, 5)
    lab.run("ip", "-n", ns, "link", "set", tap.name, "down")
    down = TapResult(0, 0, {"short": 1, "tap-down": 2})
    assert tap.write(from_packets(sent)) == down
    assert tap.write(with_heads([b"", b"", b""], sent)) == down
    lab.run("ip", "-n", ns, "link", "set", tap.name, "up")
    assert tap.write(from_packets(sent[:2])) == TapResult(2, 121, {})


def test_full_and_unknown_causes_have_names(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [BlockingIOError(11, "simulated"), OSError(105, "simulated")]

    def refuse(*arguments: object) -> int:
        if failures:
            raise failures.pop()
        return 60

    monkeypatch.setattr(tap_module.os, "write", refuse)
    result = tap.write(from_packets(frames(60, 60, 60)))
    assert result == TapResult(1, 60, {"enobufs": 1, "tap-full": 1})


def test_nobody_reads_and_nothing_blocks(tap: Tap, reader: socket.socket) -> None:
    batch = from_packets(frames(*[60] * 5000))
    assert tap.write(batch).delivered == 5000


def test_the_tap_itself_says_nothing(ns: str, tap: Tap) -> None:
    """With IPv6 on in the namespace an ordinary tap sends router solicitations within 2 s."""
    assert tap.silent
    assert select.select([tap], [], [], 2.0)[0] == [], _read_all(tap)


def _read_all(tap: Tap) -> list[str]:
    seen = []
    while select.select([tap], [], [], 0)[0]:
        seen.append(os.read(tap.fileno(), 2000).hex())
    return seen


def test_an_ordinary_tap_is_heard_where_ours_is_silent(
    ns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof that the test above can see something."""
    monkeypatch.setattr(tap_module, "_disable_ipv6", lambda _: True)
    monkeypatch.setattr(tap_module, "IFF_NOARP", 0)
    monkeypatch.setattr(tap_module, "IFF_MULTICAST", 0)
    with closing(open_tap("noisy0", ns)) as noisy:
        assert select.select([noisy], [], [], 5.0)[0] == [noisy]


def test_no_addresses_and_the_largest_mtu(ns: str, tap: Tap) -> None:
    shown = lab.run("ip", "-n", ns, "address", "show", "dev", tap.name)
    assert "inet" not in shown
    assert "mtu 65521 " in shown
    assert "BROADCAST,NOARP,UP,LOWER_UP>" in shown


def test_where_it_is_and_that_it_goes_away(ns: str) -> None:
    """In its namespace only, the caller's thread stays where it was, close() takes it away."""
    before = Path("/proc/thread-self/ns/net").readlink()
    opened = open_tap("mirror1", ns)
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert "mirror1" not in [name for _, name in socket.if_nameindex()]
    assert "mirror1" in lab.run("ip", "-n", ns, "link")
    opened.close()
    opened.close()
    lab.until(lambda: "mirror1" not in lab.run("ip", "-n", ns, "link"), what="no tap any more")


def test_without_a_namespace_it_is_where_the_caller_is(ns: str) -> None:
    with closing(lab.in_namespace(ns, open_tap, "mirror2")) as opened:
        assert opened.name in lab.run("ip", "-n", ns, "link")


def test_while_uvloop_runs(ns: str) -> None:
    async def main() -> None:
        open_tap("mirror3", ns).close()

    uvloop.run(main())


def test_in_use(ns: str, tap: Tap) -> None:
    with pytest.raises(UserError, match="tap mirror0 is in use by another program: "):
        open_tap("mirror0", ns)


def test_a_name_that_something_else_has(ns: str) -> None:
    with pytest.raises(UserError, match="lo exists and is not a tap of the usual kind"):
        open_tap("lo", ns)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "x" * 16, "a\0b"])
def test_names_no_interface_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tap: 1 to 15 characters"):
        open_tap(name)


@pytest.mark.parametrize("missing", ["nowhere", "", "..", "../netns", "a\0b"])
def test_no_such_namespace_lists_those_there_are(ns: str, missing: str) -> None:
    with pytest.raises(UserError) as caught:
        open_tap("mirror0", missing)
    assert str(caught.value).startswith(f"no network namespace named {missing} (there are: ")
    assert ns in str(caught.value)


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap_module, "DEVICE", tmp_path / "tun")
    with pytest.raises(UserError, match="modprobe tun"):
        open_tap("mirror0")


@pytest.mark.parametrize(
    ("namespace", "needed"),
    [(None, "creating the tap mirror0 needs CAP_NET_ADMIN"), ("{ns}", "entering namespace")],
)
def test_without_the_capability(ns: str, namespace: str | None, needed: str) -> None:
    program = (
        "import os, sys; from tunnelbridge.linux import tap\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: tap.open_tap('mirror0', sys.argv[1] or None)\n"
        "except Exception as error: print(type(error).__name__, error, sep='|')"
    )
    argument = (namespace or "").format(ns=ns)
    command = [sys.executable, "-c", program, argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith(f"UserError|{needed}"), done.stderr


def test_an_administrators_tap_serves_its_owner_without_capabilities(ns: str) -> None:
    """A persistent tap of a user's: /dev/net/tun has to be open to him, which we do for him."""
    lab.run("ip", "-n", ns, "tuntap", "add", "mirror4", "mode", "tap", "user", "65534")
    lab.run("ip", "-n", ns, "link", "set", "mirror4", "up")
    program = (
        "import os, sys; from pathlib import Path; from tunnelbridge.linux import tap\n"
        "from tunnelbridge.batch import from_packets\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)\n"
        "tap.DEVICE = Path(f'/proc/self/fd/{fd}')\n"
        "os.open, real = (lambda path, *rest, **more: fd if path == tap.DEVICE\n"
        "                 else real(path, *rest, **more)), os.open\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "mine = tap.open_tap('mirror4')\n"
        "print(mine.silent, mine.write(from_packets([bytes(60)])).delivered)"
    )
    command = ["ip", "netns", "exec", ns, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"], done.stderr


def test_speed(tap: Tap) -> None:
    """Far below what it does (about a million a second), so that a loaded machine passes."""
    batch = from_packets(frames(*[64] * 10_000))
    start = time.perf_counter()
    tap.write(batch)
    assert 10_000 / (time.perf_counter() - start) > 50_000
    assert np.array_equal(batch.length, np.full(10_000, 64))
