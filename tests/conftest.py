"""Fixtures all tests share: where other people's captures are, and what this machine can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

pytest.register_assert_rewrite("golden")  # failed assertions of shared tables explain themselves

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures"


@pytest.fixture(scope="session")
def captures() -> Path:
    """Return the folder of other projects' captures, which lies beside the checkout."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no folder of foreign captures at {CAPTURES}")
    return CAPTURES


@pytest.fixture(scope="session")
def root() -> None:
    """Skip without root: namespaces, raw sockets and taps need it."""
    if os.geteuid() != 0:
        pytest.skip("needs root (namespaces, raw sockets, taps)")


@pytest.fixture
def runner_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Callable[..., tuple[int, str, str]]]:
    """Return what makes a runner of a program's ``main``: exit code, standard output, error."""

    def runner(main: Callable[[], None], name: str) -> Callable[..., tuple[int, str, str]]:
        def call(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [name, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            code = ended.value.code
            assert isinstance(code, int)
            return code, *capsys.readouterr()

        return call

    return runner


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leave no logger behind that writes to the standard error pytest captured for one test."""
    yield
    structlog.reset_defaults()
