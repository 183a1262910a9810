"""The lab's own commands: what stands, what is skipped, what is told, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lab import need

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import runner
import standing
import unwrap
from compare import Frame
from netlab import NAMESPACES
from process import LabError, wait_until
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III, ERSPAN_PlatformSpecific
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import GRE, Ether
from scapy.layers.vxlan import VXLAN
from scene import Command

LAB = Path(runner.__file__).parent
NAME = "two-hosts"
SCENARIO = '''"""Two hosts and a ping.

::

   a 192.0.2.1 ─── b 192.0.2.2
"""

from scene import Command

PING = Command("a", "ping -c 1 192.0.2.2")
COMMANDS = (PING,)
NEEDS = ("ping", {needs})


def build(scene):
    scene.hosts("a", "b")
    scene.link("a:eth0 192.0.2.1/24", "b:eth0 192.0.2.2/24")
    {build}


def run(scene):
    answer = scene.do(PING)
    scene.check("1 received" in answer, "there is an answer", answer)
    {run}
'''


@pytest.fixture
def scenarios(tmp_path: Path) -> Iterator[Path]:
    """A folder with a lab of its own, so that the real ones' state is not touched."""
    folder = tmp_path / "scenarios"
    folder.mkdir()
    yield folder
    for each in standing_in(tmp_path):  # whatever a failing test has left
        for name in each.namespaces():
            subprocess.run(["ip", "netns", "del", name], check=False)


def standing_in(place: Path) -> list[standing.Standing]:
    paths = (place / "state").glob("*.json")
    return [standing.Standing(**json.loads(path.read_text())) for path in paths]


