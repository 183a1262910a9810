"""The allow-list: which outer sources are listened to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Flags
from tunnelbridge.errors import UsageError

MAPPED = bytes(10) + b"\xff\xff"


class AllowList:
    """Source prefixes, IPv4 and IPv6; an empty list allows everyone."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._rules: list[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        for text in prefixes:
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError as error:
                raise UsageError(f"--allow {text}: {error}") from None
            prefix, mask = network.network_address.packed, network.netmask.packed
            if network.version == 4:  # addresses are compared as IPv4-mapped IPv6
                prefix, mask = MAPPED + prefix, b"\xff" * 12 + mask
            rule = np.frombuffer(prefix, np.uint8), np.frombuffer(mask, np.uint8)
            self._rules.append((network.version, *rule))

    def __bool__(self) -> bool:
        return bool(self._rules)

    def allows(self, source: npt.NDArray[np.uint8]) -> Flags:
        """Tell which of the (n, 16) source addresses are allowed."""
        allowed = np.zeros(len(source), np.bool_)
        is4 = (source[:, :12] == np.frombuffer(MAPPED, np.uint8)).all(axis=1)
        for version, prefix, mask in self._rules:
            matches = ((source & mask) == prefix).all(axis=1)
            allowed |= matches & (is4 == (version == 4))
        return allowed
