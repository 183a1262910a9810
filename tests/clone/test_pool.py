"""Who gets which clone: exact counts in turn, exact buckets by hash, and only what must move moves."""

from __future__ import annotations

import math
import struct
from decimal import Decimal, getcontext
from itertools import islice
from typing import Any

import numpy as np
import outer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelbridge.batch import from_packets
from tunnelbridge.clone import pool, rendezvous
from tunnelbridge.clone.flow_table import flow_key
from tunnelbridge.clone.fragments import FragmentTable
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.clone.innermost import follow_innermost, source_hash
from tunnelbridge.clone.pool import Chooser, Wanted, chooser
from tunnelbridge.wire.encapsulation import gre_teb, vxlan_tunnel
from tunnelbridge.wire.flow import read_flows

MASK = (1 << 64) - 1
MEMBERS = ["10.10.10.10", "10.10.10.11", "198.51.100.9", "2001:db8::9"]
WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=5)
BUCKETS = np.arange(65536, dtype=np.uint64) << np.uint64(48)


def wanted(hashes: Any, now: int = 0) -> Wanted:
    """Return what hashes want; the key and the source are the hash too."""
    column = np.asarray(hashes, np.uint64)
    return Wanted(column, np.full(len(column), now, np.int64), column, column)


def names(count: int) -> list[str]:
    return [f"10.0.0.{number}" for number in range(1, count + 1)]


def choose(choosing: Chooser, hashes: Any, now: int = 0) -> list[int]:
    choice = choosing.choose(wanted(hashes, now))
    assert choice.dtype == np.int64
    return choice.tolist()


# --- by hash ---------------------------------------------------------------------------------------


def scalar_fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for octet in text.encode():
        value = ((value ^ octet) * 0x100000001B3) & MASK
    return value


def splitmix64(state: int) -> Any:
    """Sebastiano Vigna's splitmix64.c, in integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def scalar_winners(keys: list[str], weights: list[int]) -> list[int]:
    """Weighted rendezvous as it is told, bucket by bucket, with the C library's logarithm."""
    draws = [list(islice(splitmix64(scalar_fnv(key)), 65536)) for key in keys]
    winners = []
    for bucket in range(65536):
        scores = [
            -weight / math.log(((draw[bucket] >> 12) + 0.5) / 2**52) if weight else -1.0
            for draw, weight in zip(draws, weights, strict=True)
        ]
        best, second = sorted(scores, reverse=True)[:2]
        assert best > second * (1 + 1e-12)  # else the library's last bit would decide
        winners.append(scores.index(best))
    return winners


def test_published_vectors() -> None:
    """FNV-1a from its authors' test suite; splitmix64 as Java and Rosetta Code have it."""
    assert rendezvous.seed("") == 0xCBF29CE484222325
    assert rendezvous.seed("a") == 0xAF63DC4C8601EC8C
    assert rendezvous.seed("foobar") == 0x85944171F73967E8
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(1234567), 3)) == first


def test_the_buckets_are_those_of_scalar_code() -> None:
    choosing = chooser("flow", "packet", MEMBERS, [2, 1, 0, 3])
    assert choose(choosing, BUCKETS) == scalar_winners(MEMBERS, [2, 1, 0, 3])


def test_the_logarithm() -> None:
    """To the last bit but one, against 40 digits."""
    getcontext().prec = 40
    chance = np.random.default_rng(5)
    some = np.concatenate(
        [
            chance.random(500),
            2.0 ** -chance.integers(1, 53, 50),
            1 - 2.0 ** -chance.integers(1, 54, 50),
            [0.5**0.5, 2.0**-53],
        ]
    )
    for number, ours in zip(some, rendezvous.logarithm(some), strict=True):
        exact = Decimal(float(number)).ln()
        assert abs(Decimal(float(ours)) - exact) <= abs(exact) * Decimal(2) ** -51


def test_the_logarithm_s_bits() -> None:
    """Python's own sums, products and quotients are IEEE 754's."""

    def scalar(number: float) -> float:
        fraction, exponent = math.frexp(number)
        if fraction < 0.7071067811865476:
            fraction, exponent = fraction * 2, exponent - 1
        t = (fraction - 1) / (fraction + 1)
        series = 1 / 21
        for odd in (19, 17, 15, 13, 11, 9, 7, 5, 3, 1):
            series = series * (t * t) + 1 / odd
        return exponent * 0.6931471805599453 + series * t * 2

    numbers = rendezvous.draws("10.10.10.10")[:5000]
    ours = rendezvous.logarithm(numbers)
    assert ours.tobytes() == struct.pack("5000d", *map(scalar, numbers.tolist()))


