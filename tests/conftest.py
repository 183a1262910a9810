"""Fixtures all tests share: where other people's captures are, and what this machine can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leave no logger behind that writes to the standard error pytest captured for one test."""
    yield
    structlog.reset_defaults()
