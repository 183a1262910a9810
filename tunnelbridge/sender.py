"""``tunnelbridge send``: sources, pipeline and tunnels under one uvloop.

The loop owns the edges only: a ring that has a block ready, a link that came or went, signals, the
once-a-second look at counters and path MTUs. A batch goes through ``pipeline`` without awaiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import structlog
import uvloop

from tunnelbridge import console
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.linux.libpcap import compile_filter
from tunnelbridge.linux.links import LinkMonitor
from tunnelbridge.linux.ring import Ring
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.replay import parse_speed, replay
from tunnelbridge.source import LONGEST_READ, Direction, InterfaceSource, mirrorable
from tunnelbridge.targets import open_tunnels, resolve_targets
from tunnelbridge.watch import LossWatch

TICK: Final = 1.0
DRAIN: Final = 0.25
"""Seconds to wait for the rings' last blocks; they are handed over within a few milliseconds."""
DRAIN_STEP: Final = 0.003
BREATH: Final = 0.001
"""Seconds without a ring's reader after a slow read, or a signal would wait behind the next one."""


@dataclass(slots=True)
class SendOptions:
    """What the command line asked for."""

    interfaces: Sequence[str] = ()
    file: Path | None = None
    to: Sequence[str] = ()
    arp: Sequence[str] = ()
    fdb: Sequence[str] = ()
    expression: str = ""
    direction: Direction = "both"
    snaplen: int | None = None
    mtu: MtuPolicy = MtuPolicy.FRAGMENT
    speed: str = "original"
    count: int | None = None
    duration: float | None = None
    stats: str | None = None
    verbose: bool = False
    speed_value: float | None = field(init=False, default=None)

    def validate(self) -> None:
        """Refuse what does not fit together; raises UsageError."""
        if bool(self.interfaces) == (self.file is not None):
            raise UsageError("give interfaces (-i) or a capture file (-r), one of them")
        if not self.to:
            raise UsageError(
                "give at least one target: --to TUNNEL, or --to IP with --arp and --fdb"
            )
        if len(set(self.interfaces)) != len(self.interfaces):
            raise UsageError("an interface is named twice")
        if self.file is not None and self.direction != "both":
            raise UsageError("--direction chooses among an interface's packets, not a file's (-r)")
        if self.interfaces and self.speed != "original":
            raise UsageError("--speed paces a file (-r); packets of -i are cloned as they come")
        self.speed_value = parse_speed(self.speed)


