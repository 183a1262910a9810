"""Beside the data path of a running collector: the control socket and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from collector.metrics import collector_families
from collector.status import Status
from tunnelbridge.control import ControlServer, default_path
from tunnelbridge.control_client import answers
from tunnelbridge.errors import UserError
from tunnelbridge.metrics import MetricsServer

PROGRAM: Final = "collector"
NAME: Final = "listen"


class Operation:
    """Answers whoever looks at the collector.

    ``control`` is where; True is the default place, where it is no error if there can be none;
    None is nowhere. ``metrics`` is an address or None. Raises UserError and UsageError.
    """

    def __init__(
        self,
        status: Status,
        stats: Callable[[], dict[str, Any]],
        control: Path | bool | None,
        metrics: str | None,
    ) -> None:
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._is_wanted = isinstance(control, Path)
        self._server = self._metrics = None
        path = control if isinstance(control, Path) else self._default() if control else None
        if path is not None:
            handlers = {"show": lambda request: status.show(str(request.get("what")))}
            self._server = ControlServer(path, handlers)
        if metrics is not None:
            self._metrics = MetricsServer(metrics, lambda: collector_families(stats()))

    def _default(self) -> Path | None:
        """Return a free path; several collectors may run."""
        try:
            path = default_path(PROGRAM, NAME)
            return default_path(PROGRAM, f"{NAME}-{os.getpid()}") if answers(path) else path
        except UserError as error:
            self._log.info("no control socket", reason=str(error))
            return None

    async def start(self) -> None:
        """Answer from now on; raises UserError."""
        if self._server is not None:
            try:
                await self._server.start()
            except UserError as error:
                if self._is_wanted:
                    raise
                self._server = None
                self._log.info("no control socket", reason=str(error))
            else:
                self._log.info("control socket", path=str(self._server.path))
        if self._metrics is not None:
            await self._metrics.start()
            self._log.info("metrics", url=self._metrics.url)

    async def close(self) -> None:
        """Answer no more."""
        for server in (self._server, self._metrics):
            if server is not None:
                await server.close()
