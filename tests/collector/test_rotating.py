"""Rotating files: where one ends and the next begins, what they are named, who may see them."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from files_rig import (
    SECOND,
    START,
    Rig,
    all_numbers,
    capinfos,
    files_in,
    frame,
    numbers,
    rig,
    staged,
)

import lab
from collector.sinks import rotating
from collector.sinks.compression import Compression, parse_compression
from collector.sinks.formats import Pcap, Pcapng
from collector.sinks.limits import Limits
from collector.sinks.options import SinkOptions
from collector.sinks.rotating import FileOptions, RotatingSink
from tunnelbridge.errors import UsageError, UserError

MINUTE = 60 * SECOND


@pytest.mark.parametrize("batches", [[1], [10], [11], [9, 1, 1], [25, 7], [0, 30], [1] * 12])
def test_files_end_at_a_number_of_frames(tmp_path: Path, batches: list[int]) -> None:
    with rig(tmp_path, rotate=Limits(number=10)) as made:
        for count in batches:
            made.put(count)
    total = sum(batches)
    found = [numbers(path) for path in files_in(tmp_path)]
    assert found == [list(range(a, min(a + 10, total))) for a in range(0, total, 10)]
    assert made.sink.ledger.delivered == total
    assert made.sink.ledger.octets == total * 100


@pytest.mark.parametrize("form", [Pcapng(), Pcap()])
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_files_never_exceed_a_size_by_records(
    tmp_path: Path, batch: int, form: Pcap | Pcapng
) -> None:
    limit = 5000
    with rig(tmp_path, rotate=Limits(octets=limit), form=form) as made:
        while made.sent < 300:
            made.put(batch)
    assert all_numbers(tmp_path) == list(range(made.sent))
    sizes = [path.stat().st_size for path in files_in(tmp_path)]
    record = 116 if isinstance(form, Pcap) else 28 + 100 + 12 + 4 + 4
    described = 0 if isinstance(form, Pcap) else 400  # the stream's name and its statistics
    assert max(sizes) <= limit + described
    assert min(sizes[:-1]) > limit - 2 * record - described


def test_one_frame_may_be_larger_than_a_file(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(octets=500)) as made:
        made.put(3, size=2000)
    assert [numbers(path) for path in files_in(tmp_path)] == [[0], [1], [2]]


def test_files_end_by_the_clock(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(nanoseconds=MINUTE)) as made:
        made.now = START + 17 * SECOND
        made.put(2)
        made.now = START + MINUTE - 1
        made.put(2)
        made.now = START + MINUTE
        made.put(2)
        made.now = START + 5 * MINUTE + 1
        made.put(1)
    assert [numbers(path) for path in files_in(tmp_path)] == [[0, 1, 2, 3], [4, 5], [6]]
    assert [path.name[:16] for path in files_in(tmp_path)] == [
        "20231114T221417Z",
        "20231114T221500Z",
        "20231114T221900Z",
    ]


def test_a_batch_is_split_where_its_frames_came(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(nanoseconds=MINUTE)) as made:
        made.now = START + MINUTE + SECOND  # written later than they came
        end = START + MINUTE
        made.put(6, timestamp=[end - 3, end - 2, end - 1, end, end + 1, end + 2])
    assert [numbers(path) for path in files_in(tmp_path)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("when", [0, 2**62])
def test_clocks_of_sources_do_not_decide_where_files_end(tmp_path: Path, when: int) -> None:
    with rig(tmp_path, rotate=Limits(nanoseconds=MINUTE)) as made:
        made.now += MINUTE // 2
        for _ in range(3):
            made.put(2, timestamp=[when, START])
        made.now += MINUTE
        made.put(2, timestamp=[when, START])
    assert [numbers(path) for path in files_in(tmp_path)] == [[0, 1, 2, 3, 4, 5], [6, 7]]


def test_an_idle_file_ends_on_time_and_empty_ones_do_not_exist(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(nanoseconds=MINUTE)) as made:
        made.tick()
        made.put(1)
        made.now += MINUTE - 1
        made.tick()
        assert files_in(tmp_path) == []
        assert len(staged(tmp_path)) == 1
        made.now += 1
        made.tick()
        assert [numbers(path) for path in made.published(1)] == [[0]]
        made.now += 10 * MINUTE
        made.tick()
    assert len(files_in(tmp_path)) == 1
    assert staged(tmp_path) == []


def test_a_file_that_is_full_does_not_wait_for_the_next_frame(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(number=3)) as made:
        made.put(3)
        assert [numbers(path) for path in made.published(1)] == [[0, 1, 2]]


def test_no_frames_no_files(tmp_path: Path) -> None:
    with rig(tmp_path):
        pass
    assert files_in(tmp_path) == []
    assert staged(tmp_path) == []


def test_a_series_for_each_stream(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=Limits(number=4), per_stream=True) as made:
        made.put(10, stream=np.arange(10) % 2)
        made.put(3, stream=[5, 5, 5])
        made.put(0)
    found = {path.name: numbers(path) for path in files_in(tmp_path)}
    streams = Counter(name.partition("-2023")[0] for name in found)
    assert streams == {"vxlan-192.0.2.0-vni-0": 2, "vxlan-192.0.2.1-vni-1": 2,
                       "vxlan-192.0.2.5-vni-5": 1}  # fmt: skip
    assert sorted(found.values()) == [[0, 2, 4, 6], [1, 3, 5, 7], [8], [9], [10, 11, 12]]


def test_files_that_are_open_at_once_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotating, "MOST_OPEN", 3)
    with rig(tmp_path, per_stream=True) as made:
        made.put(3, stream=[0, 1, 2])
        made.put(1, stream=[0])
        made.put(1, stream=[3])  # 1 has waited longest
        assert [numbers(path) for path in made.published(1)] == [[1]]
        assert len(staged(tmp_path)) == 3
    assert sorted(map(numbers, files_in(tmp_path))) == [[0, 3], [1], [2], [4]]


def test_sequence_goes_on_after_a_restart_and_names_are_never_taken_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with rig(tmp_path, rotate=Limits(number=1), template="a-{sequence:03}") as made:
            made.put(2)
    assert [path.name for path in files_in(tmp_path)] == [
        "a-001.pcapng", "a-002.pcapng", "a-003.pcapng", "a-004.pcapng"
    ]  # fmt: skip
    with rig(tmp_path, rotate=Limits(number=1), template="{time}") as made:
        (tmp_path / "20231114T221400Z.pcapng").write_bytes(b"somebody else's")
        made.put(3)
    taken = ["20231114T221400Z.pcapng", "20231114T221400Z-2.pcapng", "20231114T221400Z-3.pcapng",
             "20231114T221400Z-4.pcapng"]  # fmt: skip
    assert sorted(path.name for path in files_in(tmp_path))[:4] == sorted(taken)
    assert (tmp_path / taken[0]).read_bytes() == b"somebody else's"


def test_times_of_files_only_grow(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    os.utime(old, ns=(0, START + 5 * SECOND))
    mistake = tmp_path / "mistake"
    mistake.touch()
    os.utime(mistake, ns=(0, START + 400 * 24 * 3600 * SECOND))
    with rig(tmp_path, rotate=Limits(number=1)) as made:
        made.put(3)
        made.published(5)
        made.now += 30 * SECOND
        made.put(2)
    times = [path.stat().st_mtime_ns for path in files_in(tmp_path)]
    after, thirty = START + 5 * SECOND, START + 30 * SECOND
    ms = 10**6
    ours = [after + ms, after + 2 * ms, after + 3 * ms, thirty, thirty + ms]
    assert times[:-1] == [after, *ours]


def test_modes_and_what_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    mask = os.umask(0)
    try:
        with rig(folder, rotate=Limits(number=1), manifest=True) as made:
            made.put(3)
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / ".collector").is_dir()
    assert len(list(folder.iterdir())) == 4
    everything = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in everything} == {0o640}


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / ".collector").symlink_to(outside)
    with pytest.raises(UserError, match=r"^cannot write into .*: "):
        Rig(folder)
    assert list(outside.iterdir()) == []
    (folder / ".collector").unlink()
    (folder / "20231114T221400Z.pcapng").symlink_to(outside / "victim")
    with rig(folder, template="{time}") as made:
        made.put(1)
    assert list(outside.iterdir()) == []
    assert (folder / "20231114T221400Z.pcapng").is_symlink()
    assert numbers(folder / "20231114T221400Z-2.pcapng") == [0]


def test_one_collector_at_a_time(tmp_path: Path) -> None:
    with rig(tmp_path), pytest.raises(UserError, match="another collector writes into this folder"):
        Rig(tmp_path)
    before = lab.descriptors()
    with rig(tmp_path) as made:
        made.put(1)
    assert lab.left_open(before) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [("no/such/", "No such file or directory"), ("file/", "Not a directory")],
)
def test_what_is_no_folder(tmp_path: Path, target: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^cannot write into .*{target}: {reason}$"):
        RotatingSink(SinkOptions(f"{tmp_path}/{target}"), FileOptions(), lambda _: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_compressed_files_are_read_by_other_programs(tmp_path: Path, name: str) -> None:
    lab.need("capinfos", "tshark")
    if name == "zstd":
        pytest.importorskip("zstandard", reason="needs the package zstandard")
    with rig(tmp_path, rotate=Limits(number=50), compression=parse_compression(name)) as made:
        made.put(120)
    suffix = {"gzip": ".pcapng.gz", "zstd": ".pcapng.zst"}[name]
    paths = files_in(tmp_path)
    assert [path.name.endswith(suffix) for path in paths] == [True] * 3
    assert capinfos(*paths) == [50, 50, 20]
    dump = subprocess.run(
        ["tshark", "-n", "-r", paths[2], "-T", "fields", "-e", "data.data"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert dump == [frame(100 + i)[14:].hex() for i in range(20)]
    if name == "gzip":
        assert paths[0].read_bytes()[4:8] == bytes(4)  # no time: the same again after a crash
    unpack = {"gzip": "gzip", "zstd": "zstd"}[name]
    lab.need(unpack)
    assert subprocess.run([unpack, "-t", *paths], capture_output=True).returncode == 0
    assert staged(tmp_path) == []


def test_what_cannot_be_compressed_is_published_as_it_is(tmp_path: Path) -> None:
    def fail(source: object, destination: object) -> None:
        raise OSError(28, "No space left on device")

    with rig(tmp_path, compression=Compression(".gz", fail)) as made:
        made.put(4)
    (path,) = files_in(tmp_path)
    assert path.name.endswith("Z-000001.pcapng")
    assert numbers(path) == [0, 1, 2, 3]
    assert list((tmp_path / ".collector").glob("*.tmp")) == []


def test_every_sink_has_its_filter_and_snap_length(tmp_path: Path) -> None:
    expression = "ether[99] & 1 == 1"
    with rig(tmp_path, expression, snaplen=60, form=Pcapng(expression, 60)) as made:
        made.put(4)
    (path,) = files_in(tmp_path)
    info = subprocess.run(["capinfos", path], capture_output=True, text=True).stdout
    assert f"Filter string = {expression}" in info
    assert "Capture length = 60" in info
    assert made.sink.ledger.filtered == 2
    assert made.sink.ledger.octets == 120


def test_names_and_limits_are_checked_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--name"):
        Rig(tmp_path, template="{time}/{sequence}")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_somebody_takes_meanwhile_is_left_to_them(tmp_path: Path) -> None:
    with rig(tmp_path, template="a{sequence}", compression=parse_compression("gzip")) as made:
        made.put(1)
        (tmp_path / "a000001.pcapng.gz").write_bytes(b"somebody else's")
    assert (tmp_path / "a000001.pcapng.gz").read_bytes() == b"somebody else's"
    lab.need("capinfos")
    assert capinfos(tmp_path / "a000001-2.pcapng.gz") == [1]


def test_files_are_on_the_disk_before_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(fd: int) -> None:
        steps.append("sync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def noting_rename(old: str, new: str, **folders: int) -> None:
        steps.append(f"rename {new}")
        rename(old, new, **folders)

    with rig(tmp_path, template="a{sequence}") as made:
        made.put(1)
        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(os, "rename", noting_rename)
    assert steps == [
        "sync a000001.pcapng.part", "rename a000001.pcapng", f"sync {tmp_path.name}"
    ]  # fmt: skip
