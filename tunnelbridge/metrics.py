"""``--metrics``: the ledger as Prometheus text, made when it is asked for and at no other time.

A few lines of HTTP on the program's own loop: what is served is a ledger of one moment, and the text
is made of it in a thread. Needs prometheus-client (``pip install 'tunnelbridge[metrics]'``). The
exposition formats: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tunnelbridge.errors import UsageError, UserError

LONGEST_REQUEST: Final = 16384
PATIENCE: Final = 5.0
"""Seconds a client may take for its request, and to take the answer."""
MOST_CLIENTS: Final = 16
MOST_SERIES: Final = 1000
"""Streams, tunnels or members told one by one."""
_BAD: Final = "text/plain; charset=utf-8"

Ledger = Mapping[str, Any]


@dataclass(slots=True)
class Family:
    """One metric: its name without ``_total``, and its values by the values of ``labels``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["counter", "gauge"] = "counter"
    samples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)

    def add(self, value: float, *labels: str) -> None:
        """Add a sample."""
        self.samples.append((labels, value))


def families_of(
    prefix: str,
    ledgers: Iterable[tuple[tuple[str, ...], Ledger]],
    labels: tuple[str, ...],
    counts: Mapping[str, str],
    gauges: tuple[str, ...] = (),
) -> list[Family]:
    """Return a family for each counter that ledgers of one kind have.

    ``ledgers`` come with the values of their ``labels``; ``counts`` maps field names to what they
    count. A field that is itself counts by cause gets the label ``cause``.
    """
    families = {
        name: Family(f"{prefix}_{name}", text, labels, "gauge" if name in gauges else "counter")
        for name, text in counts.items()
    }
    for values, ledger in ledgers:
        for name, family in families.items():
            count = ledger.get(name, 0)
            if not isinstance(count, Mapping):
                family.add(count, *values)
                continue
            family.labels = (*labels, "cause")
            for cause, number in count.items():
                family.add(number, *values, cause)
    return list(families.values())


def sender_families(ledger: Ledger) -> list[Family]:
    """Return the metrics of ``tunnelbridge send`` (``SenderLedger.as_dict``)."""
    members = [
        ((session["name"], member["ip"]), member)
        for session in ledger["sessions"]
        for member in session["members"]
    ]
    return [
        *families_of("tunnelbridge", [((), ledger)], (), {
            "received": "Packets that the capture filters let through",
            "kernel_dropped": "Packets for which capture rings had no room",
            "not_matched": "Packets that no session mirrors",
            "refused": "Packets not cloned, by cause",
            "cloned": "Packets of which clones were made",
            "copies": "Frames given to tunnels",
            "no_member": "Frames for which no member was up",
        }),
        *families_of("tunnelbridge_source", _named(ledger["sources"]), ("source",), {
            "received": "Packets of an interface",
            "kernel_dropped": "Packets of an interface for which its ring had no room",
            "octets": "Octets of an interface",
        }),
        *families_of("tunnelbridge_tunnel", _named(ledger["tunnels"]), ("tunnel",), {
            "clones": "Clones for a tunnel",
            "sent": "Clones sent",
            "octets": "Inner octets sent",
            "errors": "Clones that could not be sent, by cause",
            "queue_dropped": "Clones for which the send queue had no room",
            "refused": "Clones that a tunnel refused, by cause",
            "truncated": "Clones cut to fit the path",
            "fragmented": "Clones that the path fragments",
            "unreachable": "ICMP errors that came back",
        }),
        *families_of("tunnelbridge_member", members[:MOST_SERIES], ("session", "member"), {
            "num_total_pkts_cloned": "Packets cloned to a pool member",
            "num_mbuf_alloc_failed": "Clones for which there was no room in the send queue",
            "num_driver_failures": "Clones that could not be sent",
            "num_succeeded": "Clones sent to a pool member",
        }),
    ]  # fmt: skip


def _named(ledgers: Iterable[Ledger]) -> Sequence[tuple[tuple[str, ...], Ledger]]:
    return [((str(each["name"]),), each) for each in ledgers][:MOST_SERIES]


def text_of(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """Return the exposition of ``families`` and its content type, chosen by an Accept header.

    Raises UserError: prometheus-client is not installed.
    """
    client = _client()
    exposition = client.exposition
    core = client.metrics_core
    kinds = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}

    class Once:
        def collect(self) -> Iterable[Any]:
            for each in families:
                metric = kinds[each.kind](each.name, each.help, labels=each.labels)
                for labels, value in each.samples:
                    metric.add_metric(labels, value)
                yield metric

    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(Once())
    encode, content_type = exposition.choose_encoder(accept)
    return encode(registry), content_type


def _client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.exposition
        import prometheus_client.metrics_core
    except ImportError:
        raise UserError(
            "--metrics needs prometheus-client: pip install 'tunnelbridge[metrics]'"
        ) from None
    return prometheus_client


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``[HOST:]PORT``, ``[::1]:9100``; raises UsageError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--metrics {text}: expected [HOST:]PORT, as 9100 or [::1]:9100")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UsageError(f"--metrics {text}: an IPv6 address stands in brackets, as [::1]:9100")
    return host.strip("[]") or "127.0.0.1", int(port)


class MetricsServer:
    """Serves ``/metrics``; ``look`` returns the families of now, and is called on the loop."""

    def __init__(self, address: str, look: Callable[[], list[Family]]) -> None:
        self._host, self._port = parse_address(address)
        _client()
        self._look = look
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it serves."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/metrics"

    async def start(self) -> None:
        """Listen; raises UserError: the address is taken, or not this host's."""
        try:
            self._server = await asyncio.start_server(
                self._on_client, self._host, self._port, limit=LONGEST_REQUEST
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot serve metrics on {self._host} port {self._port}: {reason};"
                " give another address with --metrics"
            ) from None

    async def close(self) -> None:
        """Send every client away."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._on_client_end)

    def _on_client_end(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        if not client.cancelled() and (error := client.exception()) is not None:
            client.get_loop().call_exception_handler({"message": "metrics", "exception": error})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a client's mistakes and its end are its own affair."""
        try:
            with contextlib.suppress(
                ConnectionError,
                TimeoutError,
                asyncio.IncompleteReadError,
                asyncio.LimitOverrunError,
            ):
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                answer = await self._answer(head.decode("latin-1"))
                async with asyncio.timeout(PATIENCE):
                    writer.write(answer)
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _answer(self, head: str) -> bytes:
        line, *rest = head.split("\r\n")
        method, _, target = line.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n", _BAD, method)
        if path not in ("/metrics", "/"):
            return _response("404 Not Found", b"see /metrics\n", _BAD, method)
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in rest)
        }
        families = self._look()
        body, kind = await asyncio.to_thread(text_of, families, headers.get("accept", ""))
        return _response("200 OK", body, kind, method)


def _response(status: str, body: bytes, kind: str, method: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
