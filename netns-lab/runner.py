"""The lab of scenarios: vendors' recipes on networks of namespaces, with the real programs.

``netns-lab/lab`` sets up and calls this. Exit codes: 0 all is true, 1 it is not, 2 a mistake in the
command, 4 skipped (a program is missing, or root's rights).
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import standing
import truth
from netlab import Lab
from process import LabError
from report import Report
from scene import Scene

from tunnelbridge.errors import UserError

SCENARIOS = Path(__file__).parent / "scenarios"
ORDER = (
    "f5-clone-pool", "f5-remote-dump", "f5-stand-in",
    "nsx-clone-servers", "nsx-tls-back-to-back", "nsx-preserve-client-ip",
    "huawei-mirror-lb", "vds-erspan", "cn2-flow-mirroring", "two-sites", "loop",
)  # fmt: skip
SKIPPED = 4


class NotHereError(Exception):
    """The scenario cannot run here; the text says why."""


def main() -> int:
    options = _options()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        code: int = options.action(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python complains at exit
        return 141
    except NotHereError as reason:
        print(f"skipped: {reason}")
        return SKIPPED
    except (LabError, UserError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return code


# --- the actions ---


def show_list(_: argparse.Namespace) -> int:
    """Print every scenario with its title, and which of them stand."""
    up = {each.name for each in standing.everything()}
    for name in names():
        print(f"{name:<24}{title(load(name))}{'   (stands)' if name in up else ''}")
    return 0


def up(options: argparse.Namespace) -> int:
    """Build a scenario and leave it to the user."""
    name, module = options.name, load(options.name)
    _refuse_standing(name)
    can_run(module)
    print(picture(module))
    with Lab(verbose=options.verbose, keep=True) as lab:
        _build_to_keep(name, module, lab)
    print("\nIt stands. To do what `run` does, type:\n")
    for command in module.COMMANDS:
        print(f"   {command}")
    print(how_to_use(name))
    return 0


def run(options: argparse.Namespace) -> int:
    """Run scenarios one after the other; print a summary when they are several."""
    wanted = names() if options.names == ["all"] else options.names
    modules = {name: load(name) for name in wanted}  # a wrong name is told before anything runs
    results: dict[str, int] = {}
    for name, module in modules.items():
        results[name] = run_one(name, module, options)
    if len(results) > 1:
        told = {0: "true", SKIPPED: "skipped"}
        print("\n" + "\n".join(f"{name:<24}{told.get(c, 'FAILED')}" for name, c in results.items()))
    failed = [code for code in results.values() if code not in (0, SKIPPED)]
    return (
        failed[0]
        if failed
        else min(results.values())
        if len(results) > 1
        else max(results.values())
    )


def run_one(name: str, module: ModuleType, options: argparse.Namespace) -> int:
    """Build one scenario, run it, take it down; return its exit code."""
    began = time.monotonic()
    print(f"\n=== {name}: {title(module)}\n\n{picture(module)}", flush=True)
    if keep := asks("KEEP"):
        _refuse_standing(name)
    try:
        can_run(module)
        with Lab(verbose=options.verbose, keep=keep) as lab:
            scene = _build_to_keep(name, module, lab) if keep else _build(module, lab)
            _record_links(name, scene)
            scene.heading("What is typed")
            module.run(scene)
        return scene.report.verdict(time.monotonic() - began)
    except NotHereError as reason:
        print(f"\nskipped: {reason}")
        return SKIPPED
    except (LabError, UserError) as error:
        print(f"lab: {name}: {error}", file=sys.stderr)
        return 1
    finally:
        if keep and standing.find(name):
            print(how_to_use(name))


def shell(options: argparse.Namespace) -> int:
    """Be a shell on a host of a lab that stands."""
    return _standing(options.name).shell(options.host)


def down(options: argparse.Namespace) -> int:
    """Remove a lab that stands, or all of them."""
    labs = [_standing(options.name)] if options.name else standing.everything()
    for each in labs:
        each.down()
        print(f"{each.name} is gone")
    if not labs:
        print("no lab stands")
    return 0


# --- scenarios ---


def names() -> list[str]:
    """Return the scenarios' names, in the order in which they are told."""
    found = {path.stem.replace("_", "-") for path in SCENARIOS.glob("[a-z]*.py")}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def load(name: str) -> ModuleType:
    """Import a scenario; LabError names the ones there are."""
    if name not in names():
        raise LabError(f"there is no scenario {name}: there are {', '.join(names())}")
    return importlib.import_module(f"scenarios.{name.replace('-', '_')}")


