"""Where Wireshark looks for a user's own extcaps, and the launcher of ours in it.

Only a launcher is installed, so that the package can be upgraded or moved into another environment
without Wireshark noticing; a file of that name which is not ours is never touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tunnelbridge.errors import UserError

NAME: Final = "collector-extcap"
MARK: Final = "# made by `collector extcap --install`"
_FOLDER: Final = "Personal Extcap path"
"""How ``tshark -G folders`` calls it, since Wireshark 4.2; older ones do not name it."""


def personal_folder() -> Path:
    """Return the folder for this user's extcaps, which may not exist yet."""
    return _told_by_tshark() or _configuration_folder() / "extcap"


def install(folder: Path) -> Path:
    """Write the launcher and return its path; raises UserError."""
    path = folder / NAME
    _refuse_foreign(path)
    partial = path.with_name(f".{NAME}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(_launcher(), encoding="utf-8")
        partial.chmod(0o755)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path


def uninstall(folder: Path) -> Path:
    """Delete the launcher and return its path; raises UserError where there is none."""
    path = folder / NAME
    if not path.exists():
        raise UserError(f"there is no {path}: nothing to uninstall")
    _refuse_foreign(path)
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f"cannot delete {path}: {error.strerror}") from None
    return path


def _launcher() -> str:
    """Return a script that runs this very environment's program, wherever Wireshark was started."""
    python = shlex.quote(sys.executable)
    program = "from collector.extcap import main; main()"
    return f'#!/bin/sh\n{MARK}\nexec {python} -P -c "{program}" "$@"\n'


def _refuse_foreign(path: Path) -> None:
    try:
        ours = not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not ours:
        raise UserError(f"{path} was not made by this program: move it away first")


def _told_by_tshark() -> Path | None:
    if shutil.which("tshark") is None:
        return None
    try:
        told = subprocess.run(
            ["tshark", "-G", "folders"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in told.stdout.splitlines():
        name, _, folder = line.partition(":")
        if name == _FOLDER and folder.strip():
            return Path(folder.strip())
    return None


def _configuration_folder() -> Path:
    """Return Wireshark's own folder (get_persconffile_dir, wsutil/filesystem.c)."""
    configuration = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(configuration) / "wireshark"
