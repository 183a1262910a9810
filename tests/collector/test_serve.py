"""The live server: whole records for everybody, nothing that waits, every frame accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import struct
import threading
from collections.abc import AsyncIterator

import pytest
from delivered import delivery
from scapy.utils import RawPcapNgReader, RawPcapReader

import lab
from collector.delivery import Delivery
from collector.sinks import serve as module
from collector.sinks.live_readers import GONE, SLOW, Block, Reader
from collector.sinks.live_records import Encoder, Joined
from collector.sinks.live_socket import parse_where
from collector.sinks.options import parse_sink
from collector.sinks.serve import MOST_READERS, MOST_REMEMBERED, ServeLedger, ServeSink
from tunnelbridge.batch import from_packets
from tunnelbridge.errors import UsageError, UserError

TIME = 1_700_000_000_123_456_789
SECONDS = 5.0


def names(number: int) -> str:
    return f"stream {number}"


def frames(count: int, size: int = 60, first: int = 0) -> list[bytes]:
    """Numbered IPv4 frames."""
    front = bytes.fromhex("02000000000b 02000000000a 0800 45")
    return [(front + (first + n).to_bytes(4) + bytes(size))[:size] for n in range(count)]


def numbered(count: int, size: int = 60, first: int = 0) -> Delivery:
    batch = from_packets(frames(count, size, first), TIME)
    batch.wire_length = batch.wire_length + 7
    return delivery(batch)


def parse(octets: bytes, magic: int = 0xA1B2C3D4) -> list[tuple[int, bytes, int]]:
    """Return (time in the file's units, frame, original length) of a whole pcap stream."""
    header = struct.unpack_from("=IHHIIII", octets)
    assert (header[0], header[1:3], header[6]) == (magic, (2, 4), 1)
    unit = 10**6 if magic == 0xA1B2C3D4 else 10**9
    found, at = [], 24
    while at < len(octets):
        seconds, fraction, size, original = struct.unpack_from("=IIII", octets, at)
        assert len(octets) >= at + 16 + size, "half a record at the end"
        found.append((seconds * unit + fraction, octets[at + 16 : at + 16 + size], original))
        at += 16 + size
    return found


@pytest.fixture
async def opened() -> AsyncIterator[list[ServeSink]]:
    """Take sinks that are closed at the end."""
    sinks: list[ServeSink] = []
    yield sinks
    for sink in sinks:
        sink.close()


def start(opened: list[ServeSink], text: str = "127.0.0.1:0") -> ServeSink:
    sink = ServeSink(parse_sink(text, "--serve", more=("format",)), names)
    opened.append(sink)
    sink.listen(asyncio.get_running_loop())
    return sink


class Client:
    """A reader that keeps what it got."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, sink: ServeSink) -> Client:
        before = len(sink._readers)
        client = cls(*await asyncio.open_connection("127.0.0.1", sink.port))
        await until(lambda: len(sink._readers) > before)
        return client

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), SECONDS)

    async def some(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), SECONDS)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  (what is waited for sets no event)
            await asyncio.sleep(0.001)


# --- what readers get ---


@pytest.mark.parametrize("count", [0, 1, 2, 1024, 1025])
async def test_every_reader_gets_every_frame(opened: list[ServeSink], count: int) -> None:
    sink = start(opened)
    clients = [await Client.connect(sink) for _ in range(3)]
    sink.put(numbered(count))
    sink.put(numbered(1, first=count))
    sink.close()

    expected = [(TIME // 1000, octets, 67) for octets in frames(count + 1)]
    for client in clients:
        assert parse(await client.rest()) == expected
        await client.close()
    told = sink.ledger
    assert (told.delivered, told.octets, told.queued) == (count + 1, 60 * (count + 1), 0)
    assert told.total() == count + 1
    readers = [reader.as_dict() for reader in sink._told.readers]
    assert [(each["sent"], each["octets"]) for each in readers] == [
        (count + 1, 60 * (count + 1))
    ] * 3


async def test_the_header_comes_at_once_and_what_came_before_does_not(
    opened: list[ServeSink],
) -> None:
    sink = start(opened)
    sink.put(numbered(5))
    assert (sink.ledger.filtered, sink.ledger.total()) == (5, 5)  # nobody was there

    client = await Client.connect(sink)
    header = await client.some(24)
    assert parse(header) == []
    sink.put(numbered(1, first=5))
    assert parse(header + await client.some(76)) == [(TIME // 1000, frames(1, first=5)[0], 67)]
    await client.close()


async def test_heads_and_snap_length_and_filter(opened: list[ServeSink]) -> None:
    sink = start(opened, "127.0.0.1:0?filter=ip&snaplen=20")
    client = await Client.connect(sink)
    whole = [frames(1)[0], bytes.fromhex("02000000000b 02000000000a 0806") + bytes(46)]
    bodies, heads = from_packets([each[14:] for each in whole]), [each[:14] for each in whole]
    front = from_packets(heads)
    bodies.head, bodies.head_start, bodies.head_length = front.memory, front.start, front.length
    bodies.wire_length = bodies.wire_length + 14
    sink.put(delivery(bodies))
    sink.close()

    assert parse(await client.rest()) == [(0, whole[0][:20], 60)]
    assert (sink.ledger.delivered, sink.ledger.filtered, sink.ledger.octets) == (1, 1, 20)
    await client.close()


@pytest.mark.parametrize(
    ("kind", "magic", "time"),
    [("pcap-us", 0xA1B2C3D4, TIME // 1000), ("pcap", 0xA1B23C4D, TIME)],
)
async def test_classic_formats(opened: list[ServeSink], kind: str, magic: int, time: int) -> None:
    sink = start(opened, f"127.0.0.1:0?format={kind}")
    client = await Client.connect(sink)
    sink.put(numbered(2))
    sink.close()

    octets = await client.rest()
    assert parse(octets, magic) == [(time, each, 67) for each in frames(2)]
    with RawPcapReader(io.BytesIO(octets)) as reader:
        assert [packet for packet, _ in reader] == frames(2)
    await client.close()


def test_arkime_gets_no_record_it_has_no_room_for() -> None:
    longest = Encoder(parse_sink("x", "--serve"), names).encode(
        delivery(from_packets([bytes(65_530)]))
    )
    assert len(longest.octets) == 65_535
    assert struct.unpack_from("=IIII", longest.octets)[2:] == (65_519, 65_530)
    assert longest.frame_octets.tolist() == [65_519]
    whole = Encoder(parse_sink("x?format=pcap", "--serve", ("format",)), names)
    assert len(whole.encode(delivery(from_packets([bytes(65_530)]))).octets) == 65_546


async def test_pcapng_interfaces_are_known_before_their_first_packet(
    opened: list[ServeSink],
) -> None:
    sink = start(opened, "127.0.0.1:0?format=pcapng&filter=ip")
    early = await Client.connect(sink)
    first, second = frames(4), frames(3, first=4)
    sink.put(delivery(from_packets(first, TIME), stream=[7, 7, 2, 7]))
    late = await Client.connect(sink)
    sink.put(delivery(from_packets(second, TIME), stream=[3, 7, 3]))
    sink.close()

    for client, expected in (
        (early, list(zip([7, 7, 2, 7, 3, 7, 3], first + second, strict=True))),
        (late, list(zip([3, 7, 3], second, strict=True))),
    ):
        octets = await client.rest()
        with RawPcapNgReader(io.BytesIO(octets)) as reader:
            found = [(told.ifname, packet) for packet, told in reader]
        assert found == [(names(number).encode(), packet) for number, packet in expected]
        await client.close()


# --- slow, gone, too many ---


def pair(most_octets: int) -> tuple[Reader, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return Reader(ours, "reader", most_octets), theirs


class Settled:
    """Blocks that are settled: how many frames everybody got, and why not more."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, str]] = []

    def __call__(self, block: Block) -> None:
        self.blocks.append((block.delivered, block.cause))


def joined(count: int, size: int = 1000, first: int = 0) -> Joined:
    return Encoder(parse_sink("x", "--serve"), names).encode(numbered(count, size, first))


def drain(sock: socket.socket, reader: Reader) -> bytes:
    """Read what there is until the reader has sent all."""
    octets = b""
    sock.settimeout(0)
    while True:
        alive = reader.flush()
        try:
            octets += sock.recv(1 << 20)
        except BlockingIOError:
            if not alive or not reader.is_behind:
                return octets


def test_a_slow_reader_loses_whole_frames_and_only_what_its_queue_has_no_room_for() -> None:
    reader, theirs = pair(most_octets=200_000)
    settled = Settled()
    preamble = [struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)]
    assert reader.begin(preamble)
    count = 100  # of 1016 octets: two blocks fit beside what the socket takes
    for number in range(6):
        assert reader.offer(Block(joined(count, first=number * count), 1, settled), preamble)
    lost = reader.ledger.dropped[SLOW]
    assert 0 < lost < 6 * count
    assert reader.ledger.sent + reader.ledger.queued + lost == 6 * count
    assert reader._octets <= 200_000 + 1016

    got = parse(drain(theirs, reader))

    assert len(got) == 6 * count - lost == reader.ledger.sent
    assert reader._octets == 0  # there is room again
    assert reader.ledger.octets == 1000 * len(got)
    numbers = [int.from_bytes(octets[15:19]) for _, octets, _ in got]
    assert numbers == sorted(set(numbers))
    assert sum(delivered for delivered, _ in settled.blocks) == len(got)
    assert {cause for delivered, cause in settled.blocks if delivered < count} == {SLOW}
    assert reader.offer(Block(joined(1), 1, settled), preamble)  # and it goes on
    assert parse(preamble[0] + drain(theirs, reader))[0][1] == frames(1, 1000)[0]
    reader.close()
    theirs.close()


