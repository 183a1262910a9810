"""Clone real HTTP traffic across a router, collect it, and prove that every copy is exact.

``netns-lab/demo`` sets up and calls this. As root the job is that of ``routed.py``; without, the
one of ``unprivileged.py``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import routed
import unprivileged
from netlab import Lab
from process import LabError

from tunnelbridge.errors import UserError


def main() -> int:
    options = _options()
    privileged = not options.unprivileged and can_make_namespaces()
    try:
        with Lab(verbose=options.verbose, keep=options.keep and privileged) as lab:
            if not privileged:
                return unprivileged.run(lab)
            try:
                return routed.Demo(lab).run()
            finally:  # a lab that stands after a failure has to be removed as well
                if options.keep:
                    print(routed.how_to_enter(lab), flush=True)
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python complains at exit
        return 141
    except (LabError, UserError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


def can_make_namespaces() -> bool:
    """Tell whether this user may make namespaces; say so if it is root who may not."""
    if os.geteuid() != 0:
        return False
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode:
        print("This root may not make network namespaces (a container?); so without them:")
    return probe.returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="netns-lab/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the lab standing (or KEEP=1)")
    parser.add_argument(
        "--unprivileged", action="store_true", help="the job without namespaces, even as root"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command")
    options = parser.parse_args()
    options.keep = options.keep or os.environ.get("KEEP", "0") not in ("", "0")
    return options


if __name__ == "__main__":
    sys.exit(main())
