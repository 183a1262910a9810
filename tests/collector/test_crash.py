"""``kill -9`` at any moment, disks that fill: files stay readable, and nothing is lost for good.

Every run kills five times; ``CRASHES=100 pytest tests/collector/test_crash.py`` is the long form.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from files_rig import (
    SECOND,
    Rig,
    all_numbers,
    capinfos,
    files_in,
    manifest,
    numbers,
    rig,
    staged,
)

import lab
from collector.manifest import Verification
from collector.sinks.compression import parse_compression
from collector.sinks.formats import Pcap, Pcapng
from collector.sinks.limits import Limits

CRASHES = int(os.environ.get("CRASHES", "5"))
HERE = Path(__file__).parent
CHILD = """
import sys, time
sys.path[:0] = [{here!r}, {tests!r}]
import numpy as np
from delivered import delivery
from files_rig import frame, name_of
from collector.sinks.compression import parse_compression
from collector.sinks.formats import parse_format
from collector.sinks.limits import Limits
from collector.sinks.options import SinkOptions
from collector.sinks.rotating import FileOptions, RotatingSink
from tunnelbridge.batch import from_packets

form, packed = sys.argv[2:]
files = FileOptions(
    parse_format(form), Limits(number=1500), manifest=True,
    compression=parse_compression(packed) if packed else None,
)
sink = RotatingSink(SinkOptions(sys.argv[1]), files, name_of)
number = 0
while True:
    batch = from_packets([frame(number + i, 700) for i in range(100)], time.time_ns())
    number += 100
    sink.put(delivery(batch, stream=np.arange(100) % 3))
    print(number, time.monotonic(), flush=True)
    time.sleep(0.004)
"""


@pytest.fixture(autouse=True)
def quiet() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


def killed(folder: Path, form: str, packed: str, after: float) -> int:
    """Run a writer, kill it; return how many frames it had a second before that."""
    program = CHILD.format(here=str(HERE), tests=str(HERE.parent))
    with subprocess.Popen(
        [sys.executable, "-c", program, f"{folder}/", form, packed],
        stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        assert lines[0]
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
        end = time.monotonic()
        lines += child.stdout.read().splitlines()
    told = [line.split() for line in lines if line.count(" ") == 1]
    return max((int(n) for n, when in told if float(when) < end - 1), default=0)


def readable(path: Path) -> list[int]:
    """Return the frames that can be read of a file as the crash has left it."""
    if path.stat().st_size < 24:
        return []
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", "-e", "data.data"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stderr  # 2: cut short in the middle of a packet
    return [int(line, 16) for line in done.stdout.split()]


@pytest.mark.timeout(60 + 10 * CRASHES)
@pytest.mark.parametrize("run", range(CRASHES))
def test_killed_at_any_moment(tmp_path: Path, run: int) -> None:
    lab.need("tshark", "capinfos")
    form = ("pcapng", "pcap", "pcap-us")[run % 3]
    packed = ("", "gzip")[run // 3 % 2]
    folder = tmp_path / "x"
    # The moment is what is random: shorter ones, and two above the second that may be lost.
    due = killed(folder, form, packed, random.uniform(0, 0.4) + (1.1 if run % 5 == 4 else 0))

    done = [path for path in files_in(folder) if not path.name.endswith(".gz")]
    if done:
        capinfos(*done)
    left = sum(len(readable(path)) for path in staged(folder))
    before = sum(capinfos(*files_in(folder))) if files_in(folder) else 0

    again = parse_compression(packed) if packed else None
    with rig(folder, manifest=True, compression=again, now=time.time_ns()):
        pass  # the next start

    paths = files_in(folder)
    counts = capinfos(*paths) if paths else []
    if packed:
        subprocess.run(["gzip", "-d", *paths], check=True)
    found = [number for path in sorted(folder.glob("*.pcap*")) for number in numbers(path)]
    assert found == list(range(len(found)))
    assert sum(counts) == len(found)
    assert len(found) >= due
    assert max(before, left) <= len(found) <= before + left
    assert staged(folder) == []
    listed = {line["name"]: line["packets"] for line in manifest(folder)}
    assert list(listed.values()) == counts
    if not packed:
        assert list(Verification(folder).problems()) == []


def leave(folder: Path, form: Pcap | Pcapng, step: int) -> bytes:
    """Leave a file cut at every ``step``th place, as crashes do; return the whole file."""
    with rig(folder, form=form) as made:
        made.put(3, size=61, stream=[0, 1, 1], truncated=[0, 1, 0])
        made.put(3, size=64, stream=[2, 0, 1], gap=[0, 9, 0])
        (path,) = staged(folder)
        octets = path.read_bytes()
    for path in files_in(folder):
        path.unlink()
    for cut in range(len(octets), -1, -step):
        (folder / ".collector" / f"{cut:05}{form.suffix}.part").write_bytes(octets[:cut])
    return octets


def packet_ends(octets: bytes, form: Pcap | Pcapng) -> list[int]:
    """Return where each packet's record ends, walking the file one by one."""
    at, ends = (24, []) if isinstance(form, Pcap) else (0, [])
    while at < len(octets):
        if isinstance(form, Pcap):
            at += 16 + struct.unpack_from("=I", octets, at + 8)[0]
            ends.append(at)
        else:
            kind, total = struct.unpack_from("=II", octets, at)
            at += total
            ends += [at] if kind == 6 else []
    return ends