def test_a_block_larger_than_the_queue_is_taken_by_who_waits_for_nothing() -> None:
    reader, theirs = pair(most_octets=10)
    settled = Settled()
    assert reader.offer(Block(joined(50), 1, settled), [b""])
    assert reader.offer(Block(joined(50), 1, settled), [b""])
    assert (reader.ledger.queued, reader.ledger.dropped[SLOW]) == (50, 50)
    assert settled.blocks == [(0, SLOW)]
    assert len(drain(theirs, reader)) == 50 * 1016
    assert settled.blocks == [(0, SLOW), (50, "")]
    reader.close()
    theirs.close()


def test_what_a_gone_reader_has_not_got_is_counted_as_that() -> None:
    reader, theirs = pair(most_octets=1 << 30)
    settled = Settled()
    for _ in range(3):
        assert reader.offer(Block(joined(100), 1, settled), [b""])
    sent = reader.ledger.sent
    assert sent < 300
    theirs.close()
    assert reader.is_gone()
    assert not reader.flush()
    reader.close()
    told = reader.ledger
    assert (told.connected, told.queued) == (False, 0)
    assert told.sent + told.dropped[GONE] == 300
    assert told.dropped[GONE] > 0
    assert len(settled.blocks) == 3
    assert sum(delivered for delivered, _ in settled.blocks) == told.sent


