"""The collector's command line: one line and an exit code for a mistake, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import outer
import pcap_files
import pytest

from collector import cli
from collector import collector as module
from collector.collector import ListenOptions
from collector.listener import Wanted
from collector.refinement import Wishes
from collector.sinks.formats import Pcap
from collector.sinks.options import SinkOptions
from collector.sinks.tap import TapSink
from tunnelbridge.errors import UserError
from tunnelbridge.wire.encapsulation import vxlan_tunnel
from tunnelbridge.wire.layer import Kind

Run = Callable[..., tuple[int, str, str]]
INNER = outer.frame(outer.ipv4(outer.udp(b"hello", 1, 2), 17, "10.0.0.1", "10.0.0.2"))


@pytest.fixture
def collector(runner_of: Callable[..., Run]) -> Run:
    return runner_of(cli.main, "collector")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ListenOptions]:
    """Return what ``listen`` is asked to do; nothing is opened."""
    options: list[ListenOptions] = []
    monkeypatch.setattr(module, "listen", options.append)
    return options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["listen", "--nosuch"], "No such option: --nosuch"),
        (["listen", "--vxlan", "65536"], "Invalid value for '--vxlan'"),
        (["listen", "--geneve", "x"], "Invalid value for '--geneve'"),
        (["listen", "--levels", "5"], "Invalid value for '--levels'"),
        (["listen", "--count", "0"], "Invalid value for '--count'"),
        (["listen", "--udp", "vxlan"], "--udp vxlan: expected KIND:PORT"),
        (["listen", "--ip", "gre"], "--ip gre: expected one of"),
        (["listen", "--bind", "here"], "--bind: 'here'"),
        (["listen", "--time", "departure"], "Invalid value for '--time'"),
        (["listen", "--allow", "everyone"], "--allow everyone"),
        (
            ["listen", "--pcap", "x?filter=tcp&queue=many"],
            "--pcap x?filter=tcp&queue=many: size many",
        ),
        (
            ["listen", "--tap", "t?snap=9"],
            "--tap t?snap=9: no option snap, expected filter, snaplen",
        ),
        (["listen", "--pcap", "-", "--pcap", "-?snaplen=96"], "only one of them"),
        (["listen", "--pcap", "-", "--stats", "-"], "cannot share standard output"),
        (
            ["listen", "--pcap", "f?format=x"],
            "--pcap f: format x: expected pcapng, pcap or pcap-us",
        ),
        (["listen", "--format", "x", "--pcap", "f"], "--format x: expected pcapng, pcap"),
        (["listen", "--tap-queues", "4"], "--tap-queues goes with --tap"),
        (["listen", "stray"], "unexpected extra argument"),
        (["decap", "in"], "Missing argument 'OUT'"),
        (["decap", "in", "out", "--udp", "x:1"], "--udp x:1: expected KIND:PORT"),
    ],
)
def test_what_cannot_be_meant(collector: Run, arguments: list[str], words: str) -> None:
    code, out, err = collector(*arguments)

    assert code == 2
    assert out == ""
    assert words in err
    assert err.startswith("collector")
    assert err.count("\n") == 1


@pytest.mark.parametrize("sink", ["--tap", "--inject", "--tap-per-stream"])
def test_sinks_without_a_queue_take_none(
    collector: Run, asked: list[ListenOptions], sink: str
) -> None:
    code, _, err = collector("listen", sink, "t?queue=1MB")

    assert code == 2
    assert "no option queue, expected filter" in err
    assert not asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["listen", "decap", "take the tunnels off"]),
        (["listen", "--help"], ["--bind", "--gre", "--no-gre", "--vxlan", "--geneve", "--udp",
                                "--ip", "--allow", "--pcap", "--tap", "--levels", "--count",
                                "--duration", "--stats", "VXLAN 4789 and 8472"]),
        (["decap", "--help"], ["IN", "OUT", "--udp", "--levels", "--stats"]),
    ],
)  # fmt: skip
def test_help(collector: Run, arguments: list[str], words: list[str]) -> None:
    code, out, err = collector(*arguments)

    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert [word for word in words if word not in text] == []


def test_the_commands_of_every_day_come_first(collector: Run) -> None:
    _, out, _ = collector("--help")

    words = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert words[:2] == ["listen", "decap"]
    assert {"show", "top", "reconcile", "verify", "extcap"} < set(words)


def test_every_option_reaches_listen(collector: Run, asked: list[ListenOptions]) -> None:
    code, _, err = collector(
        "listen", "--bind", "::1", "--gre", "--vxlan", "1", "--vxlan", "2", "--geneve", "3",
        "--udp", "tzsp:4", "--ip", "ipip", "--allow", "10.0.0.0/8", "--pcap", "x?snaplen=96&filter=tcp",
        "--tap", "t", "--tap", "n:u", "--time", "source", "--levels", "2",
        "--count", "5", "--duration", "1.5",
        "--no-health", "--dedup", "5", "--reorder", "500us", "--control", "c.sock",
        "--metrics", "9100", "--stats", "s",
    )  # fmt: skip

    assert (code, err) == (0, "")
    ports = {1: Kind.VXLAN, 2: Kind.VXLAN, 3: Kind.GENEVE, 4: Kind.TZSP}
    (options,) = asked
    assert [opener.args for opener in options.sinks] == [  # type: ignore[attr-defined]
        (TapSink, SinkOptions("t")),
        (TapSink, SinkOptions("n:u")),
        (SinkOptions("x", "tcp", 96), Pcap()),
    ]
    assert asked == [
        ListenOptions(
            Wanted(True, ports, [4], True),
            bind=["::1"],
            allow=["10.0.0.0/8"],
            sinks=options.sinks,
            levels=2,
            source_time=True,
            count=5,
            duration=1.5,
            stats="s",
            refine=Wishes(health=False, dedup=5_000_000, reorder=500_000),
            control=Path("c.sock"),
            metrics="9100",
        )
    ]


def test_what_is_meant_without_options(collector: Run, asked: list[ListenOptions]) -> None:
    collector("listen")
    collector("listen", "--no-gre")

    assert asked == [
        ListenOptions(Wanted(), control=True),
        ListenOptions(Wanted(gre=False), control=True),
    ]


def test_a_users_mistake(collector: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ListenOptions) -> None:
        raise UserError("so it is")

    monkeypatch.setattr(module, "listen", fail)
    assert collector("listen") == (1, "", "collector: so it is\n")


def test_decap(collector: Run, tmp_path: Path) -> None:
    packet = outer.tunnelled(vxlan_tunnel(5555, 7), INNER, "192.0.2.1", "192.0.2.2")
    source = pcap_files.write(tmp_path / "in", [outer.frame(packet)])
    result = tmp_path / "out"

    code, out, err = collector("decap", str(source), str(result), "--udp", "vxlan:5555")

    assert (code, out) == (0, "")
    assert err.count("\n") >= 1
    assert [octets for _, octets, _ in pcap_files.parse(result.read_bytes())] == [INNER]
    code, out, err = collector("decap", str(tmp_path / "nosuch"), str(result))
    assert (code, out) == (1, "")
    assert err == f"collector: cannot read {tmp_path / 'nosuch'}: No such file or directory\n"


def test_as_a_program_in_a_pipe(tmp_path: Path) -> None:
    packet = outer.tunnelled(vxlan_tunnel(4789, 7), INNER, "192.0.2.1", "192.0.2.2")
    source = pcap_files.write(tmp_path / "in", [outer.frame(packet)])
    command = [sys.executable, "-m", "collector.cli", "decap", str(source), "-"]

    done = subprocess.run(command, capture_output=True, check=False)

    assert done.returncode == 0
    assert [octets for _, octets, _ in pcap_files.parse(done.stdout)] == [INNER]
