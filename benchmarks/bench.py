"""Measure both programs beside what a user would run instead, in one go; print ratios.

Usage: ``sudo benchmarks/run [--quick] [--seconds S] [--only TEXT] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "netns-lab"))

import bulk
import collecting
import networks
import results
import sending
from loads import Load, Site
from netlab import Lab
from process import LabError
from results import Result

PACED = 300_000
Case = tuple[str, Callable[[Site], Result]]
BulkCase = tuple[str, Callable[[Site], dict[str, Any]]]


def cases(quick: bool) -> Iterator[Case]:
    """Yield every case of a name and what measures it; ours beside its peers."""
    for flows in (1000,) if quick else (1, 1000):
        for load in (Load(flows),) if quick else (Load(flows), Load(flows, PACED)):
            for form in ("vxlan", "gre") if quick else sending.TUNNELS:
                yield from _case("send", "tunnelbridge", form, load, sending.ours, form)
            yield from _case("send", "tc-mirred", "vxlan", load, sending.kernel)
            yield from _case("send", "uvloop", "vxlan", load, sending.plain)
    for rate in (None,) if quick else (None, PACED):
        load = Load(1000, rate, "vxlan")
        for form in ("vxlan",) if quick else ("vxlan", "gre"):
            tunnelled = Load(1000, rate, form)
            yield from _case("collect", "tunnelbridge", form, tunnelled, collecting.ours, form)
        yield from _case("collect", "tcpdump", "vxlan", load, collecting.kernel)
        yield from _case("collect", "uvloop", "vxlan", load, collecting.plain)


def bulk_cases(quick: bool) -> Iterator[BulkCase]:
    """Yield the cases of bulk TCP."""
    for form in ("vxlan",) if quick else ("vxlan", "gre"):
        for gigabits in (1.0,) if quick else (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, None):
            name = f"bulk tunnelbridge {form} {gigabits or 'all'}"
            yield name, partial(bulk.ours, form=form, gigabits=gigabits)


def _case(
    work: str, program: str, form: str, load: Load, measure: Callable[..., Result], *more: str
) -> Iterator[Case]:
    name = f"{work} {program} {form} {load.flows} {load.name}"
    yield name, lambda site: measure(site, *more, load)


def main() -> None:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description="Measure tunnelbridge beside its peers.")
    parser.add_argument("--quick", action="store_true", help="one second each, fewer cases")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in the name")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    arguments = parser.parse_args()
    if arguments.list:
        for name, _ in [*cases(arguments.quick), *bulk_cases(arguments.quick)]:
            print(name)
        return
    if os.geteuid() != 0:
        sys.exit("benchmarks: needs root for namespaces and packet sockets: sudo benchmarks/run")
    try:
        run(arguments)
    except LabError as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted; everything is taken down")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print tables, write JSON."""
    seconds = arguments.seconds or (1.0 if arguments.quick else 3.0)
    found: list[Result] = []
    bulks: list[dict[str, Any]] = []
    machine = _machine(seconds)
    with Lab() as lab:
        site = Site(lab, networks.build(lab), seconds)
        for name, measure in cases(arguments.quick):
            if arguments.only in name:
                found.append(measure(site))
                _tell(f"{name}: {found[-1].rate / 1e3:.0f} kpps, {found[-1].lost:.2%} lost")
        for name, measure_bulk in bulk_cases(arguments.quick):
            if arguments.only in name:
                bulks.append(measure_bulk(site))
                _tell(f"{name}: {bulks[-1]['cloned_gbps']:.2f} Gbit/s cloned")
    compared = results.ratios(found)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n")
    if found:
        print(results.markdown(found, compared), end="\n\n")
    if bulks:
        print(bulk.markdown(bulks))
    if arguments.json:
        everything = {
            "machine": machine, "results": list(map(asdict, found)),
            "ratios": compared, "bulk": bulks,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


def _machine(seconds: float) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "seconds_each": seconds,
    }


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
