"""Ask a running program over its control socket: the client's side of :mod:`tunnelbridge.control`.

Plain blocking sockets: what the command line needs, without an event loop.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tunnelbridge.errors import UsageError, UserError

LONGEST_PATH: Final = 107  # unix(7): sun_path has 108 octets, the last one zero
RUN: Final = Path("/run")
SHORTLY: Final = 1.0
STEP: Final = 0.01
CHUNK: Final = 1 << 16
ADVICE: Final = {
    "tunnelbridge send": "start it with --config or --control PATH",
    "collector listen": "is collector listen running? --control PATH says where its socket is",
}
"""What to do when nobody is there; the collector has a socket without being asked to."""


def ask(
    path: Path, request: Mapping[str, Any], timeout: float = 5.0, program: str = "tunnelbridge send"
) -> Any:
    """Return the result of a request; blocks, for at most ``timeout`` seconds.

    Raises UserError: nobody listens there, permission is lacking, no answer comes in time, or the
    answer is an error. ``program`` is whom an error calls the other side.
    """
    check_length(path)
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _connect(sock, path, deadline)
            line = _exchange(sock, json.dumps(request).encode() + b"\n", deadline)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise _nobody(program, f"at {path}") from None
        except PermissionError:
            raise UserError(
                f"permission denied for {path}: ask as the user who started {program}, or with sudo"
            ) from None
        except TimeoutError:
            raise UserError(f"{program} at {path} did not answer within {timeout:g} s") from None
        except OSError as error:
            raise UserError(f"no answer from {program} at {path}: {error.strerror}") from None
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer["result"]
        failure = str(answer["error"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{program} at {path} ended before it answered") from None
    raise UserError(failure)


def _connect(sock: socket.socket, path: Path, deadline: float) -> None:
    while True:
        sock.settimeout(max(deadline - time.monotonic(), STEP))
        try:
            return sock.connect(os.fspath(path))
        except BlockingIOError:  # its queue of new clients is full
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(STEP)


def _exchange(sock: socket.socket, request: bytes, deadline: float) -> bytes:
    """Send a request; return the octets of the answer's line, or fewer if the other side ends."""
    sock.sendall(request)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        octets = sock.recv(CHUNK)
        if not octets:
            break
        answer += octets
    return bytes(answer)


def _nobody(program: str, where: str) -> UserError:
    advice = ADVICE.get(program, "start it, or choose another with --control PATH")
    return UserError(f"no {program} is running with a control socket {where}: {advice}")


def find(program: str, given: Path | None = None) -> Path:
    """Return the socket to ask: the given one, or the only one on which somebody answers.

    Raises UserError: there is none, or there are several.
    """
    if given is not None:
        return given
    folders = list(dict.fromkeys([folder_of(program), RUN / program.split()[0]]))
    paths = [path for folder in folders for path in _sockets(folder)]
    found = [path for path in paths if answers(path)]
    if not found:
        raise _nobody(program, f"in {' or '.join(map(str, folders))}")
    if len(found) > 1:
        there = ", ".join(map(str, found))
        raise UserError(f"several are running: choose one with --control ({there})")
    return found[0]


def _sockets(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.sock"))
    except PermissionError:  # somebody else's folder
        return []


def folder_of(program: str) -> Path:
    """Return the folder of the control sockets of what this user starts.

    It is named by the first word of ``program``: "tunnelbridge send" has its in tunnelbridge/.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache")
    return (RUN if os.geteuid() == 0 else base) / program.split()[0]


def answers(path: Path) -> bool:
    """Tell whether a program listens at ``path``, one we may not talk to included."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SHORTLY)
        try:
            sock.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # busy, or not ours to ask: somebody's
            return True
    return True


def check_length(path: Path) -> None:
    """Raise UsageError for a path that no socket can have."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UsageError(f"{path}: a socket's path has at most {LONGEST_PATH} octets")
