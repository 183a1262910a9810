"""Mirror sessions and policies: which packets of which sources go to which target."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from tunnelbridge.clone.rules import Rule
from tunnelbridge.config.rules import PolicyRule, SecondaryAction
from tunnelbridge.config.values import (
    Between,
    Bool,
    Distinct,
    FreeLabels,
    Int,
    Name,
    Priority,
    Some,
    Source,
    Table,
)

Identifier = Literal["vni", "session_id", "key"]
LONGEST_PACKET = 262144
"""Octets: libpcap's largest snap length."""


class Decision(NamedTuple):
    """One rule of a policy and where flows that it decides are mirrored to."""

    rule: Rule
    mirror: str | None
    """A target as written; None: not mirrored, and ``rule.accept`` is false."""


class Mirrored(Table):
    """What sessions and policies have in common."""

    enabled: Bool = True
    """Whether it mirrors at the start; `tunnelbridge enable` and `disable` switch it."""
    priority: Priority = 1
    """The lowest is tried first; ties in the order of the file, sessions before policies."""
    sources: Annotated[tuple[Source, ...], Some, Distinct]
    """Interfaces by name or glob; NETNS:NAME for one in a network namespace."""
    viewpoint: Literal["interface", "guest"] = "interface"
    """guest: the source is the host's end of a guest's cable, in and out are the guest's."""
    vni: Annotated[Int, Between(0, 0xFFFFFF)] | None = None
    """In place of the VNI of the target's VXLAN and GENEVE tunnels."""
    session_id: Annotated[Int, Between(0, 1023)] | None = None
    """In place of the session id of the target's ERSPAN tunnels."""
    key: Annotated[Int, Between(0, 0xFFFFFFFF)] | None = None
    """In place of the key of the target's GRE tunnels."""
    packet_length: Annotated[Int, Between(14, LONGEST_PACKET)] | None = None
    """Octets of the original frame that a clone keeps; without it all."""
    mirror_once: Bool = True
    """false: mirrors what others took too, and takes nothing away from them."""
    labels: FreeLabels = Field(default_factory=dict)
    """Shown with it; nothing else."""

    @property
    def identifiers(self) -> dict[Identifier, int]:
        """What replaces the identifiers of the target's tunnels."""
        given: dict[Identifier, int | None] = {
            "vni": self.vni,
            "session_id": self.session_id,
            "key": self.key,
        }
        return {name: value for name, value in given.items() if value is not None}


class Session(Mirrored):
    """A mirror session (AWS, Huawei, vSphere): packets of sources that a filter accepts."""

    direction: Literal["both", "in", "out"] = "both"
    """Packets that come in at the source, go out, or both."""
    filter: Name | None = None
    """A name in [filters]; without filter and expression everything is mirrored."""
    expression: Annotated[str, Field(min_length=1)] | None = None
    """A tcpdump expression, in place of filter."""
    target: Annotated[str, Field(min_length=1)]
    """A pool, destination, tunnel (name or URL), member, or label selector (role=analyzer)."""

    @model_validator(mode="after")
    def _one_filter(self) -> Session:
        if self.filter is not None and self.expression is not None:
            raise ValueError("has both filter and expression: leave one")
        return self


class Policy(Mirrored):
    """A security policy that mirrors (CN2): flows, both directions once the first packet matched."""

    secondary_action: SecondaryAction | None = None
    """Where flows are mirrored to whose rule does not say."""
    rules: Annotated[tuple[PolicyRule, ...], Some]
    """Tried in this order; the first that matches decides."""

    def decisions(self) -> list[Decision]:
        """Return the rules in order, each with its own target, else the policy's.

        A rule that denies has only its own: without one, its flows are not mirrored.
        """
        found = []
        for number, rule in enumerate(self.rules, 1):
            inherited = self.secondary_action if rule.action == "pass" else None
            action = rule.secondary_action or inherited
            name = f"rule {rule.name or number}"
            mirror = None if action is None else action.mirror
            found.append(Decision(rule.rule(name, mirror is not None), mirror))
        return found
