"""Why a packet was refused: a code per packet in columns, a name in every ledger.

The name is the counter's name, the test's name and the documentation's word. Code 0 means good.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, auto

import numpy as np
import numpy.typing as npt


class Reason(IntEnum):
    """Reason codes; the ledger shows the lower-case name with dashes (:attr:`slug`)."""

    GOOD = 0
    FRAME_SHORT = auto()
    NOT_A_TUNNEL = auto()
    IP_SHORT = auto()
    IP_VERSION = auto()
    IP_FRAGMENT = auto()
    IP_EXTENSIONS = auto()
    UDP_SHORT = auto()
    GRE_SHORT = auto()
    GRE_VERSION = auto()
    GRE_ROUTING = auto()
    GRE_KEEPALIVE = auto()
    GRE_PROTOCOL = auto()
    ERSPAN_SHORT = auto()
    ERSPAN_VERSION = auto()
    ERSPAN_FRAME_TYPE = auto()
    VXLAN_SHORT = auto()
    VXLAN_NO_VNI = auto()
    GPE_SHORT = auto()
    GPE_VERSION = auto()
    GPE_OAM = auto()
    GPE_PROTOCOL = auto()
    GENEVE_SHORT = auto()
    GENEVE_VERSION = auto()
    GENEVE_CONTROL = auto()
    GENEVE_OPTIONS = auto()
    GENEVE_PROTOCOL = auto()
    TZSP_SHORT = auto()
    TZSP_VERSION = auto()
    TZSP_KEEPALIVE = auto()
    TZSP_TYPE = auto()
    TZSP_PROTOCOL = auto()
    TZSP_TAGS = auto()
    JUNIPER_TLVS = auto()
    MPLS_SHORT = auto()
    MPLS_PAYLOAD = auto()
    ETHERIP_SHORT = auto()
    ETHERIP_VERSION = auto()
    NSH_SHORT = auto()
    NSH_VERSION = auto()
    NSH_PROTOCOL = auto()
    PPP_SHORT = auto()
    PPP_PROTOCOL = auto()
    NOT_ALLOWED = auto()
    """The outer source is not in the collector's allow-list."""
    OWN_TUNNEL = auto()
    """A frame that is, carries or quotes one of the sender's own tunnels: cloning it would loop."""
    LOOP_BREAKER = auto()
    """The same frame came back encapsulated twice: a loop that the tunnels' own marks did not show."""
    NOT_IP = auto()
    """A frame without an IP packet cannot go into a tunnel that carries bare IP."""

    @property
    def slug(self) -> str:
        """Return the name as it stands in ledgers: ``vxlan-no-vni``."""
        return self.name.lower().replace("_", "-")


def count(reason: npt.NDArray[np.uint8]) -> Mapping[str, int]:
    """Count a column of reason codes by slug, leaving out the good."""
    totals = np.bincount(reason, minlength=1)
    return {
        Reason(code).slug: int(totals[code]) for code in np.flatnonzero(totals).tolist() if code
    }
