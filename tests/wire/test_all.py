"""Rules over all formats: what every decoder promises, whatever the octets.

The tables of the formats' own tests are the corpus here: every truncation of every row, any octets
at all, batches of any size, neighbours of any kind.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import golden
import numpy as np
import pytest
from golden import FRAME, told
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelbridge import wire
from tunnelbridge.batch import from_packets
from tunnelbridge.wire import encapsulation, udp, walk
from tunnelbridge.wire.layer import Kind, Layer
from tunnelbridge.wire.reasons import Reason

PORTS = udp.port_table(udp.PORTS)


def _decode_udp(memory: Any, start: Any, end: Any) -> Layer:
    return udp.decode(memory, start, end, PORTS)


DECODERS: dict[int, walk.Decoder] = walk._DECODERS | {Kind.UDP: _decode_udp}
"""Straight from the walk, so that no format can arrive untested."""
FORMATS = {kind: importlib.import_module(_module) for kind, _module in sorted(
    (kind, (udp if kind == Kind.UDP else inspect.getmodule(decode)).__name__)
    for kind, decode in DECODERS.items()
)}  # fmt: skip
NO_FORMATS = {
    "arp", "clock", "encapsulation", "five_tuple", "flow", "layer", "ndp", "new_addresses", "octets",
    "plausible", "reasons", "walk",
}  # fmt: skip
"""Modules of the package that read no header of their own, or one message at a time (arp, ndp)."""
TABLES = {
    kind: importlib.import_module("test_" + module.__name__.rpartition(".")[2])
    for kind, module in FORMATS.items()
}
WIDTHS = {
    "payload": "int64", "end": "int64", "kind": "uint8", "reason": "uint8", "truncated": "bool",
    "encapsulation": "uint8", "identifier": "int64", "sequence": "int64", "direction": "int64",
    "tag": "int64", "original_length": "int64", "claimed_end": "int64", "fragment": "int64",
    "first_fragment": "bool", "clock": "int64", "clock_period": "int64",
}  # fmt: skip
SOONEST = settings(derandomize=True, deadline=None, max_examples=80)

kinds = pytest.mark.parametrize("kind", DECODERS, ids=[Kind(kind).slug for kind in DECODERS])


def rows(kind: int) -> list[bytes]:
    """Return the headers a format's table accepts."""
    table = TABLES[kind]
    texts = [row[1] for row in [*getattr(table, "VECTORS", []), *table.ACCEPTED]]
    return [golden.octets(text) for text in texts]


def refused_rows(kind: int) -> list[tuple[bytes, str]]:
    return [(golden.octets(text), slug) for _, text, slug in TABLES[kind].REJECTED]


def whole(kind: int) -> list[bytes]:
    """Return good packets; label stacks have their payload in the table."""
    return [row if kind == Kind.MPLS else row + FRAME for row in rows(kind)]


def corpus(kind: int) -> list[bytes]:
    """Return whole packets of a format, good and bad."""
    return whole(kind) + [row for row, _ in refused_rows(kind)]


def check(layer: Layer, start: Any, end: Any) -> None:
    """Check shapes and types, and that good headers stay inside their packets."""
    for name, dtype in WIDTHS.items():
        column = getattr(layer, name)
        if column is not None:
            assert (column.shape, column.dtype) == (start.shape, np.dtype(dtype)), name
    assert set(Layer.__slots__) == set(WIDTHS)
    good = layer.reason == 0
    assert ((start <= layer.payload) & (layer.payload <= layer.end) & (layer.end <= end))[
        good
    ].all()
    assert (layer.reason[good] < len(Reason)).all()
    for name in ("kind", "encapsulation"):
        column = getattr(layer, name)
        assert column is None or set(column.tolist()) <= set(Kind)


def decode(kind: int, packets: list[bytes]) -> list[golden.Columns]:
    """Decode a batch in read-only memory and check what holds for all."""
    batch = from_packets(packets)
    batch.memory.flags.writeable = False
    start, end = batch.start, batch.start + batch.length
    columns = start.copy(), end.copy()
    layer = DECODERS[kind](batch.memory, start, end)
    assert np.array_equal(start, columns[0])
    assert np.array_equal(end, columns[1])
    check(layer, start, end)
    return [told(layer, i, int(start[i])) for i in range(len(packets))]


def test_every_module_is_a_format_or_known_not_to_be() -> None:
    modules = {module.name for module in pkgutil.iter_modules(wire.__path__)}
    formats = {module.__name__.rpartition(".")[2] for module in FORMATS.values()}
    assert modules == formats | NO_FORMATS


