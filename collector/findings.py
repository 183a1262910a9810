"""What a health report means, in sentences for the operator of the mirror.

A finding is told from a share on that no healthy mirror has; below it is noise, or a few
connections that were there before the collector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FEW: Final = 10
"""Flows or frames fewer than this prove nothing."""
MOST_ONE_DIRECTION: Final = 0.05
MANY_UDP: Final = 30
MOST_UDP_ONE_DIRECTION: Final = 0.99
MOST_WITHOUT_SYN: Final = 0.2
MOST_UNSEEN: Final = 0.001
MOST_TRUNCATED: Final = 0.001
MOST_BAD_CHECKSUMS: Final = 0.01
MOST_DUPLICATES: Final = 0.05


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Return what may be right or wrong, only who knows the network can tell.

    Syslog, RTP and multicast have no answers, so UDP in one direction is only told where it is all
    but everything, and where there is no TCP that shows whether the mirror has both directions.
    """
    udp = report["flows"] - report["tcp_flows"]
    one = report["one_direction"] - report["tcp_one_direction"]
    if report["tcp_flows"] >= FEW or udp < MANY_UDP or one < MOST_UDP_ONE_DIRECTION * udp:
        return []
    share = f"{one / udp:.1%} of UDP flows were seen in one direction only"
    meaning = "normal for syslog, RTP and multicast; else the mirror lacks a direction"
    return [f"{share}: {meaning}"]


def findings(report: Mapping[str, Any], lost: int = 0) -> list[str]:
    """Return a sentence for each thing that is wrong; empty for a healthy mirror.

    ``lost`` are frames that sequence numbers say never came.
    """
    found = []
    tcp, sampled = report["tcp_flows"], report["sampled_frames"]
    if lost:
        found.append(f"{lost} frames were lost on their way to the collector")
    for count, whole, most, sentence in (
        (report["tcp_one_direction"], tcp, MOST_ONE_DIRECTION,
         "of TCP flows were seen in one direction only: the mirror lacks a port or a direction"),
        (report["tcp_without_syn"], tcp, MOST_WITHOUT_SYN,
         "of TCP flows have no beginning: they were there before, or the mirror loses packets"),
        (report["acked_unseen_octets"], report["acked_unseen_octets"] + report["tcp_octets"],
         MOST_UNSEEN,
         "of TCP octets were acknowledged but never seen: the mirror loses packets"),
        (report["truncated"], report["frames"], MOST_TRUNCATED,
         "of frames were cut: raise the snap length or the MTU between mirror and collector"),
        (report["bad_checksums"], report["checked_checksums"], MOST_BAD_CHECKSUMS,
         "of packets have a bad checksum: an IDS ignores them, unless told not to (-k none)"),
        (report["suspected_duplicates"], sampled, MOST_DUPLICATES,
         "of frames came twice: the same packet is mirrored at two places (see --dedup)"),
    ):  # fmt: skip
        if whole >= FEW and count > most * whole:
            found.append(f"{count / whole:.1%} {sentence}")
    return found
