"""Write classic BPF with labels; distances of jumps come last, when every place is known."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import numpy as np

from tunnelbridge.linux import libc

Instruction = tuple[int, int, int, int]
"""Code, jt, jf, k as in struct sock_filter."""

# Codes of linux/bpf_common.h
RETURN: Final = 0x06
JUMP, JUMP_EQUAL, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_AT_LEAST_X = 0x05, 0x15, 0x25, 0x35, 0x3D
LOAD_WORD, LOAD_HALF, LOAD_OCTET = 0x20, 0x28, 0x30
LOAD_WORD_X, LOAD_HALF_X, LOAD_OCTET_X = 0x40, 0x48, 0x50
LOAD_NUMBER, LOAD_LENGTH, LOAD_HEADER_LENGTH = 0x00, 0x80, 0xB1
LOAD_CELL, LOAD_X_CELL, STORE, STORE_X = 0x60, 0x61, 0x02, 0x03
AND, SHIFT_LEFT, OR_X, SUBTRACT_X, COPY_TO_X = 0x54, 0x64, 0x4C, 0x1C, 0x07
JUMP_CLASS: Final = 0x05

CELLS: Final = 16  # BPF_MEMWORDS
_FARTHEST: Final = 255


class _Step(NamedTuple):
    """An instruction whose jumps name labels; None is the instruction that follows."""

    code: int
    k: int
    then: int | None
    otherwise: int | None


class Assembly:
    """Instructions one behind the other, and the labels among them."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._marks: dict[int, int] = {}
        self._labels = itertools.count()

    def label(self) -> int:
        """Return a new label, to be marked once."""
        return next(self._labels)

    def mark(self, label: int) -> None:
        """Put ``label`` before the instruction that comes next."""
        self._marks[label] = len(self._steps)

    def add(
        self, code: int, k: int = 0, then: int | None = None, otherwise: int | None = None
    ) -> None:
        """Append an instruction; jumps go to labels, or on where there is none."""
        self._steps.append(_Step(code, k, then, otherwise))

    def program(self) -> libc.Program:
        """Return the program; jumps too far for their octet go to jumps behind them."""
        long: set[int] = set()
        while True:
            code, too_far = self._instructions(long)
            if not too_far:
                return np.array(code, libc.BPF_INSTRUCTION)
            long |= too_far

    def _instructions(self, long: set[int]) -> tuple[list[Instruction], set[int]]:
        """Return the instructions, and which conditional jumps must become ``long``."""
        sizes = (3 if at in long else 1 for at in range(len(self._steps)))
        place = list(itertools.accumulate(sizes, initial=0))
        code: list[Instruction] = []
        too_far = set()
        for at, step in enumerate(self._steps):
            jt, jf = (
                place[at + 1 if label is None else self._marks[label]] - place[at] - 1
                for label in (step.then, step.otherwise)
            )
            if step.code == JUMP:
                code.append((JUMP, 0, 0, jt))
            elif step.code & 7 != JUMP_CLASS:
                code.append((step.code, 0, 0, step.k))
            elif at in long:
                code += [(step.code, 0, 1, step.k), (JUMP, 0, 0, jt - 1), (JUMP, 0, 0, jf - 2)]
            else:
                code.append((step.code, jt & _FARTHEST, jf & _FARTHEST, step.k))
                if max(jt, jf) > _FARTHEST:
                    too_far.add(at)
        return code, too_far
