"""Lists of filter rules tried on a whole batch: which rule decides each packet.

Bit-vector classification (Lakshman and Stiliadis, "High-speed policy-based packet forwarding using
efficient multi-dimensional range matching", SIGCOMM 1998): every field is looked up by itself and
gives one bit per rule, and the rules that match are the AND over the fields. The cost grows with the
number of fields that some rule restricts and with rules / 64, not with rules × packets.

Each list of up to 64 rules lies within one word, longer ones begin a word of their own, so that the
first match of every list is isolated in all lists at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags
from tunnelbridge.clone.match_tables import Bits, Matches
from tunnelbridge.clone.rules import Rule
from tunnelbridge.wire.five_tuple import FiveTuples

__all__ = ["NONE", "Bits", "Classifier"]

NONE: Final = -1
_WORD: Final = 64
_ONE: Final = np.uint64(1)


class Classifier:
    """Rule lists, in the order in which they are tried.

    A list that is None is opaque (an expression): one rule that accepts, whose matches the caller
    sets. Rules are numbered through all lists. Columns have shape (n,), bits (n, words) uint64.

    Attributes:
        rules: (list index, rule) by number; the rule of an opaque list is None.
        list_of: the list of each rule, by number.
        accepts: whether each rule accepts, by number.

    """

    def __init__(self, lists: Sequence[Sequence[Rule] | None]) -> None:
        self.rules: list[tuple[int, Rule | None]] = [
            (number, rule)
            for number, rules in enumerate(lists)
            for rule in ([None] if rules is None else rules)
        ]
        self.list_of: Column = np.array([number for number, _ in self.rules], np.int64)
        self.accepts: Flags = np.array(
            [rule is None or rule.accept for _, rule in self.rules], np.bool_
        )
        sizes = [1 if rules is None else len(rules) for rules in lists]
        self._starts, words = _starts(sizes)
        self._spans = [
            (start // _WORD, (start + max(size, 1) - 1) // _WORD + 1)
            for start, size in zip(self._starts, sizes, strict=True)
        ]
        self._place = _places(self._starts, sizes)
        self._number = np.full(words * _WORD, NONE)
        self._number[self._place] = np.arange(len(self.rules))
        self._accepting = _mask(self._place[self.accepts], words)
        self._lists = np.zeros((len(sizes), words), np.uint64)
        for number, size in enumerate(sizes):
            self._lists[number] = _mask(_places([self._starts[number]], [size]), words)
        self._low, self._high = _ends(self._starts, sizes, words)
        self._tiles = [np.zeros((0, words), np.uint64)] * 2
        self._matches = Matches(
            [
                (int(place), rule)
                for place, (_, rule) in zip(self._place, self.rules, strict=True)
                if rule is not None
            ],
            words,
        )

    def candidates(self, direction: npt.NDArray[np.uint8], tuples: FiveTuples) -> Bits:
        """Return which rules match each packet by themselves; opaque lists have no match yet."""
        return self._matches.look_up(direction, tuples)

    def set_opaque(self, bits: Bits, list_index: int, flags: Flags) -> None:
        """Set the matches of an opaque list, in place."""
        word, bit = divmod(self._starts[list_index], _WORD)
        bits[:, word] |= flags.astype(np.uint64) << np.uint64(bit)

    def force(self, bits: Bits, list_index: int, rows: Column, rule: Column) -> None:
        """Let only ``rule`` (by number) of one list match the packets ``rows``, in place."""
        if not rows.size:
            return
        first, last = self._spans[list_index]
        bits[rows, first:last] &= ~self._lists[list_index, first:last]
        place = self._place[rule]
        bits[rows, place // _WORD] |= _ONE << (place % _WORD).astype(np.uint64)

    def first_accept(self, bits: Bits, lists: Flags | None = None) -> Column:
        """Return the rule that accepts each packet, -1 for none.

        It is that of the first list that accepts; a list that rejects lets the next one try.
        ``lists`` tells which take part, shape (lists,); None: all.
        """
        wanted = self._accepting
        if lists is not None:
            wanted = wanted & np.bitwise_or.reduce(self._lists[lists], axis=0)
        return self._lowest(self._first_matches(bits) & wanted)

    def in_list(self, bits: Bits, list_index: int) -> Column:
        """Return the rule by which one list accepts each packet, -1 where it does not."""
        first, last = self._spans[list_index]
        found = self._first_of(bits, list_index) & self._accepting[first:last]
        return self._lowest(found, first)

    def decided_by(self, bits: Bits, list_index: int) -> Column:
        """Return the first matching rule of one list, whether it accepts or rejects; -1 for none."""
        return self._lowest(self._first_of(bits, list_index), self._spans[list_index][0])

    def _first_of(self, bits: Bits, list_index: int) -> Bits:
        """Keep the lowest bit of one list, in the words of that list."""
        first, last = self._spans[list_index]
        own = bits[:, first:last] & self._lists[list_index, first:last]
        own &= -own
        if last - first > 1:
            _clear_behind(own)
        return own

    def _first_matches(self, bits: Bits) -> Bits:
        """Keep the lowest bit of every list: x & -x, with no borrow between lists."""
        low, high = self._tiled(len(bits))
        inverse = ~bits
        top = inverse & high
        inverse ^= top
        inverse += low
        inverse ^= top
        inverse &= bits
        for first, last in self._spans:
            if last - first > 1:
                _clear_behind(inverse[:, first:last])
        return inverse

    def _tiled(self, count: int) -> list[Bits]:
        """Return the lists' lowest and highest bits, one row per packet: broadcasting costs thrice."""
        if len(self._tiles[0]) < count:
            self._tiles = [np.tile(mask, (count, 1)) for mask in (self._low, self._high)]
        return [tile[:count] for tile in self._tiles]

    def _lowest(self, bits: Bits, first_word: int = 0) -> Column:
        """Return the number of the rule that the lowest bit of each row stands for, -1 for none."""
        if bits.shape[1] == 1:
            word, lowest = np.int64(0), bits[:, 0]
        else:
            word = (bits != 0).argmax(axis=1)
            lowest = bits.ravel().take(np.arange(0, bits.size, bits.shape[1]) + word)
        # The bits below the lowest one: all 64 where there is none.
        below = np.bitwise_count(~lowest & (lowest - _ONE)).astype(np.int64)
        place = (word + first_word) * _WORD + np.minimum(below, _WORD - 1)
        return np.where(lowest != 0, self._number[place], NONE)


