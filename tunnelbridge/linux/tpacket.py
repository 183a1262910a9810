"""Open a TPACKET_V3 ring on an interface: the system calls and the layouts of linux/if_packet.h.

The order matters: filter before anything can be heard, version and virtio-net header before the ring,
bind last. :mod:`tunnelbridge.linux.ring` reads what the kernel then writes.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Final

import numpy as np

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, privileges

ETH_P_ALL: Final = 3
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_RX_RING: Final = 5
PACKET_STATISTICS: Final = 6
PACKET_VERSION: Final = 10
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_MR_PROMISC: Final = 1
PACKET_OUTGOING: Final = 4
TPACKET_V3: Final = 2
TP_STATUS_KERNEL: Final = 0
TP_STATUS_USER: Final = 1
TP_STATUS_VLAN_VALID: Final = 1 << 4
TP_STATUS_VLAN_TPID_VALID: Final = 1 << 6

FEWEST_BLOCKS: Final = 4
RETIRE_MS: Final = 2
"""After how long a block that is not full becomes readable."""
FRAME_SIZE: Final = 2048  # V3 packs packets tightly and uses this for arithmetic checks only

# 32-bit words of struct tpacket_block_desc: version, offset_to_priv, then struct tpacket_hdr_v1
BLOCK_STATUS: Final = 2
BLOCK_PACKETS: Final = 3
BLOCK_FIRST: Final = 4

PACKET: Final = np.dtype(
    {
        "names": ["sec", "nsec", "snaplen", "len", "status", "mac", "tci", "tpid", "pkttype"],
        "formats": ["=u4", "=u4", "=u4", "=u4", "=u4", "=u2", "=u4", "=u2", "u1"],
        "offsets": [4, 8, 12, 16, 20, 24, 32, 36, 48 + 10],
        "itemsize": 60,
    }
)
"""struct tpacket3_hdr (48 octets) and the start of the struct sockaddr_ll behind it."""


def interface_index(name: str) -> int:
    """Return an interface's index; UserError naming those that exist if there is none such."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):
        raise no_interface(name) from None


def no_interface(name: str) -> UserError:
    """Return the error that names the interfaces there are."""
    there = ", ".join(interface_names())
    return UserError(f"no interface named {name} (there are: {there})")


def interface_names() -> list[str]:
    """Return the names of all interfaces in the calling thread's namespace, in order."""
    return sorted(name for _, name in socket.if_nameindex())


def find_interface(name: str) -> int | None:
    """Return an interface's index, None where there is no such interface now."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def open_socket(interface: str, program: libc.Program, ignore_outgoing: bool) -> socket.socket:
    """Return a promiscuous packet socket with its filter, not bound yet: it hears nothing.

    Raises UserError: no CAP_NET_RAW, no such interface, filter too large.
    """
    try:
        # Protocol 0: with ETH_P_ALL it would hear every interface until it is bound.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise privileges.missing("CAP_NET_RAW", f"capturing from {interface}") from None
    try:
        attach(sock, interface, program)
        leave_out_outgoing(sock, ignore_outgoing)
        membership = struct.pack("iHH8x", interface_index(interface), PACKET_MR_PROMISC, 0)
        sock.setsockopt(libc.SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    except BaseException:
        sock.close()
        raise
    return sock


def attach(sock: socket.socket, interface: str, program: libc.Program) -> None:
    """Give a packet socket its filter, in place of the one it may have; UserError: too large."""
    try:
        libc.attach_filter(sock.fileno(), program)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise UserError(
            f"the filter for {interface} is too large for this kernel: shorten it or raise "
            "net.core.optmem_max"
        ) from None


def leave_out_outgoing(sock: socket.socket, wanted: bool) -> None:
    """Hear what this host sends, or do not; kernels before Linux 4.20 always do."""
    with contextlib.suppress(OSError):
        sock.setsockopt(libc.SOL_PACKET, PACKET_IGNORE_OUTGOING, int(wanted))


def allocate(sock: socket.socket, block_size: int, blocks: int) -> tuple[int, bool]:
    """Give the socket a ring of at most ``blocks`` blocks.

    Returns how many blocks the kernel had memory for, and whether each packet comes with a
    virtio-net header. Raises UserError when there is no memory for :data:`FEWEST_BLOCKS`.
    """
    sock.setsockopt(libc.SOL_PACKET, PACKET_VERSION, TPACKET_V3)
    vnet = _set_vnet(sock, True)
    while True:
        try:
            _request(sock, block_size, blocks)
            return blocks, vnet
        except OSError as error:
            if error.errno == errno.EINVAL and vnet:  # a kernel where ring and header exclude
                vnet = _set_vnet(sock, False)
            elif error.errno != errno.ENOMEM:
                raise
            elif blocks // 2 < FEWEST_BLOCKS:
                raise UserError(
                    f"no memory for a capture ring of {blocks} × {block_size} octets: free "
                    "memory or take smaller blocks"
                ) from None
            else:
                blocks //= 2


def _set_vnet(sock: socket.socket, wanted: bool) -> bool:
    """Switch the virtio-net header on or off; return whether it is on now."""
    try:
        sock.setsockopt(libc.SOL_PACKET, PACKET_VNET_HDR, int(wanted))
    except OSError:
        return False
    return wanted


def _request(sock: socket.socket, block_size: int, blocks: int) -> None:
    """Create the ring (struct tpacket_req3)."""
    frames = block_size // FRAME_SIZE * blocks
    request = struct.pack("7I", block_size, blocks, FRAME_SIZE, frames, RETIRE_MS, 0, 0)
    sock.setsockopt(libc.SOL_PACKET, PACKET_RX_RING, request)
