"""The control socket: many clients, garbage, slow readers, rights, and sockets left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lab
from tunnelbridge import control, control_client
from tunnelbridge.control import ControlServer, default_path
from tunnelbridge.control_client import ask, find
from tunnelbridge.errors import UserError

PROGRAM = "tunnelbridge send"


class Running:
    """A server on a uvloop in a thread of its own, and what its loop was told of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bugs: list[BaseException] = []
        self.turns = 0
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self.server = ControlServer(path, self.handlers())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def handlers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        async def later(request: Mapping[str, Any]) -> Any:
            await asyncio.sleep(0)
            return request["value"]

        def refuse(_: Mapping[str, Any]) -> Any:
            raise UserError("not like that")

        return {
            "echo": lambda request: request["value"],
            "later": later,
            "refuse": refuse,
            "bug": lambda _: 1 // 0,
            "unsayable": lambda _: object(),
            "much": lambda request: "x" * request["octets"],
            "never": lambda _: asyncio.sleep(3600),
            "stopped": lambda _: None,
        }

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context["exception"]))
        ticker = asyncio.create_task(self._tick())
        try:
            await self.server.start()
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
            if self._failure is not None:
                ticker.cancel()
        await self._end.wait()
        await self.server.close()
        ticker.cancel()

    async def _tick(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def running(path: Path) -> Iterator[Running]:
    server = Running(path)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@pytest.fixture
def server(path: Path) -> Iterator[Running]:
    with running(path) as server:
        yield server
        assert server.bugs == []


@contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        yield sock


def lines(sock: socket.socket, count: int) -> list[Any]:
    """Return the next answers on a socket; fewer if the server ends the connection."""
    with sock.makefile("rb") as file:
        return [json.loads(line) for line in (file.readline() for _ in range(count)) if line]


def rest(sock: socket.socket) -> bytes:
    """Return what still comes, until the server ends the connection, in whichever way."""
    octets = bytearray()
    with contextlib.suppress(ConnectionError):
        while some := sock.recv(1 << 20):
            octets += some
    return bytes(octets)


@pytest.mark.parametrize("value", [0, None, "ü\n", [1, {"a": None}], {"deep": [[[]]]}])
@pytest.mark.parametrize("command", ["echo", "later"])
def test_results_come_back(server: Running, command: str, value: Any) -> None:
    assert ask(server.path, {"command": command, "value": value}) == value


def test_the_lines_are_what_the_issue_says(server: Running) -> None:
    with client(server.path) as sock:
        sock.sendall(b'{"command":"echo","value":[1]}\n{"command":"refuse"}\n')
        assert lines(sock, 2) == [
            {"ok": True, "result": [1]},
            {"ok": False, "error": "not like that"},
        ]


def test_socat_and_nc_do_as_clients(server: Running) -> None:
    lab.need("nc")
    done = subprocess.run(
        ["nc", "-U", "-N", str(server.path)],
        input='{"command":"echo","value":7}',  # without a line's end
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert json.loads(done.stdout) == {"ok": True, "result": 7}


def test_many_clients_at_once_each_get_their_own(server: Running) -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        for turn in range(10):
            value = [number, turn, "x" * 1000]
            assert ask(server.path, {"command": "later", "value": value}) == value
        results[number] = True

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40


def test_one_client_too_many_is_told_so_and_room_is_made_again(server: Running) -> None:
    with ExitStack() as stack:
        for _ in range(control.MOST_CLIENTS):
            sock = stack.enter_context(client(server.path))
            sock.sendall(b'{"command":"echo","value":1}\n')
            assert lines(sock, 1) == [{"ok": True, "result": 1}]
        with client(server.path) as sock:
            assert lines(sock, 2) == [{"ok": False, "error": "more than 64 clients"}]
    lab.until(lambda: not server.server._clients, what="clients gone")
    assert ask(server.path, {"command": "echo", "value": 2}) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "expected one JSON object"),
        (b"{", "expected one JSON object"),
        (b"[]", "expected one JSON object"),
        (b"\xff\xfe\x00", "expected one JSON object"),
        (b"null", "expected one JSON object"),
        (b"[" * 60_000, "expected one JSON object"),
        (b"{}", "unknown command None: expected one of echo"),
        (b'{"command":"nosuch"}', "unknown command 'nosuch'"),
        (b'{"command":["echo"]}', "unknown command ['echo']"),
        (b"x" * ((1 << 16) + 1), "at most 65536 octets"),
        (b"x" * (1 << 20), "at most 65536 octets"),
        (b'{"command":"echo","value":"' + b"x" * (1 << 17) + b'"}', "at most 65536 octets"),
    ],
)
def test_garbage_is_answered_and_the_next_line_served(
    server: Running, line: bytes, words: str
) -> None:
    with client(server.path) as sock:
        sock.sendall(line + b'\n{"command":"echo","value":3}\n')
        wrong, right = lines(sock, 2)
    assert wrong["ok"] is False
    assert words in wrong["error"]
    assert right == {"ok": True, "result": 3}


