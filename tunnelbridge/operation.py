"""Running a sender: the control socket, reload, enable and disable, health of members, the stand-in.

Nothing of this touches packets; it changes what :class:`~tunnelbridge.policy.policy.Policy` is, between
two batches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from tunnelbridge.control import ControlServer, default_path
from tunnelbridge.control_client import answers
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.health import HealthMonitor
from tunnelbridge.interfaces import Interfaces
from tunnelbridge.metrics import MetricsServer, sender_families
from tunnelbridge.policy.from_config import STAND_IN
from tunnelbridge.policy.plan import Plan, StandInPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.wishes import Wishes
from tunnelbridge.replay import FileSource
from tunnelbridge.stand_in import StandIn
from tunnelbridge.status import Status

PROGRAM = "tunnelbridge send"


class Operation:
    """What an operator does to a running sender.

    Args:
        read: reads what ``reload`` is to follow; None where the command line said it all.
        wishes: what is followed now.
        control: the path on which to answer; None: nowhere.
        metrics: the address on which Prometheus may ask; None: nowhere.

    """

    def __init__(
        self,
        read: Callable[[], Wishes] | None,
        wishes: Wishes,
        policy: Policy,
        interfaces: Interfaces | FileSource,
        control: Path | None,
        metrics: str | None = None,
    ) -> None:
        self._read = read
        self._policy = policy
        self._interfaces = interfaces
        self._status = Status(wishes, policy, interfaces)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._server: ControlServer | None = None
        self._metrics: MetricsServer | None = None
        if metrics is not None:
            self._metrics = MetricsServer(
                metrics, lambda: sender_families(self._policy.ledger.as_dict())
            )
        self._health: HealthMonitor | None = None
        self._stand_in: StandIn | None = None
        self._standing_in: StandInPlan | None = None
        self._reloading = asyncio.Lock()
        if control is not None:
            handlers = {
                "show": self._show,
                "enable": lambda request: self._enable(request, True),
                "disable": lambda request: self._enable(request, False),
                "reload": self._reload,
            }
            self._server = ControlServer(control, handlers)

    async def start(self) -> None:
        """Answer on the control socket, watch members, stand in; raises UserError."""
        if self._server is not None:
            await self._server.start()
            self._log.info("control socket", path=str(self._server.path))
        if self._metrics is not None:
            await self._metrics.start()
            self._log.info("metrics", url=self._metrics.url)
        plan = self._policy.plan
        self._watch(plan)
        if plan.stand_in is not None:
            self._stand_in = await _standing_in(plan.stand_in)
            self._standing_in = plan.stand_in
        mirror = self._status.wishes.mirror
        for line in mirror.warnings() if mirror else ():
            self._log.warning(line)

    async def close(self) -> None:
        """End what :meth:`start` began."""
        for server in (self._server, self._metrics):
            if server is not None:
                await server.close()
        if self._health is not None:
            self._health.close()
        if self._stand_in is not None:
            self._stand_in.close()

    async def reload(self) -> list[str]:
        """Read the file again and follow it; return what changed, one line each.

        Raises UsageError and UserError: something is wrong with it, and nothing has changed.
        """
        if self._read is None:
            raise UsageError("there is no file to read again: sources and targets were options")
        async with self._reloading:
            fresh = await asyncio.to_thread(self._checked, self._read)
            stand_in = self._stand_in
            if fresh.plan.stand_in != self._standing_in:  # the former one answers meanwhile
                wanted = fresh.plan.stand_in
                stand_in = None if wanted is None else await _standing_in(wanted)
            try:
                self._follow(fresh)
            except (UserError, OSError) as error:
                self._watch(self._policy.plan)
                if stand_in is not None and stand_in is not self._stand_in:
                    stand_in.close()
                if isinstance(error, OSError):  # no descriptor, no memory left for another socket
                    raise UserError(f"cannot follow the file: {error.strerror}") from None
                raise
            self._replace_stand_in(stand_in, fresh.plan.stand_in)
            before = self._status.wishes.mirror
            self._status.wishes = fresh
        return before.difference(fresh.mirror) if before and fresh.mirror else []

    def _checked(self, read: Callable[[], Wishes]) -> Wishes:
        """Read, and try what can be tried; in a thread, because names and interfaces are asked for."""
        fresh = read()
        self._interfaces.check(fresh.plan.sessions)
        return fresh

    def _follow(self, fresh: Wishes) -> None:
        """Take over a plan; raises UserError and OSError before anything but health has changed."""
        plan = self._with_switches(fresh)
        self._watch(plan)
        self._policy.apply(plan, fresh.mtu)
        self._interfaces.follow_policy()

    def _replace_stand_in(self, stand_in: StandIn | None, plan: StandInPlan | None) -> None:
        if stand_in is not self._stand_in and self._stand_in is not None:
            self._stand_in.close()
        self._stand_in, self._standing_in = stand_in, plan

    async def reload_and_tell(self) -> None:
        """Reload for SIGHUP: what came of it goes to the log."""
        try:
            changes = await self.reload()
        except UserError as error:
            for line in str(error).splitlines():
                self._log.error(f"not reloaded: {line}")
            return
        for change in changes or ["nothing changed"]:
            self._log.info(f"reloaded: {change}")

    def _with_switches(self, fresh: Wishes) -> Plan:
        """Keep what ``enable`` and ``disable`` did, unless the file itself now says otherwise."""
        before = {each.name: each.enabled for each in self._status.wishes.plan.sessions}
        now = {each.name: each.enabled for each in self._policy.plan.sessions}
        return replace(
            fresh.plan,
            sessions=tuple(
                replace(each, enabled=now[each.name])
                if before.get(each.name) == each.enabled
                else each
                for each in fresh.plan.sessions
            ),
        )

    def _watch(self, plan: Plan) -> None:
        """Check the members that are to be checked now; who is not checked any more is up."""
        targets = [(each, *each) for each in plan.watched]
        if self._health is not None:
            self._health.update(targets)
        elif targets:
            self._health = HealthMonitor(targets, self._on_health)
            self._health.start()
        for each in self._policy.down:
            if self._health is None or self._health.is_up(each):
                self._policy.set_up(each, True)

    def _on_health(self, key: Hashable, up: bool, _why: str) -> None:
        for each in self._policy.plan.watched:
            if each == key:
                self._policy.set_up(each, up)

    # --- requests ---

    def _show(self, request: Mapping[str, Any]) -> Any:
        result = self._status.show(str(request.get("what")))
        if request.get("reset") and request.get("what") == "stats":
            self._status.reset()
        return result

    def _enable(self, request: Mapping[str, Any], enabled: bool) -> dict[str, bool]:
        name = str(request.get("session"))
        if name.startswith(STAND_IN):
            raise UsageError(f"{name} follows [stand_in] in the file: change it there, and reload")
        changed = self._policy.enable(name, enabled)
        if changed:
            self._interfaces.follow_policy()
            self._log.info("session enabled" if enabled else "session disabled", session=name)
        return {"changed": changed}

    async def _reload(self, _request: Mapping[str, Any]) -> dict[str, list[str]]:
        changes = await self.reload()
        for change in changes:
            self._log.info(f"reloaded: {change}")
        return {"changes": changes}


async def _standing_in(plan: StandInPlan) -> StandIn:
    """Stand in for whom the plan says; raises UserError: somebody else answers for an address."""
    stand_in = StandIn(plan.interface, plan.members, plan.announce)
    await stand_in.start()
    return stand_in


def free_path(name: str) -> Path:
    """Return a path for the control socket; several senders may have files of the same name."""
    path = default_path(PROGRAM, name)
    return default_path(PROGRAM, f"{name}-{os.getpid()}") if answers(path) else path
