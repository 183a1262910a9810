"""``--keep``: the oldest go first, and never what somebody else has written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from files_rig import SECOND, Rig, all_numbers, files_in, manifest, numbers, rig

import lab
from collector.sinks.folder import Folder
from collector.sinks.keeping import Keeper
from collector.sinks.limits import Limits
from tunnelbridge.errors import UserError

ONE = Limits(number=1)


def settled(made: Rig, expected: list[int]) -> None:
    """Wait until exactly these frames are in files."""

    def are_there() -> bool:
        try:
            return all_numbers(made.folder) == expected
        except UserError:  # one was deleted meanwhile
            return False

    lab.until(are_there, 10, f"{expected} to stay")


def test_number(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=ONE, keep=Limits(number=3)) as made:
        made.put(10)
        settled(made, [7, 8, 9])
    assert all_numbers(tmp_path) == [7, 8, 9]


def test_octets_with_the_file_that_is_being_written(tmp_path: Path) -> None:
    rotate = Limits(octets=3000)
    with rig(tmp_path, rotate=rotate) as made:
        made.put(90)
    before = files_in(tmp_path)
    total = sum(path.stat().st_size for path in before)
    with rig(tmp_path, rotate=rotate, keep=Limits(octets=total)) as made:
        made.put(5)
        lab.until(lambda: files_in(tmp_path) == before[1:], 10, "room for the open file")
    assert files_in(tmp_path)[:-1] == before[1:]
    assert numbers(files_in(tmp_path)[-1]) == [0, 1, 2, 3, 4]


def test_age(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=ONE, keep=Limits(nanoseconds=60 * SECOND)) as made:
        made.put(2)
        made.published(2)
        made.now += 50 * SECOND
        made.put(1)
        made.published(3)
        made.now += 11 * SECOND
        settled(made, [2])  # without any traffic
        made.now += 50 * SECOND
        settled(made, [])


def test_restarts_do_not_forget_and_others_files_stay(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=ONE) as made:
        made.put(4)
    first, second, third, _ = files_in(tmp_path)
    first.unlink()
    first.write_bytes(b"somebody else's, under our old name")
    second.write_bytes(second.read_bytes())  # same inode, another time
    link = third.read_bytes()
    third.unlink()
    (tmp_path / "elsewhere").write_bytes(link)
    third.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "foreign.pcapng").write_bytes(b"x")
    os.utime(tmp_path / "foreign.pcapng", (0, 0))
    with rig(tmp_path, rotate=ONE, keep=Limits(number=1)) as made:
        made.put(1)
        lab.until(lambda: len(list(tmp_path.iterdir())) == 7, 10, "one file deleted")
    names = {path.name for path in tmp_path.iterdir()}
    assert {first.name, second.name, third.name, "foreign.pcapng", "elsewhere"} < names
    assert len(names) == 7
    assert first.read_bytes().startswith(b"somebody")


def test_a_list_that_somebody_has_damaged_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in" / ".collector").mkdir(parents=True)
    (tmp_path / "in" / "sub").mkdir()
    line, victims = "", {"../victim": tmp_path / "victim", "sub/v": tmp_path / "in" / "sub" / "v"}
    for name, victim in victims.items():
        victim.write_bytes(b"x")
        told = victim.stat()
        line += f'{{"name":"{name}","inode":{told.st_ino},"size":1,"mtime":{told.st_mtime_ns}}}\n'
    broken = 'garbage\n[]\n{"name":7}\n{"name":"x","inode":"y","size":null,"mtime":[]}\n{"na'
    (tmp_path / "in" / ".collector" / "published.jsonl").write_text(line + broken)
    with rig(tmp_path / "in", rotate=ONE, keep=Limits(number=1)) as made:
        made.put(2)
        settled(made, [1])
    assert all(victim.exists() for victim in victims.values())


def test_the_list_does_not_grow_for_ever(tmp_path: Path) -> None:
    for _ in range(3):
        with rig(tmp_path, rotate=ONE, keep=Limits(number=2)) as made:
            made.put(5)
    with rig(tmp_path):
        pass
    text = (tmp_path / ".collector" / "published.jsonl").read_text()
    assert len(text.splitlines()) == 2


def test_deletions_are_in_the_manifest(tmp_path: Path) -> None:
    with rig(tmp_path, rotate=ONE, keep=Limits(number=1), manifest=True) as made:
        made.put(3)
        settled(made, [2])
    lines = manifest(tmp_path)
    deleted = [line["deleted"] for line in lines if "deleted" in line]
    assert deleted == [line["name"] for line in lines if "name" in line][:2]


@pytest.mark.parametrize("limits", [None, Limits(octets=10**12)])
def test_room_is_made_only_if_files_may_be_deleted(tmp_path: Path, limits: Limits | None) -> None:
    with rig(tmp_path, rotate=ONE) as made:
        made.put(2)
    deleted: list[str] = []
    folder = Folder(str(tmp_path))
    keeper = Keeper(folder, limits, deleted.append)
    oldest = files_in(tmp_path)[0].name
    keeper.apply(made.now)
    keeper.make_room()
    keeper.close()
    folder.close()
    assert deleted == ([] if limits is None else [oldest])
    assert len(files_in(tmp_path)) == (2 if limits is None else 1)


def test_a_list_that_cannot_be_written_now_does_not_hold_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig(tmp_path, rotate=ONE) as made:
        with monkeypatch.context() as patch:
            patch.setattr(made.sink._publisher._keeper._lines, "append", _full)
            made.put(2)
            made.published(2)
        listed = tmp_path / ".collector" / "published.jsonl"
        lab.until(lambda: len(listed.read_text().splitlines()) == 2, 10, "both in the list")


def _full(line: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_list_that_cannot_be_written_does_not_keep_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig(tmp_path, rotate=ONE, keep=Limits(number=1)) as made, monkeypatch.context() as patch:
        patch.setattr(made.sink._publisher._keeper._lines, "append", _full)
        made.put(3)
        lab.until(lambda: [p.stem[-6:] for p in files_in(tmp_path)] == ["000003"], 10, "the last")
    assert all_numbers(tmp_path) == [2]
    listed = (tmp_path / ".collector" / "published.jsonl").read_text().splitlines()
    assert files_in(tmp_path)[0].name in listed[-1]
