"""The live sinks' options: what they open, in which order, and what cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

import lab
from collector.cli_live import live_openers
from collector.streams import StreamTable
from tunnelbridge.errors import UsageError, UserError

COLLECTOR: Any = SimpleNamespace(streams=StreamTable())


def test_nothing_asked_for() -> None:
    assert live_openers((), None, (), ()) == []


def test_a_server_has_its_own_filter_or_the_common_one() -> None:
    openers = live_openers(
        ["127.0.0.1:0", "127.0.0.1:0?filter=tcp&format=pcapng&snaplen=99"], "udp", (), ()
    )
    found = [opener.args[0] for opener in openers]
    assert [(each.expression, each.snaplen) for each in found] == [("udp", 262_144), ("tcp", 99)]
    assert found[1].more == {"format": "pcapng"}
    for opener in openers:
        with closing(opener(COLLECTOR)) as sink:
            assert sink.ledger.name.startswith("serve 127.0.0.1:")
    plain = live_openers(["127.0.0.1:0"], None, (), ())
    assert plain[0].args[0].expression == ""


@pytest.mark.usefixtures("root")
def test_every_kind_opens_what_it_says() -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, _):
        openers = live_openers(["127.0.0.1:0"], None, [f"{ns}:mon?most=2"], [f"{ns}:{near}"])
        names = []
        for opener in openers:
            with closing(opener(COLLECTOR)) as sink:
                names.append(sink.ledger.name)
    assert names[:2] == [f"tap-per-stream {ns}:mon", f"inject {ns}:{near}"]
    assert names[2].startswith("serve ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), "udp", (), ()), "--serve-filter goes with --serve"),
        (
            (["x?nosuch=1"], None, (), ()),
            "no option nosuch, expected filter, snaplen, queue, format",
        ),
        (((), None, ["x?nosuch=1"], ()), "expected filter, snaplen, most"),
        (((), None, (), ["x?most=1"]), "no option most, expected filter, snaplen$"),
    ],
)
def test_what_cannot_be_meant(arguments: tuple[Sequence[str], Any, Any, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        live_openers(*arguments)


def test_the_same_port_twice() -> None:
    openers: list[Callable[..., Any]] = [*live_openers(["127.0.0.1:0"], None, (), ())]
    with closing(openers[0](COLLECTOR)) as first:
        again = live_openers([f"127.0.0.1:{first.port}"], None, (), ())
        with pytest.raises(UserError, match=r"cannot serve on .*: Address already in use"):
            again[0](COLLECTOR)
