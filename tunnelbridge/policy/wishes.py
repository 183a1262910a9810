"""What the user wishes: a plan, from the command line or from a file, and the defaults beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunnelbridge.clone.rules import Direction
from tunnelbridge.config.load import load
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.errors import UsageError
from tunnelbridge.policy.from_config import plan_config
from tunnelbridge.policy.from_options import plan_options
from tunnelbridge.policy.plan import Plan


@dataclass(frozen=True, slots=True)
class Wishes:
    """A plan, and the file it comes from, if any."""

    plan: Plan
    mtu: MtuPolicy = MtuPolicy.FRAGMENT
    mirror: Mirror | None = None


def from_file(path: Path, mtu: MtuPolicy | None = None) -> Wishes:
    """Read a configuration and find the way to all members; raises UsageError and UserError.

    ``mtu`` is the command line's, which counts before the file's.
    """
    mirror = load(path)
    if not (mirror.sessions or mirror.policies or mirror.stand_in):  # or a file half written
        raise UsageError(f"{path}: mirrors nothing: add a session, a policy or [stand_in]")
    return Wishes(plan_config(mirror), mtu or MtuPolicy(mirror.mtu), mirror)


def from_options(
    interfaces: Sequence[str],
    to: Sequence[str],
    arp: Sequence[str],
    fdb: Sequence[str],
    *,
    expression: str,
    direction: Direction,
    snaplen: int | None,
    mtu: MtuPolicy | None,
) -> Wishes:
    """Take the command line's options; raises UsageError and UserError."""
    plan = plan_options(interfaces, to, arp, fdb, expression, direction, snaplen)
    return Wishes(plan, mtu or MtuPolicy.FRAGMENT)