def test_a_block_counts_what_all_readers_got() -> None:
    settled = Settled()
    for outcomes, expected in (
        ([(10, ""), (10, "")], (10, "")),
        ([(10, ""), (3, SLOW), (10, "")], (3, SLOW)),
        ([(7, SLOW), (0, GONE), (10, "")], (0, GONE)),
    ):
        block = Block(joined(10), len(outcomes), settled)
        for outcome in outcomes:
            assert settled.blocks == []
            block.done(*outcome)
        assert settled.blocks.pop() == expected


async def test_a_stalled_reader_costs_the_others_nothing(opened: list[ServeSink]) -> None:
    """As much as 40 MB for each, of which the one that sleeps has room for some."""
    sink = start(opened, "127.0.0.1:0?queue=2MB")
    healthy, stalled = (
        await Client.connect(sink),
        socket.create_connection(("127.0.0.1", sink.port)),
    )
    await until(lambda: len(sink._readers) == 2)
    batches, count = 40, 1000
    received = asyncio.create_task(healthy.some(24 + batches * count * 1016))
    for number in range(batches):
        sink.put(numbered(count, 1000, number * count))
        await until(lambda: sink._told.readers[0].queued == 0)  # only as fast as one can read
    numbers = [int.from_bytes(each[15:19]) for _, each, _ in parse(await received)]

    assert numbers == list(range(batches * count))
    good, slow = (reader.as_dict() for reader in sink._told.readers)
    assert (good["sent"], good["dropped"]) == (batches * count, {})
    assert slow["dropped"][SLOW] > 10 * count
    assert slow["sent"] + slow["queued"] + slow["dropped"][SLOW] == batches * count
    assert sink.ledger.total() == batches * count
    stalled.close()
    await until(lambda: len(sink._readers) == 1)
    assert sink.ledger.queued == 0
    slow = sink._told.readers[1].as_dict()
    assert slow["sent"] + sum(slow["dropped"].values()) == batches * count
    assert sink.ledger.dropped.total() == sum(slow["dropped"].values())
    assert sink.ledger.delivered == slow["sent"]
    await healthy.close()


async def test_a_reader_that_wakes_up_gets_whole_frames_again(opened: list[ServeSink]) -> None:
    sink = start(opened, "127.0.0.1:0?queue=100kB")
    client = socket.create_connection(("127.0.0.1", sink.port))
    await until(lambda: sink._readers)
    while not sink.ledger.dropped:
        sink.put(numbered(500, 1000))
    octets = bytearray()

    def read() -> None:
        while chunk := client.recv(1 << 20):
            octets.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    await until(lambda: not sink.ledger.queued)
    sink.put(numbered(3, 1000))
    sink.close()
    thread.join()
    client.close()
    got = parse(bytes(octets))
    assert len(got) == sink.ledger.delivered == sink._told.readers[0].sent
    assert [each for _, each, _ in got[-3:]] == frames(3, 1000)


