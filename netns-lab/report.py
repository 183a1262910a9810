"""What a demo prints, and whether all of it was true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from process import LabError, Process, wait_until


class Report:
    """Prints facts and checks as they come; ``ok`` as long as every check holds."""

    def __init__(self) -> None:
        self.ok = True

    def heading(self, text: str) -> None:
        print(f"\n{text}\n", flush=True)

    def fact(self, what: str, count: int, note: str = "") -> None:
        """Print one number with its name."""
        print(f"   {what:<28}{count:>7,}{'   ' + note if note else ''}", flush=True)

    def check(self, holds: bool, what: str, otherwise: object = "") -> None:
        """Print what is true; or, and then all is lost, that it is not, and why."""
        self.ok = self.ok and holds
        because = f": {otherwise}" if otherwise and not holds else ""
        print(f"   {'yes' if holds else 'NO '}  {what}{because}", flush=True)

    def verdict(self, seconds: float) -> int:
        """Print the end; return the exit code."""
        print(
            f"\n{'All of it is true.' if self.ok else 'It is NOT all true.'} {seconds:.1f} s",
            flush=True,
        )
        return 0 if self.ok else 1


def end(process: Process, stats: Path) -> dict[str, Any]:
    """End one of our programs as Ctrl-C does, within its 2 s; return its ledger."""
    code = process.stop(seconds=4)
    if code:
        raise LabError(f"{process.name} ended with exit code {code}: {process.last_words()}")
    return ledger(stats)


def ledger(stats: Path) -> dict[str, Any]:
    """Return the ledger that a program wrote at its end."""
    wait_until(stats.exists, 1, f"{stats.name} to be written")
    counts: dict[str, Any] = json.loads(stats.read_text())
    return counts


def losses(sender: dict[str, Any], collector: dict[str, Any]) -> dict[str, int]:
    """Return every bucket of both ledgers that stands for a packet that did not arrive."""
    counts = {
        "kernel_dropped": sender["kernel_dropped"],
        "socket_dropped": collector["socket_dropped"],
    }
    found = [("refused", sender["refused"]), ("rejected", collector["rejected"])]
    for tunnel in sender["tunnels"]:
        counts[f"{tunnel['name']} queue_dropped"] = tunnel["queue_dropped"]
        counts[f"{tunnel['name']} truncated"] = tunnel["truncated"]
        found += [
            (f"{tunnel['name']} error", tunnel["errors"]),
            (tunnel["name"], tunnel["refused"]),
        ]
    found += [(sink["name"], sink["dropped"]) for sink in collector["sinks"]]
    counts |= {f"{where} {reason}": n for where, reasons in found for reason, n in reasons.items()}
    return {name: n for name, n in counts.items() if n}
