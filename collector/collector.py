"""``collector listen``: sockets, decapsulation and sinks under one uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from collector.allow import AllowList
from collector.delivery import Delivery
from collector.heartbeat import Heartbeat
from collector.intake import Intake
from collector.ledger import CollectorLedger
from collector.listener import Listener, Listeners, Wanted
from collector.operation import Operation
from collector.refinement import Refinement, Wishes
from collector.sinks import Serving, Sink
from collector.status import Status
from collector.streams import StreamTable
from tunnelbridge import console
from tunnelbridge.errors import UserError
from tunnelbridge.linux.receive import Datagrams
from tunnelbridge.linux.slab import SlabPool
from tunnelbridge.linux.snmp import ReassemblyFailures
from tunnelbridge.wire import udp
from tunnelbridge.wire.walk import LEVELS

TICK: Final = 1.0
DRAIN: Final = 0.5
"""Seconds that emptying the sockets may take at the end."""
SHORTEST_LOOK: Final = 0.001
SLABS_AT_ONCE: Final = 4
"""Slabs per wake-up, so that signals and other sockets are never kept waiting."""


@dataclass(slots=True)
class ListenOptions:
    """What the command line asked for."""

    wanted: Wanted
    bind: Sequence[str] = ()
    allow: Sequence[str] = ()
    sinks: Sequence[Opener] = ()
    """Called in order once the listeners are open."""
    levels: int = LEVELS
    source_time: bool = False
    """Frames have the time that their source tells, where it tells one."""
    count: int | None = None
    duration: float | None = None
    stats: str | None = None
    heartbeat: str | None = None
    refine: Wishes = field(default_factory=Wishes)
    control: Path | bool | None = None
    """Where the control socket is; True for the default place, if it can be had."""
    metrics: str | None = None
    quiet: bool = False
    """Leave out the closing ledger."""


Opener = Callable[["Collector"], Sink]
"""Opens one sink; raises UserError."""


class Collector:
    """A running ``collector listen``."""

    def __init__(self, options: ListenOptions) -> None:
        console.check_writable(options.stats)
        self.options = options
        self.ledger = CollectorLedger()
        self.streams = StreamTable()
        allow = AllowList(options.allow)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._line = console.LiveLine()
        self._stop = asyncio.Event()
        self._reason = ""
        self.has_begun = False
        self._bug: BaseException | None = None
        self._last = (0, 0)
        self._pool = SlabPool()
        self.listeners = Listeners(options.wanted, options.bind)
        self._reassembly = ReassemblyFailures()
        self.intake = Intake(
            self.ledger,
            self.streams,
            allow,
            udp.port_table(self.listeners.ports),
            options.levels,
            options.source_time,
            options.count,
        )
        self.refinement = Refinement(options.refine, self.ledger)
        self.status = Status(
            self.ledger,
            self.streams.ledgers,
            self.intake.refused.ledgers,
            self.as_dict,
            self.refinement.health,
        )
        self.sinks: list[Sink] = []
        self.heartbeat: Heartbeat | None = None
        try:
            self._operation = Operation(self.status, self.as_dict, options.control, options.metrics)
            if options.heartbeat is not None:
                self.heartbeat = Heartbeat(options.heartbeat, allow)
            for opener in options.sinks:
                self.sinks.append(opener(self))
        except BaseException:
            self._close()
            raise
        self.ledger.sinks = [sink.ledger for sink in self.sinks]

    async def run(self) -> None:
        """Collect until a signal, the count or the duration."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGUSR1, self._write_stats)
        loop.set_exception_handler(self._on_bug)
        try:
            await self._operation.start()
            self._begin(loop)
            await self._stop.wait()
            if self._bug is None:
                self._drain(loop)
                self._hand_out(self.refinement.flush())
        finally:
            await self._operation.close()
            self._count_drops()
            self._close()
            self._line.clear()
        if self._bug is not None:
            raise self._bug

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take frames and readers from now on."""
        self.has_begun = True
        if self.options.duration is not None:
            loop.call_later(self.options.duration, self._end, "duration")
        for problem in self.listeners.problems:
            self._log.warning("not listening", reason=problem)
        for listener in self.listeners.open:
            loop.add_reader(listener.receiver.fileno(), self._on_readable, listener)
        if self.heartbeat is not None:
            self.heartbeat.listen(loop)
        for sink in self.sinks:
            if isinstance(sink, Serving):
                sink.listen(loop)
        if not self.sinks:
            self._log.warning(
                "frames are only counted: deliver them with --pcap, --tap, --serve, --inject or"
                " --forward"
            )
        self._log.info("listening", on=[listener.name for listener in self.listeners.open])
        loop.call_later(TICK, self._tick, loop)
        if self.refinement.window is not None:
            self._hand_out_due(loop)

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End with the traceback of what a callback raised, rather than go on half alive."""
        self._bug = self._bug or context.get("exception") or RuntimeError(context["message"])
        self._end("a bug")

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what already waits in the sockets, as long as that does not keep the user waiting."""
        deadline = loop.time() + DRAIN
        for listener in self.listeners.open:
            loop.remove_reader(listener.receiver.fileno())
            while self._on_readable(listener) and loop.time() < deadline:
                pass

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stop.set()

    def _close(self) -> None:
        self.listeners.close()
        self._reassembly.close()
        if self.heartbeat is not None:
            self.heartbeat.close()
        for sink in self.sinks:
            sink.close()

    def _on_readable(self, listener: Listener) -> bool:
        """Process a few slabs of datagrams; tell whether there may be more."""
        for _ in range(SLABS_AT_ONCE):
            slab = None if self._is_done else self._pool.take()
            if slab is None:
                return False
            try:
                datagrams = listener.receiver.receive(slab)
                if datagrams is None:
                    return False
                self._process(datagrams, listener)
            finally:
                slab.release()
        return True

    @property
    def _is_done(self) -> bool:
        limit = self.options.count
        return limit is not None and self.ledger.decapsulated >= limit

    def _process(self, datagrams: Datagrams, listener: Listener) -> None:
        """Take one slab of datagrams in and hand out its frames."""
        delivery = self.intake.take(datagrams, listener)
        if delivery is None:
            return
        self._hand_out(self.refinement.take(delivery, time.time_ns()))
        if self._is_done:
            self._end("count")

    def _hand_out(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            for sink in self.sinks:
                sink.put(delivery)

    def _hand_out_due(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand out what waited for its turn, again and again."""
        if self.refinement.window is not None and not self._stop.is_set():
            loop.call_later(
                max(self.refinement.window / 2, SHORTEST_LOOK), self._hand_out_due, loop
            )
            self._hand_out(self.refinement.due(time.time_ns()))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(TICK, self._tick, loop)
        self._count_drops()
        now = time.time_ns()
        self.status.tick(now)
        for sink in self.sinks:
            sink.tick(now)
        if self._line.active:
            self._show_rate()
        ledger = self.ledger
        self._log.debug(
            "counters",
            received=ledger.received,
            decapsulated=ledger.decapsulated,
            rejected=dict(ledger.rejected),
            socket_dropped=ledger.socket_dropped,
        )
        if self.sinks and all(sink.is_gone() for sink in self.sinks):
            self._end("nobody reads the pcap output any more")

    def _count_drops(self) -> None:
        drops = [listener.receiver.drops() for listener in self.listeners.open]
        self.ledger.socket_dropped = sum(drops)
        self.ledger.reassembly_failed = self._reassembly.count()

    def _show_rate(self) -> None:
        frames = self.ledger.decapsulated
        octets = sum(stream.octets for stream in self.streams.ledgers())
        bits = (octets - self._last[1]) * 8
        packets, self._last = frames - self._last[0], (frames, octets)
        dropped = sum(sink.dropped.total() for sink in self.ledger.sinks)
        self._line.show(
            f"{console.rate(packets, 'frames/s')}, {console.rate(bits, 'bit/s')},"
            f" {frames} in all, {self.ledger.rejected.total()} rejected,"
            f" {dropped + self.ledger.socket_dropped} dropped"
        )

    def _write_stats(self) -> None:
        self._count_drops()
        with contextlib.suppress(UserError):
            console.write_snapshot(self.options.stats, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as ``--stats`` writes it."""
        ledger = self.ledger.as_dict(
            "collector listen", self.streams.ledgers(), self.intake.refused.ledgers()
        )
        if self.refinement.health is not None:
            ledger["health"] = self.refinement.health.as_dict()
        return ledger

    def report(self) -> None:
        """Write the closing ledger: to ``--stats``, and in short to standard error."""
        if not self.options.quiet:
            console.report(self.as_dict(), self._reason)
            for finding in self.status.findings():
                self._log.warning("mirror health", finding=finding)
            for remark in self.status.remarks():
                self._log.info("mirror health", remark=remark)
        console.write_stats(self.options.stats, self.as_dict())


def listen(options: ListenOptions) -> None:
    """Run ``collector listen`` to its end; raises UserError."""
    collector = Collector(options)
    try:
        uvloop.run(collector.run())
    finally:
        if collector.has_begun:
            collector.report()
