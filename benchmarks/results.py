"""What was measured: one record a case, ratios between them, a Markdown table of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from loads import Load, Window

OURS: Final = "tunnelbridge"
HEAD: Final = (
    "| work | program | format | flows | load | offered kpps | kpps | lost | CPU µs | of a core"
    " | machine µs | ledger |"
)


@dataclass(frozen=True)
class Result:
    """One program under one load.

    ``rate`` and ``offered`` are packets a second in the window; ``lost`` is the share of all packets
    offered, from the first to the last, that did not come through; ``cpu_us`` and ``busy_us`` are
    microseconds a packet that came through: the program's, and the whole machine's with the
    generator. ``share`` is how much of its core the program got: flat out, less than 1 tells that
    others took the rest. ``balanced``: the program's own counts agree with the kernel's.
    """

    work: str
    program: str
    format: str
    flows: int
    size: int
    load: str
    rate: float
    offered: float
    lost: float
    cpu_us: float | None
    share: float | None
    busy_us: float
    balanced: bool
    counts: dict[str, Any]

    @property
    def name(self) -> str:
        """How ``--only`` and the log call it."""
        return f"{self.work} {self.program} {self.format} {self.flows} {self.load}"


def result(
    work: str,
    program: str,
    form: str,
    load: Load,
    window: Window,
    *,
    balanced: bool,
    counts: dict[str, Any],
    has_process: bool = True,
) -> Result:
    """Return the record of a window."""
    done = max(window.done, 1)
    return Result(
        work, program, form, load.flows, load.size, load.name,
        rate=window.done / window.seconds,
        offered=window.offered / window.seconds,
        lost=1 - window.total_done / max(window.total_offered, 1),
        cpu_us=window.cpu / done * 1e6 if has_process else None,
        share=window.cpu / window.seconds if has_process else None,
        busy_us=window.busy / done * 1e6,
        balanced=balanced,
        counts=counts,
    )  # fmt: skip


def ratios(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return ours / peer, flat out, for the same work and flows: packets a second, CPU a packet."""
    flat_out = [each for each in results if each.load == "flat out"]
    return [
        {
            "work": ours.work,
            "format": ours.format,
            "flows": ours.flows,
            "peer": f"{peer.program} {peer.format}",
            "rate": ours.rate / max(peer.rate, 1),
            "cpu": ours.cpu_us / peer.cpu_us if ours.cpu_us and peer.cpu_us else None,
        }
        for ours in flat_out
        if ours.program == OURS
        for peer in flat_out
        if peer.program != OURS and (peer.work, peer.flows) == (ours.work, ours.flows)
    ]


def markdown(results: list[Result], compared: list[dict[str, Any]]) -> str:
    """Return both tables."""
    lines = [
        HEAD,
        "|-|-|-|-|-|-|-|-|-|-|-|-|",
        *map(_row, results),
        "",
        "| work | format | flows | peer | packets/s, ours ÷ peer | CPU a packet, ours ÷ peer |",
        "|-|-|-|-|-|-|",
        *map(_ratio_row, compared),
    ]
    return "\n".join(lines)


def _row(each: Result) -> str:
    cpu = "–" if each.cpu_us is None else f"{each.cpu_us:.2f}"
    share = "–" if each.share is None else f"{each.share:.0%}"
    return (
        f"| {each.work} | {each.program} | {each.format} | {each.flows} | {each.load}"
        f" | {each.offered / 1e3:.0f} | {each.rate / 1e3:.0f} | {each.lost:.2%} | {cpu}"
        f" | {share} | {each.busy_us:.2f} | {'agrees' if each.balanced else 'DIFFERS'} |"
    )


def _ratio_row(each: dict[str, Any]) -> str:
    cpu = "–" if each["cpu"] is None else f"{each['cpu']:.2f}"
    return (
        f"| {each['work']} | {each['format']} | {each['flows']} | {each['peer']}"
        f" | {each['rate']:.2f} | {cpu} |"
    )
