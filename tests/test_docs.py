"""The documentation says what the programs take: every configuration loads, every command parses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

import collector.cli
from tunnelbridge import cli
from tunnelbridge.config.load import loads
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.tunnel import TUNNELS

ROOT = Path(__file__).parents[1]
README, POLICY, COLLECTOR, VENDORS = (
    ROOT / name for name in ("README.md", "docs/policy.md", "docs/collector.md", "docs/vendors.md")
)
APPLICATIONS = {"tunnelbridge": cli.app, "collector": collector.cli.app}
INTENDED = "no session and no policy: nothing is mirrored but what stand_in's members get"
ENDS = ("|", "&", ">", "<", "&&", ";")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every command of ours in a shell block, up to a pipe or its like."""
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "sudo"]
            for number, word in enumerate(words):
                if word in APPLICATIONS and (number == 0 or words[number - 1] in ENDS):
                    rest = words[number:]
                    end = next((n for n, each in enumerate(rest) if each in ENDS), len(rest))
                    yield rest[:end]


def every(path: Path, language: str) -> list[Any]:
    name = path.relative_to(ROOT)
    return [
        pytest.param(block, id=f"{name} {number}")
        for number, block in enumerate(blocks(path, language), 1)
    ]


@pytest.mark.parametrize("text", [*every(README, "toml"), *every(POLICY, "toml")])
def test_configurations_load(text: str) -> None:
    unused = [line for line in loads(text).warnings() if line != INTENDED]
    assert all(line.endswith("is not used") for line in unused), unused


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, and run nothing; click raises for what is wrong."""
    command: Any = typer.main.get_command(APPLICATIONS[words[0]])
    arguments = words[1:]
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, f"{words[0]} has no command {name}"
        command = command.commands[name]
    command.make_context(command.name, arguments).close()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words[:3]))
        for path in (README, POLICY, COLLECTOR)
        for words in commands(path)
    ],
)
def test_commands_parse(words: list[str]) -> None:
    parse(words)


def test_commands_are_found_and_a_wrong_one_is_seen() -> None:
    found = {words[1] for path in (README, POLICY, COLLECTOR) for words in commands(path)}
    assert {"send", "check", "listen", "decap", "explain", "show", "reload", "import"} <= found
    assert {"verify", "extcap", "top", "reconcile"} <= found
    with pytest.raises(Exception, match="No such option"):
        parse(["tunnelbridge", "send", "--cnfig", "mirror.toml"])
    with pytest.raises(AssertionError, match="no command"):
        parse(["tunnelbridge", "sned"])


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield every key of a model and of the tables in it."""
    for name, field in model.model_fields.items():
        yield name
        for inner in tables(field.annotation):
            yield from keys(inner)


def tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from tables(argument)


@pytest.mark.parametrize("key", sorted(set(keys(Mirror))))
def test_every_key_is_described(key: str) -> None:
    assert re.search(rf"[`\[{{ .]{key}\b", POLICY.read_text()), f"{key} is not in docs/policy.md"


def options(name: str) -> list[str]:
    """Return the options of one of the collector's commands."""
    command: Any = typer.main.get_command(collector.cli.app)
    told = [text for each in command.commands[name].params for text in each.opts]
    return [text for text in told if text.startswith("--")]


@pytest.mark.parametrize("option", options("listen"))
def test_every_option_of_the_collector_is_described(option: str) -> None:
    """In docs/collector.md, or in --help alone where there is no more to say."""
    if option not in ("--verbose", "--quiet"):
        assert re.search(rf"{option}\b", COLLECTOR.read_text()), f"{option} is not described"


@pytest.mark.parametrize("command", ["verify", "extcap", "show", "top", "reconcile", "decap"])
def test_every_command_of_the_collector_is_described(command: str) -> None:
    assert f"collector {command}" in COLLECTOR.read_text() + README.read_text()


def test_every_tunnel_is_in_the_readme() -> None:
    text = README.read_text()
    assert [name for name in TUNNELS if f"`{name}`" not in text and f"`{name}://" not in text] == []


def test_rows_of_vendors_are_complete_and_name_what_is_there() -> None:
    text = VENDORS.read_text()
    listed = set(
        re.findall(r"\b[NFHVC]\d+\b", " ".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)))
    )
    counts = {"N": 19, "F": 13, "H": 24, "V": 10, "C": 14}
    assert listed == {f"{kind}{n}" for kind, count in counts.items() for n in range(1, count + 1)}
    scenarios = {
        path.stem.replace("_", "-") for path in (ROOT / "netns-lab/scenarios").glob("*.py")
    }
    shown = {
        word
        for word in re.findall(r"`([a-z0-9-]+)`", text)
        if re.match(r"(f5|nsx|huawei|vds|cn2)-", word)
    }
    assert shown <= scenarios, shown - scenarios
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "path", [README, *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link
