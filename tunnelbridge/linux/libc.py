"""The few C library calls that Python's standard library lacks, and their structures as dtypes.

All batched calls take arrays that NumPy fills: an ``iovec`` array and a ``mmsghdr`` array, prepared
once and patched per batch. ctypes releases the GIL during each call.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

if sys.maxsize < 2**32:  # the dtypes below are those of 64-bit Linux
    raise ImportError("tunnelbridge needs a 64-bit system")

TUNNEL_MARK: Final = 0x74_62_72_67  # "tbrg"
"""SO_MARK of every tunnel socket of every sender on this host; capture filters refuse it first."""

SO_MARK: Final = 36
SO_ATTACH_FILTER: Final = 26
SOL_PACKET: Final = 263

IOVEC: Final = np.dtype([("base", "=u8"), ("length", "=u8")])
MMSGHDR: Final = np.dtype(
    [
        ("name", "=u8"),
        ("namelen", "=u4"),
        ("_pad0", "=u4"),
        ("iov", "=u8"),
        ("iovlen", "=u8"),
        ("control", "=u8"),
        ("controllen", "=u8"),
        ("flags", "=i4"),
        ("_pad1", "=u4"),
        ("length", "=u4"),
        ("_pad2", "=u4"),
    ]
)
BPF_INSTRUCTION: Final = np.dtype([("code", "=u2"), ("jt", "=u1"), ("jf", "=u1"), ("k", "=u4")])
"""struct sock_filter; a classic BPF program is a 1-d array of these."""

Program = npt.NDArray[np.void]

_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p,
]  # fmt: skip
_writev = _libc.writev
_writev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_writev.restype = ctypes.c_ssize_t


def address(array: npt.NDArray[Any]) -> int:
    """Return the memory address of an array's first octet."""
    return array.ctypes.data  # __array_interface__ would describe every field of a structured dtype


def sendmmsg(fd: int, messages: int, count: int, flags: int) -> int:
    """Send ``count`` messages from the mmsghdr array at address ``messages``.

    Returns how many were sent; raises OSError when the first one could not be.
    """
    return _checked(_sendmmsg(fd, messages, count, flags))


def recvmmsg(fd: int, messages: int, count: int, flags: int) -> int:
    """Receive up to ``count`` messages into the mmsghdr array at address ``messages``."""
    return _checked(_recvmmsg(fd, messages, count, flags, None))


def writev(fd: int, vectors: int, count: int) -> int:
    """Write ``count`` iovecs from address ``vectors``; may write less than all of it."""
    return _checked(_writev(fd, vectors, count))


def attach_filter(fd: int, program: Program) -> None:
    """Set a socket's classic BPF filter (SO_ATTACH_FILTER)."""
    code = np.ascontiguousarray(program, BPF_INSTRUCTION)
    fprog = np.zeros(1, np.dtype([("len", "=u2"), ("_pad", "V6"), ("filter", "=u8")]))
    fprog["len"], fprog["filter"] = len(code), address(code)
    _checked(
        _libc.setsockopt(fd, 1, SO_ATTACH_FILTER, ctypes.c_void_p(address(fprog)), fprog.itemsize)
    )


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