def test_two_senders_agree_whatever_the_order_and_the_rest_of_the_hash() -> None:
    chance = np.random.default_rng(2)
    hashes = chance.integers(0, 1 << 64, 5000, np.uint64)
    one = chooser("flow", "packet", MEMBERS, [1, 2, 3, 4])
    other = chooser("flow", "packet", MEMBERS[::-1], [4, 3, 2, 1])
    here, there = choose(one, hashes), choose(other, hashes)
    assert [MEMBERS[number] for number in here] == [MEMBERS[::-1][number] for number in there]
    assert choose(one, hashes & np.uint64(0xFFFF << 48)) == here


@pytest.mark.parametrize("distribution", ["flow", "source-ip"])
@pytest.mark.parametrize("weights", [[1], [1, 1], [1, 2, 3, 4], [10, 0, 1], [65535, 1], [7] * 100])
def test_shares_are_proportional_to_weights(distribution: str, weights: list[int]) -> None:
    choice = choose(chooser(distribution, "packet", names(len(weights)), weights), BUCKETS)
    got = np.bincount(choice, minlength=len(weights))
    for count, weight in zip(got, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count - 65536 * share) <= 5 * (65536 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("gone", range(4))
def test_a_member_that_goes_moves_nothing_but_its_own(gone: int) -> None:
    weights = [1, 2, 3, 4]
    choosing = chooser("flow", "packet", MEMBERS, weights)
    before = np.array(choose(choosing, BUCKETS))
    choosing.set_available([number != gone for number in range(4)])
    during = np.array(choose(choosing, BUCKETS))
    assert (during[before != gone] == before[before != gone]).all()
    inherited = np.bincount(during[before == gone], minlength=4)
    left = sum(weights) - weights[gone]
    for number, weight in enumerate(weights):
        share = 0 if number == gone else weight / left
        spread = 5 * (inherited.sum() * share * (1 - share)) ** 0.5
        assert abs(inherited[number] - inherited.sum() * share) <= spread
    # as if it had never been there: drained, or not configured at all
    drained = [0 if number == gone else weight for number, weight in enumerate(weights)]
    assert choose(chooser("flow", "packet", MEMBERS, drained), BUCKETS) == during.tolist()
    rest = [number for number in range(4) if number != gone]
    fewer = chooser("flow", "packet", [MEMBERS[i] for i in rest], [weights[i] for i in rest])
    assert [rest[number] for number in choose(fewer, BUCKETS)] == during.tolist()
    choosing.set_available([True] * 4)
    assert choose(choosing, BUCKETS) == before.tolist()


def test_source_ip_looks_at_the_source_alone() -> None:
    choosing = chooser("source-ip", "packet", MEMBERS, [1, 1, 1, 1])
    chance = np.random.default_rng(8)
    hashes, sources = chance.integers(0, 1 << 64, (2, 500), np.uint64)
    now = np.zeros(500, np.int64)
    by_flow = chooser("flow", "packet", MEMBERS, [1, 1, 1, 1])
    expected = by_flow.choose(Wanted(sources, now)).tolist()
    assert choosing.choose(Wanted(hashes, now, source_hash=sources)).tolist() == expected


# --- in turn ---------------------------------------------------------------------------------------


def scalar_cycle(distribution: str, weights: list[int]) -> list[int]:
    """Return the turns of one cycle, by hand."""
    if distribution == "round-robin":
        return [number for number, weight in enumerate(weights) for _ in range(weight)]
    current, turns = [0] * len(weights), []
    for _ in range(sum(weights)):
        current = [have + weight for have, weight in zip(current, weights, strict=True)]
        best = current.index(max(current))
        current[best] -= sum(weights)
        turns.append(best)
    return turns


def test_nginx_s_own_example() -> None:
    """From the commit that brought it (nginx 52327e0627f4): 5, 1, 1 gives a a b a c a a."""
    choosing = chooser("weighted-round-robin", "packet", names(3), [5, 1, 1])
    assert choose(choosing, [0] * 14) == [0, 0, 1, 0, 2, 0, 0] * 2


def test_a_member_takes_its_weight_in_turns_in_a_row() -> None:
    choosing = chooser("round-robin", "packet", names(4), [2, 1, 0, 2])
    assert choose(choosing, [0] * 12) == [0, 0, 1, 3, 3, 0, 0, 1, 3, 3, 0, 0]


@pytest.mark.parametrize("distribution", ["round-robin", "weighted-round-robin"])
@given(weights=WEIGHTS, sizes=st.lists(st.integers(0, 40), max_size=8))
@settings(deadline=None, max_examples=120)
def test_the_turns_whatever_the_batches(
    distribution: str, weights: list[int], sizes: list[int]
) -> None:
    choosing = chooser(distribution, "packet", names(len(weights)), weights)
    cycle = scalar_cycle(distribution, weights)
    got = [number for size in sizes for number in choose(choosing, [0] * size)]
    if not cycle:
        assert got == [-1] * sum(sizes)
    else:
        assert got == [cycle[turn % len(cycle)] for turn in range(sum(sizes))]


@pytest.mark.parametrize("distribution", ["round-robin", "weighted-round-robin"])
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 10_003])
def test_counts_are_exact_over_cycles(distribution: str, size: int) -> None:
    weights = [3, 1, 0, 4]
    choosing = chooser(distribution, "packet", names(4), weights)
    counts = np.zeros(4, np.int64)
    for _ in range(8):
        counts += np.bincount(choose(choosing, [0] * size), minlength=4)
    assert counts.tolist() == [size * weight for weight in weights]


