"""The extcap: Wireshark's protocol to the letter, at once, and then the collector itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lab
from collector import cli, extcap, extcap_folder
from collector import collector as collector_module
from collector.collector import ListenOptions
from collector.listener import UDP_KINDS
from collector.sinks.options import SinkOptions, parse_sink
from tunnelbridge.wire import udp
from tunnelbridge.wire.layer import Kind

Run = Callable[..., tuple[int, str, str]]
ONE = ("--extcap-interface", "tunnelbridge")
LISTING = [
    ("--extcap-interfaces", "--extcap-version=4.0"),
    (*ONE, "--extcap-dlts"),
    (*ONE, "--extcap-config"),
]
HEAVY = ("numpy", "uvloop", "typer", "structlog", "pyroute2", "ctypes", "asyncio")


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """Run the extcap; return what it wrote to standard output, with nothing on standard error."""
    monkeypatch.setattr(sys, "argv", ["collector-extcap", *arguments])
    extcap.main()
    out, err = capsys.readouterr()
    assert err == ""
    return out


def sentences(text: str) -> list[tuple[str, dict[str, str]]]:
    """Read extcap's sentences: a word, and keys with values in braces."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+) ((?:\{\w+=[^{}]*\})+)", line)
        assert match, line
        found.append((match[1], dict(re.findall(r"\{(\w+)=([^{}]*)\}", match[2]))))
    return found


