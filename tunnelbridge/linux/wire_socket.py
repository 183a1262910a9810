"""Send clones on layer 2: by an interface of this host, as they are.

For clone pools that are adjacent (their MAC address is written into the clones), for members of whom
only the subnet is known, and for RSPAN. The same ``send`` as the sockets of :mod:`.transmit`.

The kernel's checks are those of packet_snd (net/packet/af_packet.c): a frame may be as long as the MTU
and a MAC header, and one 802.1Q tag (TPID 0x8100, in the data) comes free; a second tag does not.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch
from tunnelbridge.errors import UserError
from tunnelbridge.linux import device, options, privileges
from tunnelbridge.linux.endpoint import SEND_BUFFER, Endpoint
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.linux.tpacket import no_interface
from tunnelbridge.linux.transmit import TunnelSocket
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.encapsulation import NO_PROTOCOL

NO_INTERFACE: Final = "no-interface"


class WireSocket(TunnelSocket):
    """A packet socket that sends by ``interface`` and receives nothing; rows replace first octets.

    Raises UserError: no CAP_NET_RAW; the interface is missing, down, or carries no Ethernet frames.
    """

    def __init__(self, interface: str) -> None:
        self.interface = interface
        sock = _open(interface)
        super().__init__(Endpoint(interface, NO_PROTOCOL), [sock], skip=0)

    def send(self, rows: npt.NDArray[np.uint8], batch: Batch) -> Sent:
        """Send each packet behind its row of first octets (see :class:`TunnelSocket`).

        ``rows`` are uint8 (n, H): a new destination MAC (H = 6) of which the packets are bare, or
        nothing (H = 0). All packets count as ``no-interface`` while the interface is gone.
        """
        if not self._bound_to():
            return Sent(errors={NO_INTERFACE: len(batch)} if len(batch) else {})
        return super().send(rows, batch)

    def path_mtu(self) -> int:
        """Return the octets of the longest untagged frame that the interface takes now.

        Follows the name when the interface was replaced by another. Raises UserError where there is
        none of that name.
        """
        (sock,) = self._sockets
        try:
            mtu = device.mtu(sock, self.interface)
        except OSError:
            raise no_interface(self.interface) from None
        if self._bound_to() != self.interface:
            _bind(sock, self.interface)
        return mtu + ethernet.HEADER.itemsize

    def _bound_to(self) -> str:
        """Return what the interface is called now, empty once it was unregistered."""
        name: str = self._sockets[0].getsockname()[0]
        return name


def _open(interface: str) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0 receives nothing
    except PermissionError:
        raise privileges.missing("CAP_NET_RAW", f"sending by {interface}") from None
    with contextlib.ExitStack() as opening:
        opening.enter_context(sock)
        options.mark(sock)
        options.enlarge_send_buffer(sock, SEND_BUFFER)
        _bind(sock, interface)
        if not device.flags(sock, interface) & options.IFF_UP:
            raise UserError(f"interface {interface} is down: sudo ip link set {interface} up")
        opening.pop_all()
    return sock


def _bind(sock: socket.socket, interface: str) -> None:
    try:
        sock.bind((interface, 0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise no_interface(interface) from None
        raise
    kind = sock.getsockname()[3]
    if kind != device.ARPHRD_ETHER:
        raise UserError(
            f"interface {interface} takes no Ethernet frames (ARPHRD {kind}): name the Ethernet"
            " interface beneath it, or a tunnel"
        )