class Sender:
    """A running ``tunnelbridge send``."""

    def __init__(self, options: SendOptions) -> None:
        options.validate()
        console.check_writable(options.stats)
        self.options = options
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._line = console.LiveLine()
        self._stop = asyncio.Event()
        self._reason = ""
        self._failure: BaseException | None = None
        targets = resolve_targets(options.to, options.arp, options.fdb)
        for name in options.interfaces:
            mirrorable(name)
        program = None
        if options.file is not None and options.expression:
            program = compile_filter(options.expression)
        guard = LoopGuard([target.signature() for target in targets])
        self.tunnels = open_tunnels(targets, options.mtu, options.snaplen)
        self.pipeline = Pipeline(self.tunnels, guard, options.snaplen, program, options.count)
        self._sources = [
            InterfaceSource(name, options.expression, options.direction, self.pipeline)
            for name in options.interfaces
        ]
        self._watch = LossWatch()
        self._last = (0, 0)

    @property
    def ledger(self) -> SenderLedger:
        """The counters, the kernel's drops included as of the last look."""
        return self.pipeline.ledger

    async def run(self) -> None:
        """Send until a signal, the count, the duration or the file's end.

        What no part of it foresaw ends it too, and is raised again when all is drained and closed.
        """
        loop = asyncio.get_running_loop()
        former = loop.get_exception_handler()
        loop.set_exception_handler(self._on_exception)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGUSR1, self._write_stats)
        if self.options.duration is not None:
            loop.call_later(self.options.duration, self._end, "duration")
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._on_tick_end)
        try:
            if self.options.file is not None:
                await self._send_file(self.options.file)
            else:
                await self._send_interfaces(loop)
        except Exception as error:  # raised below, unless an earlier one is
            self._fail(error)
        finally:
            ticker.cancel()
            for tunnel in self.tunnels:
                tunnel.close()
            self._line.clear()
            loop.set_exception_handler(former)
        if self._failure is not None:
            raise self._failure

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what a callback raised, which the loop would only log."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._fail(error)
        else:
            loop.default_exception_handler(context)

    def _on_tick_end(self, ticker: asyncio.Task[None]) -> None:
        if not ticker.cancelled() and (error := ticker.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End for a failure; of several the first is told."""
        if self._failure is None:
            self._failure = error
        self._end("error")

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stop.set()

    async def _send_file(self, path: Path) -> None:
        capture = open_capture(path)
        with console.progress(capture.total_octets, path.name) as advance:
            await replay(capture, self.pipeline, self.options.speed_value, self._stop, advance)
        if self.pipeline.is_done:
            self._end("count")
        if capture.damage:
            self._log.warning(f"{path}: {capture.damage}")

    async def _send_interfaces(self, loop: asyncio.AbstractEventLoop) -> None:
        monitor = LinkMonitor(
            lambda event: _quietly(loop.call_soon_threadsafe, self._on_link, loop, event.name)
        )
        try:
            for source in self._sources:
                self._listen(loop, source)
            monitor.start()
            self._tell_unmarked()
            self._log.info(
                "cloning",
                sources=list(self.options.interfaces),
                tunnels=[tunnel.ledger.name for tunnel in self.tunnels],
            )
            await self._stop.wait()
            await self._drain(loop)
        finally:
            monitor.close()
            for source in self._sources:
                self._unlisten(loop, source)

    def _tell_unmarked(self) -> None:
        for tunnel in self.tunnels:
            if not tunnel.is_marked:
                self._log.warning(
                    "clones are not marked (that needs CAP_NET_ADMIN): other captures on this host"
                    " see them; the loop guard still refuses them here",
                    to=tunnel.ledger.name,
                )

    def _listen(self, loop: asyncio.AbstractEventLoop, source: InterfaceSource) -> None:
        ring = source.attach() if source.ring is None else source.ring
        loop.add_reader(ring.fileno(), self._on_readable, loop, source)

    def _unlisten(self, loop: asyncio.AbstractEventLoop, source: InterfaceSource) -> None:
        if source.ring is not None:
            loop.remove_reader(source.ring.fileno())
            source.detach()

    def _on_readable(self, loop: asyncio.AbstractEventLoop, source: InterfaceSource) -> None:
        ring, began = source.ring, monotonic()
        if self._stop.is_set() or ring is None:
            return
        if not source.read():
            loop.remove_reader(ring.fileno())
            self._listen(loop, source)
        elif monotonic() - began > LONGEST_READ:
            loop.remove_reader(ring.fileno())
            loop.call_later(BREATH, self._resume, loop, source, ring)
        if self.pipeline.is_done:
            self._end("count")

    def _resume(self, loop: asyncio.AbstractEventLoop, source: InterfaceSource, ring: Ring) -> None:
        if source.ring is ring and not self._stop.is_set():
            self._listen(loop, source)

    def _on_link(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """Follow an interface that vanishes and comes back under the same name."""
        for source in self._sources:
            if source.name != name or self._stop.is_set() or not source.is_stale():
                continue
            if source.ring is not None:
                self._log.warning("interface is gone, waiting for it", interface=name)
                source.read()
                self._unlisten(loop, source)
            if source.is_stale() and source.reattach():
                self._listen(loop, source)

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept nothing more, then send what the rings still hold."""
        for source in self._sources:
            if source.ring is not None:
                loop.remove_reader(source.ring.fileno())
                source.ring.stop()
        for tunnel in self.tunnels:
            tunnel.hurry()
        deadline = monotonic() + DRAIN  # a loop's own time stands still in a callback
        while any(source.pending() for source in self._sources) and monotonic() < deadline:
            await asyncio.sleep(DRAIN_STEP)
            for source in self._sources:
                if monotonic() < deadline:
                    source.read()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for source in self._sources:
                source.count_drops()
                self._on_link(asyncio.get_running_loop(), source.name)  # events can be lost
            for tunnel in self.tunnels:
                with contextlib.suppress(UserError, OSError):  # no route now: sending counts it
                    tunnel.refresh()
            self._watch.look(self.ledger.tunnels)
            if self._line.active and self.options.file is None:  # a file has its progress bar
                self._show_rate()
            ledger = self.ledger
            self._log.debug(
                "counters",
                received=ledger.received,
                kernel_dropped=ledger.kernel_dropped,
                refused=dict(ledger.refused),
                cloned=ledger.cloned,
                path_mtu={tunnel.ledger.name: tunnel.path_mtu for tunnel in self.tunnels},
            )

    def _show_rate(self) -> None:
        ledger = self.ledger
        octets = sum(tunnel.octets for tunnel in ledger.tunnels)
        packets, bits = ledger.cloned - self._last[0], (octets - self._last[1]) * 8
        self._last = (ledger.cloned, octets)
        lost = ledger.kernel_dropped + sum(
            tunnel.queue_dropped + tunnel.errors.total() for tunnel in ledger.tunnels
        )
        self._line.show(
            f"{console.rate(packets, 'packets/s')} cloned, {console.rate(bits, 'bit/s')} sent,"
            f" {ledger.cloned} in all, {lost} lost"
        )

    def _write_stats(self) -> None:
        for source in self._sources:
            source.count_drops()
        with contextlib.suppress(UserError):
            console.write_snapshot(self.options.stats, self.ledger.as_dict())

    def report(self) -> None:
        """Write the closing ledger: to ``--stats``, and in short to standard error."""
        ledger = self.ledger.as_dict()
        console.report(ledger, self._reason or "end of file")
        console.write_stats(self.options.stats, ledger)


def _quietly(call: object, *arguments: object) -> None:
    """Post to a loop that may have closed meanwhile."""
    with contextlib.suppress(RuntimeError):
        call(*arguments)  # type: ignore[operator]


def send(options: SendOptions) -> None:
    """Run ``tunnelbridge send`` to its end; raises UserError."""
    sender = Sender(options)
    try:
        uvloop.run(sender.run())
    except BaseException as error:
        # A mistake found before anything was sent is one line; anything else keeps its counts, and
        # a ledger that cannot be written must not hide it.
        if sender.ledger.received or not isinstance(error, UserError):
            with contextlib.suppress(UserError):
                sender.report()
        raise
    sender.report()
