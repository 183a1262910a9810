"""tcpdump expressions to classic BPF, compiled by the system's libpcap.

A program for an interface must come from a *live* handle: the kernel takes VLAN tags out of frames,
and only for a live Linux handle does libpcap write ``vlan`` (and ``inbound``) as a test of what the
kernel remembers instead of octets that are no longer there (pcap-linux.c,
BPF_SPECIAL_VLAN_HANDLING). Capture files need the other form, from a *dead* handle.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import fcntl
import functools
import itertools
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np

from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import libc, privileges
from tunnelbridge.linux.bpf_join import LONGEST_PROGRAM
from tunnelbridge.linux.tpacket import PACKET_OUTGOING, interface_index

SNAP_LENGTH: Final = 262_144
"""What an accepting program returns: more than the longest super-packet."""
DLT_EN10MB: Final = 1
LINKTYPE_TO_DLT: Final = {101: 12}
"""Raw IP has another number in files than in libpcap's calls (pcap-common.c)."""
LONGEST_UNOPTIMISED: Final = 24_576
"""Optimising takes cubic time and leaves about a sixth: 300 hosts 1 s, 2000 hosts for ever."""

PCAP_NETMASK_UNKNOWN: Final = 0xFFFFFFFF
PCAP_ERROR_PERM_DENIED: Final = -8
PCAP_ERROR_IFACE_NOT_UP: Final = -9
SIOCGIFHWADDR: Final = 0x8927
ARPHRD_ETHER: Final = 1

LD_ABSOLUTE, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
SKF_AD_PKTTYPE: Final = 0xFFFF_F000 + 4  # SKF_AD_OFF + …, linux/filter.h
SKF_AD_MARK: Final = 0xFFFF_F000 + 20

_TOKEN: Final = re.compile(r"&&|\|\||[<>=!]=|[()\[\]!<>=&|]|[^\s()\[\]!<>=&|]+")
_COMPLETIONS: Final = ("", "tcp", "1", "1.1.1.1", "1-2", "02:00:00:00:00:01", "port 1", "0]", "]")
"""One of these, closing parentheses and perhaps a comparison complete whatever is right so far."""

_lock = threading.Lock()  # older libpcaps keep their parser's state in global variables


class _Program(ctypes.Structure):
    """Struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(
    expression: str, interface: str | None = None, linktype: int = DLT_EN10MB
) -> libc.Program:
    """Compile a tcpdump expression; the empty one accepts every packet.

    Args:
        expression: see pcap-filter(7).
        interface: compile for packets that the kernel hands over from this interface, in the
            calling thread's network namespace; needs CAP_NET_RAW.
        linktype: without an interface, compile for the packets of a capture file of this type.

    Raises:
        UsageError: the expression is wrong; the message says where.
        UserError: no libpcap, no such interface, no CAP_NET_RAW.

    """
    if not expression.strip():
        return _program([(RETURN, 0, 0, SNAP_LENGTH)])
    if "\0" in expression:
        raise UsageError(f"filter {expression!r} contains a zero character")
    with _lock, _handle(interface, LINKTYPE_TO_DLT.get(linktype, linktype)) as handle:
        program, error = _compile(handle, expression, optimize=False)
        if program is None:
            raise UsageError(f'filter "{expression}": {_explain(handle, expression, error)}')
        if len(program) <= LONGEST_UNOPTIMISED:
            program, error = _compile(handle, expression, optimize=True)
    if program is None:
        raise UsageError(f'filter "{expression}": {error}')
    if len(program) > LONGEST_PROGRAM:
        raise UsageError(
            f'filter "{expression[:60]}…" is longer than the {LONGEST_PROGRAM} instructions the '
            "kernel allows: shorten it"
        )
    return program


def refuse_marked(
    program: libc.Program,
    mark: int = libc.TUNNEL_MARK,
    direction: Literal["both", "in", "out"] = "both",
) -> libc.Program:
    """Return ``program`` behind tests that refuse marked packets and the other direction.

    The mark is what SO_MARK put on a packet that this host sends; it never came over a wire. Jumps
    of classic BPF are relative, so the program follows unchanged.
    """
    tests = [(LD_ABSOLUTE, 0, 0, SKF_AD_MARK), (JUMP_EQUAL, 0, 1, mark), (RETURN, 0, 0, 0)]
    if direction != "both":
        refuse_outgoing = (0, 1) if direction == "in" else (1, 0)
        tests += [
            (LD_ABSOLUTE, 0, 0, SKF_AD_PKTTYPE),
            (JUMP_EQUAL, *refuse_outgoing, PACKET_OUTGOING),
            (RETURN, 0, 0, 0),
        ]
    return np.concatenate([_program(tests), program])


def kernel_takes(program: libc.Program) -> bool:
    """Tell whether a socket here can have ``program``.

    Besides the number of instructions, the memory of a socket's options is a limit, which the
    instructions count against as translated (net.core.optmem_max; 20 KiB before Linux 6.8, 128 KiB
    since): a load is ten of them, a few hundred instructions can be too much.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            libc.attach_filter(sock.fileno(), program)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EINVAL):
                return False
            raise
    return True


