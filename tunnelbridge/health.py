"""Probe pool members at their intervals and tell of those that go down and come back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from tunnelbridge.clone.health import Health
from tunnelbridge.linux import options
from tunnelbridge.linux.probe import HeartbeatProbe, IcmpProbe, Probe, RouteProbe

PROBES: Final[dict[str, type[IcmpProbe | HeartbeatProbe]]] = {
    "icmp": IcmpProbe,
    "heartbeat": HeartbeatProbe,
}


class HealthSettings(Protocol):
    """How a member is probed; ``interval`` and ``timeout`` in seconds, ``port`` of heartbeats."""

    @property
    def check(self) -> str:
        """Return off, route, icmp or heartbeat."""

    @property
    def interval(self) -> float: ...  # noqa: D102

    @property
    def timeout(self) -> float: ...  # noqa: D102

    @property
    def fall(self) -> int: ...  # noqa: D102

    @property
    def rise(self) -> int: ...  # noqa: D102

    @property
    def port(self) -> int: ...  # noqa: D102


Target = tuple[Hashable, str, HealthSettings]
"""A key that names the member to the caller, its IP address, how it is probed."""
OnChange = Callable[[Hashable, bool, str], None]
"""Called with the key, whether the member is up now, and why it is not."""


@dataclass(slots=True)
class _Member:
    ip: str
    settings: HealthSettings
    health: Health
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Asker:
    """A probe's socket and who waits for its answers."""

    probe: Probe
    waiting: dict[bytes, asyncio.Future[None]] = field(default_factory=dict)

    def on_readable(self) -> None:
        for nonce in self.probe.receive():
            future = self.waiting.pop(nonce, None)
            if future is not None and not future.done():
                future.set_result(None)


class HealthMonitor:
    """Probes members from :meth:`start` to :meth:`close`, on the running loop.

    Members are up at first. Sockets and questions to the kernel are of the calling thread's network
    namespace. What ``on_change`` raises goes to the loop's exception handler.
    """

    def __init__(self, targets: Iterable[Target], on_change: OnChange) -> None:
        self._on_change = on_change
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._members: dict[Hashable, _Member] = {}
        self._askers: dict[tuple[str, int], _Asker] = {}
        self._route = RouteProbe()
        self._thread = ThreadPoolExecutor(1, "route check")  # one: each takes CPU time from clones
        self.update(targets)

    def start(self) -> None:
        """Begin to probe."""
        self._loop = asyncio.get_running_loop()
        for asker in self._askers.values():
            self._loop.add_reader(asker.probe.fileno(), asker.on_readable)
        self._watch_all()

    def update(self, targets: Iterable[Target]) -> None:
        """Probe these members from now on; who is probed as before keeps its state.

        Raises UserError, and changes nothing, if an address or the right to probe it is lacking.
        """
        wanted = {key: (ip, settings) for key, ip, settings in targets if settings.check != "off"}
        for ip, settings in wanted.values():
            self._open(settings.check, options.resolve(ip)[0])
        for key, member in list(self._members.items()):
            if wanted.get(key) != (member.ip, member.settings):
                _stop(self._members.pop(key))
        for key, (ip, settings) in wanted.items():
            if key not in self._members:
                health = Health(settings.fall, settings.rise)
                self._members[key] = _Member(ip, settings, health)
        self._watch_all()

    def is_up(self, key: Hashable) -> bool:
        """Tell whether a member is up; one that is not probed always is."""
        member = self._members.get(key)
        return member is None or member.health.up

    def close(self) -> None:
        """End all probes and close their sockets; nothing is told any more."""
        for member in self._members.values():
            _stop(member)
        self._members.clear()
        for asker in self._askers.values():
            if self._loop is not None:
                self._loop.remove_reader(asker.probe.fileno())
            asker.probe.close()
        self._askers.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open(self, check: str, family: socket.AddressFamily) -> None:
        if check == "route" or (check, family) in self._askers:
            return
        asker = self._askers[check, family] = _Asker(PROBES[check](family))
        if self._loop is not None:
            self._loop.add_reader(asker.probe.fileno(), asker.on_readable)

    def _watch_all(self) -> None:
        """Start a task for each member that has none; their first probes are spread evenly."""
        if self._loop is None:
            return
        new = [(key, member) for key, member in self._members.items() if member.task is None]
        for number, (key, member) in enumerate(new):
            delay = member.settings.interval * number / len(new)
            member.task = self._loop.create_task(self._watch(key, member, delay))
            member.task.add_done_callback(_raise_to_loop)

    async def _watch(self, key: Hashable, member: _Member, delay: float) -> None:
        loop, settings = asyncio.get_running_loop(), member.settings
        await asyncio.sleep(delay)
        while True:
            began = loop.time()
            why = await self._probe(member)
            if member.health.observe(not why):
                self._tell(key, member, why)
            await asyncio.sleep(began + settings.interval - loop.time())

    def _tell(self, key: Hashable, member: _Member, why: str) -> None:
        if member.health.up:
            self._log.info("member is up again", member=member.ip, check=member.settings.check)
        else:
            check = member.settings.check
            self._log.warning("member is down", member=member.ip, check=check, why=why)
        self._on_change(key, member.health.up, why)

    async def _probe(self, member: _Member) -> str:
        """Return why a member cannot be reached, or ""."""
        loop, settings = asyncio.get_running_loop(), member.settings
        if settings.check == "route":
            return await loop.run_in_executor(self._thread, self._route.check, member.ip)
        asker = self._askers[settings.check, options.resolve(member.ip)[0]]
        port = settings.port if settings.check == "heartbeat" else 0
        try:
            nonce = asker.probe.send(member.ip, port)
        except OSError as error:
            return os.strerror(error.errno or 0)
        answer = asker.waiting[nonce] = loop.create_future()
        try:
            async with asyncio.timeout(settings.timeout):
                await answer
        except TimeoutError:
            return f"no answer within {settings.timeout:g} s"
        finally:
            asker.probe.forget(nonce)
            asker.waiting.pop(nonce, None)
        return ""


def _stop(member: _Member) -> None:
    if member.task is not None:
        member.task.cancel()


def _raise_to_loop(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "health check", "exception": error})
