"""Run a classic BPF program over a batch, as libpcap does over a file's packets one by one.

Classic BPF only jumps forward, so each instruction is executed once per batch, in order, for all
packets that have come to it; the registers are columns. Sources: McCanne and Jacobson, "The BSD
Packet Filter" (1993), and libpcap's bpf_filter.c, whose arithmetic this follows where Linux's
net/core/filter.c differs (an indexed load whose sum exceeds 32 bits refuses the packet).

Linux's ancillary loads (linux/filter.h, SKF_AD_OFF) know what a batch knows: packet type, VLAN tag,
VLAN presence and VLAN TPID. All others read as 0, the mark too: a file's packets have none, and
programs for files are compiled without such loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import OUTBOUND, Batch, Column, Flags, zeros
from tunnelbridge.wire import octets

Program = npt.NDArray[Any]
"""Shape (m,): a structured array with the fields of struct sock_filter: code, jt, jf, k."""
Words = npt.NDArray[np.uint32]

ACCEPT_ALL: Final = 0xFFFFFFFF
"""What an empty program returns, as in libpcap."""

# Codes of linux/bpf_common.h: the class in bits 0-2, what it does in the bits above.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_IMM, _ABS, _IND, _MEM, _LEN = range(0x00, 0xA0, 0x20)
_MSH: Final = 0xA0
_ADD, _SUB, _MUL, _DIV, _OR, _AND, _LSH, _RSH, _NEG, _MOD, _XOR = range(0x00, 0xB0, 0x10)
_JA, _JEQ, _JGT, _JGE, _JSET = range(0x00, 0x50, 0x10)
_FROM_X: Final = 0x08
_RET_A: Final = 0x10
_TXA: Final = 0x80
_SIZES: Final[dict[int, np.dtype[Any]]] = {
    0x00: np.dtype(">u4"),
    0x08: np.dtype(">u2"),
    0x10: np.dtype("u1"),
}

_CELLS: Final = 16
_VALID: Final = np.array(
    [
        *(_LD | mode | size for mode in (_ABS, _IND) for size in _SIZES),
        *(_LD | mode for mode in (_IMM, _MEM, _LEN)),
        *(_LDX | mode for mode in (_IMM, _MEM, _LEN, _MSH | 0x10)),
        *(_ST, _STX, _MISC, _MISC | _TXA, _RET, _RET | _RET_A, _JMP | _JA, _ALU | _NEG),
        *(_ALU | op | src for op in range(0, 0xB0, 0x10) for src in (0, _FROM_X) if op != _NEG),
        *(_JMP | op | src for op in (_JEQ, _JGT, _JGE, _JSET) for src in (0, _FROM_X)),
    ]
)

_ANCILLARY: Final = 0xFFFFF000
_PACKET_TYPE: Final = _ANCILLARY + 4
_VLAN_TAG: Final = _ANCILLARY + 44
_VLAN_PRESENT: Final = _ANCILLARY + 48
_VLAN_TPID: Final = _ANCILLARY + 60
_PACKET_OUTGOING: Final = 4


class _Instruction(NamedTuple):
    code: int
    jt: int
    jf: int
    k: int


def run(program: Program, batch: Batch) -> Column:
    """Return each packet's verdict, shape (n,): 0 refuses it, else the octets to keep of it.

    A load beyond the captured octets and a division by zero refuse the packet. Heads are read where
    they are; nothing is joined. Raises ValueError for a program that the kernel would not take.
    """
    if len(program) == 0:
        return np.full(len(batch), ACCEPT_ALL, np.int64)
    _validate(program)
    machine = _Machine(batch)
    machine.send(0, np.arange(len(batch)))
    columns = (program[name].tolist() for name in _Instruction._fields)
    for at, fields in enumerate(zip(*columns, strict=True)):
        here = machine.arrivals(at)
        if here.size:
            machine.step(at, here, _Instruction(*fields))
    return machine.verdict


def _validate(program: Program) -> None:
    """Refuse what Linux's bpf_check_classic refuses: then every packet comes to a return."""
    code, k = program["code"].astype(np.int64), program["k"].astype(np.int64)
    kind = code & 7
    left = len(code) - 1 - np.arange(len(code))  # instructions after each
    always = code == _JMP | _JA
    farthest = np.where(always, k, np.maximum(program["jt"], program["jf"]))
    scratch = (kind == _ST) | (kind == _STX) | ((kind <= _LDX) & (code & 0xE0 == _MEM))
    for wrong, what in (
        (~np.isin(code, _VALID), "is unknown"),
        ((kind == _JMP) & (farthest >= left), "jumps out of the program"),
        (scratch & (k >= _CELLS), "names a memory cell that does not exist"),
        ((left == 0) & (kind != _RET), "is the last and does not return"),
    ):
        if wrong.any():
            raise ValueError(f"BPF instruction {int(np.argmax(wrong))} {what}")


