"""Tell when interfaces come, go, and change.

pyroute2 does not run on uvloop, so its asyncio side has a thread and a stdlib loop of its own here;
events are told from that thread. Events can be lost under a flood of them (the kernel drops what a full
socket buffer cannot take), so who must not miss a change also looks once in a while.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.rtnl import RTMGRP_LINK

from tunnelbridge.linux.options import IFF_UP


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """What an interface is now; ``up`` is the administrative state.

    A renamed interface is an event ``present=False`` under its old name, then one under its new.
    """

    name: str
    index: int
    present: bool
    up: bool


class LinkMonitor:
    """Calls ``callback`` with every link event, in a thread of its own.

    An event may repeat what is known already. The namespace is that of the thread which calls
    :meth:`start`; what happens after ``start`` has returned is not missed.
    """

    def __init__(self, callback: Callable[[LinkEvent], None]) -> None:
        self._callback = callback
        self._known: dict[int, LinkEvent] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Subscribe, then watch in a thread."""
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="link monitor", daemon=True
        )
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """End the thread; no callback runs any more afterwards."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._task is None:
            return
        self._loop.call_soon_threadsafe(self._task.cancel)
        if thread is not threading.current_thread():
            thread.join()

    def _run(self, ready: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._watch(ready))
        except asyncio.CancelledError:
            return
        finally:
            ready.set()  # whoever waits in start() must not wait for a thread that failed

    async def _watch(self, ready: threading.Event) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        async with AsyncIPRoute() as netlink:
            await netlink.bind(RTMGRP_LINK)
            self._known = await _dump(netlink)
            ready.set()
            while True:
                async for message in netlink.get():
                    event = _event(message)
                    if event is not None:
                        self._tell(event)

    def _tell(self, event: LinkEvent) -> None:
        before = self._known.pop(event.index, None)
        if before and before.name != event.name:
            self._callback(LinkEvent(before.name, before.index, present=False, up=False))
        if event.present:
            self._known[event.index] = event
        self._callback(event)


async def _dump(netlink: Any) -> dict[int, LinkEvent]:
    """Return all interfaces by index."""
    events = [_event(message) async for message in await netlink.link("dump")]
    return {event.index: event for event in events if event is not None}


def _event(message: Any) -> LinkEvent | None:
    """Return what a link message tells; None for other messages.

    AF_BRIDGE messages tell that a port joined or left a bridge, not that an interface did.
    """
    kind = message.get("event")
    if kind not in ("RTM_NEWLINK", "RTM_DELLINK") or message["family"] != socket.AF_UNSPEC:
        return None
    present = kind == "RTM_NEWLINK"
    up = present and bool(message["flags"] & IFF_UP)
    return LinkEvent(message.get_attr("IFLA_IFNAME") or "", message["index"], present, up)