def write(folder: Path, *, build: str = "pass", run: str = "pass", needs: str = "") -> None:
    text = SCENARIO.format(build=build, run=run, needs=needs)
    (folder / f"{NAME.replace('-', '_')}.py").write_text(text)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    code = f"""
import sys; sys.path.insert(0, {str(LAB)!r})
from pathlib import Path
import runner, scenarios, standing
runner.SCENARIOS = Path({str(folder)!r})
scenarios.__path__ = [{str(folder)!r}]
standing.place = lambda: Path({str(folder.parent / "state")!r})
sys.exit(runner.main())
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder.parent),
            **environment,
        },
    )


def lab(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with start(folder, *arguments, **environment) as process:
        out, err = process.communicate(timeout=60)
    if not environment.get("KEEP") and arguments[0] != "up":
        assert left(process.pid) == []
        assert not list(folder.parent.glob("tunnelbridge-lab-*"))
    return process.returncode, out, err


def left(pid: int) -> list[str]:
    namespaces = NAMESPACES.glob(f"tb-*-{pid}??") if NAMESPACES.is_dir() else []
    return [str(path) for path in namespaces]


@pytest.mark.usefixtures("root")
class TestRun:
    def test_shows_picture_commands_and_what_is_true(self, scenarios: Path) -> None:
        need("ping")
        write(scenarios)
        code, out, err = lab(scenarios, "run", NAME)

        assert (code, err) == (0, "")
        assert "=== two-hosts: Two hosts and a ping\n" in out
        assert "   a 192.0.2.1 ─── b 192.0.2.2\n" in out
        assert "   [a] $ ping -c 1 192.0.2.2\n" in out
        assert "   yes  there is an answer\n" in out
        assert "All of it is true." in out

    def test_what_is_not_true_fails(self, scenarios: Path) -> None:
        need("ping")
        write(scenarios, run='scene.check(False, "the moon is cheese", "stone")')
        code, out, _ = lab(scenarios, "run", NAME)

        assert code == 1
        assert "   NO   the moon is cheese: stone\n" in out
        assert "It is NOT all true." in out

    def test_a_command_that_fails_is_told_in_one_line(self, scenarios: Path) -> None:
        need("ping")
        write(scenarios, run="scene.do(PING._replace(line=\"sh -c 'echo sorry; exit 3'\"))")
        code, _, err = lab(scenarios, "run", NAME)

        assert (code, err) == (1, "lab: two-hosts: 02-sh ended with exit code 3: sorry\n")

    def test_a_missing_program_skips_with_the_reason(self, scenarios: Path) -> None:
        write(scenarios, needs='"no-such-program"')
        code, out, err = lab(scenarios, "run", NAME)

        assert (code, err) == (4, "")
        assert out.splitlines()[-1].startswith("skipped: needs no-such-program")

    def test_several_end_with_a_summary_and_the_worst(self, scenarios: Path) -> None:
        need("ping")
        write(scenarios)
        (scenarios / "other.py").write_text(
            SCENARIO.format(build="pass", run='scene.check(False, "no")', needs="")
        )
        (scenarios / "third.py").write_text(
            SCENARIO.format(build="pass", run="pass", needs='"no-such-program"')
        )
        code, out, _ = lab(scenarios, "run", "all")

        assert code == 1
        summary = [line.split() for line in out.splitlines()[-3:]]
        assert summary == [["other", "FAILED"], ["third", "skipped"], ["two-hosts", "true"]]
        assert lab(scenarios, "run", NAME, "third")[0] == 0
        assert lab(scenarios, "run", "third")[0] == 4

    def test_a_wrong_name_is_told_before_anything_runs(self, scenarios: Path) -> None:
        write(scenarios)
        code, out, err = lab(scenarios, "run", NAME, "three-hosts")

        assert (code, out) == (1, "")
        assert err == "lab: there is no scenario three-hosts: there are two-hosts\n"

    def test_an_interruption_leaves_nothing(self, scenarios: Path) -> None:
        write(scenarios, run="scene.do(Command('b', 'sleep 1000'), 1000)")
        with start(scenarios, "run", NAME) as process:
            assert process.stdout is not None
            while "sleep 1000" not in process.stdout.readline():
                pass
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)

        assert (process.returncode, err) == (130, "lab: interrupted\n")
        assert left(process.pid) == []

    def test_pcap_captures_every_link_into_files_that_stay(self, scenarios: Path) -> None:
        need("ping", "tcpdump")
        write(scenarios)
        code, out, _ = lab(scenarios, "run", NAME, PCAP="1")

        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith("Every link")]
        path = Path(line.rpartition(" ")[2]) / "a-eth0.pcap"
        shown = subprocess.run(
            ["tcpdump", "-n", "-r", path, "icmp"], capture_output=True, text=True, check=True
        )
        assert "ICMP echo request" in shown.stdout
        assert "ICMP echo reply" in shown.stdout


@pytest.mark.usefixtures("root")
class TestStanding:
    def test_up_shell_down(self, scenarios: Path) -> None:
        need("ping")
        write(scenarios)
        code, out, err = lab(scenarios, "up", NAME)
        assert (code, err) == (0, "")
        assert "   [a] $ ping -c 1 192.0.2.2\n" in out
        assert "netns-lab/lab down two-hosts" in out
        (state,) = standing_in(scenarios.parent)
        assert sorted(state.roles) == ["a", "b"]
        assert sorted(state.roles.values()) == state.namespaces()

        assert "(stands)" in lab_standing(scenarios, "list")[1]
        code, out, _ = lab_standing(scenarios, "shell", NAME, "a", SHELL="/sbin/ip", ip="")
        assert code == 255  # ip without arguments: it was started there
        code, _, err = lab_standing(scenarios, "shell", NAME, "c")
        assert (code, err) == (1, "lab: two-hosts has no host c: it has a, b\n")
        code, _, err = lab_standing(scenarios, "up", NAME)
        assert (code, err) == (1, "lab: two-hosts stands already: netns-lab/lab down two-hosts\n")

        code, out, err = lab(scenarios, "down", NAME)
        assert (code, out, err) == (0, "two-hosts is gone\n", "")
        assert state.namespaces() == []
        assert standing_in(scenarios.parent) == []
        code, _, err = lab(scenarios, "shell", NAME, "a")
        assert (code, err) == (
            1,
            "lab: no lab two-hosts stands (none does): netns-lab/lab up two-hosts\n",
        )

    def test_down_ends_what_runs_there(self, scenarios: Path) -> None:
        write(scenarios)
        lab(scenarios, "up", NAME)
        (state,) = standing_in(scenarios.parent)
        name = state.roles["a"]
        with subprocess.Popen(["ip", "netns", "exec", name, "sleep", "1000"]) as sleeper:
            wait_until(lambda: _runs(name, "sleep"), 10, "the sleeper")
            code, out, _ = lab(scenarios, "down")
            assert sleeper.wait(5) == -signal.SIGTERM

        assert (code, out) == (0, "two-hosts is gone\n")
        assert lab(scenarios, "down")[1] == "no lab stands\n"

    def test_keep_leaves_it_standing_even_when_it_fails(self, scenarios: Path) -> None:
        need("ping", "tc", "ethtool")
        write(scenarios, run='scene.wire("a:eth0"); scene.check(False, "no")')
        code, out, _ = lab(scenarios, "run", NAME, KEEP="1")

        assert code == 1
        assert out.index("It is NOT all true.") < out.index("netns-lab/lab shell two-hosts a")
        (state,) = standing_in(scenarios.parent)
        assert len(state.namespaces()) == 3  # the judge's as well
        assert lab(scenarios, "down", NAME)[0] == 0
        assert state.namespaces() == []

    def test_what_cannot_be_built_does_not_stand(self, scenarios: Path) -> None:
        write(scenarios, build='scene.link("a:eth1 192.0.2.300/24", "b:eth1")')
        for arguments, environment in ((("up", NAME), {}), (("run", NAME), {"KEEP": "1"})):
            with start(scenarios, *arguments, **environment) as process:
                _, err = process.communicate(timeout=60)

            assert process.returncode == 1
            assert "192.0.2.300" in err
            assert left(process.pid) == []
            assert standing_in(scenarios.parent) == []


def lab_standing(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run it while a lab stands, whose files are there."""
    with start(folder, *arguments, **environment) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def _runs(namespace: str, program: str) -> bool:
    pids = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True
    ).stdout.split()
    return any(Path(f"/proc/{pid}/comm").read_text().strip() == program for pid in pids)