@dataclass(slots=True)
class _Machine:
    """The registers of all packets, shape (n,), and which packets wait at which instruction."""

    batch: Batch
    total: Column = field(init=False)
    a: Words = field(init=False)
    x: Words = field(init=False)
    cells: dict[int, Words] = field(default_factory=dict)
    waiting: dict[int, list[Column]] = field(default_factory=dict)
    verdict: Column = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.batch.total_length
        self.a, self.x = self._words(), self._words()
        self.verdict = zeros(len(self.batch))

    def _words(self) -> Words:
        return np.zeros(len(self.batch), np.uint32)

    def send(self, at: int, packets: Column) -> None:
        """Make packets wait at an instruction."""
        if packets.size:
            self.waiting.setdefault(at, []).append(packets)

    def arrivals(self, at: int) -> Column:
        """Return the packets that wait at an instruction, in their order."""
        groups = self.waiting.pop(at, [])
        if len(groups) == 1:
            return groups[0]
        return np.sort(np.concatenate(groups)) if groups else zeros(0)

    def step(self, at: int, here: Column, instruction: _Instruction) -> None:
        """Execute one instruction for the packets ``here`` and send them on."""
        code, jt, jf, k = instruction
        kind = code & 7
        if kind == _RET:
            self.verdict[here] = self.a[here] if code & _RET_A else k
        elif code == _JMP | _JA:
            self.send(at + 1 + k, here)
        elif kind == _JMP:
            truth = _compare(code & 0xF0, self.a[here], self._operand(here, code, k))
            self.send(at + 1 + jt, here[truth])
            self.send(at + 1 + jf, here[~truth])
        elif kind <= _LDX:
            self.send(at + 1, self._load(here, code, k))
        elif kind == _ALU:
            self.send(at + 1, self._arithmetic(here, code, k))
        else:
            self._copy(here, code, k)
            self.send(at + 1, here)

    def _copy(self, here: Column, code: int, k: int) -> None:
        """Copy between A, X and a memory cell."""
        if code == _MISC:
            self.x[here] = self.a[here]
        elif code == _MISC | _TXA:
            self.a[here] = self.x[here]
        else:
            cell = self.cells.setdefault(k, self._words())
            cell[here] = (self.a if code == _ST else self.x)[here]

    def _load(self, here: Column, code: int, k: int) -> Column:
        """Load A or X; return the packets that hold what was asked for."""
        register = self.a if code & 7 == _LD else self.x
        mode = code & 0xE0
        if mode == _IMM:
            register[here] = k
        elif mode == _MEM:
            register[here] = self.cells[k][here] if k in self.cells else 0
        elif mode == _LEN:
            register[here] = self.batch.wire_length[here].astype(np.uint32)
        elif mode == _ABS and k >= _ANCILLARY:
            register[here] = self._ancillary(here, k)
        else:
            offset = self.x[here].astype(np.int64) + k if mode == _IND else np.full(here.size, k)
            size = _SIZES[code & 0x18]
            present = offset + size.itemsize <= self.total[here]
            here, offset = here[present], offset[present]
            word = self._word(here, offset, size)
            register[here] = word if mode != _MSH else 4 * (word & 0xF)
        return here

    def _word(self, here: Column, offset: Column, size: np.dtype[Any]) -> npt.NDArray[Any]:
        """Load what lies ``offset`` octets into each packet, all of it present."""
        batch = self.batch
        if batch.head_start is None or batch.head_length is None:
            return octets.load(batch.memory, batch.start[here] + offset, size)
        in_body = offset - batch.head_length[here]
        word = octets.load(batch.memory, batch.start[here] + np.maximum(in_body, 0), size)
        in_head = np.flatnonzero(in_body <= -size.itemsize)
        head_start = batch.head_start[here[in_head]]
        word[in_head] = octets.load(batch.head, head_start + offset[in_head], size)
        across = np.flatnonzero((in_body < 0) & (in_body > -size.itemsize))
        if across.size:  # from the head into the body, octet by octet
            whole = np.zeros(across.size, np.uint32)
            for place in range(size.itemsize):
                octet = self._word(here[across], offset[across] + place, _SIZES[0x10])
                whole = whole << np.uint32(8) | octet
            word[across] = whole
        return word

    def _ancillary(self, here: Column, k: int) -> Words:
        if k == _PACKET_TYPE:
            outgoing = self.batch.direction[here] == OUTBOUND
            return np.where(outgoing, _PACKET_OUTGOING, 0).astype(np.uint32)
        vlan = zeros(here.size) if self.batch.vlan is None else self.batch.vlan[here]
        if k == _VLAN_TAG:
            vlan = vlan & 0xFFFF
        elif k == _VLAN_PRESENT:
            vlan = (vlan != 0).astype(np.int64)
        elif k == _VLAN_TPID:
            vlan = vlan >> 16
        else:
            vlan = zeros(here.size)
        return vlan.astype(np.uint32)

    def _operand(self, here: Column, code: int, k: int) -> Words:
        return self.x[here] if code & _FROM_X else np.full(here.size, k, np.uint32)

    def _arithmetic(self, here: Column, code: int, k: int) -> Column:
        """Change A; return the packets for which that is possible."""
        operation = code & 0xF0
        operand = self._operand(here, code, k)
        if operation in (_DIV, _MOD):
            possible = operand != 0
            here, operand = here[possible], operand[possible]
        self.a[here] = _calculate(operation, self.a[here], operand)
        return here


def _compare(operation: int, left: Words, right: Words) -> Flags:
    truth: Flags = _RELATIONS[operation](left, right).astype(np.bool_)
    return truth


def _calculate(operation: int, left: Words, right: Words) -> Words:
    """Return ``left`` op ``right`` modulo 2^32; shifts by 32 and more give 0."""
    if operation in (_LSH, _RSH):
        distance = right & np.uint32(31)
        shifted = left << distance if operation == _LSH else left >> distance
        return np.where(right < 32, shifted, np.uint32(0))
    if operation == _NEG:
        return np.uint32(0) - left
    result: Words = _OPERATIONS[operation](left, right)
    return result


_RELATIONS: Final[dict[int, np.ufunc]] = {
    _JEQ: np.equal,
    _JGT: np.greater,
    _JGE: np.greater_equal,
    _JSET: np.bitwise_and,
}
_OPERATIONS: Final[dict[int, np.ufunc]] = {
    _ADD: np.add,
    _SUB: np.subtract,
    _MUL: np.multiply,
    _DIV: np.floor_divide,
    _MOD: np.remainder,
    _OR: np.bitwise_or,
    _AND: np.bitwise_and,
    _XOR: np.bitwise_xor,
}
