"""The command line: one line and an exit code for a mistake, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pcap_files
import pytest
import typer

from tunnelbridge import cli, sender
from tunnelbridge.command_line import run
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.sender import SendOptions

Run = Callable[..., tuple[int, str, str]]
TO = "--to=gre://127.0.0.1"


@pytest.fixture
def tunnelbridge(runner_of: Callable[..., Run]) -> Run:
    return runner_of(cli.main, "tunnelbridge")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SendOptions]:
    """Return what ``send`` is asked to do; nothing is sent."""
    options: list[SendOptions] = []
    monkeypatch.setattr(sender, "send", options.append)
    return options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["--nosuch"], "No such option: --nosuch"),
        (["send", "--nosuch"], "No such option: --nosuch"),
        (["send", "-i"], "'-i' requires an argument"),
        (["send", "-r", "x", TO, "stray"], "unexpected extra argument"),
        (["send", "--direction", "up"], "'up' is not one of 'both', 'in', 'out'"),
        (["send", "--mtu", "cut"], "'cut' is not one of 'fragment', 'truncate', 'drop'"),
        (["send", "--snaplen", "13"], "Invalid value for '--snaplen'"),
        (["send", "--snaplen", "long"], "Invalid value for '--snaplen'"),
        (["send", "--count", "0"], "Invalid value for '--count'"),
        (["send", "--duration", "0"], "Invalid value for '--duration'"),
        (["check", "--mtu", "cut"], "'cut' is not one of"),
        (["send"], "give interfaces (-i) or a capture file (-r), one of them; or --config FILE"),
        (["send", "-i", "lo", "-r", "x", TO], "one of them"),
        (["send", "-i", "lo"], "give at least one target"),
        (["send", "-r", "x", TO, "--speed", "fast"], "--speed fast: expected"),
        (["send", "-r", "x", "--to", "pigeon://127.0.0.1"], "unknown encapsulation pigeon"),
        (["send", "-r", "x", "--to", "gre://127.0.0.1?vni=1"], "no option vni"),
        (["send", "-r", "x", "--to", "10.0.0.1"], "no ARP entry for 10.0.0.1"),
        (["check", "-r", "x", "--to", "10.0.0.1", "--arp", "10.0.0.1=no"], "is not a MAC address"),
        (["send", "-r", "x", TO, "--direction", "out"], "--direction chooses"),
        (["send", "-r", "x", TO, "--speed", "1e-12"], "--speed 1e-12: expected"),
        (["send", "-i", "lo", TO, "--speed", "max"], "--speed paces a file"),
        (["send", "-r", "x", "--to", "vxlan://127.0.0.1?vni=1&vni=2"], "vni is given twice"),
        (["send", "-r", "x", "--to", "gre://me@127.0.0.1"], "has no user"),
        (["send", "-r", "x", "--to", "gre://127.0.0.1#x"], "nothing can follow a #"),
        (["send", "-r", "x", TO, "--arp", "10.0.0.1=02:00:00:00:00:01"], "no --to uses --arp"),
        (
            ["check", "-r", "x", "--to", "vxlan://127.0.0.1:5", "--to", "tzsp://127.0.0.1:5"],
            "two encapsulations through UDP port 5",
        ),
    ],
)
def test_what_cannot_be_meant(
    tunnelbridge: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    path = str(pcap_files.write(tmp_path / "x", []))
    code, out, err = tunnelbridge(*[path if each == "x" else each for each in arguments])

    assert code == 2
    assert out == ""
    assert words in err
    assert err.startswith("tunnelbridge")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["send", "check"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-r", "/nosuch/x"], "cannot read /nosuch/x"),
        (["-i", "nosuch0"], "no interface named nosuch0"),
        (["-r", "text"], "is not a pcap or pcapng file"),
    ],
)
def test_what_cannot_be_done(
    tunnelbridge: Run, tmp_path: Path, root: None, command: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "text").write_text("no capture")
    arguments = [str(tmp_path / "text") if each == "text" else each for each in arguments]

    code, out, err = tunnelbridge(command, *arguments, TO)

    assert (code, out) == (1, "")
    assert err.startswith("tunnelbridge: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["send", "check", "Clone packets"]),
        (["send", "--help"], ["--interface", "--read", "--to", "--arp", "--fdb", "--filter",
                              "--snaplen", "--mtu", "--speed", "--count", "--duration",
                              "--stats", "--verbose", "until interrupted"]),
        (["check", "--help"], ["send nothing"]),
    ],
)  # fmt: skip
def test_help(tunnelbridge: Run, arguments: list[str], words: list[str]) -> None:
    code, out, err = tunnelbridge(*arguments)

    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert [word for word in words if word not in text] == []


def test_without_arguments_the_help_and_no_success(tunnelbridge: Run) -> None:
    code, out, err = tunnelbridge()

    assert code == 2
    assert "Usage: tunnelbridge" in out + err


def test_every_option_reaches_send(tunnelbridge: Run, asked: list[SendOptions]) -> None:
    code, _, err = tunnelbridge(
        "send", "-i", "a", "--interface", "b", TO, "--to", "10.0.0.1", "--arp", "10.0.0.1=m",
        "--fdb", "m=t", "--filter", "tcp", "--direction", "in", "--snaplen", "96", "--mtu", "drop",
        "--speed", "max", "--count", "5", "--duration", "1.5", "--stats", "-", "-v",
    )  # fmt: skip

    assert (code, err) == (0, "")
    assert asked == [
        SendOptions(
            interfaces=["a", "b"],
            to=["gre://127.0.0.1", "10.0.0.1"],
            arp=["10.0.0.1=m"],
            fdb=["m=t"],
            expression="tcp",
            direction="in",
            snaplen=96,
            mtu=MtuPolicy.DROP,
            speed="max",
            count=5,
            duration=1.5,
            stats="-",
            verbose=True,
        )
    ]


def test_what_is_meant_without_options(tunnelbridge: Run, asked: list[SendOptions]) -> None:
    tunnelbridge("send", "-r", "x.pcap", TO)

    assert asked == [SendOptions(file=Path("x.pcap"), to=["gre://127.0.0.1"])]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("so it is"), 1), (UsageError("so it is"), 2)]
)
def test_a_users_mistake(
    tunnelbridge: Run, monkeypatch: pytest.MonkeyPatch, error: UserError, code: int
) -> None:
    def fail(_: SendOptions) -> None:
        raise error

    monkeypatch.setattr(sender, "send", fail)
    assert tunnelbridge("send", "-r", "x", TO) == (code, "", "tunnelbridge: so it is\n")


def test_a_bug_stays_a_traceback(tunnelbridge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: SendOptions) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sender, "send", fail)
    monkeypatch.setattr(sys, "argv", ["tunnelbridge", "send", "-r", "x", TO])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_exit_code_of_its_own_and_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def three(interrupted: bool = False) -> None:
        raise KeyboardInterrupt if interrupted else typer.Exit(3)

    for argv, code in ((["x"], 3), (["x", "--interrupted"], 130)):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            run(app, "x")
        assert ended.value.code == code


def test_a_message_of_two_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def wrong() -> None:
        raise typer.BadParameter("two\n  lines")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        run(app, "x")
    assert capsys.readouterr().err.count("\n") == 1


def test_as_a_program(tmp_path: Path, root: None) -> None:
    command = [sys.executable, "-m", "tunnelbridge.cli", "check", "-r"]
    path = pcap_files.write(tmp_path / "x", [])
    done = subprocess.run([*command, str(path), TO], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"source   {path}, at original speed\n")
    done = subprocess.run([*command, "/nosuch", TO], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tunnelbridge: cannot read /nosuch: No such file or directory\n"
