"""``tunnelbridge send``: sources, pipeline and tunnels under one uvloop.

The loop owns the edges only: a ring that has a block ready, a link that came or went, signals, the
control socket, the once-a-second look at counters and path MTUs. A batch goes through ``pipeline``
without awaiting.
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
from tunnelbridge.clone.rules import Direction
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.interfaces import Interfaces, check_named
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.linux.ring import Ring
from tunnelbridge.operation import Operation, free_path
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.clients import Clients
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.programs import expression_programs
from tunnelbridge.policy.wishes import Wishes, from_file, from_options
from tunnelbridge.replay import FileSource, parse_speed, replay
from tunnelbridge.source import LONGEST_READ, InterfaceSource
from tunnelbridge.watch import LossWatch

TICK: Final = 1.0
REFRESH: Final = 60
"""Ticks after which conntrack is asked for all its connections again."""
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
    config: Path | None = None
    to: Sequence[str] = ()
    arp: Sequence[str] = ()
    fdb: Sequence[str] = ()
    expression: str = ""
    direction: Direction = "both"
    snaplen: int | None = None
    mtu: MtuPolicy | None = None
    speed: str = "original"
    count: int | None = None
    duration: float | None = None
    stats: str | None = None
    control: Path | None = None
    metrics: str | None = None
    verbose: bool = False
    speed_value: float | None = field(init=False, default=None)

    def validate(self) -> None:
        """Refuse what does not fit together; raises UsageError."""
        if self.config is not None:
            self._refuse_beside_config()
        elif bool(self.interfaces) == (self.file is not None):
            raise UsageError(
                "give interfaces (-i) or a capture file (-r), one of them; or --config FILE"
            )
        elif not self.to:
            raise UsageError(
                "give at least one target: --to TUNNEL, or --to IP with --arp and --fdb"
            )
        if len(set(self.interfaces)) != len(self.interfaces):
            raise UsageError("an interface is named twice")
        if self.file is not None and self.direction != "both":
            raise UsageError("--direction chooses among an interface's packets, not a file's (-r)")
        if self.file is None and self.speed != "original":
            raise UsageError("--speed paces a file (-r); packets of -i are cloned as they come")
        self.speed_value = parse_speed(self.speed)

    def _refuse_beside_config(self) -> None:
        for given, option in (
            (self.interfaces, "-i"),
            (self.to, "--to"),
            (self.arp, "--arp"),
            (self.fdb, "--fdb"),
            (self.expression, "--filter"),
            (self.direction != "both", "--direction"),
            (self.snaplen, "--snaplen"),
        ):
            if given:
                raise UsageError(f"{option} stands in the file of --config: leave out one of them")

    def wishes(self) -> Wishes:
        """Return what is to be done; raises UsageError and UserError."""
        if self.config is not None:
            return from_file(self.config, self.mtu)
        return from_options(
            self.interfaces, self.to, self.arp, self.fdb,
            expression=self.expression, direction=self.direction, snaplen=self.snaplen, mtu=self.mtu,
        )  # fmt: skip


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
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps weak references only
        wishes = options.wishes()
        if options.file is None:
            check_named(wishes.plan.sessions)
        else:
            expression_programs(wishes.plan.sessions, None)
        clients = Clients() if options.file is None else None  # a file's packets are of elsewhere
        self.policy = Policy(wishes.plan, wishes.mtu, clients)
        self.pipeline = Pipeline(self.policy, options.count)
        self.interfaces = Interfaces(self.pipeline, self._listen, self._unlisten)
        self._file = None if options.file is None else FileSource(self.policy)
        control = options.control
        if control is None and options.config is not None:
            control = free_path(options.config.stem)
        self.operation = Operation(
            options.wishes if options.config is not None else None,
            wishes,
            self.policy,
            self._file or self.interfaces,
            control,
            options.metrics,
        )
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
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR1, self._write_stats)
        if self.options.duration is not None:
            loop.call_later(self.options.duration, self._end, "duration")
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._on_task_end)
        try:
            await self.operation.start()
            if self.options.file is not None and self._file is not None:
                await self._send_file(self.options.file, self._file)
            else:
                await self._send_interfaces(loop)
        except Exception as error:  # raised below, unless an earlier one is
            self._fail(error)
        finally:
            ticker.cancel()
            for reloading in self._tasks:
                reloading.cancel()
            await self.operation.close()
            self.policy.close()
            self._line.clear()
            loop.set_exception_handler(former)
        if self._failure is not None:
            raise self._failure

    def _on_hangup(self) -> None:
        """Reload the configuration; without one a closed terminal ends the program."""
        if self.options.config is None:
            self._end("SIGHUP")
            return
        reloading = asyncio.create_task(self.operation.reload_and_tell())
        self._tasks.add(reloading)
        reloading.add_done_callback(self._on_task_end)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what a callback raised, which the loop would only log."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._fail(error)
        else:
            loop.default_exception_handler(context)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End for a failure; of several the first is told."""
        if self._failure is None:
            self._failure = error
        self._end("error")

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stop.set()

    async def _send_file(self, path: Path, source: FileSource) -> None:
        capture, speed = open_capture(path), self.options.speed_value
        with console.progress(capture.total_octets, path.name) as advance:
            await replay(capture, self.pipeline, source.selection, speed, self._stop, advance)
        if self.pipeline.is_done:
            self._end("count")
        if capture.damage:
            self._log.warning(f"{path}: {capture.damage}")

    async def _send_interfaces(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.interfaces.start(loop)
            self._tell_unmarked()
            self._log.info(
                "cloning",
                sources=[source.ledger.name for source in self.interfaces.sources],
                tunnels=[tunnel.ledger.name for tunnel in self.policy.tunnels],
            )
            await self._stop.wait()
            await self._drain(loop)
        finally:
            self.interfaces.close()

    def _tell_unmarked(self) -> None:
        for tunnel in self.policy.tunnels:
            if not tunnel.is_marked:
                self._log.warning(
                    "clones are not marked (that needs CAP_NET_ADMIN): other captures on this host"
                    " see them; the loop guard still refuses them here",
                    to=tunnel.ledger.name,
                )

    def _listen(self, source: InterfaceSource) -> None:
        if source.ring is not None:
            asyncio.get_running_loop().add_reader(
                source.ring.fileno(), self._on_readable, source, source.ring
            )

    def _unlisten(self, source: InterfaceSource) -> None:
        if source.ring is not None:
            asyncio.get_running_loop().remove_reader(source.ring.fileno())

    def _on_readable(self, source: InterfaceSource, ring: Ring) -> None:
        loop, began = asyncio.get_running_loop(), monotonic()
        if self._stop.is_set() or source.ring is not ring:
            return
        if not source.read():
            loop.remove_reader(ring.fileno())
            self._listen(source)
        elif monotonic() - began > LONGEST_READ:
            loop.remove_reader(ring.fileno())
            loop.call_later(BREATH, self._resume, source, ring)
        if self.pipeline.is_done:
            self._end("count")

    def _resume(self, source: InterfaceSource, ring: Ring) -> None:
        if source.ring is ring and not self._stop.is_set():
            self._listen(source)

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept nothing more, then send what the rings still hold."""
        for source in self.interfaces.sources:
            if source.ring is not None:
                loop.remove_reader(source.ring.fileno())
                source.ring.stop()
        for tunnel in self.policy.tunnels:
            tunnel.hurry()
        deadline = monotonic() + DRAIN  # a loop's own time stands still in a callback
        while (
            any(source.pending() for source in self.interfaces.sources) and monotonic() < deadline
        ):
            await asyncio.sleep(DRAIN_STEP)
            for source in self.interfaces.sources:
                if monotonic() < deadline:
                    source.read()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK)
            clients = self.policy.clients
            if not self._stop.is_set():
                if clients is not None:  # before the first packet of a namespace that is new
                    clients.look()
                self.interfaces.look()
            if self.pipeline.is_done:  # by what an interface that vanished had left
                self._end("count")
            ticks += 1
            if ticks % REFRESH == 0 and clients is not None:
                clients.refresh()
            for tunnel in self.policy.tunnels:
                with contextlib.suppress(UserError, OSError):  # no route now: sending counts it
                    tunnel.refresh()
            self._watch.look([tunnel.ledger for tunnel in self.policy.tunnels])
            if self._line.active and self.options.file is None:  # a file has its progress bar
                self._show_rate()
            ledger = self.ledger
            self._log.debug(
                "counters",
                received=ledger.received,
                kernel_dropped=ledger.kernel_dropped,
                refused=dict(ledger.refused),
                cloned=ledger.cloned,
                path_mtu={each.ledger.name: each.path_mtu for each in self.policy.tunnels},
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
        for source in self.interfaces.sources:
            source.count_drops()
        with contextlib.suppress(UserError):
            console.write_snapshot(self.options.stats, self.ledger.as_dict())

    def report(self) -> None:
        """Write the closing ledger: to ``--stats``, and in short to standard error."""
        ledger = self.ledger.as_dict()
        console.report(ledger, self._reason or "end of file")
        console.write_stats(self.options.stats, ledger)


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
