"""The checksum of SCTP (CRC-32C, RFC 9260 appendix A) after a change, without reading the payload.

A CRC is linear: the checksum changes by the CRC of the changed bits alone, followed by as many zero
octets as follow in the packet. Running the register over zeros is a matrix over GF(2); those for
1, 2, 4, … octets give every length in a few steps (as crc32_combine of zlib does).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column

POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's, bits reversed."""

Register = npt.NDArray[np.uint32]


def after(change: Column, octets: Column) -> Register:
    """Return by what (XOR) the checksum changes, read as a little-endian number; shape (n,).

    ``change`` is the XOR of the old and the new four octets, read as a little-endian number too;
    ``octets`` counts from the first of them to the packet's end.
    """
    register = change.astype(np.uint32)
    for power, matrix in enumerate(_MATRICES):
        moved = np.flatnonzero(octets >> power & 1)
        if moved.size:
            register[moved] = _times(matrix, register[moved])
    return register


def _times(matrix: Register, vectors: Register) -> Register:
    bits = vectors[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    result: Register = np.bitwise_xor.reduce(bits * matrix, axis=1)
    return result


def _matrices() -> list[Register]:
    """Return what 1, 2, 4, … 2**16 zero octets make of each single bit of the register."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(8):
        bits = bits >> np.uint32(1) ^ np.where(bits & np.uint32(1), np.uint32(POLYNOMIAL), 0)
    matrices = [bits.astype(np.uint32)]
    for _ in range(16):
        matrices.append(_times(matrices[-1], matrices[-1]))
    return matrices


_MATRICES: Final = _matrices()