@pytest.mark.parametrize("weights", [[65535, 65534], [65535, 1, 0, 40000], [60000] * 3])
def test_long_cycles(weights: list[int]) -> None:
    """Beyond 65536 turns they are spread without a loop; the counts are as exact."""
    cycle = pool.smooth(weights)
    divisor = math.gcd(*weights)
    counts = np.bincount(cycle, minlength=len(weights)).tolist()
    assert counts == [weight // divisor for weight in weights]
    for number, weight in enumerate(weights):
        turns = np.flatnonzero(cycle == number)
        if len(turns):
            gaps = np.diff(turns, append=turns[0] + len(cycle))
            assert gaps.max() <= sum(weights) / weight + len(weights)


@pytest.mark.parametrize("distribution", ["round-robin", "weighted-round-robin"])
@given(
    weights=WEIGHTS,
    steps=st.lists(
        st.tuples(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 20)), max_size=8
    ),
)
@settings(deadline=None, max_examples=120)
def test_turns_of_members_that_are_down_are_skipped(
    distribution: str, weights: list[int], steps: list[tuple[list[bool], int]]
) -> None:
    choosing = chooser(distribution, "packet", names(len(weights)), weights)
    cycle, turn = scalar_cycle(distribution, weights), 0
    for flags, size in steps:
        up = flags[: len(weights)]
        choosing.set_available(up)
        got = choose(choosing, [0] * size)
        if not any(up[number] for number in cycle):
            assert got == [-1] * size
            continue
        for number in got:
            while not up[cycle[turn % len(cycle)]]:
                turn += 1
            assert number == cycle[turn % len(cycle)]
            turn += 1


@pytest.mark.parametrize("distribution", ["round-robin", "weighted-round-robin"])
@given(
    weights=WEIGHTS,
    steps=st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=5, max_size=5),
            st.lists(st.integers(1, 12), max_size=20),
            st.sampled_from([0, 1, 60, 121]),
        ),
        max_size=8,
    ),
)
@settings(deadline=None, max_examples=120)
def test_per_flow_the_first_packet_takes_the_turn(
    distribution: str,
    weights: list[int],
    steps: list[tuple[list[bool], list[int], int]],
) -> None:
    choosing = chooser(distribution, "flow", names(len(weights)), weights)
    cycle, turn, now = scalar_cycle(distribution, weights), 0, 0
    flows: dict[int, tuple[int, int]] = {}
    for flags, packets, seconds in steps:
        up = [flag and weight > 0 for flag, weight in zip(flags, weights, strict=False)]
        choosing.set_available(flags[: len(weights)])
        now += seconds * 10**9
        got = choose(choosing, packets, now)
        for flow, number in zip(packets, got, strict=True):
            member, seen = flows.get(flow, (-1, 0))
            if not any(up):
                assert number == -1
                if member >= 0 and now - seen <= 120 * 10**9:
                    flows[flow] = member, now  # it may come back
                continue
            if member < 0 or now - seen > 120 * 10**9 or not up[member]:
                while not up[cycle[turn % len(cycle)]]:
                    turn += 1
                member = cycle[turn % len(cycle)]
                turn += 1
            assert number == member
            flows[flow] = member, now


def test_per_flow_counts_flows_not_packets() -> None:
    choosing = chooser("round-robin", "flow", names(3), [1, 1, 1])
    chance = np.random.default_rng(4)
    flows = np.repeat(chance.integers(0, 1 << 64, 300, np.uint64), chance.integers(1, 9, 300))
    chance.shuffle(flows)
    got = dict[int, int]()
    for part in np.array_split(flows, 7):
        for flow, member in zip(part.tolist(), choose(choosing, part), strict=True):
            assert got.setdefault(flow, member) == member
    assert np.bincount(list(got.values())).tolist() == [100, 100, 100]


# --- all of them -----------------------------------------------------------------------------------

