"""One tunnel of the sender: cut to fit, encapsulate, transmit, account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

import numpy as np

from tunnelbridge.batch import Batch, Column, Flags
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.restore import vlan
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.encapsulation import Encapsulation, Rows
from tunnelbridge.wire.layer import Clones
from tunnelbridge.wire.reasons import Reason

LARGEST_OUTER: Final = 65535
SOURCE_GONE: Final = "einval"


@dataclass(slots=True)
class Frames:
    """Wire-true frames of one batch and what is known of their flows; columns of shape (m,)."""

    batch: Batch
    ethertype: Column
    tag: Column
    """TPID << 16 | TCI of each frame's first tag, 0 for none."""
    header_length: Column
    """Octets of the MAC header with its tags."""
    entropy: Column
    origin: Column
    """Which row of the captured batch each frame was cut from."""
    incomplete: Flags | None = None
    """Known to have been cut before, by how much is not known; None where nobody says so."""

    def select(self, index: Column | Flags) -> Frames:
        """Return the frames at ``index``."""
        return Frames(
            self.batch.select(index),
            self.ethertype[index],
            self.tag[index],
            self.header_length[index],
            self.entropy[index],
            self.origin[index],
            None if self.incomplete is None else self.incomplete[index],
        )

    def with_batch(self, batch: Batch) -> Frames:
        """Return the same frames with other octets."""
        return replace(self, batch=batch)


class Outcome(NamedTuple):
    """What became of the frames given to a tunnel; offered = sent + failed + queue_dropped."""

    offered: int
    sent: int
    failed: int
    queue_dropped: int
    octets: int