def test_without_root_it_skips_with_the_reason(
    scenarios: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("scenario")
    module.NEEDS = ()  # type: ignore[attr-defined]
    monkeypatch.setattr(runner.os, "geteuid", lambda: 1000)

    with pytest.raises(runner.NotHereError, match="needs root"):
        runner.can_run(module)


def test_every_scenario_has_title_picture_and_needs() -> None:
    assert set(runner.names()) == set(runner.ORDER)
    for name in runner.names():
        module = runner.load(name)
        assert 10 < len(runner.title(module)) <= 78
        assert "───" in runner.picture(module), name
        assert all(isinstance(each, Command) for each in module.COMMANDS)
        assert isinstance(module.NEEDS, tuple)


def test_a_long_command_is_folded_before_an_option() -> None:
    text = str(Command("host", "program " + "--option value " * 12))

    assert max(map(len, text.splitlines())) <= 100
    assert " \\\n        --option value" in text
    assert "".join(text.replace("\\\n       ", "").split()) == "".join(
        ("[host] $ program " + "--option value " * 12).split()
    )


def test_state_of_a_user_is_below_the_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert standing.place() == Path("/run/user/1000/tunnelbridge-lab")
    monkeypatch.setattr(standing.os, "geteuid", lambda: 0)
    assert standing.place() == Path("/run/tunnelbridge-lab")


OUTER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(
    src="192.0.2.1", dst="198.51.100.7"
)
INNER = Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04") / IP() / TCP() / b"payload"
JUNIPER = bytes.fromhex("0104c0000201") + bytes.fromhex("020440000000") + b"\xff\x00"


@pytest.mark.parametrize(
    ("headers", "kind", "identifier"),
    [
        (GRE(proto=0x6558), "gre", 0),
        (GRE(proto=0x6558, key_present=1, key=77), "gre", 77),
        (GRE(proto=0x6558, chksum_present=1, key_present=1, seqnum_present=1, key=7), "gre", 7),
        (GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II(session_id=5), "erspan2", 5),
        (GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III(session_id=6, o=0), "erspan3", 6),
        (
            GRE(proto=0x22EB, seqnum_present=1)
            / ERSPAN_III(session_id=6, o=1)
            / ERSPAN_PlatformSpecific(),
            "erspan3",
            6,
        ),
        (UDP(sport=50000, dport=4789) / VXLAN(vni=9), "vxlan", 9),
        (UDP(sport=50000, dport=8099) / JUNIPER, "juniper", 0),
    ],
)
def test_unwraps_what_scapy_wraps(headers: IP, kind: str, identifier: int) -> None:
    octets = bytes(OUTER / headers / INNER)
    (found,) = unwrap.unwrap([Frame(octets, len(octets))])

    assert found.frame.octets == bytes(INNER)
    assert (found.kind, found.identifier) == (kind, identifier)
    assert (found.source, found.destination) == ("192.0.2.1", "198.51.100.7")


def test_passes_over_what_is_no_tunnel() -> None:
    others = [OUTER / TCP(), OUTER / UDP(dport=53), OUTER / ICMP() / bytes(60), Ether() / b"arp"]

    assert unwrap.unwrap([Frame(bytes(each), len(bytes(each))) for each in others]) == []


def test_a_lab_error_is_what_a_wrong_host_gets() -> None:
    lab_standing_nowhere = standing.Standing("x", "/nowhere", {"a": "tb-a"}, "suffix")

    with pytest.raises(LabError, match="no host b"):
        lab_standing_nowhere.shell("b")
