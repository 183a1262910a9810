"""The flow table against dictionaries: what it knows, for how long, and what it gives up."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import outer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.flow_table import FlowTable, flow_key
from tunnelbridge.wire.flow import Flows, Words, read_flows

IDLE = 100
KEYS = st.integers(0, 20)


def words(keys: list[int]) -> Words:
    """Return keys as the table takes them."""
    return np.array(keys, np.uint64)


def look_up(table: FlowTable, keys: list[int], now: int) -> list[int]:
    found = table.look_up(words(keys), np.full(len(keys), now, np.int64))
    assert found.dtype == np.int64
    return found.tolist()


def insert(table: FlowTable, keys: list[int], values: list[int], now: int) -> None:
    table.insert(words(keys), np.array(values, np.int64), np.full(len(keys), now, np.int64))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 1024])
def test_sizes(count: int) -> None:
    table = FlowTable()
    keys = list(range(count))
    assert look_up(table, keys, 0) == [-1] * count
    insert(table, keys, keys, 0)
    assert look_up(table, keys, 0) == keys
    assert table.evicted == 0


def test_the_first_of_equal_keys_counts_and_a_known_one_is_put_over() -> None:
    table = FlowTable()
    insert(table, [7, 8, 7], [1, 2, 3], 0)
    assert look_up(table, [7, 8], 0) == [1, 2]
    insert(table, [8, 9, 8, 7], [4, 5, 6, 6], 0)
    assert look_up(table, [7, 8, 9], 0) == [6, 4, 5]


def test_extreme_keys_and_values() -> None:
    table = FlowTable()
    keys = [0, 1, (1 << 64) - 1, 1 << 63]
    values = [0, (1 << 31) - 1, 5, 6]
    insert(table, keys, values, 0)
    assert look_up(table, keys, 0) == values


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("look"), st.lists(KEYS, max_size=12)),
            st.tuples(st.just("put"), st.lists(KEYS, max_size=12)),
            st.tuples(st.just("wait"), st.integers(0, IDLE)),
            st.tuples(st.just("forget"), st.lists(st.integers(0, 5), max_size=3)),
        ),
        max_size=25,
    )
)
@settings(deadline=None, max_examples=150)
def test_like_a_dictionary_that_forgets(operations: list[tuple[str, int | list[int]]]) -> None:
    """With room for all: 21 keys in 32 sets, one to a set."""
    table, known, now, number = FlowTable(128, IDLE), dict[int, tuple[int, int]](), 0, 0
    for name, argument in operations:
        known = {key: it for key, it in known.items() if now - it[1] <= IDLE}
        if name == "look":
            assert isinstance(argument, list)
            expected = [known[key][0] if key in known else -1 for key in argument]
            known |= {key: (known[key][0], now) for key in argument if key in known}
            assert look_up(table, argument, now) == expected
        elif name == "put":
            assert isinstance(argument, list)
            values = [(number + offset) % 6 for offset in range(len(argument))]
            number += 1
            pairs = reversed(list(zip(argument, values, strict=True)))  # the first wins
            known |= {key: (value, now) for key, value in pairs}
            insert(table, argument, values, now)
        elif name == "forget":
            assert isinstance(argument, list)
            known = {key: it for key, it in known.items() if it[0] not in argument}
            table.forget(argument)
        else:
            assert isinstance(argument, int)
            now += argument
    assert table.evicted == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
@settings(deadline=None, max_examples=150)
def test_the_least_recently_seen_makes_room(steps: list[tuple[bool, int]]) -> None:
    """One set of four ways, against an ordered dictionary."""
    table, known, evicted = FlowTable(4, 1 << 40), OrderedDict[int, int](), 0
    for now, (puts, key) in enumerate(steps):
        if puts:
            if key not in known and len(known) == 4:
                known.popitem(last=False)
                evicted += 1
            known[key] = now
            insert(table, [key], [now], now)
        else:
            assert look_up(table, [key], now) == [known.get(key, -1)]
        if key in known:
            known.move_to_end(key)
        assert table.evicted == evicted


@pytest.mark.parametrize("count", [3, 4, 5, 300])
def test_more_new_flows_at_once_than_a_set_holds(count: int) -> None:
    table = FlowTable(4)
    insert(table, [1000, 1001, 1002, 1003], [0] * 4, 0)
    keys = list(range(count, 0, -1))
    insert(table, keys, keys, 1)
    assert look_up(table, keys, 1) == [*keys[:4], *[-1] * (count - 4)]
    assert table.evicted == count  # old flows, and the new ones that found no place


def test_a_flow_that_is_seen_in_the_same_call_makes_no_room() -> None:
    table = FlowTable(4)
    for now, key in enumerate([1, 2, 3, 4]):
        insert(table, [key], [key], now)
    insert(table, [1, 5], [1, 5], 9)
    assert look_up(table, [1, 2, 3, 4, 5], 9) == [1, -1, 3, 4, 5]


def test_idle_flows_make_room_before_live_ones_and_are_not_counted() -> None:
    table = FlowTable(4, IDLE)
    insert(table, [1, 2], [1, 2], 0)
    insert(table, [3, 4], [3, 4], IDLE)
    look_up(table, [2], IDLE)
    insert(table, [5], [5], IDLE + 1)
    assert look_up(table, [1, 2, 3, 4, 5], IDLE + 1) == [-1, 2, 3, 4, 5]
    assert table.evicted == 0


def test_a_flow_that_was_idle_begins_anew_wherever_its_old_place_is() -> None:
    for first in range(4):  # its old place may come before or after the new one
        table = FlowTable(4, IDLE)
        keys = [1, 2, 3, 4]
        keys.insert(0, keys.pop(first))
        insert(table, keys, keys, 0)
        insert(table, [1], [9], IDLE + 1)
        assert look_up(table, [1, 2, 3, 4], IDLE + 1) == [9, -1, -1, -1]


def test_a_time_for_each_packet() -> None:
    table = FlowTable(64, IDLE)
    table.insert(words([1, 2]), np.array([1, 2]), np.array([0, 50]))
    assert table.look_up(words([1, 2]), np.array([IDLE + 1, IDLE + 1])).tolist() == [-1, 2]


def test_it_fills_well() -> None:
    """Random keys, half as many as slots: hardly any is lost (Poisson, 4 ways, 2 keys a set)."""
    chance = np.random.default_rng(1)
    table = FlowTable(1 << 14)
    keys = chance.integers(0, 1 << 64, 1 << 13, np.uint64)
    table.insert(keys, np.arange(len(keys)), np.zeros(len(keys), np.int64))
    found = table.look_up(keys, np.zeros(len(keys), np.int64))
    assert ((found == np.arange(len(keys))) | (found == -1)).all()
    assert (found == -1).sum() == table.evicted
    assert table.evicted < 0.05 * len(keys)


def flows_of(*packets: bytes) -> Flows:
    batch = from_packets([outer.frame(packet) for packet in packets])
    return read_flows(batch.memory, batch.start, batch.start + batch.length)


@pytest.mark.parametrize("pair", [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")])
def test_keys_are_of_flows_and_protocols(pair: tuple[str, str]) -> None:
    a, b = pair
    there = outer.ip(outer.udp(bytes(9), 40000, 53), 17, a, b)
    back = outer.ip(outer.udp(bytes(9), 53, 40000), 17, b, a)
    other = outer.ip(outer.udp(bytes(9), 40001, 53), 17, a, b)
    sctp = outer.ip(outer.udp(bytes(9), 40000, 53), 132, a, b)
    flows = flows_of(there, back, other, sctp)
    key = flow_key(flows)
    assert key.dtype == np.uint64
    assert key[0] == key[1]
    assert len(set(key.tolist())) == 3
    assert flows.hash[3] == flows.hash[0]  # only the key tells protocols apart
    salted = flow_key(flows, 1)
    assert salted[0] == salted[1]
    assert not set(salted.tolist()) & set(key.tolist())


def test_frames_without_ip_have_a_key() -> None:
    arp = outer.MACS + bytes.fromhex("0806") + bytes(46)
    batch = from_packets([arp])
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    assert flow_key(flows).shape == (1,)
