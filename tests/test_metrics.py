"""Metrics as prometheus-client's own parser reads them, over HTTP."""

from __future__ import annotations

import asyncio
import builtins
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from collector.ledger import CollectorLedger, SinkLedger, StreamLedger
from collector.metrics import collector_families
from tunnelbridge import metrics
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.ledger import (
    MemberLedger,
    SenderLedger,
    SessionLedger,
    SourceLedger,
    TunnelLedger,
)
from tunnelbridge.metrics import Family, MetricsServer, parse_address, sender_families, text_of

parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client")


def read(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return all samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def sample(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def a_sender() -> dict[str, Any]:
    tunnel = TunnelLedger('odd "name"\\', 10, 6, 600, Counter({"no-route": 3, "refused": 1}))
    session = SessionLedger("s1", members=[MemberLedger("10.0.0.9", 10, 1, 2, 7)])
    return SenderLedger(
        received=1 << 62, kernel_dropped=2, refused=Counter({"own-tunnel": 3}), cloned=4,
        sessions=[session], tunnels=[tunnel], sources=[SourceLedger("eth0", 5, 6, 7)],
    ).as_dict()  # fmt: skip


def test_a_senders_ledger() -> None:
    text, kind = text_of(sender_families(a_sender()))
    assert kind.startswith("text/plain")
    found = read(text)
    assert sample(found, "tunnelbridge_received_total") == 1 << 62
    assert sample(found, "tunnelbridge_refused_total", cause="own-tunnel") == 3
    assert sample(found, "tunnelbridge_source_octets_total", source="eth0") == 7
    name = 'odd "name"\\'
    assert sample(found, "tunnelbridge_tunnel_sent_total", tunnel=name) == 6
    assert sample(found, "tunnelbridge_tunnel_errors_total", tunnel=name, cause="no-route") == 3
    member = {"session": "s1", "member": "10.0.0.9"}
    assert sample(found, "tunnelbridge_member_num_driver_failures_total", **member) == 2


def a_collector(streams: int = 2, **more: Any) -> dict[str, Any]:
    sink = SinkLedger("tap t", 8, 800, Counter({"queue-full": 1}), 4, 2)
    ledgers = [
        StreamLedger("192.0.2.1", "vxlan", number or None, packets=number, lost=3)
        for number in range(streams)
    ]
    ledger = CollectorLedger(received=20, rejected=Counter({"vxlan-short": 5}), decapsulated=15,
                             deduplicated=1, waiting=2, sinks=[sink])  # fmt: skip
    return {**ledger.as_dict("collector listen", ledgers), **more}


def test_a_collectors_ledger() -> None:
    found = read(text_of(collector_families(a_collector()))[0])
    assert sample(found, "collector_rejected_total", cause="vxlan-short") == 5
    assert sample(found, "collector_waiting") == 2
    key = {"source": "192.0.2.1", "encapsulation": "vxlan"}
    assert sample(found, "collector_stream_packets_total", identifier="1", **key) == 1
    assert sample(found, "collector_stream_packets_total", identifier="", **key) == 0
    assert sample(found, "collector_stream_lost", identifier="1", **key) == 3  # may go down again
    assert sample(found, "collector_sink_dropped_total", sink="tap t", cause="queue-full") == 1
    assert sample(found, "collector_sink_queued", sink="tap t") == 4
    assert not [name for name, _ in found if name.startswith("collector_health")]


def test_health_is_there_when_somebody_looks() -> None:
    health = {"sampled_frames": 10, "flows": 4, "bad_checksums": 2}
    found = read(text_of(collector_families(a_collector(health=health)))[0])
    assert sample(found, "collector_health_bad_checksums") == 2


def test_streams_are_told_one_by_one_up_to_a_limit() -> None:
    found = read(text_of(collector_families(a_collector(streams=metrics.MOST_SERIES + 50)))[0])
    packets = [
        value for (name, _), value in found.items() if name == "collector_stream_packets_total"
    ]
    assert len(packets) == metrics.MOST_SERIES
    assert min(packets) == 50


@pytest.mark.parametrize(
    ("text", "address"),
    [("9100", ("127.0.0.1", 9100)), (":9100", ("127.0.0.1", 9100)), ("0.0.0.0:1", ("0.0.0.0", 1)),
     ("[::1]:65535", ("::1", 65535)), ("host.example:80", ("host.example", 80))],
)  # fmt: skip
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "x", "0", "65536", "1.2.3.4", "::1:80:", "::1:80", "a:-1", "٣"]
)
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics "):
        parse_address(text)


def test_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(UserError, match=r"pip install 'tunnelbridge\[metrics\]'"):
        MetricsServer("9100", list)


# --- over HTTP ---


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def serving(families: Any = None) -> AsyncIterator[int]:
    port = free_port()
    server = MetricsServer(str(port), families or (lambda: collector_families(a_collector())))
    await server.start()
    try:
        yield port
    finally:
        await server.close()


async def request(port: int, octets: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(octets)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_scrape() -> None:
    received = [0]

    def look() -> list[Family]:
        received[0] += 1
        return [Family("looks", "How often", samples=[((), received[0])])]

    async with serving(look) as port:
        for number in (1, 2):
            head, _, body = (await request(port, GET)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert f"Content-Length: {len(body)}".encode() in head
            assert sample(read(body), "looks_total") == number
    with pytest.raises(ConnectionError):
        await request(port, GET)


async def test_openmetrics_if_it_is_asked_for() -> None:
    accept = b"Accept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    async with serving() as port:
        answer = await request(port, GET[:-2] + accept)
    assert b"Content-Type: application/openmetrics-text" in answer
    assert answer.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\x00\xff nonsense\r\n\r\n", b"405"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
    ],
)
async def test_other_requests(octets: bytes, status: bytes) -> None:
    async with serving() as port:
        assert (await request(port, octets)).split()[1] == status


async def test_head_has_no_body() -> None:
    async with serving() as port:
        answer = await request(port, b"HEAD" + GET[3:])
    assert answer.endswith(b"\r\n\r\n")


async def test_clients_that_stall_or_say_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PATIENCE", 0.05)
    async with serving() as port:
        assert await request(port, b"GET /metr") == b""
        answer = b""
        with suppress(ConnectionError):
            answer = await request(port, b"x" * 2 * metrics.LONGEST_REQUEST)
        assert answer == b""
        assert b"200 OK" in await request(port, GET)


async def test_too_many_clients_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_CLIENTS", 1)
    async with serving() as port:
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0)
        try:
            answer = await request(port, GET)
        except ConnectionError:
            answer = b""
        assert answer == b""
        idle.close()
        await idle.wait_closed()


async def test_an_address_that_is_taken() -> None:
    async with serving() as port:
        with pytest.raises(UserError, match=f"cannot serve metrics on 127.0.0.1 port {port}"):
            await MetricsServer(str(port), list).start()