@pytest.mark.parametrize("form", [Pcapng(), Pcap()])
def test_what_is_left_is_cut_behind_the_last_whole_record(
    tmp_path: Path, form: Pcap | Pcapng
) -> None:
    lab.need("capinfos")
    octets = leave(tmp_path, form, 3)
    ends = packet_ends(octets, form)
    assert len(ends) == 6
    with rig(tmp_path, manifest=True):
        pass
    expected = {
        f"{cut:05}{form.suffix}": sum(end <= cut for end in ends)
        for cut in range(len(octets), ends[0] - 1, -3)
    }
    assert staged(tmp_path) == []
    assert {path.name: len(numbers(path)) for path in files_in(tmp_path)} == expected
    assert all(numbers(path) == list(range(expected[path.name])) for path in files_in(tmp_path))
    assert capinfos(*files_in(tmp_path)) == [expected[p.name] for p in files_in(tmp_path)]
    listed = manifest(tmp_path)
    assert {line["name"]: line["packets"] for line in listed} == expected
    assert all(line["recovered"] for line in listed)
    assert list(Verification(tmp_path).problems()) == []


STEPS = ["publisher _compress", "publisher _show", "os fsync", "manifest add", "keeper add",
         "folder rename", "folder delete"]  # fmt: skip


@pytest.mark.parametrize("packed", ["", "gzip"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_before_a_step_of_publishing(
    tmp_path: Path, step: str, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.need("capinfos")
    compression = parse_compression(packed) if packed else None
    made = Rig(tmp_path, template="a{sequence}", compression=compression, manifest=True)
    made.put(5)
    publisher = made.sink._publisher
    listed = publisher._manifest
    assert listed is not None
    owners = {"publisher": publisher, "os": os, "manifest": listed, "keeper": publisher._keeper,
              "folder": publisher._folder}  # fmt: skip
    owner, name = step.split()
    with monkeypatch.context() as patch:
        patch.setattr(owners[owner], name, _end_thread)
        patch.setattr(threading, "excepthook", lambda _: None)
        made.sink.close()
    publisher._thread.join(10)
    for fd in (*publisher._folder._opened, listed._lines._fd, publisher._keeper._lines._fd):
        if publisher._waiting:  # else all went well, and they are closed
            os.close(fd)

    with rig(tmp_path, template="b{sequence}", compression=compression, manifest=True):
        pass

    assert staged(tmp_path) == []
    assert list((tmp_path / ".collector").glob("*.tmp")) == []
    assert capinfos(*files_in(tmp_path)) == [5]
    assert [line["packets"] for line in manifest(tmp_path)] == [5]
    assert list(Verification(tmp_path).problems()) == []


def _end_thread(*_: Any, **__: Any) -> None:
    """End the calling thread where it is, as a kill does."""
    raise SystemExit


def _killed(*_: Any, **__: Any) -> None:
    raise OSError(5, "killed here")


@pytest.fixture
def small(root: None, tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k,mode=755", "tmpfs", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("form", [Pcapng(), Pcap()])
def test_a_full_disk_costs_only_what_does_not_fit(small: Path, form: Pcap | Pcapng) -> None:
    ballast = small / "ballast"
    ballast.write_bytes(bytes(150_000))
    with rig(small / "x", form=form) as made:
        told: list[tuple[str, str]] = []
        made.sink._log = type("Log", (), {
            "error": lambda _, event, error, **__: told.append((event, error)),
            "info": lambda _, event, **__: told.append((event, "")),
        })()  # fmt: skip
        for _ in range(6):
            made.put(100, size=1000)
        assert set(made.sink.ledger.dropped) == {"disk-full"}
        (path,) = staged(small / "x")
        shutil.copy(path, small.parent / "as-it-is.pcapng")
        assert numbers(small.parent / "as-it-is.pcapng") == list(
            range(made.sink.ledger.delivered)
        )  # whole records only
        full = made.sink.ledger.delivered
        ballast.unlink()
        made.put(10, size=1000)  # within the same second: not tried
        assert made.sink.ledger.delivered == full
        made.now += SECOND + 1
        resumed = made.sent
        made.put(50, size=1000)
        assert made.sink.ledger.delivered == full + 50
        assert told == [("cannot write", "disk-full"), ("writing again", "")]
    assert made.sink.ledger.total() == made.sent
    assert all_numbers(small / "x") == [*range(full), *range(resumed, resumed + 50)]
    lab.need("capinfos")
    assert capinfos(*files_in(small / "x")) == [full + 50]


def test_a_full_disk_is_emptied_of_old_files_if_that_is_allowed(small: Path) -> None:
    with rig(small / "x", rotate=Limits(number=50), keep=Limits(number=100)) as made:
        for _ in range(40):
            made.put(50, size=1000)
            made.now += SECOND + 1
        ledger = made.sink.ledger
        assert ledger.delivered > 1000  # about 300 fit
        assert ledger.delivered + ledger.dropped["disk-full"] == 2000
    found = all_numbers(small / "x")
    assert len(found) > 100
    assert found[-1] > 1900
    assert len(set(found)) == len(found)


def test_a_full_disk_does_not_stop_other_sinks(small: Path, tmp_path: Path) -> None:
    with rig(small / "x") as full, rig(tmp_path / "other") as other:
        for _ in range(10):
            full.put(100, size=1000)
            other.put(100, size=1000)
    assert full.sink.ledger.dropped["disk-full"] > 500
    assert (other.sink.ledger.delivered, other.sink.ledger.dropped) == (1000, Counter())
    assert all_numbers(tmp_path / "other") == list(range(1000))


def test_a_folder_that_cannot_be_written_for_a_while(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(number=5)) as made:
        made.put(5)
        made.published(1)
        create = made.sink._folder.create
        made.sink._folder.create = _killed  # type: ignore[method-assign,assignment]
        made.put(5)
        made.put(5)
        made.sink._folder.create = create  # type: ignore[method-assign]
        made.now += SECOND
        made.put(5)
    assert made.sink.ledger.dropped == Counter({"io-error": 10})
    assert all_numbers(tmp_path) == [*range(5), *range(15, 20)]


def test_what_cannot_be_published_now_is_published_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig(tmp_path, rotate=Limits(number=5)) as made:
        rename = made.sink._folder.rename
        failed: list[int] = []

        def failing(*arguments: Any, **named: Any) -> None:
            failed.append(1)
            if len(failed) < 3:
                _killed()
            rename(*arguments, **named)

        monkeypatch.setattr(made.sink._folder, "rename", failing)
        made.put(10)
        made.published(2)
    assert all_numbers(tmp_path) == list(range(10))
    assert len(failed) == 4


def test_closing_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.sinks.rotating.LAST_FILES", 0.2)
    with rig(tmp_path) as made:
        made.put(5)
        monkeypatch.setattr(made.sink._folder, "rename", _killed)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert files_in(tmp_path) == []
    os.close(made.sink._folder._opened[2])  # what the end of the process does
    with rig(tmp_path):
        pass
    assert all_numbers(tmp_path) == [0, 1, 2, 3, 4]
    for fd in made.sink._folder._opened[:2]:
        os.close(fd)


def test_half_compressed_files_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    own = tmp_path / ".collector"
    own.mkdir()
    for name in ("a.pcapng.gz.tmp", "notes", "lock"):
        (own / name).write_bytes(b"x")
    with rig(tmp_path):
        pass
    assert {path.name for path in own.iterdir()} == {"notes", "lock", "published.jsonl"}
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("limits", [None, Limits(number=100)])
def test_what_is_published_on_a_full_disk_is_in_the_list(
    small: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits | None
) -> None:
    """Not one octet is left when files are published; the next collector may delete them."""
    told: list[str] = []
    folder = small / "x"
    with rig(folder, rotate=Limits(number=10), keep=limits) as made:
        log = type("Log", (), {"error": lambda _, event, **__: told.append(event),
                               "info": lambda *_, **__: None})()  # fmt: skip
        monkeypatch.setattr(made.sink._publisher, "_log", log)
        made.put(9)
        _fill(small / "ballast")
        made.put(1)  # there is room for it in the block that the file has
        made.published(1)
    (path,) = files_in(folder)
    lines = (folder / ".collector" / "published.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [path.name]
    assert told == []
    (small / "ballast").unlink()
    with rig(folder, rotate=Limits(number=1), keep=Limits(number=1), now=made.now) as after:
        after.put(2)
        lab.until(lambda: not path.exists(), 10, "the deletion of the first")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
