"""The collector's ledger as metrics (:mod:`tunnelbridge.metrics`)."""

from __future__ import annotations

from typing import Final

from tunnelbridge.metrics import MOST_SERIES, Family, Ledger, families_of

_HEALTH: Final = {
    "sampled_frames": "Frames that mirror health looked at",
    "flows": "Flows followed by mirror health",
    "one_direction": "Flows of which one direction only was seen",
    "tcp_flows": "TCP flows followed",
    "tcp_without_syn": "TCP flows without their beginning",
    "tcp_octets": "TCP octets seen",
    "acked_unseen_octets": "TCP octets acknowledged and not seen",
    "checked_checksums": "Packets whose checksums were computed",
    "bad_checksums": "Packets with a bad checksum",
    "suspected_duplicates": "Packets that came before within 20 ms",
    "truncated": "Frames that came cut",
}


def collector_families(ledger: Ledger) -> list[Family]:
    """Return the metrics of ``collector listen`` (what its ``--stats`` writes).

    Of more than 1,000 streams those with most packets are told one by one.
    """
    streams = sorted(ledger["streams"], key=lambda each: -int(each["packets"]))[:MOST_SERIES]
    keys = ("source", "encapsulation", "identifier")
    return [
        *families_of("collector", [((), ledger)], (), {
            "received": "Datagrams received",
            "socket_dropped": "Datagrams for which socket buffers had no room",
            "reassembly_failed": "Datagrams of which fragments were missing",
            "rejected": "Datagrams refused, by cause",
            "decapsulated": "Frames taken out of tunnels",
            "deduplicated": "Frames left out because they came before",
            "waiting": "Frames that wait to be put in order",
            "late": "Frames that came too late to be put in order",
        }, gauges=("waiting",)),
        *families_of("collector_stream", [
            (tuple("" if each[key] is None else str(each[key]) for key in keys), each)
            for each in streams
        ], keys, {
            "packets": "Frames of a stream",
            "octets": "Octets of a stream's frames",
            "lost": "Sequence numbers that never came",
            "reordered": "Frames that came late",
            "duplicate": "Frames whose number came before",
            "truncated": "Frames that came cut",
            "restarts": "Times the sender started anew",
        }, gauges=("lost",)),
        *families_of("collector_sink", [((each["name"],), each) for each in ledger["sinks"]],
        ("sink",), {
            "delivered": "Frames delivered to a sink",
            "octets": "Octets delivered to a sink",
            "queued": "Frames that wait for a sink's writer",
            "filtered": "Frames that a sink's filter does not want",
            "dropped": "Frames lost at a sink, by cause",
        }, gauges=("queued",)),
        *families_of("collector_health", [((), ledger["health"])] if ledger.get("health") else [],
                     (), _HEALTH, gauges=tuple(_HEALTH)),
    ]  # fmt: skip