def title(module: ModuleType) -> str:
    """Return the first line of its docstring."""
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


def picture(module: ModuleType) -> str:
    """Return the docstring's picture: its indented lines after ``::``."""
    rest = (module.__doc__ or "").partition("::\n")[2].strip("\n").splitlines()
    lines = []
    for line in rest:
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return "\n".join(lines).rstrip()


def can_run(module: ModuleType) -> None:
    """Raise NotHereError when it cannot run here."""
    if os.geteuid() != 0:
        raise NotHereError("needs root (namespaces, raw sockets): sudo netns-lab/lab …")
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode:
        raise NotHereError("needs network namespaces, which this root may not make (a container?)")
    missing = [tool for tool in ("ip", "tcpdump", *module.NEEDS) if shutil.which(tool) is None]
    if missing:
        raise NotHereError(
            f"needs {', '.join(missing)}: sudo tools/setup test installs what is missing"
        )


def _build(module: ModuleType, lab: Lab) -> Scene:
    scene = Scene(lab, Report())
    module.build(scene)
    return scene


def _build_to_keep(name: str, module: ModuleType, lab: Lab) -> Scene:
    """Build, and note what stands; what cannot be built is taken down."""
    try:
        scene = _build(module, lab)
    except BaseException:
        lab.keep = False
        raise
    standing.Standing(name, str(lab.folder), scene.namespaces, lab.suffix).save()
    return scene


def _record_links(name: str, scene: Scene) -> None:
    """With PCAP=1, let a tcpdump write each link to a file that stays."""
    if not asks("PCAP"):
        return
    folder = Path(tempfile.mkdtemp(prefix=f"tunnelbridge-{name}-"))
    roles = {namespace: role for role, namespace in scene.namespaces.items()}
    for (namespace, interface), _ in scene.links:
        path = folder / f"{roles[namespace]}-{interface}.pcap"
        truth.capture_to(scene.lab, path, namespace, interface)
    print(f"\nEvery link is captured into {folder}")


def how_to_use(name: str) -> str:
    """Return how to enter a lab that stands, and how to remove it."""
    lab = _standing(name)
    return f"""
The lab stands; its files are in {lab.folder}.
   sudo netns-lab/lab shell {name} {next(iter(lab.roles))}      hosts: {", ".join(lab.roles)}
   sudo netns-lab/lab down {name}"""


def asks(name: str) -> bool:
    """Tell whether an environment variable is set and not 0."""
    return os.environ.get(name, "0") not in ("", "0")


def _standing(name: str) -> standing.Standing:
    found = standing.find(name)
    if found is None:
        others = ", ".join(each.name for each in standing.everything()) or "none does"
        raise LabError(f"no lab {name} stands ({others}): netns-lab/lab up {name}")
    return found


def _refuse_standing(name: str) -> None:
    if standing.find(name):
        raise LabError(f"{name} stands already: netns-lab/lab down {name}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="netns-lab/lab",
        description=(__doc__ or "").partition("\n")[0],
        epilog="KEEP=1 leaves a lab standing after run; PCAP=1 captures every link into files.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command")
    actions = parser.add_subparsers(required=True, metavar="list|up|run|shell|down")
    actions.add_parser("list", help="the scenarios").set_defaults(action=show_list)
    command = actions.add_parser("up", help="build one and leave it to you")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(action=up)
    command = actions.add_parser("run", help="run scenarios and check the outcome")
    command.add_argument("names", metavar="NAME", nargs="+", help="or: all")
    command.set_defaults(action=run)
    command = actions.add_parser("shell", help="a shell on a host of one that stands")
    command.add_argument("name", metavar="NAME")
    command.add_argument("host", metavar="HOST")
    command.set_defaults(action=shell)
    command = actions.add_parser("down", help="remove what stands")
    command.add_argument("name", metavar="NAME", nargs="?")
    command.set_defaults(action=down)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
