"""What users say of a sink: options, sizes, and paths that look like options."""

from __future__ import annotations

import pytest

from collector.sinks.options import LONGEST, QUEUE_OCTETS, SinkOptions, parse_sink, parse_size
from tunnelbridge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("x.pcap", SinkOptions("x.pcap")),
        ("-", SinkOptions("-")),
        ("", SinkOptions("")),
        ("what?.pcap", SinkOptions("what?.pcap")),
        ("a?b?", SinkOptions("a?b?")),
        ("a%20b", SinkOptions("a%20b")),
        ("x?snaplen=96", SinkOptions("x", snaplen=96)),
        ("x?filter=", SinkOptions("x")),
        ("why?/x?queue=1MB", SinkOptions("why?/x", queue_octets=1_000_000)),
        ("x?filter=y?queue=7", SinkOptions("x?filter=y", queue_octets=7)),
        ("x?filter=tcp port 80&snaplen=256&queue=64KiB", SinkOptions("x", "tcp port 80", 256, 65536)),
        ("x?filter=tcp[13] & 2 != 0&snaplen=9", SinkOptions("x", "tcp[13] & 2 != 0", 9)),
        ("x?filter=tcp[13]&2!=0 && ip", SinkOptions("x", "tcp[13]&2!=0 && ip")),
        ("x?filter=tcp%5B13%5D%262=0", SinkOptions("x", "tcp[13]&2=0")),
        ("x?filter=ip[0]+1=70", SinkOptions("x", "ip[0]+1=70")),
        ("x?filter=ip[0] % 7 = 0", SinkOptions("x", "ip[0] % 7 = 0")),
        ("x?snaplen=1", SinkOptions("x", snaplen=1)),
        (f"x?snaplen={LONGEST}", SinkOptions("x")),
        ("h:1?format=pcapng", SinkOptions("h:1", more={"format": "pcapng"})),
        (
            "h:1?filter=udp&format=pcap",
            SinkOptions("h:1", "udp", more={"format": "pcap"}),
        ),
    ],
)  # fmt: skip
def test_what_is_meant(text: str, options: SinkOptions) -> None:
    assert parse_sink(text, "--sink", ["format"]) == options
    assert SinkOptions("x").queue_octets == QUEUE_OCTETS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x?snap=96", "--pcap x?snap=96: no option snap, expected filter, snaplen, queue"),
        ("x?format=pcap", "no option format"),
        ("x?snaplen=1&snaplen=2", "snaplen is given twice"),
        ("x?snaplen=0", "--pcap x?snaplen=0: snaplen 0: expected octets, 1 to 262144"),
        ("x?snaplen=262145", "snaplen 262145: expected"),
        ("x?snaplen=9&what=1", "snaplen 9&what=1: expected"),
        ("x?snaplen=٩", "snaplen ٩: expected"),
        ("x?snaplen=", "snaplen : expected"),
        ("x?queue=lots", "size lots: expected a number"),
        ("x?queue=-1", "size -1: expected"),
    ],
)
def test_what_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_sink(text, "--pcap")
    assert words in str(error.value)
    assert str(error.value).startswith(f"--pcap {text}: ")


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1k", 1000),
        ("1KB", 1000),
        ("32MB", 32_000_000),
        ("1.5G", 1_500_000_000),
        ("2T", 2 * 10**12),
        ("64KiB", 65536),
        ("1Mi", 1 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(text: str, octets: int) -> None:
    assert parse_size(text) == octets


@pytest.mark.parametrize("text", ["", "MB", "1 MB", "1mb", "1iB", "1.M", "-1", "1e3", "٣", "1PB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number and k, M, G or T"):
        parse_size(text)
