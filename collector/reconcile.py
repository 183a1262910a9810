"""The joint ledger of a sender and a collector: hop by hop, where packets went.

A tunnel's clones are found again as the collector's stream of the same encapsulation and identifier,
and of the same source where the tunnel names its own. Where clones are numbered (GRE with sequence
numbers, ERSPAN) the sum is exact: each number was taken by a clone, and each that did not arrive was
not sent, lost in between, or came before or after what the collector saw. Where they are not, what
is missing can only be explained by what the collector's own sockets dropped or refused.

Both ledgers are to be taken when nothing is under way, or what is counts as missing.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tunnelbridge.errors import UserError

Ledger = Mapping[str, Any]
WRAP: Final = 1 << 32
SENDERS: Final = ("tunnelbridge send",)
COLLECTORS: Final = ("collector listen", "collector decap")


@dataclass(slots=True)
class Hop:
    """What came to one place, and what became of it there: came = went + the causes."""

    name: str
    came: int
    went: int
    causes: dict[str, int] = field(default_factory=dict)
    is_exact: bool = True
    """The causes are counted; where they are only the most that there can be, less is enough."""

    @property
    def unexplained(self) -> int:
        """Packets that no cause accounts for; negative if more went than came."""
        missing = self.came - self.went
        told = sum(self.causes.values())
        if not self.is_exact and 0 <= missing <= told:
            return 0
        return missing - (told if self.is_exact else max(min(told, missing), 0))


@dataclass(slots=True)
class Joint:
    """The joint ledger."""

    hops: list[Hop]
    remarks: list[str]

    @property
    def is_explained(self) -> bool:
        """Tell whether every packet is accounted for."""
        return not any(hop.unexplained for hop in self.hops)

    def as_dict(self) -> dict[str, Any]:
        """Return the joint ledger as ``--json`` writes it."""
        hops = [{**asdict(hop), "unexplained": hop.unexplained} for hop in self.hops]
        return {"hops": hops, "remarks": self.remarks, "explained": self.is_explained}


def reconcile(
    sender: Ledger, collector: Ledger, source: str | None = None, remote: str | None = None
) -> Joint:
    """Join two ledgers; ``source`` and ``remote`` choose among streams and tunnels by address."""
    tunnels = [{**each, **each.get("outer", {})} for each in sender["tunnels"]]
    tunnels = [each for each in tunnels if remote in (None, each.get("remote"))]
    streams = [each for each in collector["streams"] if source in (None, each["source"])]
    hops, remarks = [_capture(sender)], []
    left = list(streams)
    for name, group in _groups(tunnels):
        arrived = [each for each in left if _matches(group[0], each)]
        left = [each for each in left if each not in arrived]
        hops += [_sending(name, group), _way(name, group, arrived, collector)]
        if len({each["source"] for each in arrived}) > 1:
            remarks.append(f"{name}: streams of several sources; choose one with --source")
        if any(each.get("restarts") for each in arrived):
            remarks.append(f"{name}: the sender started anew meanwhile: its numbers tell less")
    if not tunnels:
        remarks.append("the sender has no tunnel" + (f" to {remote}" if remote else ""))
    remarks += [f"{_name(each)} from {each['source']} is not of this sender" for each in left]
    hops += [_taking_in(collector), *(_sink(collector, each) for each in collector["sinks"])]
    return Joint(hops, remarks)


def _capture(sender: Ledger) -> Hop:
    causes = {"kernel dropped": sender["kernel_dropped"], "not matched": sender["not_matched"]}
    return Hop(
        "sender, capture", sender["received"], sender["cloned"], causes | _of(sender, "refused")
    )


def _groups(tunnels: Iterable[Ledger]) -> Iterable[tuple[str, list[Ledger]]]:
    """Yield tunnels that are one stream to the collector, with a name."""
    found: dict[tuple[Any, ...], list[Ledger]] = {}
    for each in tunnels:
        key = each.get("encapsulation"), each.get("identifier"), each.get("local")
        found.setdefault(key, []).append(each)
    for group in found.values():
        if not group[0].get("encapsulation"):
            raise UserError(
                f"the sender's ledger does not say what tunnel {group[0]['name']} is: write it"
                " with this version's tunnelbridge send --stats"
            )
        yield _name(group[0]), group


def _matches(tunnel: Ledger, stream: Ledger) -> bool:
    same = all(tunnel.get(each) == stream[each] for each in ("encapsulation", "identifier"))
    return same and tunnel.get("local") in (None, stream["source"])


def _name(entry: Ledger) -> str:
    number = "" if entry.get("identifier") is None else f" {entry['identifier']}"
    return f"{entry.get('encapsulation')}{number}"


def _sending(name: str, tunnels: Sequence[Ledger]) -> Hop:
    causes: dict[str, int] = {"queue dropped": _sum(tunnels, "queue_dropped")}
    for each in tunnels:
        for cause, count in _of(each, "errors").items():
            causes[cause] = causes.get(cause, 0) + count
    return Hop(f"{name}, sender", _sum(tunnels, "clones"), _sum(tunnels, "sent"), causes)


def _way(name: str, tunnels: Sequence[Ledger], streams: Sequence[Ledger], beside: Ledger) -> Hop:
    """Return what became of the clones between the two programs."""
    sent, packets = _sum(tunnels, "sent"), _sum(streams, "packets")
    arrived = packets - _sum(streams, "duplicate")
    hop = Hop(f"{name}, network", sent, arrived)
    numbers = [each["sequence"] for each in tunnels if each.get("sequence") is not None]
    if numbers and len(streams) == 1 and streams[0].get("sequence_next") is not None:
        unsent = _sum(tunnels, "clones") - sent
        hop.causes = _by_number(streams[0], max(numbers), unsent)
    elif sent != arrived:
        refused = _refused(tunnels, beside)
        hop.causes = {
            "refused by the collector": refused,
            "dropped by the collector's sockets": beside["socket_dropped"],
            "fragments missing": beside.get("reassembly_failed", 0),
        }
        hop.is_exact = False
    return hop


def _by_number(stream: Ledger, next_number: int, unsent: int) -> dict[str, int]:
    """Return where the numbers are that did not arrive; those of clones not sent are no loss."""
    before = stream["sequence_first"]
    after = (next_number - stream["sequence_next"]) % WRAP
    causes = {"lost": stream["lost"], "before the first": before, "after the last": after}
    for name in ("lost", "after the last", "before the first"):
        taken = min(unsent, causes[name])
        causes[name] -= taken
        unsent -= taken
    return causes


def _refused(tunnels: Sequence[Ledger], collector: Ledger) -> int:
    """Return what the collector refused of senders that could be these."""
    kinds, sources = ({each.get(name) for each in tunnels} for name in ("encapsulation", "local"))
    return sum(
        each["packets"]
        for each in collector.get("refused", ())
        if each["encapsulation"] in (None, *kinds)
        and (None in sources or each["source"] in sources)
    )


def _taking_in(collector: Ledger) -> Hop:
    return Hop(
        "collector, decapsulation",
        collector["received"],
        collector["decapsulated"],
        _of(collector, "rejected"),
    )


def _sink(collector: Ledger, sink: Ledger) -> Hop:
    causes = {"filtered": sink.get("filtered", 0), "queued": sink.get("queued", 0)}
    for name in ("deduplicated", "waiting"):
        causes[name] = collector.get(name, 0)
    return Hop(
        f"sink {sink['name']}",
        collector["decapsulated"],
        sink["delivered"],
        causes | _of(sink, "dropped"),
    )


def _of(ledger: Ledger, name: str) -> dict[str, int]:
    """Return counts by cause, under names that tell where they are from."""
    return {f"{name} {cause}": count for cause, count in ledger[name].items()}


def _sum(ledgers: Iterable[Ledger], name: str) -> int:
    return sum(each[name] for each in ledgers)


def load(path: Path, role: str) -> dict[str, Any]:
    """Return the ledger in a file, or of the program behind a control socket.

    The file is of ``--stats`` or of ``show stats --json``; ``role`` is "sender" or "collector".
    Raises UserError: there is none, or it is another program's.
    """
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
        ledger = _unwrapped(_ask(path, role) if is_socket else json.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        ledger = None
    programs = SENDERS if role == "sender" else COLLECTORS
    if not isinstance(ledger, dict) or ledger.get("program") not in programs:
        raise UserError(f"{path} is no ledger of {programs[0]}: expected what its --stats writes")
    return ledger


def _ask(path: Path, role: str) -> Any:
    from tunnelbridge.control_client import ask

    program = SENDERS[0] if role == "sender" else COLLECTORS[0]
    return ask(path, {"command": "show", "what": "stats"}, program=program)


def _unwrapped(told: Any) -> Any:
    """Return the ledger itself: ``show stats`` tells more beside it."""
    return told.get("ledger", told) if isinstance(told, dict) else None
