"""What ``show`` prints, as tables and as JSON, and the commands that ask for it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from tunnelbridge import cli_control, control_client, show
from tunnelbridge.command_line import run
from tunnelbridge.errors import UserError

Run = Callable[..., tuple[int, str, str]]
BIG = 123_456_789_012_345_678
LONG_URL = "vxlan://[2001:db8:1234:5678:9abc:def0:1234:5678]:4789?vni=16777215"
IPV6 = "2001:db8:1234:5678:9abc:def0:1234:5678"


def counters(cloned: int) -> dict[str, int]:
    return {
        "num_total_pkts_cloned": cloned + 3,
        "num_mbuf_alloc_failed": 1,
        "num_driver_failures": 2,
        "num_succeeded": cloned,
    }


def member(ip: str, state: str = "up", cloned: int = 0, **others: Any) -> dict[str, Any]:
    usual = {"ip": ip, "weight": 2, "state": state, "mac": "02:00:0a:0a:0a:0a"}
    rest = {"labels": {"role": "analyzer"}, "tunnels": ["dc2"], **counters(cloned)}
    return {**usual, **rest, **others}


TUNNEL = {
    "name": "dc2",
    "encapsulation": "gre",
    "remote": "198.51.100.7",
    "identifier": 7,
    "path_mtu": 1500,
    "overhead": 46,
    "clones": 4004,
    "sent": 4001,
    "octets": 98765,
    "errors": {"no-route": 2, "refused": 0},
    "queue_dropped": 1,
    "refused": {"too-long": 5},
    "truncated": 0,
    "fragmented": 33,
    "unreachable": 6,
    "sequence": 4294967295,
}
QUIET = {
    **TUNNEL,
    "name": LONG_URL,
    "encapsulation": "vxlan",
    "remote": IPV6,
    "identifier": None,
    "path_mtu": None,
    "sequence": None,
    "errors": {},
    "refused": {},
    "queue_dropped": 0,
    "fragmented": 0,
    "unreachable": 0,
}
SESSION = {
    "name": "mirror-session-01",
    "kind": "session",
    "enabled": True,
    "priority": 1,
    "sources": ["eth0", "NETNS:eth*"],
    "attached": ["eth0", "NETNS:eth1"],
    "filter": "mirror-filter-01",
    "target": "ids",
    "identifier": 0,
    "packet_length": 96,
    "matched": 123456,
    "octets": 98765432,
    "no_member": 0,
    "labels": {"decrypted": "true"},
}
POLICY = {
    **SESSION,
    "name": "web[red]",
    "kind": "policy",
    "enabled": False,
    "priority": 32766,
    "attached": [],
    "filter": None,
    "target": "role=analyzer,site=a",
    "identifier": None,
    "packet_length": None,
    "labels": {},
}
RESULTS: Mapping[str, Any] = {
    "sessions": [SESSION, POLICY],
    "pools": [
        {
            "name": "ids",
            "distribution": "weighted-round-robin",
            "rewrite": "mac",
            "members": [
                member("10.10.10.10", cloned=123),
                member(IPV6, "down", mac=None, tunnels=[LONG_URL, "dc3"]),
                member("192.0.2.250", "drained", BIG, tunnels=[], labels={}),
            ],
        },
        {"name": "deep", "distribution": "flow", "rewrite": "none", "members": []},
    ],
    "arp": [
        {"ip": "10.10.10.10", "mac": "02:00:0a:0a:0a:0a", "used_by": ["ids", "deep"]},
        {"ip": IPV6, "mac": "02:00:0a:0a:0a:0b", "used_by": []},
    ],
    "fdb": [{"mac": "02:00:0a:0a:0a:0a", "tunnels": ["dc2", LONG_URL]}],
    "tunnels": [TUNNEL, QUIET],
    "stats": {
        "ledger": {
            "program": "tunnelbridge send",
            "received": 30,
            "refused": {"own-tunnel": 3, "frame-short": 1},
            "tunnels": [TUNNEL],
            "balanced": True,
        },
        "stats_epoch": 2,
        "since": "2026-01-02T03:04:05+00:00",
        "traffic_clone_stats": [
            {
                "session": "mirror-session-01",
                "se_uuid": "host1",
                "proc_id": "PROC_Aggregate",
                "clone_srvr_stats": [
                    {"ip": "10.10.10.10", **counters(40)},
                    {"ip": IPV6, **counters(BIG)},
                ],
            }
        ],
        "sources": [
            {
                "name": "eth0",
                "state": "attached",
                "received": 30,
                "kernel_dropped": 4,
                "octets": 12345,
            }
        ],
    },
}


def text(what: str, result: Any, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )
    show.write(what, result, console)
    return file.getvalue()


def leaves(value: Any) -> list[Any]:
    """Return all names and numbers of a result, but for what ``show tunnels`` is for."""
    if isinstance(value, Mapping):
        return [leaf for key in value.keys() - {"tunnels"} for leaf in leaves(value[key])] + (
            [name for name in value.get("tunnels", ()) if isinstance(name, str)]
        )
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_number_is_ever_cut_or_folded(what: str, width: int) -> None:
    shown = set(re.findall(r"\d+", text(what, RESULTS[what], width)))
    told = {str(leaf) for leaf in leaves(RESULTS[what]) if type(leaf) is int and leaf}
    assert told - shown == set()
    assert "…" not in text(what, RESULTS[what], width)


@pytest.mark.parametrize("what", RESULTS)
def test_every_name_is_there_whole_or_folded(what: str) -> None:
    """On a wide screen whole; on a narrow one nothing but line ends and spaces come between."""
    names = [leaf for leaf in leaves(RESULTS[what]) if isinstance(leaf, str)]
    wide = text(what, RESULTS[what], 400)
    assert [name for name in names if name not in wide] == []
    columns = "".join(text(what, RESULTS[what], 80).split())
    for name in names:
        assert re.search(".*?".join(map(re.escape, name.replace(" ", ""))), columns), name


@pytest.mark.parametrize("what", RESULTS)
def test_plain_and_within_80_columns_when_piped(what: str) -> None:
    modest = json.loads(
        json.dumps(RESULTS[what]).replace(str(BIG), "77").replace(str(BIG + 3), "80")
    )
    out = text(what, modest)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_colours_on_a_terminal_only_and_markup_is_text() -> None:
    assert "\x1b[32mup" in text("pools", RESULTS["pools"], terminal=True)
    assert "\x1b[31mdown" in text("pools", RESULTS["pools"], terminal=True)
    assert "web[red]" in text("sessions", RESULTS["sessions"])


def test_sessions_say_what_is_not_usual() -> None:
    out = text("sessions", RESULTS["sessions"], 200)
    (usual,) = text("sessions", [SESSION], 200).split("\n\n")[:1]
    for words in ("identifier 0", "first 96 octets", "filter mirror-filter-01", "decrypted=true"):
        assert words in usual
    assert "session, enabled" in out
    assert "policy, disabled" in out
    assert "everything" in out
    assert "None" not in out


def test_tunnels_tell_losses_only_where_there_are() -> None:
    out = text("tunnels", RESULTS["tunnels"], 200)
    for words in ("errors no-route 2", "refused too-long 5", "queue dropped 1", "fragmented 33"):
        assert out.count(words) == 1
    assert "truncated" not in out
    assert "None" not in out


def test_stats_have_the_names_of_nsx() -> None:
    lines = [line.rstrip() for line in text("stats", RESULTS["stats"]).splitlines()]
    start = lines.index("session mirror-session-01")
    assert [line.split() for line in lines[start + 1 : start + 9]] == [
        ["se_uuid", "host1"],
        ["proc_id", "PROC_Aggregate"],
        ["clone_srvr_stats[1]"],
        ["ip", "10.10.10.10"],
        ["num_total_pkts_cloned", "43"],
        ["num_mbuf_alloc_failed", "1"],
        ["num_driver_failures", "2"],
        ["num_succeeded", "40"],
    ]
    assert lines[start + 9].split() == ["clone_srvr_stats[2]"]
    assert "counted since 2026-01-02T03:04:05+00:00 (epoch 2)" in lines
    assert "own-tunnel 3, frame-short 1" in "\n".join(lines)


@pytest.mark.parametrize("what", ["sessions", "pools", "arp", "fdb", "tunnels"])
def test_nothing_to_show(what: str) -> None:
    assert text(what, []) == f"no {what}\n"


def test_a_pool_without_members_says_so() -> None:
    assert text("pools", RESULTS["pools"][1:]) == "pool deep: flow, rewrite none, no members\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what is asked of the sender; it answers as RESULTS says."""
    requests: list[tuple[Any, ...]] = []

    def answer(path: Path, request: Mapping[str, Any], timeout: float, program: str) -> Any:
        requests.append((path, dict(request)))
        if request["command"] == "show":
            return RESULTS[request["what"]]
        if request.get("session") == "nosuch":
            raise UserError("no session nosuch (there are: a, b)")
        return {"changes": ["session a: enabled", "tunnel t: new"]}

    monkeypatch.setattr(control_client, "ask", answer)
    return requests


