"""Labs that were left standing: which there are, how to enter them, and how to remove them.

Each has a small JSON file: ``/run/tunnelbridge-lab/NAME.json``, or below ``XDG_RUNTIME_DIR``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from netlab import NAMESPACES
from process import LabError, wait_until

PREFIX = "tunnelbridge-lab-"


def place() -> Path:
    """Return the folder of the state files."""
    runtime = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR", "/run"))
    return runtime / "tunnelbridge-lab"


@dataclass(frozen=True)
class Standing:
    """A lab that stands: its files, its namespaces by role, and what ends all their names."""

    name: str
    folder: str
    roles: dict[str, str]
    suffix: str

    @property
    def path(self) -> Path:
        return place() / f"{self.name}.json"

    def namespaces(self) -> list[str]:
        """Return its namespaces that are there, those of no role as well."""
        return sorted(path.name for path in NAMESPACES.glob(f"tb-*-{self.suffix}"))

    def save(self) -> None:
        place().mkdir(mode=0o755, exist_ok=True)
        self.path.write_text(json.dumps(asdict(self), indent=2))

    def shell(self, role: str) -> int:
        """Be a shell on one of its hosts, in the lab's folder; return its exit code."""
        if role not in self.roles:
            raise LabError(f"{self.name} has no host {role}: it has {', '.join(self.roles)}")
        shell = ["ip", "netns", "exec", self.roles[role], os.environ.get("SHELL", "/bin/sh")]
        prompt = {**os.environ, "PS1": f"[{role}] $ "}
        return subprocess.run(shell, cwd=self.folder, env=prompt, check=False).returncode

    def down(self) -> None:
        """End what runs on its hosts, remove them and its files, and see that they are gone."""
        for name in self.namespaces():
            _end_all(name)
            subprocess.run(["ip", "netns", "delete", name], check=True)
        if Path(self.folder).is_relative_to(Path(tempfile.gettempdir())) and PREFIX in self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.path.unlink()
        left = [*self.namespaces(), *([self.folder] if Path(self.folder).exists() else [])]
        if left:
            raise LabError(f"still there: {', '.join(left)}")


def _end_all(namespace: str) -> None:
    def pids() -> list[int]:
        done = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in done.stdout.split() if int(pid) != os.getpid()]

    for pid in pids():
        os.kill(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not pids(), 3, "the programs to end")
    except LabError:
        for pid in pids():
            os.kill(pid, signal.SIGKILL)


def find(name: str) -> Standing | None:
    """Return the standing lab of that name, if there is one."""
    path = place() / f"{name}.json"
    return Standing(**json.loads(path.read_text())) if path.exists() else None


def everything() -> list[Standing]:
    """Return all labs that stand."""
    paths = sorted(place().glob("*.json")) if place().is_dir() else []
    return [Standing(**json.loads(path.read_text())) for path in paths]
