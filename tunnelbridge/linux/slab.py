"""Receive memory: slabs of slots that several sinks may hold on to at once.

A datagram is written to a small slot; what does not fit goes on in the large slot of the same
number. Large slots are virtual memory until a long datagram touches them.
"""

from __future__ import annotations

import mmap
import threading
from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.linux import libc

MAP_NORESERVE: Final = 0x4000  # asm-generic/mman.h
LONGEST: Final = 65535
"""Octets of the longest IPv4 packet, the longest datagram a socket can hand over."""


class Slab:
    """Memory for up to ``slots`` datagrams and the iovecs that point into it.

    ``memory`` is ``slots`` small slots followed by ``slots`` large ones. Whoever takes a slab holds
    one reference; it returns to its pool when the last reference is released, in any thread.
    """

    def __init__(self, pool: SlabPool, slots: int, small: int, large: int) -> None:
        if large < LONGEST:
            raise ValueError(f"large slots must hold {LONGEST} octets, not {large}")
        self.slots, self.small, self.large = slots, small, large
        pages = mmap.mmap(
            -1, slots * (small + large), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        )
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # one long datagram must not cost 2 MiB
        self.memory: Octets = np.frombuffer(pages, np.uint8)
        self._fronts = self.memory[: slots * small].reshape(slots, small)
        self._larges = self.memory[slots * small :].reshape(slots, large)
        self.vectors = np.zeros((slots, 2), libc.IOVEC)
        base, numbers = libc.address(self.memory), np.arange(slots)
        self.vectors["base"][:, 0] = base + numbers * small
        self.vectors["length"][:, 0] = small
        self.vectors["base"][:, 1] = base + slots * small + numbers * large + small
        self.vectors["length"][:, 1] = large - small
        self._pool = pool
        self._references = 0
        self._lock = threading.Lock()

    def settle(self, length: Column) -> Column:
        """Return where the first ``len(length)`` datagrams start, each in one piece.

        The front of a datagram longer than a small slot is copied before the rest of it.
        """
        start = np.arange(len(length)) * self.small
        long = np.flatnonzero(length > self.small)
        if long.size:
            self._larges[long, : self.small] = self._fronts[long]
            start[long] = self.slots * self.small + long * self.large
        return start

    def retain(self) -> None:
        """Hold one more reference."""
        with self._lock:
            if not self._references:
                raise ValueError("a slab that nobody holds cannot be retained")
            self._references += 1

    def release(self) -> None:
        """Give one reference back; the last one returns the slab to its pool."""
        with self._lock:
            if not self._references:
                raise ValueError("a slab was released more often than retained")
            self._references -= 1
            free = not self._references
        if free:
            self._pool.put_back(self)

    @property
    def spare(self) -> int:
        """How many slabs of the same pool nobody holds."""
        return self._pool.free

    def lend(self) -> None:
        """Start with one reference; the pool calls this."""
        self._references = 1


class SlabPool:
    """A fixed number of slabs; :meth:`take` returns None while all of them are held."""

    def __init__(
        self, slabs: int = 6, slots: int = 1024, small: int = 2048, large: int = 65536
    ) -> None:
        self._free = [Slab(self, slots, small, large) for _ in range(slabs)]
        self._lock = threading.Lock()

    def take(self) -> Slab | None:
        """Return a free slab with one reference, or None."""
        with self._lock:
            if not self._free:
                return None
            slab = self._free.pop()
        slab.lend()
        return slab

    def put_back(self, slab: Slab) -> None:
        """Accept a slab nobody holds any more; :meth:`Slab.release` calls this."""
        with self._lock:
            self._free.append(slab)  # the last one used is still in the cache: take it next

    @property
    def free(self) -> int:
        """How many slabs nobody holds."""
        return len(self._free)