class Numbering:
    """Sequence numbers of one tunnel as the far end sees it, however many members are behind it."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, count: int) -> Column:
        """Return the next ``count`` numbers, shape (count,)."""
        first, self.next = self.next, self.next + count
        return first + np.arange(count)


class Transmitter(Protocol):
    """What a tunnel needs of a socket (:mod:`tunnelbridge.linux.transmit`)."""

    endpoint: Endpoint
    marked: bool

    def send(self, rows: Rows, batch: Batch) -> Sent:
        """Send each packet behind its row of outer headers."""

    def path_mtu(self) -> int:
        """Return the MTU towards the far end now."""

    def close(self) -> None:
        """Close what is open."""


class Tunnel:
    """Clones frames into one tunnel.

    ``encapsulation`` makes the outer headers (its suffix, if any, replaces the destination MAC);
    ``open_socket`` opens what carries them, again when the host's address changed; ``policy`` says
    what happens to a clone that does not fit ``path_mtu``; ``numbering`` is shared by those that are
    one tunnel to the far end.
    """

    def __init__(
        self,
        name: str,
        encapsulation: Encapsulation,
        open_socket: Callable[[], Transmitter],
        policy: MtuPolicy,
        ip_header: int,
        numbering: Numbering | None = None,
    ) -> None:
        self.ledger = TunnelLedger(name)
        self.encapsulation = encapsulation
        self.policy = policy
        self.ip_header = ip_header
        self._open_socket = open_socket
        self._socket = open_socket()
        self.path_mtu = self._socket.path_mtu()
        self._is_numbered = encapsulation.has_sequence
        self._numbering = numbering or Numbering()
        endpoint = self._socket.endpoint
        self.ledger.outer.update(
            encapsulation=encapsulation.kind.slug,
            identifier=encapsulation.identifier,
            remote=endpoint.remote,
            local=endpoint.local,
            sequence=self.sequence,
        )
        self._source_gone = 0
        self._is_full = self._is_hurried = False

    @property
    def overhead(self) -> int:
        """Octets the outer packet is longer than the inner frame."""
        return self.ip_header + self.encapsulation.overhead

    @property
    def remote(self) -> str:
        """The far end: an IP literal, or the interface of clones that leave on layer 2."""
        return self._socket.endpoint.remote

    @property
    def sequence(self) -> int | None:
        """The number that the next clone gets; None where clones are not numbered."""
        return self._numbering.next if self._is_numbered else None

    @property
    def is_marked(self) -> bool:
        """Clones carry the mark that capture filters refuse."""
        return self._socket.marked

    def send(self, frames: Frames) -> Outcome:
        """Clone a batch into the tunnel; never raises for what the network does."""
        offered = len(frames.batch)
        if self.encapsulation.bare_ip:
            frames = self._strip_ethernet(frames)
        if self.encapsulation.tag:
            frames = _tagged(frames, self.encapsulation.tag)
        batch, truncated = self._fit(frames)
        kept = self._drop_oversize(batch, frames.tag)
        if kept is not None:
            frames, batch, truncated = frames.select(kept), batch.select(kept), truncated[kept]
        suffix = len(self.encapsulation.suffix)
        if suffix:
            batch = batch.skip(suffix)
        count = len(batch)
        ledger = self.ledger
        ledger.clones += count
        if self._is_hurried and self._is_full:
            ledger.queue_dropped += count
            return Outcome(offered, 0, offered - count, count, 0)
        clones = Clones(
            batch=batch,
            length=batch.total_length,
            entropy=frames.entropy,
            tag=frames.tag,
            truncated=truncated,
            sequence=self._numbering.take(count) if self._is_numbered else np.arange(count),
            ethertype=frames.ethertype,
        )
        ledger.outer["sequence"] = self.sequence
        sent = self._socket.send(self.encapsulation.rows(clones), batch)
        octets = sent.octets + suffix * sent.packets
        ledger.sent += sent.packets
        ledger.octets += octets
        ledger.truncated += int(truncated.sum())
        ledger.unreachable += sent.unreachable
        dropped = sent.errors.pop("queue-full", 0)
        self._is_full = dropped > 0
        ledger.queue_dropped += dropped
        ledger.errors.update(sent.errors)
        return Outcome(offered, sent.packets, offered - sent.packets - dropped, dropped, octets)

    def hurry(self) -> None:
        """Wait no more for a queue that has been found full: what is for it counts as dropped."""
        self._is_hurried = True

    def refresh(self) -> None:
        """Follow the network: the route's MTU, and the outer source address.

        A socket keeps the source address it was connected with; once the host has lost that address
        the kernel refuses every packet (EINVAL), and a new socket gets the present one.
        """
        if self.ledger.errors[SOURCE_GONE] > self._source_gone:
            self._source_gone = self.ledger.errors[SOURCE_GONE]
            fresh = self._open_socket()
            self._socket.close()
            self._socket = fresh
        self.path_mtu = self._socket.path_mtu()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _strip_ethernet(self, frames: Frames) -> Frames:
        """Keep IP packets only, without their MAC headers."""
        is_ip = (frames.ethertype == ethernet.IPV4) | (frames.ethertype == ethernet.IPV6)
        if not is_ip.all():
            self.ledger.refused[Reason.NOT_IP.slug] += int((~is_ip).sum())
            frames = frames.select(np.flatnonzero(is_ip))
        return replace(frames, batch=frames.batch.skip(frames.header_length))  # others see them too

    def _fit(self, frames: Frames) -> tuple[Batch, Flags]:
        """Cut what the policy cuts; tell which clones are not whole."""
        batch = frames.batch
        if self.policy is MtuPolicy.TRUNCATE:
            batch = batch.cut(max(self.path_mtu - self.overhead, ethernet.HEADER.itemsize))
        truncated = batch.total_length < batch.wire_length
        return batch, truncated if frames.incomplete is None else truncated | frames.incomplete

    def _drop_oversize(self, batch: Batch, tag: Column) -> Column | None:
        """Refuse what is too long still; None when all clones stay."""
        outer = batch.total_length + self.overhead
        if not self.ip_header:  # on layer 2 an 802.1Q tag comes free (packet_snd, af_packet.c)
            outer = outer - ethernet.TAG.itemsize * (tag >> 16 == ethernet.TPID_8021Q)
        limit = LARGEST_OUTER if self.policy is MtuPolicy.FRAGMENT else self.path_mtu
        oversize = outer > limit
        if self.policy is MtuPolicy.FRAGMENT:
            self.ledger.fragmented += int(((outer > self.path_mtu) & ~oversize).sum())
        if not oversize.any():
            return None
        self.ledger.refused["mtu"] += int(oversize.sum())
        return np.flatnonzero(~oversize)


def _tagged(frames: Frames, tag: int) -> Frames:
    """Push a VLAN tag onto every frame."""
    tags = np.full(len(frames.batch), tag, np.int64)
    return replace(
        frames,
        batch=vlan.insert(replace(frames.batch, vlan=tags)),
        tag=tags,
        header_length=frames.header_length + ethernet.TAG.itemsize,
    )
