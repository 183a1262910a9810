"""``config schema``, ``config check`` and ``import`` as typed."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from test_config_file import SMALL

from tunnelbridge import cli_config
from tunnelbridge.command_line import run

NSX = json.dumps(
    {"name": "p", "clone_servers": [{"ip_address": {"addr": "198.51.100.9", "type": "V4"}}]}
)


@pytest.fixture
def tunnelbridge(
    runner_of: Callable[..., Callable[..., tuple[int, str, str]]],
) -> Callable[..., tuple[int, str, str]]:
    """Return a runner of a program that has only these commands."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    cli_config.register(app)
    return runner_of(lambda: run(app, "tunnelbridge"), "tunnelbridge")


def test_schema(tunnelbridge: Callable[..., tuple[int, str, str]]) -> None:
    status, output, error = tunnelbridge("config", "schema")
    assert (status, error) == (0, "")
    assert json.loads(output)["properties"]["pools"]["description"] == "Clone pools."


def test_check(tunnelbridge: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(SMALL + '[tunnels]\nspare = "gre://192.0.2.9"')
    assert tunnelbridge("config", "check", str(path)) == (
        0,
        "session s, priority 1: all packets of eth0\n  → gre://192.0.2.1\n",
        f"{path}: tunnels.spare is not used\n",
    )

    path.write_text(SMALL + "priority = 0\nvni = -1")
    assert tunnelbridge("config", "check", str(path)) == (
        2,
        "",
        (
            f"tunnelbridge: {path}: sessions.s.priority = 0: must be 1 to 32766\n"
            f"{path}: sessions.s.vni = -1: must be 0 to 16777215\n"
        ),
    )


def test_import(
    tunnelbridge: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, written = tmp_path / "profile.json", tmp_path / "out.toml"
    path.write_text(NSX)

    status, output, error = tunnelbridge("import", "nsx", str(path))
    assert status == 0
    assert tomllib.loads(output)["pools"]["p"]["members"][0]["ip"] == "198.51.100.9"
    assert "profile p, clone server 1: it has no subnet" in error

    assert tunnelbridge("import", "nsx", str(path), "-o", str(written)) == (0, "", error)
    assert written.read_text() == output
    assert tunnelbridge("config", "check", str(written))[0] == 0

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(NSX.encode())))
    assert tunnelbridge("import", "nsx", "-") == (0, output, error)


def test_import_of_what_cannot_be(
    tunnelbridge: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff")
    for arguments, line in (
        (("f5", str(path)), f"{path}: not UTF-8"),
        (("nsx", str(path)), f"{path}: not UTF-8 at octet 0"),
        (("nsx", f"{path}.none"), f"{path}.none: no such file or directory"),
        (("nsx", str(tmp_path)), f"{tmp_path}: is a directory"),
    ):
        status, output, error = tunnelbridge("import", *arguments)
        assert (status, output) == (2, "")
        assert error.startswith(f"tunnelbridge: {line}")
        assert error.count("\n") == 1

    path.write_text("{}")
    assert tunnelbridge("import", "f5", str(path))[2].startswith("tunnelbridge: cannot import f5")
    path.write_text(NSX)
    status, _, error = tunnelbridge("import", "nsx", str(path), "-o", f"{tmp_path}/none/out")
    assert (status, error) == (1, f"tunnelbridge: {tmp_path}/none/out: no such file or directory\n")