def test_interfaces_and_link_types(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ((), ("--extcap-version=4.0",), ("--extcap-version", "4.4")):
        first, *interfaces = sentences(run(capsys, monkeypatch, "--extcap-interfaces", *version))
        assert first[0] == "extcap"
        assert first[1]["version"]
        assert [(word, told["value"]) for word, told in interfaces] == [
            ("interface", "tunnelbridge")
        ]
    assert sentences(run(capsys, monkeypatch, *ONE, "--extcap-dlts")) == [
        ("dlt", {"number": "1", "name": "EN10MB", "display": "Ethernet"})
    ]


def test_the_configuration_names_arguments_that_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = sentences(run(capsys, monkeypatch, *ONE, "--extcap-config"))
    arguments = {each["number"]: each for word, each in told if word == "arg"}
    values = [each for word, each in told if word == "value"]
    assert [each["call"] for each in arguments.values()] == [
        "--listen", "--udp", "--bind", "--filter",
    ]  # fmt: skip
    assert {each["type"] for each in arguments.values()} <= {"selector", "string"}
    assert {each["arg"] for each in values} == {"0"}
    assert [each["value"] for each in values if each["default"] == "true"] == ["all"]
    for each in values:  # each is understood
        extcap.listener_options(each["value"], "")
    assert run(capsys, monkeypatch, *ONE, "--extcap-config", "--extcap-reload-option", "udp") == ""


def test_listing_imports_nothing_heavy() -> None:
    for arguments in LISTING:
        program = (
            "import sys\nfrom collector.extcap import main\nmain()\n"
            "print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout
        loaded = {name.partition(".")[0] for name in done.stderr.split()}
        assert loaded & set(HEAVY) == set()
        assert "argparse" in loaded


def test_listing_takes_less_than_150_ms(tmp_path: Path) -> None:
    """Wireshark waits for every extcap at its start; the best of some tries on a busy machine."""
    launcher = extcap_folder.install(tmp_path)
    for arguments in LISTING:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([launcher, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        assert min(times) < 0.15, times


@pytest.mark.parametrize(
    ("expression", "words"),
    [("", ""), ("tcp port 80", ""), ("tcp port", "syntax error"), ("tcp and and", 'near "and"')],
)
def test_wireshark_is_told_what_is_wrong_with_a_capture_filter(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    expression: str,
    words: str,
) -> None:
    """Nothing on standard output means that the filter is good (extcap.c, cb_verify_filter)."""
    out = run(capsys, monkeypatch, *ONE, "--extcap-capture-filter", expression)
    assert out.count("\n") == (1 if words else 0)
    assert words in out
    assert bool(out) == bool(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--extcap-interface", "eth0", "--extcap-dlts"), "no interface eth0, only tunnelbridge"),
        ((*ONE, "--capture"), "--capture needs --fifo"),
        ((*ONE, "--capture", "--fifo", "x", "--listen", "vxlam"), "--listen vxlam: expected all"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["collector-extcap", *arguments])
    with pytest.raises(SystemExit) as ended:
        extcap.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err.startswith("collector-extcap: ")
    assert words in err


def test_cleaning_up_and_nothing_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, monkeypatch, *ONE, "--extcap-cleanup-postkill") == ""
    assert "collector extcap --install" in run(capsys, monkeypatch)


# --- capturing: this process becomes the collector ---


@pytest.fixture
def asked(
    monkeypatch: pytest.MonkeyPatch, runner_of: Callable[..., Run]
) -> Callable[..., tuple[ListenOptions, SinkOptions]]:
    """Return what starts a capture and tells what ``collector listen`` is asked to do."""
    options: list[ListenOptions] = []
    sinks: list[SinkOptions] = []
    monkeypatch.setattr(collector_module, "listen", options.append)

    def capture(*arguments: str) -> tuple[ListenOptions, SinkOptions]:
        def become(program: str, command: list[str]) -> None:
            assert program == command[0] == sys.executable
            assert command[1:4] == ["-P", "-m", "collector.cli"]
            code, out, err = runner_of(cli.main, "collector")(*command[4:])
            assert (code, out, err) == (0, "", "")
            sinks.append(parse_sink(command[command.index("--pcap") + 1], "--pcap"))

        monkeypatch.setattr(os, "execv", become)
        line = ["collector-extcap", "--capture", *ONE, "--fifo", "/tmp/fifo", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        extcap.main()
        return options.pop(), sinks.pop()

    return capture


def test_capturing_without_options(asked: Callable[..., tuple[ListenOptions, SinkOptions]]) -> None:
    options, sink = asked()
    assert options.quiet  # what is on standard error, Wireshark shows as an error
    assert options.wanted.gre
    assert options.wanted.ports == udp.PORTS
    assert not options.wanted.explicit
    assert (sink.target, sink.expression) == ("/tmp/fifo", "")


def test_every_option_reaches_the_collector(
    asked: Callable[..., tuple[ListenOptions, SinkOptions]],
) -> None:
    options, sink = asked(
        "--listen", "gre", "--udp", "vxlan:5555, geneve:7000", "--bind", "127.0.0.1",
        "--filter", "tcp port 80 or port 8080", "--extcap-capture-filter", "net 10.0.0.0/8 && ip",
    )  # fmt: skip
    assert options.wanted.explicit
    assert options.wanted.gre
    assert options.wanted.ports == {5555: Kind.VXLAN, 7000: Kind.GENEVE}
    assert options.bind == ["127.0.0.1"]
    assert sink.target == "/tmp/fifo"
    assert sink.expression == "(net 10.0.0.0/8 && ip) and (tcp port 80 or port 8080)"


@pytest.mark.parametrize("kind", sorted(extcap.USUAL))
def test_a_kind_without_port_listens_on_the_usual_ones(
    asked: Callable[..., tuple[ListenOptions, SinkOptions]], kind: str
) -> None:
    wanted = asked("--listen", kind)[0].wanted
    assert not wanted.gre
    assert wanted.ports == {
        port: each for port, each in udp.PORTS.items() if each == UDP_KINDS[kind]
    }


def test_one_filter_is_passed_on_as_it_is(
    asked: Callable[..., tuple[ListenOptions, SinkOptions]],
) -> None:
    for option in ("--filter", "--extcap-capture-filter"):
        text = "ip[0] & 0xf != 5 and port 1&snaplen=3%25?filter=x"
        assert asked(option, text)[1].expression == text


# --- installing ---


@pytest.fixture
def collector(runner_of: Callable[..., Run]) -> Run:
    return runner_of(cli.main, "collector")


def test_install_and_uninstall(collector: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "extcap"
    path = folder / "collector-extcap"
    for _ in range(2):  # again is an upgrade
        code, out, err = collector("extcap", "--install", "--folder", str(folder))
        assert (code, err) == (0, "")
        assert str(path) in out
        assert [each.name for each in folder.iterdir()] == ["collector-extcap"]
        assert path.stat().st_mode & 0o777 == 0o755
    elsewhere = tmp_path / "collector"  # a folder that must not be taken for the package
    elsewhere.mkdir()
    for name in ("__init__.py", "extcap.py"):
        (elsewhere / name).write_text("raise SystemExit(9)\n")
    done = subprocess.run(
        [path, "--extcap-interfaces"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "{value=tunnelbridge}" in done.stdout

    assert collector("extcap", "--uninstall", "--folder", str(folder))[0] == 0
    assert list(folder.iterdir()) == []
    code, _, err = collector("extcap", "--uninstall", "--folder", str(folder))
    assert (code, err) == (1, f"collector: there is no {path}: nothing to uninstall\n")


def test_a_file_of_somebody_else_is_not_touched(collector: Run, tmp_path: Path) -> None:
    path = tmp_path / "collector-extcap"
    path.write_bytes(b"\xff\xfe theirs")
    for action in ("--install", "--uninstall"):
        code, _, err = collector("extcap", action, "--folder", str(tmp_path))
        assert code == 1
        assert err == f"collector: {path} was not made by this program: move it away first\n"
    assert path.read_bytes() == b"\xff\xfe theirs"


def test_what_cannot_be_written(collector: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = collector("extcap", "--install", "--folder", str(tmp_path / "file"))
    assert code == 1
    assert err.startswith("collector: cannot ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--install", "--uninstall")])
def test_either_or(collector: Run, options: tuple[str, ...]) -> None:
    code, _, err = collector("extcap", *options)
    assert (code, err) == (2, "collector: extcap: either --install or --uninstall\n")


def tshark_that_says(folder: Path, text: str) -> None:
    folder.mkdir()
    program = folder / "tshark"
    program.write_text(f"#!/bin/sh\ntest \"$*\" = '-G folders' && printf '{text}'\n")
    program.chmod(0o755)


def test_the_folder_is_the_one_that_tshark_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Wireshark 4.2 and later say it."""
    tshark_that_says(
        tmp_path / "bin",
        "Personal Plugins:     \\t/p/4-2\\nPersonal Extcap path:\\t/home/u/.local/lib/extcap\\n"
        "Global Extcap path:  \\t/usr/lib/extcap\\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    assert extcap_folder.personal_folder() == Path("/home/u/.local/lib/extcap")


def test_the_folder_where_tshark_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tshark_that_says(tmp_path / "bin", "Extcap path:        \\t/usr/lib/extcap\\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for path in (f"{tmp_path / 'bin'}:/usr/bin:/bin", str(tmp_path)):  # or where there is none
        monkeypatch.setenv("PATH", path)
        assert extcap_folder.personal_folder() == tmp_path / "home/.config/wireshark/extcap"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert extcap_folder.personal_folder() == tmp_path / "xdg/wireshark/extcap"


def test_the_real_tshark_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need("tshark")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    extcap_folder.install(extcap_folder.personal_folder())
    done = subprocess.run(["tshark", "-D"], capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"^\d+\. tunnelbridge \(Mirrored traffic", done.stdout, re.MULTILINE)
    for word in ("invalid", "couldn't", "ARG", "VALUE"):  # what it says of sentences it dislikes
        assert word not in done.stderr
