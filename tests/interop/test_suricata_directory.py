"""Suricata in directory mode over a folder of rotating files: every packet exactly once."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import live
import pytest
from live import Lab, inside, wait_until

pytestmark = pytest.mark.usefixtures("root")

PACKETS, IN_A_FILE = 2000, 40
FILES = PACKETS // IN_A_FILE
RULE = 'alert udp any any -> any 7777 (msg:"seen"; content:"tunnelbridge"; sid:1;)\n'
CONFIGURATION = """\
%YAML 1.1
---
default-log-dir: {folder}
stats: {{enabled: yes, interval: 1}}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types: [alert, {{stats: {{totals: yes}}}}]
logging:
  default-log-level: notice
  outputs: [{{console: {{enabled: yes}}}}]
pcap-file: {{checksum-checks: yes, delay: 1, poll-interval: 1}}
app-layer: {{protocols: {{}}}}
unix-command: {{enabled: no}}
"""


def mirrored(number: int) -> bytes:
    """Return a frame whose UDP source port and address tell its number; no checksum."""
    payload = b"tunnelbridge %d" % number
    udp = struct.pack(">HHHH", 10_000 + number % 1000, 7777, 8 + len(payload), 0) + payload
    addresses = bytes([192, 0, 2, number // 1000]) + bytes([192, 0, 2, 9])
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", ~total & 0xFFFF) + header[12:]
    return bytes.fromhex("020000000102 020000000101 0800") + header + udp


def mirror() -> None:
    """Send the frames in VXLAN from two sources, over about six seconds."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        one.bind(("127.0.0.2", 0))
        two.bind(("127.0.0.3", 0))
        for number in range(PACKETS):
            vni = number % 2 + 1
            vxlan = struct.pack(">II", 8 << 24, vni << 8)
            (one if vni == 1 else two).sendto(vxlan + mirrored(number), ("127.0.0.1", 4789))
            if number % 10 == 0:
                time.sleep(0.015)  # traffic takes its time: files appear while others are read
            if number == PACKETS // 2 + IN_A_FILE:
                time.sleep(2.5)  # polls while files are half full


def alerts(path: Path) -> Counter[tuple[str, int]]:
    """Return which packets were seen, each as often as it was."""
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return Counter(
        (event["src_ip"], event["src_port"]) for event in events if event["event_type"] == "alert"
    )


@pytest.fixture
def lab() -> Iterator[Lab]:
    live.need("suricata", "ip")
    with Lab() as made:
        yield made


def test_every_packet_exactly_once(lab: Lab) -> None:
    namespace = lab.namespace("ids")
    folder, log = lab.folder / "captures", lab.folder / "eve.json"
    collector = live.listen(
        lab, namespace, "--vxlan", "4789", "--pcap", f"{folder}/", "--rotate", str(IN_A_FILE),
        "--per-stream", "--manifest",
    )  # fmt: skip
    (lab.folder / "suricata.yaml").write_text(CONFIGURATION.format(folder=lab.folder))
    (lab.folder / "one.rules").write_text(RULE)
    suricata = lab.start(
        "suricata",
        [
            "suricata", "-c", str(lab.folder / "suricata.yaml"), "-S", str(lab.folder / "one.rules"),
            "-r", str(folder), "--pcap-file-continuous", "-l", str(lab.folder),
            "--runmode", "single",
        ],
        namespace,
        ready="running in",  # the engine starts with its first packet
    )  # fmt: skip

    inside(namespace, mirror)
    ledger = collector.end()
    wait_until(lambda: alerts(log).total() >= PACKETS, 15, "an alert for each packet", every=0.2)
    polled = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > polled, 5, "two more polls", every=0.1)
    suricata.stop(signal.SIGTERM, seconds=20)

    assert ledger["balanced"]
    assert [stream["packets"] for stream in ledger["streams"]] == [PACKETS // 2] * 2
    assert ledger["sinks"][0]["delivered"] == PACKETS
    assert len(list(folder.glob("*.pcapng"))) == FILES
    expected = {(f"192.0.2.{n // 1000}", 10_000 + n % 1000) for n in range(PACKETS)}
    assert alerts(log) == Counter(expected)
    said = suricata.out.read_text() + suricata.err.read_text()
    assert "error" not in said.lower(), said
    checked = subprocess.run(
        [sys.executable, "-m", "collector.cli", "verify", folder], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