def test_a_line_that_just_fits(server: Running) -> None:
    request = b'{"command":"echo","value":"%s"}'
    fits = request % (b"x" * ((1 << 16) - len(request) + 2))
    with client(server.path) as sock:
        sock.sendall(fits + b"\n" + fits[:-2] + b'x"}\n' + fits + b"\n")
        assert [answer["ok"] for answer in lines(sock, 3)] == [True, False, True]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.binary(max_size=40).filter(lambda octets: b"\n" not in octets), max_size=5))
def test_any_octets_are_answered_line_by_line(server: Running, garbage: list[bytes]) -> None:
    with client(server.path) as sock:
        sock.sendall(b"".join(line + b"\n" for line in garbage))
        sock.shutdown(socket.SHUT_WR)
        answers = lines(sock, len(garbage) + 1)
    assert [answer["ok"] for answer in answers] == [False] * len(garbage)


def test_a_users_mistake_is_raised_at_the_client(server: Running) -> None:
    with pytest.raises(UserError, match=r"^not like that$"):
        ask(server.path, {"command": "refuse"})


@pytest.mark.parametrize(
    ("command", "kind"), [("bug", ZeroDivisionError), ("unsayable", TypeError)]
)
def test_a_bug_is_answered_and_raised_to_the_loop(
    path: Path, command: str, kind: type[Exception]
) -> None:
    with running(path) as server:
        with pytest.raises(UserError, match=f"a bug: {kind.__name__}"):
            ask(path, {"command": command})
        lab.until(lambda: server.bugs, what="the loop is told")
        assert [type(bug) for bug in server.bugs] == [kind]
        assert ask(path, {"command": "echo", "value": 1}) == 1


def test_a_bug_is_raised_even_if_its_client_is_gone(path: Path) -> None:
    with running(path) as server:
        with client(path) as sock:
            sock.sendall(b'{"command":"bug"}\n')
        lab.until(lambda: server.bugs, what="the loop is told")


def test_who_does_not_read_is_dropped_and_stalls_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.3)
    with running(path) as server, client(path) as slow:
        slow.sendall(b'{"command":"much","octets":10000000}\n' * 50)
        turns = server.turns
        for number in range(20):
            assert ask(path, {"command": "echo", "value": number}) == number
        lab.until(lambda: not server.server._clients, what="the slow one is dropped")
        assert server.turns > turns + 50  # the loop went on turning
        assert len(rest(slow)) < 10_000_000


def test_an_idle_client_is_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE", 0.1)
    with running(path), client(path) as sock:
        assert sock.recv(1) == b""


def test_clients_that_go_away_at_any_moment(server: Running) -> None:
    for octets in (b"", b"{", b'{"command":"much","octets":1000000}\n', b'{"command":"never"}\n'):
        for _ in range(3):
            with client(server.path) as sock:
                sock.sendall(octets)
    assert ask(server.path, {"command": "echo", "value": 1}) == 1


