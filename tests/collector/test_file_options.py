"""What the command line says of capture files: limits, names, formats, and mistakes in them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import pytest

from collector.cli_files import FileWishes, file_openers, is_folder
from collector.sinks import compression
from collector.sinks.formats import Pcap, Pcapng, parse_format
from collector.sinks.limits import Limits, parse_limits
from collector.sinks.naming import Naming
from collector.sinks.options import SinkOptions
from collector.sinks.rotating import ROTATE, FileOptions
from tunnelbridge.errors import UsageError, UserError

NOON = 1_700_049_600_999_999_999


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("100MB", Limits(octets=100_000_000)),
        ("1.5GiB", Limits(octets=3 << 29)),
        ("7B", Limits(octets=7)),
        ("60s", Limits(nanoseconds=60 * 10**9)),
        ("500ms", Limits(nanoseconds=5 * 10**8)),
        ("1.5min", Limits(nanoseconds=90 * 10**9)),
        ("2h", Limits(nanoseconds=7200 * 10**9)),
        ("7d", Limits(nanoseconds=7 * 86400 * 10**9)),
        ("1000", Limits(number=1000)),
        ("1M", Limits(number=10**6)),
        ("100MB,60s,1M", Limits(10**8, 60 * 10**9, 10**6)),
        ("1k,1d,1kB", Limits(1000, 86400 * 10**9, 1000)),
    ],
)
def test_limits(text: str, limits: Limits) -> None:
    assert parse_limits(text, "--rotate") == limits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--rotate : expected a size (100MB), a time (60s, 7d) or a number (1M)"),
        ("1m", "--rotate 1m: expected"),
        ("1T", "--rotate 1T: expected"),
        ("-5s", "--rotate -5s: expected"),
        ("60 s", "--rotate 60 s: expected"),
        ("٣", "--rotate ٣: expected"),
        ("1s,", "--rotate : expected"),
        ("xMB", "--rotate xMB: size xMB: expected"),
        ("0", "--rotate 0: must be more than 0"),
        ("0.1B", "--rotate 0.1B: must be more than 0"),
        ("1s,2s", "--rotate 1s,2s: two limits of one kind"),
    ],
)
def test_limits_that_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_limits(text, "--rotate")


@pytest.mark.parametrize(
    ("template", "stream", "name"),
    [
        (None, "all", "20231115T120000Z-000042"),
        ("{stream}_{sequence}", "vxlan 192.0.2.1 vni 7", "vxlan-192.0.2.1-vni-7_000042"),
        ("x{sequence:03}", "", "x042"),
        ("{time:%Y%m%d-%H%M}", "", "20231115-1200"),
        ("{stream}{time:%S}", "../../etc/passwd", "etc-passwd00"),
        ("{stream}{time:%S}", "erspan2 2001:db8::1 session 9", "erspan2-2001-db8-1-session-900"),
        ("{stream}{time:%S}", "...", "all00"),
        ("{{{sequence}}}", "", "{000042}"),
    ],
)
def test_names(template: str | None, stream: str, name: str) -> None:
    assert Naming(template, False).name(NOON, 42, stream) == name


def test_names_of_streams_by_default() -> None:
    assert Naming(None, True).name(NOON, 1, "x y") == "x-y-20231115T120000Z-000001"


@pytest.mark.parametrize(
    ("template", "per_stream", "words"),
    [
        ("{tim}", False, "--name {tim}: no field {tim}, expected {time}, {stream} or {sequence}"),
        ("{}", False, "--name {}: "),
        ("{time", False, "--name {time: "),
        ("{sequence:q}", False, "--name {sequence:q}: "),
        ("{time.year}", False, "no field {time.year}"),
        ("{time[0]}", False, "no field {time[0]}"),
        ("x", False, "--name x: {time} or {sequence} must tell files apart"),
        ("{stream}", False, "must tell files apart"),
        ("{time}", True, "--per-stream needs {stream} in it"),
        ("a/{time}", False, "names hold no / and begin with no dot"),
        ("{time:%Y/%m}", False, "names hold no /"),
        (".{time}", False, "begin with no dot"),
        ("{time}\0", False, "names hold no /"),
        ("{time}" + "x" * 200, False, "too long"),
    ],
)
def test_names_that_cannot_work(template: str, per_stream: bool, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        Naming(template, per_stream)


def planned(targets: Sequence[str], **wishes: object) -> list[tuple[object, ...]]:
    """Return what each --pcap is opened with."""
    options = [
        SinkOptions(target, more={} if not form else {"format": form})
        for target, _, form in (each.partition("=") for each in targets)
    ]
    openers = file_openers(options, FileWishes(**wishes))  # type: ignore[arg-type]
    return [opener.args[1:] for opener in openers]  # type: ignore[attr-defined]


def test_folders_get_pcapng_and_files_pcap_unless_told(tmp_path: object) -> None:
    assert planned(["x", "-", "d/"]) == [(Pcap(),), (Pcap(),), (FileOptions(),)]
    assert planned([str(tmp_path)]) == [(FileOptions(),)]
    assert planned(["x"], form="pcapng") == [(Pcapng(),)]
    assert planned(["x", "-=pcapng", "d/=pcap"], form="pcap-us") == [
        (Pcap(10**6),), (Pcapng(),), (FileOptions(Pcap()),)
    ]  # fmt: skip
    assert not is_folder("-")


def test_every_wish_arrives() -> None:
    ((files,),) = planned(
        ["d/"], form="pcap", rotate="5s", keep="7", compress="gzip", per_stream=True,
        name="{stream}{time}", manifest=True,
    )  # fmt: skip
    assert isinstance(files, FileOptions)
    assert (files.form, files.rotate) == (Pcap(), Limits(nanoseconds=5 * 10**9))
    assert files.keep == Limits(number=7)
    assert files.compression is not None
    assert files.compression.suffix == ".gz"
    assert (files.per_stream, files.template, files.manifest) == (True, "{stream}{time}", True)
    assert FileOptions().rotate == ROTATE == Limits(10**8, 60 * 10**9)


@pytest.mark.parametrize(
    ("targets", "wishes", "words"),
    [
        ([], {"form": "pcap"}, "--format needs --pcap"),
        (["x"], {"form": "pcapnga"}, "--format pcapnga: expected pcapng, pcap or pcap-us"),
        (["x=y"], {}, "--pcap x: format y: expected"),
        (["x"], {"rotate": "5s"}, "--rotate needs a folder: --pcap DIR/"),
        (["-"], {"keep": "5s"}, "--keep needs a folder"),
        ([], {"per_stream": True}, "--per-stream needs a folder"),
        ([], {"manifest": True}, "--manifest needs a folder"),
        (["d/"], {"compress": "xz"}, "--compress xz: expected zstd or gzip"),
        (["d/"], {"keep": "x"}, "--keep x: expected"),
        (["d/"], {"name": "x"}, "--name x: "),
    ],
)
def test_wishes_that_cannot_be_meant(
    targets: list[str], wishes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        planned(targets, **wishes)


def test_zstd_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="needs the package zstandard: pip install") as problem:
        compression.parse_compression("zstd")
    assert problem.value.status == 1


def test_formats_have_names() -> None:
    assert parse_format("pcapng", "ip", 10**9) == Pcapng("ip", 262144)
    assert [parse_format(name).suffix for name in ("pcapng", "pcap", "pcap-us")] == [
        ".pcapng", ".pcap", ".pcap"
    ]  # fmt: skip
