"""The control socket of a running program: one JSON object a line, in and out.

A unix stream socket of mode 0600: who may open it is who started the program, and root. A request
names a ``command``; the answer is ``{"ok": true, "result": …}`` or ``{"ok": false, "error": "…"}``.
Clients are served one request at a time each, so that what waits for a slow one is one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import inspect
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tunnelbridge.control_client import answers, check_length, folder_of
from tunnelbridge.errors import UserError

LONGEST_LINE: Final = 1 << 16
"""Octets of a request."""
MOST_CLIENTS: Final = 64
IDLE: Final = 300.0
"""Seconds without a request after which a client is sent away."""
PATIENCE: Final = 5.0
"""Seconds a client may take to read an answer."""
LOCK_WAIT: Final = 1.0
STEP: Final = 0.01

Handler = Callable[[Mapping[str, Any]], Any]


class ControlServer:
    """Answers requests on ``path``; ``handlers`` are named by command and get the whole request.

    A handler returns what JSON can say, or an awaitable of it. UserError becomes an error answer;
    any other exception is a bug, answered and then handed to the loop's exception handler.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._identity: tuple[int, int] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Listen; raises UserError: another program answers there, or no socket can be made."""
        sock, self._identity = _listen(self.path)
        try:
            self._server = await asyncio.start_unix_server(
                self._on_client, sock=sock, limit=LONGEST_LINE
            )
        except BaseException:
            sock.close()
            raise

    async def close(self) -> None:
        """Send every client away and remove the socket, if it is still ours."""
        server, self._server = self._server, None
        if server is None:
            return
        self._is_closed = True
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                self.path.unlink()

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_closed:  # it came in meanwhile
            writer.transport.abort()
            return
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients[client] = writer
        client.add_done_callback(self._on_client_end)

    def _on_client_end(self, client: asyncio.Task[None]) -> None:
        self._clients.pop(client).transport.abort()  # what it did not read in time it does not get
        if not client.cancelled() and (error := client.exception()) is not None:
            _raise_to_loop(client.get_loop(), error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # drained means handed to the kernel
        try:
            if len(self._clients) > MOST_CLIENTS:
                await _write(writer, _failure(f"more than {MOST_CLIENTS} clients"))
                return
            while (line := await _read_line(reader)) != b"":
                await self._answer(line, writer)
        except (ConnectionError, TimeoutError):
            pass  # a client's end is the client's affair

    async def _answer(self, line: bytes | None, writer: asyncio.StreamWriter) -> None:
        bug: Exception | None = None
        try:
            answer = json.dumps({"ok": True, "result": await self._handle(_parse(line))}).encode()
        except UserError as error:
            answer = _failure(str(error))
        except Exception as error:  # told here, raised to the loop below
            answer, bug = _failure(f"a bug: {type(error).__name__}: {error}"), error
        try:
            await _write(writer, answer)
        finally:
            if bug is not None:
                _raise_to_loop(asyncio.get_running_loop(), bug)

    async def _handle(self, request: dict[str, Any]) -> Any:
        command = request.get("command")
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            known = ", ".join(self._handlers)
            raise UserError(f"unknown command {command!r}: expected one of {known}")
        result = handler(request)
        return await result if inspect.isawaitable(result) else result


def _raise_to_loop(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    loop.call_exception_handler({"message": "control socket", "exception": error})


async def _read_line(reader: asyncio.StreamReader) -> bytes | None:
    """Return a line; b"" at the end of the stream, None for one too long, which is thrown away."""
    too_long = False
    async with asyncio.timeout(IDLE):
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                line = end.partial  # the last line may lack its end
            except asyncio.LimitOverrunError as overrun:
                await reader.readexactly(overrun.consumed)
                too_long = True
                continue
            return None if too_long and line else line


async def _write(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer + b"\n")
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise UserError(f"a request has at most {LONGEST_LINE} octets")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UserError('expected one JSON object a line, as {"command": "show"}')
    return request


def _failure(error: str) -> bytes:
    return json.dumps({"ok": False, "error": error}).encode()


def _listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """Return a listening socket at ``path``, of mode 0600 from its first moment, and its identity."""
    check_length(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone(path.parent):
            _remove_stale(path)
            former = os.umask(0o177)
            try:
                sock.bind(os.fspath(path))
            finally:
                os.umask(former)
            sock.listen(MOST_CLIENTS)
            identity = _identity(path)
    except OSError as error:
        sock.close()
        raise UserError(f"cannot make control socket {path}: {error.strerror}") from None
    except UserError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock, identity


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two programs that start at once from removing each other's socket.

    Not for longer than a second: who holds the lock on purpose must not keep us from starting.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_WAIT
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(STEP)
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Make room at ``path``; UserError if somebody answers there, or it is no socket at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{path} is there and is no socket: give another path with --control")
    if answers(path):
        raise UserError(
            f"another program answers at {path}: stop it, or give another path with --control"
        )
    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def default_path(program: str, name: str) -> Path:
    """Return where ``program`` puts the control socket called ``name``; makes the folder.

    The folder is /run/PROGRAM as root, else $XDG_RUNTIME_DIR/PROGRAM, else ~/.cache/PROGRAM, with
    the first word of ``program``.
    Raises UserError: the folder cannot be made.
    """
    folder, mode = folder_of(program), 0o755 if os.geteuid() == 0 else 0o700
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(mode)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} for the control socket: {error.strerror};"
            " give another path with --control"
        ) from None
    return folder / f"{name}.sock"
