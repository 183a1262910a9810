"""Whatever stands in a configuration file, the answer is a configuration or lines that say why not."""

from __future__ import annotations

import copy
import datetime
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config_file import WHOLE

from tunnelbridge.config.load import loads
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.errors import UsageError

DATA = tomllib.loads(WHOLE)
STRANGE = st.one_of(
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=6),
    st.just(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
    st.sampled_from(
        ["10.0.0.1", "02:00:00:00:00:01", "gre://h", "ids", "a=b", "=", "://", [], {}, [[]], [{}]]
    ),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def loaded(text: str) -> Mirror | None:
    """Return the configuration, or None where it is refused in lines that name the file."""
    try:
        return loads(text, "m.toml")
    except UsageError as error:
        lines = str(error).split("\n")
    assert [line for line in lines if not line.startswith("m.toml: ")] == []
    return None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_strange_value_anywhere(data: st.DataObject) -> None:
    whole = copy.deepcopy(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(list(places(whole))))
        node: Any = whole
        for key in path:
            node = node[key]
        if data.draw(st.booleans()):
            node[last] = data.draw(STRANGE)
        elif isinstance(node, dict):
            node[data.draw(st.text(max_size=4))] = node.pop(last)
    mirror = loaded(tomli_w.dumps(whole))
    if mirror is not None:
        assert all("\n" not in line for line in (*mirror.warnings(), *mirror.summary()))
        loads(WHOLE).difference(mirror)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="[]{}=\"'.,#\n a1_", max_size=30))
def test_strange_text(text: str) -> None:
    loaded(text)


@pytest.mark.parametrize("table", [name for name, value in DATA.items() if isinstance(value, dict)])
def test_any_table_can_be_missing(table: str) -> None:
    rest = {name: value for name, value in DATA.items() if name != table}
    loaded(tomli_w.dumps(rest))
