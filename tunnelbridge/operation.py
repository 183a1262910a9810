"""Running a sender: the control socket, reload, enable and disable, health of members, the stand-in.

Nothing of this touches packets; it changes what :class:`~tunnelbridge.policy.policy.Policy` is, between
two batches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from tunnelbridge.control import ControlServer, default_path
from tunnelbridge.control_client import answers
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.health import HealthMonitor
from tunnelbridge.interfaces import Interfaces, check_named
from tunnelbridge.linux.libpcap import compile_filter
from tunnelbridge.policy.plan import HealthPlan, Plan, StandInPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.wishes import Wishes, from_file
from tunnelbridge.stand_in import StandIn
from tunnelbridge.status import Status

PROGRAM = "tunnelbridge send"


class Operation:
    """What an operator does to a running sender.

    Args:
        config: the file that ``reload`` reads again; None where the command line said it all.
        control: where to answer; None: a default place with a file, nowhere without.

    """

    def __init__(
        self,
        wishes: Wishes,
        policy: Policy,
        interfaces: Interfaces,
        config: Path | None,
        control: Path | None,
    ) -> None:
        self._policy = policy
        self._interfaces = interfaces
        self._config = config
        self._status = Status(wishes, policy, interfaces)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._server: ControlServer | None = None
        self._health: HealthMonitor | None = None
        self._stand_in: StandIn | None = None
        self._standing_in: StandInPlan | None = None
        self._reloading = asyncio.Lock()
        if control is None and config is not None:
            control = _free_path(config.stem)
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
        self._follow_health()
        await self._follow_stand_in(self._policy.plan.stand_in)
        mirror = self._status.wishes.mirror
        for line in mirror.warnings() if mirror else ():
            self._log.warning(line)

    async def close(self) -> None:
        """End what :meth:`start` began."""
        if self._server is not None:
            await self._server.close()
        if self._health is not None:
            self._health.close()
        if self._stand_in is not None:
            self._stand_in.close()

    async def reload(self) -> list[str]:
        """Read the file again and follow it; return what changed, one line each.

        Raises UsageError and UserError: something is wrong with it, and nothing has changed.
        """
        if self._config is None:
            raise UsageError("there is no file to read again: sources and targets were options")
        async with self._reloading:
            try:
                return await self._reload_from(self._config)
            except OSError as error:  # no descriptor or no memory left for another socket
                raise UserError(f"{self._config}: {error.strerror}") from None

    async def _reload_from(self, path: Path) -> list[str]:
        fresh = await asyncio.to_thread(self._read, path)
        before = self._status.wishes.mirror
        former = self._standing_in
        await self._follow_stand_in(fresh.plan.stand_in)
        try:
            self._policy.apply(self._with_switches(fresh))
        except (UserError, OSError):
            await self._follow_stand_in(former)
            raise
        self._interfaces.follow_policy()
        self._follow_health()
        self._status.wishes = fresh
        if before is None or fresh.mirror is None:
            return []
        return before.difference(fresh.mirror)

    def _read(self, path: Path) -> Wishes:
        """Read and check the file; in a thread, because names and interfaces are asked for."""
        fresh = from_file(path)
        check_named(fresh.plan.sessions)
        for session in fresh.plan.sessions:
            compile_filter(session.expression, interface="lo")
        return fresh

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

    def _follow_health(self) -> None:
        """Probe the members that are to be probed now; who is not probed any more is up."""
        plans: dict[str, HealthPlan] = {}
        for session in self._policy.plan.sessions:
            for group in session.groups:
                for member in group.members:
                    if member.health is not None:
                        plans.setdefault(member.ip, member.health)
        targets = [(ip, ip, settings) for ip, settings in plans.items()]
        if self._health is not None:
            self._health.update(targets)
        elif targets:
            self._health = HealthMonitor(targets, self._on_health)
            self._health.start()
        for ip in self._policy.down:
            if self._health is None or self._health.is_up(ip):
                self._policy.set_up(ip, True)

    def _on_health(self, ip: Hashable, up: bool, _why: str) -> None:
        self._policy.set_up(str(ip), up)

    async def _follow_stand_in(self, wanted: StandInPlan | None) -> None:
        """Stand in for whom the plan says; raises UserError: somebody else answers for an address."""
        if wanted == self._standing_in:
            return
        if self._stand_in is not None:
            self._stand_in.close()
            self._stand_in = self._standing_in = None
        if wanted is not None:
            stand_in = StandIn(wanted.interface, wanted.members, wanted.announce)
            await stand_in.start()
            self._stand_in, self._standing_in = stand_in, wanted

    # --- requests ---

    def _show(self, request: Mapping[str, Any]) -> Any:
        result = self._status.show(str(request.get("what")))
        if request.get("reset") and request.get("what") == "stats":
            self._status.reset()
        return result

    def _enable(self, request: Mapping[str, Any], enabled: bool) -> dict[str, bool]:
        name = str(request.get("session"))
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


def _free_path(name: str) -> Path:
    """Return a path for the control socket; several senders may have files of the same name."""
    path = default_path(PROGRAM, name)
    return default_path(PROGRAM, f"{name}-{os.getpid()}") if answers(path) else path