EVERY = [
    ("flow", "packet"), ("source-ip", "packet"), ("round-robin", "packet"),
    ("round-robin", "flow"), ("weighted-round-robin", "packet"), ("weighted-round-robin", "flow"),
]  # fmt: skip
every = pytest.mark.parametrize(("distribution", "per"), EVERY)


@every
@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_sizes(distribution: str, per: str, count: int) -> None:
    choosing = chooser(distribution, per, names(3), [1, 2, 3])
    choice = choose(choosing, np.arange(count, dtype=np.uint64) << np.uint64(50))
    assert len(choice) == count
    assert set(choice) <= {0, 1, 2}


@every
def test_nobody_and_only_one(distribution: str, per: str) -> None:
    hashes = np.arange(50, dtype=np.uint64) << np.uint64(58)
    choosing = chooser(distribution, per, names(3), [1, 0, 2])
    choosing.set_available([False, True, False])
    assert choose(choosing, hashes) == [-1] * 50
    choosing.set_available(np.array([False, True, True]))
    assert choose(choosing, hashes) == [2] * 50
    assert choose(chooser(distribution, per, names(2), [0, 0]), hashes) == [-1] * 50


def test_no_such_distribution() -> None:
    with pytest.raises(ValueError, match="no such distribution: least-connections"):
        chooser("least-connections", "packet", names(1), [1])


# --- packets ---------------------------------------------------------------------------------------


def by_packets(choosing: Chooser, *frames: bytes) -> list[int]:
    """Choose as the pipeline does, from frames."""
    batch = from_packets(list(frames))
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    checked = LoopGuard([]).check(batch, flows)
    follow_innermost(batch.memory, flows, checked.innermost)
    FragmentTable().follow(batch.memory, flows)
    sources = source_hash(batch.memory, flows)
    return choosing.choose(Wanted(flows.hash, batch.timestamp, sources, flow_key(flows))).tolist()


def ends(version: int, client: int) -> tuple[str, str]:
    if version == 4:
        return f"10.1.{client >> 8}.{client & 255}", "192.0.2.80"
    return f"2001:db8::{client:x}", "2001:db8:1::80"


def frames_of(version: int, client: int) -> list[bytes]:
    """Return what one flow can look like: both ways, tagged, in fragments."""
    a, b = ends(version, client)
    there = outer.ip(outer.udp(bytes(200), 40000, 53), 17, a, b)
    back = outer.ip(outer.udp(bytes(300), 53, 40000), 17, b, a)
    return [
        outer.frame(there),
        outer.frame(back),
        outer.frame(there, 5),
        outer.frame(back, 5, 6),
        *(outer.frame(part) for part in outer.fragments(there, 64, client)),
        *(outer.frame(part, 7) for part in outer.fragments(back, 64, client)),
    ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("distribution", "per"),
    [("flow", "packet"), ("round-robin", "flow"), ("weighted-round-robin", "flow")],
)
def test_a_flow_stays_together(distribution: str, per: str, version: int) -> None:
    choosing = chooser(distribution, per, MEMBERS, [1, 1, 2, 1])
    seen = set()
    for client in range(1, 60):
        choice = set(by_packets(choosing, *frames_of(version, client)))
        assert len(choice) == 1
        seen |= choice
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("version", [4, 6])
def test_tunnelled_traffic_goes_where_it_would_go_without(version: int) -> None:
    """Two tunnel ends between which all clients' traffic goes are not one flow."""
    choosing = chooser("flow", "packet", MEMBERS, [1, 1, 1, 1])
    seen = set()
    for client in range(1, 60):
        frames = frames_of(version, client)[:4]
        tunnelled = [
            outer.frame(outer.tunnelled(make, frame, *direction))
            for make in (vxlan_tunnel(4789, 7), gre_teb(9, True, False))
            for direction in (("192.0.2.1", "192.0.2.2"), ("2001:db8:f::2", "2001:db8:f::1"))
            for frame in frames
        ]
        choice = set(by_packets(choosing, *frames, *tunnelled))
        assert len(choice) == 1
        seen |= choice
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_stays_together(version: int) -> None:
    choosing = chooser("source-ip", "packet", MEMBERS, [1, 1, 1, 1])
    seen = set()
    for client in range(1, 60):
        a, _ = ends(version, client)
        packets = [
            outer.ip(
                struct.pack(">HHI", port, 80, 9) + bytes(20), protocol, a, ends(version, port)[0]
            )
            for protocol in (6, 17, 89)
            for port in (1, 2, 3)
        ]
        choice = set(by_packets(choosing, *map(outer.frame, packets)))
        assert len(choice) == 1
        seen |= choice
    assert seen == {0, 1, 2, 3}
