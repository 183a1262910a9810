"""Where frames are delivered. Each sink accounts for itself and cannot hurt the others.

A sink has a ``ledger``, takes batches with ``put`` and ends with ``close``. ``pcap`` writes in a
thread of its own behind a bounded queue; ``tap`` writes at once, it never blocks.
"""