@kinds
def test_every_format_has_the_same_names(kind: int) -> None:
    module = FORMATS[kind]
    assert module.__doc__ is not None
    diagram = [line for line in module.__doc__.splitlines() if line.strip().startswith("|")]
    assert diagram, "no diagram"
    assert "Receiver" in module.__doc__ or kind == Kind.ICMP, "no receiver rules"
    if kind != Kind.PPP:  # nothing but a protocol number, of one or two octets
        header = module.TLV if kind == Kind.JUNIPER else module.HEADER
        for name in header.names:
            field = header.fields[name][0]
            assert field.itemsize == 1 or field.byteorder in ">|", f"{name} in host order"
    assert inspect.getdoc(module.decode)
    used = inspect.getsource(encapsulation)
    if f"{module.__name__.rpartition('.')[2]}.patch" in used:
        assert callable(module.template)
        assert list(inspect.signature(module.patch).parameters) == ["rows", "clones", "beyond"]
    else:
        assert not hasattr(module, "template")
        assert not hasattr(module, "patch")


@kinds
def test_sizes(kind: int) -> None:
    packets = corpus(kind)
    alone = [decode(kind, [packet])[0] for packet in packets]
    assert decode(kind, []) == []
    assert decode(kind, packets) == alone
    assert decode(kind, packets + packets[:1]) == alone + alone[:1]
    assert decode(kind, packets[::-1]) == alone[::-1]


@kinds
def test_every_truncation_of_a_header_is_refused(kind: int) -> None:
    for packet in whole(kind):
        payload = decode(kind, [packet])[0]["payload"]
        cuts = [packet[:length] for length in range(payload)]
        for cut, columns in zip(cuts, decode(kind, cuts), strict=True):
            if kind == Kind.ETHERNET and len(cut) >= 14:  # a cut tag is no tag: nothing follows
                assert columns["kind"] == Kind.NONE
            elif kind == Kind.ERSPAN3 and "reason" not in columns:  # nothing like a frame is left
                assert columns["payload"] + 14 > columns["end"]
            else:
                assert "reason" in columns, (packet.hex(" "), len(cut))


@kinds
def test_every_truncation_is_read_from_its_own_octets_only(kind: int) -> None:
    for packet in corpus(kind):
        for length in range(min(len(packet), 72)):
            golden.read(DECODERS[kind], packet[:length])


@kinds
@SOONEST
@given(data=st.data())
def test_any_octets(kind: int, data: Any) -> None:
    row = st.sampled_from(corpus(kind))
    cut = st.tuples(row, st.integers(0, 100)).map(lambda both: both[0][: both[1]])
    changed = st.tuples(row, st.integers(0, 60), st.binary(max_size=4)).map(
        lambda three: three[0][: three[1]] + three[2] + three[0][three[1] + len(three[2]) :]
    )
    packets = data.draw(st.lists(st.one_of(st.binary(max_size=80), cut, changed), max_size=5))
    alone = [golden.read(DECODERS[kind], packet) for packet in packets]
    assert decode(kind, packets) == alone


def test_every_reason_has_a_row() -> None:
    """The reasons without one are other stages' words, tested there."""
    elsewhere = {
        Reason.GOOD,
        Reason.NOT_A_TUNNEL,  # decapsulation: the walk ends without a tunnel
        Reason.NOT_ALLOWED,  # the collector's allow-list
        Reason.OWN_TUNNEL,  # the sender's loop guard
        Reason.LOOP_BREAKER,  # the sender's loop guard
        Reason.NOT_IP,  # the sender, where a tunnel carries bare IP
    }
    produced = {
        columns["reason"]
        for kind in DECODERS
        for columns in decode(kind, [row for row, _ in refused_rows(kind)])
    }
    assert produced == {reason.slug for reason in Reason if reason not in elsewhere}


TUNNELS: list[Callable[[], encapsulation.Encapsulation]] = [
    row[3]
    for table in dict.fromkeys(TABLES.values())
    for row in getattr(table, "VECTORS", [])
]  # fmt: skip


@pytest.mark.parametrize("make", TUNNELS)
def test_rows_of_any_number_of_clones(make: Callable[[], encapsulation.Encapsulation]) -> None:
    tunnel = make()
    tunnel.suffix = b"suffix"
    one = tunnel.rows(golden.clones(1, sequence=1)).copy()
    assert one.shape == (1, tunnel.overhead + 6)
    for count in (0, 1, 1024, 1025, 3000, 2):
        rows = tunnel.rows(golden.clones(count, sequence=1))
        assert rows.flags.c_contiguous
        assert rows.shape == (count, tunnel.overhead + 6)
        assert (rows == one).all()
