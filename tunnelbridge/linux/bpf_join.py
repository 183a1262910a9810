"""Join classic BPF programs: one program that accepts what any of them accepts.

The programs run one after another: ``ret 0`` becomes a jump to the next one. A load beyond the end of
a packet ends the whole program in the kernel (net/core/filter.c, as in bpf_filter.c), so all but the
last program test the length before loads that could do so. Programs are those libpcap writes: they
set what they read, and return constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tunnelbridge.linux import bpf_assembler as asm
from tunnelbridge.linux import libc

LONGEST_PROGRAM: Final = 4096  # BPF_MAXINSNS, linux/bpf_common.h
RESERVED: Final = 16
"""Room for what is put in front of a joined program."""

_ABSOLUTE: Final = {
    asm.LOAD_WORD: 4, asm.LOAD_HALF: 2, asm.LOAD_OCTET: 1, asm.LOAD_HEADER_LENGTH: 1,
}  # fmt: skip
"""Loads from a fixed place, and how many octets."""
_INDIRECT: Final = {asm.LOAD_WORD_X: 4, asm.LOAD_HALF_X: 2, asm.LOAD_OCTET_X: 1}
"""Loads from a place relative to X."""
_CELL_CODES: Final = (asm.LOAD_CELL, asm.LOAD_X_CELL, asm.STORE, asm.STORE_X)
_NEGATIVE: Final = 0x8000_0000
"""Offsets from here on mean what the kernel knows (SKF_AD_OFF, linux/filter.h), not octets."""

REFUSE_ALL: Final[libc.Program] = np.array([(asm.RETURN, 0, 0, 0)], libc.BPF_INSTRUCTION)


def join(
    programs: Sequence[libc.Program], limit: int = LONGEST_PROGRAM - RESERVED
) -> libc.Program | None:
    """Return one program that accepts what any of ``programs`` accepts; None when it is too long.

    The longest one comes last, because there it needs no tests of the length.
    """
    distinct = {program.tobytes(): program for program in programs if not _refuses_all(program)}
    for program in distinct.values():
        if program["code"][0] == asm.RETURN:
            return program[:1]
    ordered = sorted(distinct.values(), key=len)
    if sum(map(len, ordered)) > limit:
        return None  # at once: assembling takes longer
    if len(ordered) == 1:
        return ordered[0]
    assembly = asm.Assembly()
    for program in ordered:
        add_program(assembly, program, guarded=program is not ordered[-1])
    assembly.add(asm.RETURN, 0)
    joined = assembly.program()
    return joined if len(joined) <= limit else None


def add_program(assembly: asm.Assembly, program: libc.Program, *, guarded: bool = False) -> None:
    """Append a program; what it refuses goes on behind it.

    Unless ``guarded``, a packet too short for one of its loads is refused for good.
    """
    rows: list[asm.Instruction] = program.tolist()
    proven = _proven_lengths(rows)
    used = {k for code, _, _, k in rows if code in _CELL_CODES}
    free = next(cell for cell in range(asm.CELLS) if cell not in used)
    labels = [assembly.label() for _ in range(len(rows) + 1)]
    behind = labels[-1]
    for at, (code, jt, jf, k) in enumerate(rows):
        assembly.mark(labels[at])
        if guarded:
            _guard(assembly, code, k, proven[at], behind, free)
        if code == asm.RETURN and k == 0:
            assembly.add(asm.JUMP, then=behind)
        elif code == asm.JUMP:
            assembly.add(asm.JUMP, then=labels[at + 1 + k])
        elif code & 7 == asm.JUMP_CLASS:
            assembly.add(code, k, labels[at + 1 + jt], labels[at + 1 + jf])
        else:
            assembly.add(code, k)
    assembly.mark(behind)


def _refuses_all(program: libc.Program) -> bool:
    return bool(program["code"][0] == asm.RETURN and program["k"][0] == 0)


def _proven_lengths(program: list[asm.Instruction]) -> list[int]:
    """Return how many octets a packet is sure to have when it comes to each instruction."""
    proven = [0, *[_NEGATIVE] * (len(program) - 1)]
    for at, (code, jt, jf, k) in enumerate(program):
        known = proven[at]
        following = [at + 1]
        if code == asm.RETURN:
            following = []
        elif code == asm.JUMP:
            following = [at + 1 + k]
        elif code & 7 == asm.JUMP_CLASS:
            following = [at + 1 + jt, at + 1 + jf]
        elif code in _ABSOLUTE and k < _NEGATIVE:
            known = max(known, k + _ABSOLUTE[code])
        for target in following:
            proven[target] = min(proven[target], known)
    return proven


def _guard(assembly: asm.Assembly, code: int, k: int, proven: int, behind: int, free: int) -> None:
    """Leave for ``behind`` where a load would reach beyond the packet."""
    if k >= _NEGATIVE:
        return
    if code in _INDIRECT:
        assembly.add(asm.LOAD_LENGTH)
        assembly.add(asm.JUMP_AT_LEAST_X, 0, None, behind)
        assembly.add(asm.SUBTRACT_X)
        assembly.add(asm.JUMP_AT_LEAST, k + _INDIRECT[code], None, behind)
    elif code in _ABSOLUTE and k + _ABSOLUTE[code] > proven:
        keeps_a = code == asm.LOAD_HEADER_LENGTH  # the other loads put something else there
        if keeps_a:
            assembly.add(asm.STORE, free)
        assembly.add(asm.LOAD_LENGTH)
        assembly.add(asm.JUMP_AT_LEAST, k + _ABSOLUTE[code], None, behind)
        if keeps_a:
            assembly.add(asm.LOAD_CELL, free)
