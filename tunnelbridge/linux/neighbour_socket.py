"""Hear ARP and IPv6 neighbour discovery on an interface, and speak it.

A packet socket whose filter passes nothing else, and nothing that this host sends. The interface is
promiscuous while it is open, because the MAC addresses that are answered with are not its own: a list
of single addresses would do on a network card, but not on a bridge.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final

import numpy as np
from pyroute2 import IPRoute

from tunnelbridge.errors import UserError
from tunnelbridge.linux import device, libc, libpcap, options, privileges
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.tpacket import (
    ETH_P_ALL,
    PACKET_ADD_MEMBERSHIP,
    PACKET_IGNORE_OUTGOING,
    PACKET_MR_PROMISC,
    TP_STATUS_VLAN_TPID_VALID,
    TP_STATUS_VLAN_VALID,
    no_interface,
)
from tunnelbridge.wire import ethernet, ndp

PACKET_AUXDATA: Final = 8  # linux/if_packet.h
LONGEST: Final = 2048
"""Octets of a frame that are read; what is longer is neither ARP nor a sane solicitation."""

_AUXDATA: Final = struct.Struct("IIIHHHH")
"""struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid."""
_HALF, _OCTET, _EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06  # linux/bpf_common.h
_PROGRAM: Final = np.array(
    [
        (_HALF, 0, 0, 12),  # EtherType; the kernel has taken a tag out
        (_EQUAL, 6, 0, ethernet.ARP),
        (_EQUAL, 0, 6, ethernet.IPV6),
        (_OCTET, 0, 0, 20),  # next header
        (_EQUAL, 0, 4, socket.IPPROTO_ICMPV6),
        (_OCTET, 0, 0, 54),  # ICMPv6 type
        (_EQUAL, 1, 0, ndp.SOLICITATION),
        (_EQUAL, 0, 1, ndp.ADVERTISEMENT),
        (_RETURN, 0, 0, libpcap.SNAP_LENGTH),
        (_RETURN, 0, 0, 0),
    ],
    libc.BPF_INSTRUCTION,
)


class NeighbourSocket:
    """A non-blocking packet socket on ``interface``, which is followed by its name.

    ``groups`` are IPv6 addresses whose solicited-node groups are joined, so that switches that snoop
    MLD pass their solicitations; not possible where the interface has no IPv6, nor always needed.

    Raises UserError: no CAP_NET_RAW; the interface is missing or carries no Ethernet frames.
    """

    def __init__(self, interface: str, groups: Iterable[str] = ()) -> None:
        self.interface = interface
        self.own_addresses = _own_addresses()
        """The host's own addresses, as text, when this was opened."""
        with contextlib.ExitStack() as opening:
            try:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            except PermissionError:
                what = f"answering for members on {interface}"
                raise privileges.missing("CAP_NET_RAW", what) from None
            opening.enter_context(self._socket)
            self._listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            opening.enter_context(self._listener)
            self._groups = [
                ndp.solicited_node(ipaddress.ip_address(text).packed) for text in groups
            ]
            self._index = 0
            self._open()
            opening.pop_all()

    def fileno(self) -> int:
        """Return the file descriptor, readable when a frame waits or the interface failed."""
        return self._socket.fileno()

    @property
    def mac(self) -> bytes:
        """The interface's own MAC address."""
        address: bytes = self._socket.getsockname()[4]
        return address

    def is_running(self) -> bool:
        """Tell whether an interface of this name is up and has a carrier now."""
        wanted = options.IFF_UP | device.IFF_RUNNING
        try:
            return device.flags(self._socket, self.interface) & wanted == wanted
        except OSError:
            return False

    def is_stale(self) -> bool:
        """Tell whether the name is another interface's than at the last :meth:`attach`."""
        return device.index(self._socket, self.interface) != self._index

    def attach(self) -> None:
        """Listen on the interface that has the name now; raises UserError."""
        index = device.index(self._socket, self.interface)
        if not index:
            raise no_interface(self.interface)
        self._socket.bind((self.interface, ETH_P_ALL))
        kind = self._socket.getsockname()[3]
        if kind != device.ARPHRD_ETHER:
            raise UserError(
                f"interface {self.interface} carries no Ethernet frames (ARPHRD {kind}): name the"
                " one on the LAN where the members are missing"
            )
        membership = struct.pack("iHH8x", index, PACKET_MR_PROMISC, 0)
        self._socket.setsockopt(libc.SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
        for group in self._groups:
            with contextlib.suppress(OSError):  # joined already, or no IPv6 there
                request = group + struct.pack("I", index)
                self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        self._index = index

    def receive(self) -> bytes | None:
        """Return the next frame, its tag put back; None when none waits.

        Raises OSError (ENETDOWN) once when the interface went down or away.
        """
        try:
            frame, control, _, _ = self._socket.recvmsg(LONGEST, 64)
        except BlockingIOError:
            return None
        for level, kind, octets in control:
            if (level, kind) == (libc.SOL_PACKET, PACKET_AUXDATA):
                frame = _with_tag(frame, *_AUXDATA.unpack_from(octets))
        return frame

    def send(self, frame: bytes) -> bool:
        """Send a frame; False where the interface does not take it now."""
        try:
            self._socket.send(frame)
        except OSError:  # down, gone, or its queue is full: who asked will ask again
            return False
        return True

    def close(self) -> None:
        """Close; the interface is as promiscuous as it was before."""
        self._socket.close()
        self._listener.close()

    def _open(self) -> None:
        """Filter first, then hear."""
        self._socket.setblocking(False)
        options.mark(self._socket)  # no capture of ours takes what is said here for traffic
        program = libpcap.refuse_marked(_PROGRAM, direction="in")
        libc.attach_filter(self._socket.fileno(), program)
        self._socket.setsockopt(libc.SOL_PACKET, PACKET_AUXDATA, 1)
        with contextlib.suppress(OSError):  # before Linux 4.20; the filter does the same
            self._socket.setsockopt(libc.SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.attach()


def _with_tag(frame: bytes, status: int, *rest: int) -> bytes:
    if not status & TP_STATUS_VLAN_VALID:
        return frame
    tci, tpid = rest[-2:]
    if not status & TP_STATUS_VLAN_TPID_VALID:
        tpid = ethernet.TPID_8021Q
    return frame[:12] + tpid.to_bytes(2) + tci.to_bytes(2) + frame[12:]


def _own_addresses() -> frozenset[str]:
    def ask() -> frozenset[str]:
        with IPRoute() as netlink:
            return frozenset(
                each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")  # not a peer's
                for each in netlink.get_addr()
            )

    return in_thread(ask)