def _starts(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the place of each list's first bit, and the number of words (at least one)."""
    starts, at = [], 0
    for size in sizes:
        room = max(size, 1)
        if at % _WORD + room > _WORD:
            at = _next_word(at)
        starts.append(at)
        at += room if room <= _WORD else _next_word(room)
    return starts, max(_next_word(at) // _WORD, 1)


def _next_word(place: int) -> int:
    return -(-place // _WORD) * _WORD


def _places(starts: Sequence[int], sizes: Sequence[int]) -> Column:
    """Return the places of the bits of all lists."""
    runs = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return np.concatenate([*runs, np.zeros(0, np.int64)])


def _mask(places: Column, words: int) -> Bits:
    """Return the bits at ``places``, shape (words,)."""
    mask = np.zeros(words, np.uint64)
    np.bitwise_or.at(mask, places // _WORD, _ONE << (places % _WORD).astype(np.uint64))
    return mask


def _ends(starts: Sequence[int], sizes: Sequence[int], words: int) -> tuple[Bits, Bits]:
    """Return the lowest and the highest bits of each list in each of its words."""
    lows, highs = [], []
    for start, size in zip(starts, sizes, strict=True):
        lows += list(range(start, start + size, _WORD))  # a list of several words begins with one
        highs += [min(low + _WORD, start + size) - 1 for low in range(start, start + size, _WORD)]
    low, high = np.array(lows, np.int64), np.array(highs, np.int64)
    return _mask(low, words), _mask(high, words)


def _clear_behind(bits: Bits) -> None:
    """Clear the words behind the first one in which a row has a bit, in place."""
    first = (bits != 0).argmax(axis=1)
    rows = np.arange(len(bits))
    kept = bits[rows, first]
    bits[:] = 0
    bits[rows, first] = kept
