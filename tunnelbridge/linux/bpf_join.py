"""Join classic BPF programs: one program that accepts what any of them accepts.

The programs run one after another: ``ret 0`` becomes a jump to the next one. A load beyond the end of
a packet ends the whole program in the kernel (net/core/filter.c, as in bpf_filter.c), so all but the
last program test the length before loads that could do so. Programs are those libpcap writes: they
set what they read, and return constants.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from tunnelbridge.linux import libc

LONGEST_PROGRAM: Final = 4096  # BPF_MAXINSNS, linux/bpf_common.h
RESERVED: Final = 16
"""Room for what is put in front of a joined program."""

# Codes of linux/bpf_common.h
_RETURN, _JUMP, _JUMP_AT_LEAST, _JUMP_AT_LEAST_X, _SUBTRACT_X = 0x06, 0x05, 0x35, 0x3D, 0x1C
_LOAD_LENGTH, _LOAD_CELL, _STORE, _LOAD_HEADER_LENGTH = 0x80, 0x60, 0x02, 0xB1
_ABSOLUTE: Final = {0x20: 4, 0x28: 2, 0x30: 1, _LOAD_HEADER_LENGTH: 1}
"""Loads from a fixed place, and how many octets."""
_INDIRECT: Final = {0x40: 4, 0x48: 2, 0x50: 1}
"""Loads from a place relative to X."""
_CELL_CODES: Final = (_LOAD_CELL, 0x61, _STORE, 0x03)
_CELLS: Final = 16  # BPF_MEMWORDS
_JUMP_CLASS: Final = 0x05
_FARTHEST: Final = 255
_NEGATIVE: Final = 0x8000_0000
"""Offsets from here on mean what the kernel knows (SKF_AD_OFF, linux/filter.h), not octets."""

Instruction = tuple[int, int, int, int]

REFUSE_ALL: Final[libc.Program] = np.array([(_RETURN, 0, 0, 0)], libc.BPF_INSTRUCTION)


class _Step(NamedTuple):
    """An instruction whose jumps name labels; None is the instruction that follows."""

    code: int
    k: int = 0
    then: int | None = None
    otherwise: int | None = None
    label: int | None = None


def join(
    programs: Sequence[libc.Program], limit: int = LONGEST_PROGRAM - RESERVED
) -> libc.Program | None:
    """Return one program that accepts what any of ``programs`` accepts; None when it is too long.

    The longest one comes last, because there it needs no tests of the length.
    """
    distinct = {program.tobytes(): program for program in programs if not _refuses_all(program)}
    for program in distinct.values():
        if program["code"][0] == _RETURN:
            return program[:1]
    ordered = sorted(distinct.values(), key=len)
    if sum(map(len, ordered)) > limit:
        return None
    joined = concatenate(ordered, guarded=True)
    return joined if len(joined) <= limit else None


def concatenate(programs: Sequence[libc.Program], *, guarded: bool = False) -> libc.Program:
    """Return the programs one behind the other, however long.

    Without ``guarded``, packets that a load refuses are refused by the programs behind it too.
    """
    if len(programs) == 1:
        return programs[0]
    steps: list[_Step] = []
    label = 0  # each instruction has one, through all programs
    for number, program in enumerate(programs, 1):
        steps += _steps(program.tolist(), label, guarded and number < len(programs))
        label += len(program)
    return _assemble([*steps, _Step(_RETURN, label=label)])


def _refuses_all(program: libc.Program) -> bool:
    return bool(program["code"][0] == _RETURN and program["k"][0] == 0)


def _steps(program: list[Instruction], first: int, guarded: bool) -> Iterator[_Step]:
    """Yield a program's steps, labelled from ``first``; what it refuses goes on behind it."""
    behind = first + len(program)
    proven = _proven_lengths(program)
    used = {k for code, _, _, k in program if code in _CELL_CODES}
    free = next(cell for cell in range(_CELLS) if cell not in used)
    for at, (code, jt, jf, k) in enumerate(program):
        guard = _guard(code, k, proven[at], behind, free) if guarded else []
        if code == _RETURN and k == 0:
            step = _Step(_JUMP, then=behind)
        elif code == _JUMP:
            step = _Step(_JUMP, then=first + at + 1 + k)
        elif code & 7 == _JUMP_CLASS:
            step = _Step(code, k, first + at + 1 + jt, first + at + 1 + jf)
        else:
            step = _Step(code, k)
        labelled, *others = [*guard, step]
        yield labelled._replace(label=first + at)
        yield from others


def _proven_lengths(program: list[Instruction]) -> list[int]:
    """Return how many octets a packet is sure to have when it comes to each instruction."""
    proven = [0, *[_NEGATIVE] * (len(program) - 1)]
    for at, (code, jt, jf, k) in enumerate(program):
        known = proven[at]
        following = [at + 1]
        if code == _RETURN:
            following = []
        elif code == _JUMP:
            following = [at + 1 + k]
        elif code & 7 == _JUMP_CLASS:
            following = [at + 1 + jt, at + 1 + jf]
        elif code in _ABSOLUTE and k < _NEGATIVE:
            known = max(known, k + _ABSOLUTE[code])
        for target in following:
            proven[target] = min(proven[target], known)
    return proven


def _guard(code: int, k: int, proven: int, behind: int, free: int) -> list[_Step]:
    """Return the steps that leave for ``behind`` where a load would reach beyond the packet."""
    if k >= _NEGATIVE:
        return []
    length = _Step(_LOAD_LENGTH)
    if code in _INDIRECT:
        needed = _Step(_JUMP_AT_LEAST, k + _INDIRECT[code], None, behind)
        return [length, _Step(_JUMP_AT_LEAST_X, 0, None, behind), _Step(_SUBTRACT_X), needed]
    if code not in _ABSOLUTE or k + _ABSOLUTE[code] <= proven:
        return []
    tests = [length, _Step(_JUMP_AT_LEAST, k + _ABSOLUTE[code], None, behind)]
    if code == _LOAD_HEADER_LENGTH:  # the only load that leaves A as it is
        return [_Step(_STORE, free), *tests, _Step(_LOAD_CELL, free)]
    return tests


def _assemble(steps: Sequence[_Step]) -> libc.Program:
    """Turn labels into distances; where one exceeds its octet, the jump is to jumps behind it."""
    long: set[int] = set()
    while True:
        sizes = (3 if at in long else 1 for at in range(len(steps)))
        place = list(itertools.accumulate(sizes, initial=0))
        labels = {step.label: place[at] for at, step in enumerate(steps) if step.label is not None}
        code: list[Instruction] = []
        too_far = set()
        for at, step in enumerate(steps):
            behind = place[at + 1]
            then = behind if step.then is None else labels[step.then]
            otherwise = behind if step.otherwise is None else labels[step.otherwise]
            jt, jf = then - place[at] - 1, otherwise - place[at] - 1
            if step.code == _JUMP:
                code.append((_JUMP, 0, 0, jt))
            elif step.code & 7 != _JUMP_CLASS:
                code.append((step.code, 0, 0, step.k))
            elif at in long:
                code += [(step.code, 0, 1, step.k), (_JUMP, 0, 0, jt - 1), (_JUMP, 0, 0, jf - 2)]
            elif max(jt, jf) > _FARTHEST:
                too_far.add(at)
            else:
                code.append((step.code, jt, jf, step.k))
        if not too_far:
            return np.array(code, libc.BPF_INSTRUCTION)
        long |= too_far
