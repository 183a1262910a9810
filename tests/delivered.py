"""Deliveries for tests of sinks: frames as a collector hands them over."""

from __future__ import annotations

from typing import Any

import numpy as np

from collector.delivery import Delivery
from tunnelbridge.batch import Batch, zeros
from tunnelbridge.linux.slab import Slab


def delivery(frames: Batch, slab: Slab | None = None, **columns: Any) -> Delivery:
    """Wrap ``frames``, all of stream 0 unless ``columns`` say otherwise."""
    count = len(frames)
    return Delivery(
        frames,
        np.asarray(columns.get("stream", zeros(count)), np.int64),
        np.asarray(columns.get("gap", zeros(count)), np.int64),
        np.asarray(columns.get("truncated", np.zeros(count)), np.bool_),
        slab,
    )
