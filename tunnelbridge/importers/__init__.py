"""Other systems' mirror configurations become ours: a document to TOML, and what that cannot say.

* ``aws``     EC2's describe-traffic-mirror-sessions, -filters and -targets
* ``huawei``  VPC's traffic mirror sessions, filters and rules
* ``nsx``     NSX ALB's (Avi's) traffic clone profiles
* ``cn2``     Juniper CN2's and Contrail's mirror destinations and security policies
* ``ovs``     Open vSwitch's mirrors

``draft`` holds the configuration while it grows; ``values`` reads what is alike in several documents.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, Literal, get_args

from tunnelbridge.config.load import loads
from tunnelbridge.errors import UsageError
from tunnelbridge.importers.draft import Draft

Kind = Literal["aws", "huawei", "nsx", "cn2", "ovs"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


def import_text(kind: str, text: str, name: str = "document") -> tuple[str, list[str]]:
    """Return TOML that ``config.load.loads`` takes, and one line for each thing it cannot say.

    Raises UsageError for a kind that is unknown and for a document that is not of its kind.
    """
    if kind not in KINDS:
        raise UsageError(f"cannot import {kind}: known kinds are {', '.join(KINDS)}")
    read: Callable[[str, Draft], None] = import_module(f"tunnelbridge.importers.{kind}").read
    draft = Draft()
    try:
        read(text, draft)
        toml = draft.toml()
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # a list where a table belongs, and the like: the document's fault, whichever field it is
        raise UsageError(
            f"{name}: is not of the form that {kind} documents have: {error}"
        ) from None
    loads(toml, f"what {name} became")
    return toml, draft.issues
