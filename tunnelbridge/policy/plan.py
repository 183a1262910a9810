"""What is wanted, before anything is open. Plans are compared on reload: what is equal stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunnelbridge.clone.rules import Direction, Rule
from tunnelbridge.targets import Target

Distribution = Literal["flow", "round-robin", "weighted-round-robin", "source-ip", "all"]


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """How a member that never answers is seen to be alive; times in seconds."""

    check: Literal["route", "icmp", "heartbeat"]
    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 3
    rise: int = 2
    port: int = 8998


Watched = tuple[str, HealthPlan]
"""An address and how it is checked: two pools may check the same member in different ways."""


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One analyser and the way to it."""

    ip: str
    """Its address, or another name for it; what hashes know it by, equal on every sender."""
    targets: tuple[Target, ...]
    """Every clone for the member goes into each of these tunnels."""
    weight: int = 1
    address: str | None = None
    """Destination address that clones get (``rewrite = "mac+ip"``)."""
    health: HealthPlan | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def watched(self) -> Watched | None:
        """What a health check knows the member by; None where nothing checks it."""
        return None if self.health is None else (self.ip, self.health)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Where a session's clones go: members and how one of them is chosen."""

    name: str
    members: tuple[MemberPlan, ...]
    distribution: Distribution = "all"
    per_flow: bool = False
    preserve_client_ip: bool = False


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """A mirror session, or a security policy with mirror actions (``is_stateful``)."""

    name: str
    groups: tuple[GroupPlan, ...]
    sources: tuple[str, ...] = ()
    rules: tuple[Rule, ...] | None = None
    """In order of evaluation; None where ``expression`` decides (an empty one takes everything)."""
    group_of_rule: tuple[int, ...] = ()
    """Which of ``groups`` gets what a rule accepts; empty: the first one gets all."""
    expression: str = ""
    direction: Direction = "both"
    is_stateful: bool = False
    mirror_once: bool = True
    packet_length: int | None = None
    priority: int = 1
    enabled: bool = True
    filter: str = ""
    """What the user calls the filter, for ``show``."""
    target: str = ""
    """What the user calls the target."""
    identifier: str = ""
    """What replaces the tunnels' own identifiers: ``vni 7``."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def takes_everything(self) -> bool:
        """No filter at all."""
        return self.rules is None and not self.expression.strip() and self.direction == "both"


@dataclass(frozen=True, slots=True)
class StandInPlan:
    """Whom to answer ARP and neighbour solicitations for."""

    interface: str
    members: Mapping[str, str]
    """Address to MAC address."""
    announce: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one sender is to do, sessions in the order in which they are tried."""

    sessions: tuple[SessionPlan, ...]
    stand_in: StandInPlan | None = None

    @property
    def targets(self) -> list[Target]:
        """Every target of every session, once each."""
        return list(
            dict.fromkeys(
                target
                for session in self.sessions
                for group in session.groups
                for member in group.members
                for target in member.targets
            )
        )

    @property
    def watched(self) -> set[Watched]:
        """Every member that has a health check, once for each check."""
        return {
            member.watched
            for session in self.sessions
            for group in session.groups
            for member in group.members
            if member.watched is not None
        }
