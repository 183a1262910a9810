"""Host names to addresses."""

from __future__ import annotations

import ipaddress
import socket

from tunnelbridge.errors import UserError


def resolve_host(name: str) -> str:
    """Return the first address of ``name`` as an IP literal; literals come back unchanged."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot resolve {name}: {reason}; give an IP address instead") from None
    return str(found[0][4][0])