def test_the_socket_is_the_owners_alone(server: Running) -> None:
    mode = server.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_no_moment_at_which_others_could_open_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def watched(sock: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", watched)
    former = os.umask(0)
    try:
        with running(path):
            pass
        assert os.umask(0) == 0  # as it was
    finally:
        os.umask(former)
    assert modes == [0o600]


def test_another_user_is_refused(server: Running, root: None) -> None:
    server.path.parent.chmod(0o755)
    for parent in server.path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    code = (
        "import os, sys; from pathlib import Path; from tunnelbridge.control_client import ask\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from tunnelbridge.errors import UserError\n"
        "try: ask(Path(sys.argv[1]), {'command': 'echo', 'value': 1})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(server.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"permission denied for {server.path}: ask as the user who started tunnelbridge send,"
        " or with sudo\n"
    )


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    with running(path):
        assert ask(path, {"command": "echo", "value": 1}) == 1
    assert not path.exists()


def test_a_live_socket_is_left_alone(server: Running) -> None:
    before = lab.descriptors()
    with pytest.raises(UserError, match="another program answers at") as caught:
        Running(server.path)
    assert str(caught.value).count("\n") == 0
    assert ask(server.path, {"command": "echo", "value": 1}) == 1
    caught.value.__traceback__ = None
    del caught
    assert [what for what in lab.left_open(before) if "socket" in what] == []


def test_several_that_start_at_once_after_a_crash(path: Path) -> None:
    """Exactly one of them gets the path; it still answers when all have tried."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    won: list[Running] = []
    lost: list[UserError] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        try:
            won.append(Running(path))
        except UserError as error:
            lost.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert (len(won), len(lost)) == (1, 7)
        assert ask(path, {"command": "echo", "value": 1}) == 1
    finally:
        for server in won:
            server.stop()


def test_what_is_no_socket_is_never_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(UserError, match="is no socket"):
        Running(path)
    assert path.read_text() == "precious"


def test_a_path_another_took_over_is_not_removed(path: Path) -> None:
    with running(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize(
    ("name", "words"),
    [("nosuch/c.sock", "No such file or directory"), ("x" * 120, "has at most 107 octets")],
)
def test_paths_that_cannot_be(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Running(tmp_path / name)


def test_closing_sends_clients_away_and_leaves_nothing(path: Path) -> None:
    before = lab.descriptors()
    server = Running(path)
    with client(path) as idle, client(path) as waiting:
        waiting.sendall(b'{"command":"never"}\n')
        assert ask(path, {"command": "stopped"}) is None
        server.stop()
        assert (rest(idle), rest(waiting)) == (b"", b"")
    assert not path.exists()
    assert lab.left_open(before) == []


def test_a_client_that_comes_while_it_closes_is_sent_away(path: Path) -> None:
    """The loop may tell of a connection it had taken, after all clients were sent away."""
    server = Running(path)
    server.stop()
    writer = Mock()
    server.server._on_client(Mock(), writer)
    writer.transport.abort.assert_called_once_with()
    assert not server.server._clients


def test_nobody_there(tmp_path: Path) -> None:
    words = (
        f"no tunnelbridge send is running with a control socket at {tmp_path / 'x'}:"
        " start it with --config or --control PATH"
    )
    for prepare in (lambda: None, lambda: _dead(tmp_path / "x")):
        prepare()
        with pytest.raises(UserError) as caught:
            ask(tmp_path / "x", {"command": "show"})
        assert str(caught.value) == words


def _dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_no_answer_in_time_and_no_answer_at_all(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(0)
        for _ in range(3):  # the later ones do not even get into its queue
            with pytest.raises(UserError, match=r"did not answer within 0\.1 s"):
                ask(path, {"command": "show"}, timeout=0.1)

        def hang_up() -> None:
            for octets in (b"", b'{"ok": tr', b'{"ok": true}\n', b"[]\n"):
                connection, _ = mute.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(octets)

        while True:  # those who waited in vain
            mute.settimeout(0.05)
            try:
                mute.accept()[0].close()
            except TimeoutError:
                break
        mute.settimeout(None)
        thread = threading.Thread(target=hang_up)
        thread.start()
        for _ in range(4):
            with pytest.raises(UserError, match="ended before it answered"):
                ask(path, {"command": "show"})
        thread.join()


def test_an_answer_that_trickles_is_not_waited_for_longer(path: Path) -> None:
    with running(path), pytest.raises(UserError, match=r"within 0\.2 s"):
        ask(path, {"command": "never"}, timeout=0.2)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_client, "RUN", tmp_path / "run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    return tmp_path


@pytest.mark.parametrize(("uid", "place", "mode"), [(0, "run", 0o755), (1000, "user", 0o700)])
def test_the_default_place(
    folders: Path, monkeypatch: pytest.MonkeyPatch, uid: int, place: str, mode: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    former = os.umask(0o077)
    try:
        path = default_path(PROGRAM, "mirror")
    finally:
        os.umask(former)
    assert path == folders / place / "tunnelbridge" / "mirror.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == mode
    assert default_path("tunnelbridge", "mirror") == path  # it may be there already


def test_the_default_place_without_a_runtime_directory(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", str(folders))
    assert default_path(PROGRAM, "m") == folders / ".cache" / "tunnelbridge" / "m.sock"
    (folders / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folders / "file"))
    with pytest.raises(UserError, match=r"cannot make .*: Not a directory; give another path"):
        default_path(PROGRAM, "m")


def test_the_only_one_is_found(folders: Path) -> None:
    with pytest.raises(UserError, match="no tunnelbridge send is running with a control socket in"):
        find(PROGRAM)
    first, second = default_path(PROGRAM, "one"), default_path(PROGRAM, "two")
    _dead(second)
    with running(first):
        assert find(PROGRAM) == first
        assert find(PROGRAM, second) == second  # what is given is believed
        with running(second):
            with pytest.raises(UserError) as caught:
                find(PROGRAM)
            assert str(caught.value) == (
                f"several are running: choose one with --control ({first}, {second})"
            )
