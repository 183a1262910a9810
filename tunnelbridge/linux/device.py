"""Ask about an interface through a socket: in the socket's namespace, at the cost of one ioctl.

For who has a socket already and asks often; :mod:`.netlink` tells more, and needs none.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Final

# linux/sockios.h, struct ifreq
SIOCGIFFLAGS: Final = 0x8913
SIOCGIFMTU: Final = 0x8921
SIOCGIFINDEX: Final = 0x8933
IFF_RUNNING: Final = 0x40  # linux/if.h; with a carrier
ARPHRD_ETHER: Final = 1


def mtu(sock: socket.socket, name: str) -> int:
    """Return an interface's MTU; OSError where there is none of that name."""
    return int(struct.unpack("16xi20x", _ask(sock, name, SIOCGIFMTU))[0])


def flags(sock: socket.socket, name: str) -> int:
    """Return an interface's flags (IFF_…); OSError where there is none of that name."""
    return int(struct.unpack("16xH22x", _ask(sock, name, SIOCGIFFLAGS))[0])


def index(sock: socket.socket, name: str) -> int:
    """Return an interface's index, 0 where there is none of that name."""
    try:
        return int(struct.unpack("16xi20x", _ask(sock, name, SIOCGIFINDEX))[0])
    except OSError:
        return 0


def _ask(sock: socket.socket, name: str, request: int) -> bytes:
    return fcntl.ioctl(sock, request, struct.pack("16s24x", name.encode()))
