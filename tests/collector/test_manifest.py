"""``--manifest`` and ``collector verify``: every later change of files or lines is told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from files_rig import SECOND, START, files_in, manifest, rig

from collector import cli_files
from collector.manifest import Manifest, as_text
from collector.sinks.capture_file import Summary
from collector.sinks.folder import Folder
from collector.sinks.limits import Limits
from tunnelbridge.errors import UserError


def verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run ``collector verify``; return its exit code and its lines."""
    code = 0
    try:
        cli_files.verify(folder)
    except typer.Exit as ended:
        code = ended.exit_code
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files a, b and c, in two runs."""
    folder = tmp_path_factory.mktemp("pristine")
    options: dict[str, Any] = {
        "rotate": Limits(number=10), "template": "{sequence:01}", "manifest": True
    }  # fmt: skip
    with rig(folder, **options) as made:
        made.put(7, timestamp=START + 5 - np.arange(7), gap=[0, 3, 0, 0, 4, 0, 0],
                 truncated=[1, 0, 0, 0, 0, 0, 1], stream=[2, 2, 2, 2, 2, 4, 4])  # fmt: skip
        made.now += SECOND
        made.put(3)
        made.put(10)
    with rig(folder, **options) as made:
        made.put(10, size=60)
    assert [path.name for path in files_in(folder)] == ["1.pcapng", "2.pcapng", "3.pcapng"]
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def lines_of(folder: Path) -> list[str]:
    return (folder / ".collector" / "manifest.jsonl").read_text().splitlines(keepends=True)


def write_lines(folder: Path, lines: list[str]) -> None:
    (folder / ".collector" / "manifest.jsonl").write_text("".join(lines))


def test_lines_tell_what_is_in_the_files(pristine: Path) -> None:
    lines = manifest(pristine)
    first = lines[0]
    path = pristine / "1.pcapng"
    assert first["name"] == "1.pcapng"
    assert first["size"] == path.stat().st_size
    assert first["first"] == "2023-11-14T22:13:59.999999999Z"
    assert first["last"] == "2023-11-14T22:14:01.000000000Z"
    assert (first["packets"], first["octets"]) == (10, 1000)
    assert first["streams"] == ["vxlan 192.0.2.2 vni 2", "vxlan 192.0.2.4 vni 4",
                                "vxlan 192.0.2.0 vni 0"]  # fmt: skip
    assert first["losses"] == {"lost": 7, "dropped": 0, "truncated": 2}
    assert not first["recovered"]
    assert [line["packets"] for line in lines] == [10, 10, 10]
    assert [line["octets"] for line in lines] == [1000, 1000, 600]


def test_the_chain_by_another_hand(pristine: Path) -> None:
    previous = "0" * 64
    for text in lines_of(pristine):
        line = json.loads(text)
        octets = (pristine / line["name"]).read_bytes()
        assert line["sha256"] == hashlib.sha256(octets).hexdigest()
        assert line["previous"] == previous
        without = text.replace(f',"chain":"{line["chain"]}"', "")
        assert line["chain"] == hashlib.sha256(without.encode()).hexdigest()
        previous = line["chain"]


def test_a_good_folder(pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = verify(pristine, capsys)
    assert code == 0
    assert out == [
        "3 files are as they were written, and the chain is whole",
        f"last in the chain: {manifest(pristine)[-1]['chain']}",
    ]


def change_octet(folder: Path) -> None:
    octets = bytearray((folder / "2.pcapng").read_bytes())
    octets[500] ^= 1
    (folder / "2.pcapng").write_bytes(octets)


def link(folder: Path) -> None:
    (folder / "2.pcapng").rename(folder / "elsewhere")
    (folder / "2.pcapng").symlink_to("elsewhere")


def make_folder(folder: Path) -> None:
    (folder / "2.pcapng").unlink()
    (folder / "2.pcapng").mkdir()


def make_fifo(folder: Path) -> None:
    (folder / "2.pcapng").unlink()
    os.mkfifo(folder / "2.pcapng")


def edit(number: int, old: str, new: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        lines = lines_of(folder)
        assert old in lines[number]
        lines[number] = lines[number].replace(old, new, 1)
        write_lines(folder, lines)

    return work


def reorder(*order: int) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        lines = lines_of(folder)
        write_lines(folder, [lines[number] for number in order])

    return work


def extend(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (change_octet, ["2.pcapng: was changed"]),
        (lambda f: (f / "2.pcapng").unlink(), ["2.pcapng: is missing"]),
        (link, ["2.pcapng: cannot be read: Too many levels of symbolic links"]),
        (make_folder, ["2.pcapng: is not a regular file"]),
        (make_fifo, ["2.pcapng: is not a regular file"]),
        (extend("9.pcap"), ["9.pcap: is not in the manifest"]),
        (extend("9.pcapng.zst"), ["9.pcapng.zst: is not in the manifest"]),
        (extend("notes.txt"), []),
        (edit(1, '"packets":10', '"packets":11'), ["line 2 of the manifest was changed"]),
        (edit(1, '"packets":10', '"packets": 10'), ["line 2 of the manifest was changed"]),
        (edit(1, "{", "{{"), ["line 2 of the manifest is damaged",
                              "line 3 of the manifest does not follow the line before",
                              "2.pcapng: is not in the manifest"]),
        (edit(0, '"sha256":"', '"sha256":"x'), ["line 1 of the manifest was changed",
                                                "1.pcapng: was changed"]),
        (reorder(0, 2), ["line 2 of the manifest does not follow the line before",
                         "2.pcapng: is not in the manifest"]),
        (reorder(1, 2), ["line 1 of the manifest does not follow the line before",
                         "1.pcapng: is not in the manifest"]),
        (reorder(0, 1), ["3.pcapng: is not in the manifest"]),
        (reorder(1, 0, 2), ["line 1 of the manifest does not follow the line before",
                            "line 2 of the manifest does not follow the line before",
                            "line 3 of the manifest does not follow the line before"]),
        (edit(2, "}\n", "}"), ["the manifest's last line is cut"]),
        (edit(1, '"2.pcapng"', '"../2.pcapng"'), ["line 2 of the manifest was changed",
                                                  "../2.pcapng: is no name of a file here",
                                                  "2.pcapng: is not in the manifest"]),
    ],
)  # fmt: skip
def test_harm_is_told(
    folder: Path,
    harm: Callable[[Path], object],
    told: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    harm(folder)
    code, out = verify(folder, capsys)
    if told:
        assert (code, out) == (1, told)
    else:
        assert code == 0


@pytest.mark.parametrize("octets", [b"[]\n", b"7\n", b"\xff\n", b"{}\n", b'{"deleted":[1]}\n'])
def test_any_octets_are_told_as_damage(
    folder: Path, octets: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".collector" / "manifest.jsonl").write_bytes(octets)
    code, out = verify(folder, capsys)
    assert code == 1
    assert out[0] == "line 1 of the manifest is damaged"


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the manifest of .*: No such file"):
        cli_files.verify(tmp_path)


def test_the_chain_goes_on_behind_a_torn_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / ".collector" / "manifest.jsonl").open("a") as file:
        file.write('{"name":"4.pc')
    with rig(folder, template="{sequence:01}", manifest=True) as made:
        made.put(1)
    assert verify(folder, capsys)[0] == 0
    assert len(manifest(folder)) == 4


def test_a_file_is_not_listed_twice(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/")
    for name, sha256 in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "2")):
        listed = Manifest(folder)  # as after a crash between listing and showing
        listed.add(name, 1, sha256, Summary())
        listed.close()
    folder.close()
    lines = manifest(tmp_path)
    assert [(line["name"], line["sha256"]) for line in lines] == [
        ("a", "1"), ("a", "2"), ("b", "2")
    ]  # fmt: skip


def test_deleted_files_need_not_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rig(tmp_path, rotate=Limits(number=1), keep=Limits(number=1), manifest=True) as made:
        made.put(3)
    code, out = verify(tmp_path, capsys)
    assert (code, out[-2][:8]) == (0, "1 files ")


def test_times_have_nine_digits() -> None:
    assert as_text(1) == "1970-01-01T00:00:00.000000001Z"
    assert as_text(2**62) == "2116-02-20T23:53:38.427387904Z"


def test_verify_is_a_command(
    pristine: Path, runner_of: Callable[..., Callable[..., tuple[int, str, str]]]
) -> None:
    app = typer.Typer()
    cli_files.register(app)
    app.callback()(lambda: None)
    from tunnelbridge.command_line import run

    call = runner_of(lambda: run(app, "collector"), "collector")
    code, out, err = call("verify", str(pristine))
    assert (code, err) == (0, "")
    assert out.startswith("3 files")
    assert "manifest" in call("verify", "/nonexistent")[2]
    assert sys.argv[0] == "collector"
