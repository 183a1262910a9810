"""Capabilities: what /proc says against capsh-like arithmetic and a child that has dropped some."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunnelbridge.errors import UserError
from tunnelbridge.linux import privileges

HEADER = Path("/usr/include/linux/capability.h")


@pytest.mark.skipif(not HEADER.exists(), reason="needs linux/capability.h (linux-libc-dev)")
def test_names_are_those_of_the_kernel_header() -> None:
    defined = dict(re.findall(r"^#define (CAP_\w+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE))
    for name, bit in defined.items():
        assert privileges.names(1 << int(bit)) == {name}
    assert len(defined) == len(privileges.CAPABILITIES)


def test_no_bit_and_a_bit_of_the_future() -> None:
    assert privileges.names(0) == frozenset()
    assert privileges.names(1 << 63) == {"CAP_63"}


def test_root_has_what_it_needs(root: None) -> None:
    assert {"CAP_NET_RAW", "CAP_NET_ADMIN"} <= privileges.effective_capabilities()


def test_nobody_is_told_what_to_do(root: None) -> None:
    """A child that gave up root has nothing effective and gets one line that names the way."""
    program = (
        "import os; from tunnelbridge.linux import privileges\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "assert not privileges.effective_capabilities()\n"
        "error = privileges.missing('CAP_NET_RAW', 'capturing from eth0')\n"
        "print(type(error).__name__, error.status, error, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, status, text = done.stdout.strip().split("|")
    assert (kind, status) == ("UserError", "1")
    assert text.startswith("capturing from eth0 needs CAP_NET_RAW: run with sudo, or once: ")
    assert "sudo setcap cap_net_raw,cap_net_admin+ep " in text


def test_another_capability_is_added_to_the_command() -> None:
    error = privileges.missing("CAP_SYS_ADMIN", "entering a namespace")
    assert isinstance(error, UserError)
    assert "setcap cap_net_raw,cap_net_admin,cap_sys_admin+ep" in str(error)


def test_only_a_python_of_our_own_is_given_the_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bin" / "python3"
    own.parent.mkdir()
    own.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(own))
    assert str(privileges.missing("CAP_NET_RAW", "x")).endswith(f"+ep {own}")

    own.unlink()
    own.symlink_to("/usr/bin/env")  # as a virtual environment's python is one to the system's
    said = str(privileges.missing("CAP_NET_RAW", "x"))
    assert "/usr/bin" not in said
    assert "venv --copies" in said