def _program(instructions: list[tuple[int, int, int, int]]) -> libc.Program:
    return np.array(instructions, libc.BPF_INSTRUCTION)


@functools.cache
def _library() -> Any:
    """Return libpcap with its calls' types declared."""
    for name in ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so"):
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise UserError("filter expressions need libpcap: apt install libpcap0.8")
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_create.restype = ctypes.c_void_p
    library.pcap_create.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    for call in (library.pcap_set_snaplen, library.pcap_set_buffer_size):
        call.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.pcap_geterr.restype = ctypes.c_char_p
    for call in (library.pcap_activate, library.pcap_close, library.pcap_geterr):
        call.argtypes = [ctypes.c_void_p]
    library.pcap_compile.argtypes = [
        ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
    ]  # fmt: skip
    library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
    return library


@contextmanager
def _handle(interface: str | None, linktype: int) -> Iterator[int]:
    """Yield a pcap_t, live on an interface or dead; close it."""
    library = _library()
    handle = _live(interface) if interface else library.pcap_open_dead(linktype, SNAP_LENGTH)
    try:
        yield handle
    finally:
        library.pcap_close(handle)


def _live(interface: str) -> int:
    """Return a live handle: the only kind that libpcap compiles the kernel's VLAN tests for."""
    interface_index(interface)
    handle, status, reason = _activate(interface)
    if status == PCAP_ERROR_IFACE_NOT_UP and _is_ethernet(interface):
        handle, status, reason = _activate("lo")  # compiles the same, and is up
    if handle is not None:
        return handle
    if status == PCAP_ERROR_PERM_DENIED:
        raise privileges.missing("CAP_NET_RAW", f"compiling a filter for {interface}")
    if status == PCAP_ERROR_IFACE_NOT_UP:
        raise UserError(f"{interface} is down: ip link set {interface} up")
    raise UserError(f"libpcap cannot open {interface}: {reason}")


def _activate(interface: str) -> tuple[int | None, int, str]:
    """Return an activated handle, or None with libpcap's status and reason."""
    library = _library()
    error = ctypes.create_string_buffer(256)  # PCAP_ERRBUF_SIZE
    handle: int | None = library.pcap_create(interface.encode(), error)
    if handle is None:
        return None, 0, error.value.decode(errors="replace")
    library.pcap_set_snaplen(handle, SNAP_LENGTH)
    library.pcap_set_buffer_size(handle, 1 << 19)  # nobody reads what it captures
    status: int = library.pcap_activate(handle)
    if status >= 0:  # above 0: warnings
        return handle, status, ""
    reason = library.pcap_geterr(handle).decode(errors="replace")
    library.pcap_close(handle)
    return None, status, reason


def _is_ethernet(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16s24x", interface.encode())  # struct ifreq
        answer = fcntl.ioctl(sock, SIOCGIFHWADDR, request)
    return struct.unpack_from("=H", answer, 16) == (ARPHRD_ETHER,)


def _compile(handle: int, expression: str, optimize: bool) -> tuple[libc.Program | None, str]:
    """Return the program and "", or None and libpcap's message."""
    library, compiled = _library(), _Program()
    text = expression.encode()
    if library.pcap_compile(handle, compiled, text, optimize, PCAP_NETMASK_UNKNOWN) != 0:
        message: str = library.pcap_geterr(handle).decode(errors="replace")
        return None, message.removeprefix("can't parse filter expression: ")
    octets = compiled.length * libc.BPF_INSTRUCTION.itemsize
    code = ctypes.string_at(compiled.instructions, octets)
    library.pcap_freecode(compiled)
    return np.frombuffer(code, libc.BPF_INSTRUCTION), ""


def _explain(handle: int, expression: str, error: str) -> str:
    """Say where a syntax error is, which libpcap does not; other messages name their cause."""
    if "syntax error" not in error:
        return error
    ends = [token.end() for token in _TOKEN.finditer(expression)]
    # A prefix with a wrong token in it stays wrong, so the first wrong token can be bisected.
    first = bisect.bisect_left(ends, True, key=lambda end: not _may_go_on(handle, expression[:end]))
    if first == len(ends):
        return "syntax error: it ends too early"
    start = ends[first - 1] if first else 0
    return f'syntax error near "{expression[start : ends[first]].strip()}"'


def _may_go_on(handle: int, prefix: str) -> bool:
    """Tell whether ``prefix`` can be the start of an expression libpcap understands."""
    closing = ")" * (prefix.count("(") - prefix.count(")"))
    for completion, comparison in itertools.product(_COMPLETIONS, ("", " = 0")):
        program, error = _compile(handle, f"{prefix} {completion}{closing}{comparison}", False)
        if program is not None or "syntax error" not in error:
            return True
    return False