async def test_who_hangs_up_is_dropped(opened: list[ServeSink]) -> None:
    sink = start(opened)
    client = await Client.connect(sink)
    client.writer.write(b"GET / HTTP/1.1\r\n\r\n")  # of no interest
    await client.some(24)
    sink.put(numbered(1))
    await client.some(76)
    await client.close()
    await until(lambda: not sink._readers)
    sink.put(numbered(1))
    assert (sink.ledger.delivered, sink.ledger.filtered) == (1, 1)
    assert not sink._told.readers[0].connected
    assert not sink.is_gone()


async def test_one_reader_too_many_is_refused(
    opened: list[ServeSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_READERS", 2)
    sink = start(opened)
    clients = [await Client.connect(sink) for _ in range(2)]
    third = Client(*await asyncio.open_connection("127.0.0.1", sink.port))
    assert await third.rest() == b""
    assert sink.ledger.as_dict()["refused"] == 1
    await clients[0].close()
    await until(lambda: len(sink._readers) == 1)
    clients[0] = await Client.connect(sink)
    sink.put(numbered(1))
    assert sink.ledger.delivered == 1
    for client in (*clients, third):
        await client.close()


async def test_no_descriptors_left(
    opened: list[ServeSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop does not spin on a connection that cannot be accepted; the next tick tries again."""
    sink = start(opened)
    calls: list[int] = []

    def fail(_: socket.socket) -> tuple[socket.socket, str]:
        calls.append(1)
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module, "accept", fail)
        client = socket.create_connection(("127.0.0.1", sink.port))
        await until(lambda: calls)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(calls) == 1
    sink.tick(0)
    await until(lambda: sink._readers)
    client.close()


async def test_closing_gives_a_slow_reader_a_moment_and_no_more(
    opened: list[ServeSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    sink = start(opened)
    client = socket.create_connection(("127.0.0.1", sink.port))
    await until(lambda: sink._readers)
    for _ in range(12):
        sink.put(numbered(1000, 1000))
    assert sink.ledger.queued
    sink.close()
    sink.close()
    assert sink.ledger.queued == 0
    assert set(sink.ledger.dropped) == {"ended"}
    assert sink.ledger.total() == 12_000
    client.close()


async def test_a_reader_that_reads_gets_all_that_waits_at_the_end(opened: list[ServeSink]) -> None:
    sink = start(opened)
    client = socket.create_connection(("127.0.0.1", sink.port))
    await until(lambda: sink._readers)
    for number in range(12):
        sink.put(numbered(1000, 1000, 1000 * number))
    assert sink.ledger.queued
    octets = bytearray()

    def read() -> None:
        while chunk := client.recv(1 << 20):
            octets.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    sink.close()
    thread.join()
    client.close()
    assert [each for _, each, _ in parse(bytes(octets))] == frames(12_000, 1000)
    assert (sink.ledger.delivered, sink.ledger.dropped) == (12_000, {})


def test_the_ledger_forgets_who_left_long_ago() -> None:
    ledger = ServeLedger("serve")
    for number in range(MOST_REMEMBERED + 5):
        reader = module.ReaderLedger(str(number), connected=number < MOST_READERS)
        ledger.remember(reader)
    kept = [reader.name for reader in ledger.readers]
    assert len(kept) == MOST_REMEMBERED
    assert kept[:MOST_READERS] == [str(number) for number in range(MOST_READERS)]
    assert kept[-1] == str(MOST_REMEMBERED + 4)


async def test_nothing_stays_open(opened: list[ServeSink]) -> None:
    before = lab.descriptors()
    sink = start(opened)
    client = socket.create_connection(("127.0.0.1", sink.port))
    await until(lambda: sink._readers)
    sink.close()
    client.close()
    assert [what for what in lab.left_open(before) if "socket" in what] == []


# --- where ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("127.0.0.1", 57012)),
        ("57013", ("127.0.0.1", 57013)),
        (":57013", ("127.0.0.1", 57013)),
        ("localhost", ("127.0.0.1", 57012)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("::1", ("::1", 57012)),
        ("[::1]", ("::1", 57012)),
        ("localhost:7", ("127.0.0.1", 7)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_where(text: str, expected: tuple[str, int]) -> None:
    assert parse_where(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nohost:3", "--serve nohost:3: nohost is no IP address, as in 127.0.0.1:57012"),
        ("1.2.3.4:x", "x is not a TCP port"),
        ("1.2.3.4:65536", "65536 is not a TCP port"),
        (
            "127.0.0.1:0?format=pcapx",
            "--serve 127.0.0.1:0: format pcapx: expected pcapng, pcap or pcap-us",
        ),
        ("127.0.0.1:0?filter=tcp and and", "syntax error"),
    ],
)
def test_what_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServeSink(parse_sink(text, "--serve", more=("format",)), names)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot serve on {where}: Address already in use"):
            ServeSink(parse_sink(where, "--serve"), names)