@pytest.fixture
def tunnelbridge(runner_of: Callable[..., Run]) -> Run:
    app = typer.Typer(rich_markup_mode=None)
    cli_control.register(app)
    return runner_of(lambda: run(app, "tunnelbridge"), "tunnelbridge")


@pytest.mark.parametrize("what", RESULTS)
def test_show(tunnelbridge: Run, asked: list[tuple[Any, ...]], what: str) -> None:
    code, out, err = tunnelbridge("show", what, "--control", "/x")
    assert (code, err) == (0, "")
    assert out == text(what, RESULTS[what])
    code, out, err = tunnelbridge("show", what, "--json", "--control", "/x")
    assert (code, err) == (0, "")
    assert json.loads(out) == RESULTS[what]
    assert asked == [(Path("/x"), {"command": "show", "what": what})] * 2


def test_the_other_commands(tunnelbridge: Run, asked: list[tuple[Any, ...]]) -> None:
    assert tunnelbridge("enable", "a", "--control", "/x") == (0, "a is enabled\n", "")
    assert tunnelbridge("disable", "a", "--control", "/x") == (0, "a is disabled\n", "")
    out = "session a: enabled\ntunnel t: new\n"
    assert tunnelbridge("reload", "--control", "/x") == (0, out, "")
    assert tunnelbridge("show", "stats", "--reset-stats", "--control", "/x")[0] == 0
    assert [request for _, request in asked] == [
        {"command": "enable", "session": "a"},
        {"command": "disable", "session": "a"},
        {"command": "reload"},
        {"command": "show", "what": "stats", "reset": True},
    ]
    told = (1, "", "tunnelbridge: no session nosuch (there are: a, b)\n")
    assert tunnelbridge("enable", "nosuch", "--control", "/x") == told


def test_a_reload_that_changes_nothing(tunnelbridge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "ask", lambda *_: {"changes": []})
    assert tunnelbridge("reload", "--control", "/x") == (0, "nothing changed\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show"], 2, "Missing argument 'WHAT'"),
        (["show", "nosuch"], 2, "'nosuch' is not one of"),
        (["show", "arp", "--reset-stats"], 2, "--reset-stats goes with show stats"),
        (["enable"], 2, "Missing argument 'SESSION'"),
        (["show", "arp", "--control", "/nosuch/x"], 1, "no tunnelbridge send is running with"),
        (["reload", "--control", "x" * 200], 2, "has at most 107 octets"),
    ],
)
def test_mistakes_are_one_line(
    tunnelbridge: Run, arguments: list[str], code: int, words: str
) -> None:
    status, out, err = tunnelbridge(*arguments)
    assert (status, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_help_needs_no_rich(tmp_path: Path) -> None:
    """The commands' imports are late: help and mistakes are quick."""
    code = (
        "import sys, typer; from tunnelbridge import cli_control\n"
        "cli_control.register(typer.Typer())\n"
        "late = ('rich.table', 'tunnelbridge.show', 'tunnelbridge.control', 'asyncio', 'numpy')\n"
        "print([name for name in late if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
