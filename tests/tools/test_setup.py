"""What the scripts say when they cannot do their work, on a checkout of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
SCRIPTS = ["tools/setup", "tests/run", ".ci/run", "netns-lab/demo", "netns-lab/lab"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup", tmp_path / "tools/setup")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def setup(
    checkout: Path, *arguments: str, user: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/setup", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=user,
        check=False,
    )


def interpreter(folder: Path, script: str) -> str:
    """Make a stand-in for python3."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("arguments", [(), ("everything",)])
def test_an_unknown_purpose_is_a_usage_error(checkout: Path, arguments: tuple[str, ...]) -> None:
    done = setup(checkout, *arguments)

    assert (done.returncode, done.stderr) == (2, "usage: tools/setup run|lab|scenarios|test\n")


def test_an_old_python_is_told_and_what_to_do(checkout: Path) -> None:
    old = interpreter(
        checkout,
        '[ "$1" = --version ] && echo Python 3.10.12 && exit\n'
        f"exec {sys.executable} -c 'import sys; sys.version_info = (3, 10); exec(sys.argv[1])' \"$2\"",
    )

    done = setup(checkout, "run", PYTHON=old)

    assert done.returncode == 1
    assert "needs Python 3.11 or newer (found: Python 3.10.12)" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_is_told(checkout: Path) -> None:
    done = setup(checkout, "run", PYTHON="no-such-python")

    assert done.returncode == 1
    assert "(found: none)" in done.stderr


@pytest.fixture
def open_checkout(checkout: Path) -> Iterator[Path]:
    """Copy the checkout to where another user can get to; pytest's own folders are closed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(checkout, folder, dirs_exist_ok=True)
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield Path(folder)


@pytest.mark.usefixtures("root")
def test_without_root_a_missing_package_is_listed(open_checkout: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get: the list is for Debian and Ubuntu")
    incomplete = interpreter(
        open_checkout,
        'case "$*" in *ensurepip*) exit 1;; *%d.%d-venv*) echo python3.13-venv;; esac',
    )

    done = setup(open_checkout, "run", user=NOBODY, PYTHON=incomplete)

    assert done.returncode == 1
    assert "to install them: sudo apt-get install python3.13-venv" in done.stderr
    assert "cannot make virtual environments" in done.stderr


@pytest.mark.usefixtures("root")
def test_a_checkout_of_somebody_else_is_told(open_checkout: Path) -> None:
    os.chown(open_checkout, 0, 0)
    open_checkout.chmod(0o755)

    done = setup(open_checkout, "run", user=NOBODY)

    assert done.returncode == 1
    assert f"cannot write to {open_checkout}" in done.stderr
