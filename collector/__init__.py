"""collector: take what mirror sources send, hand out the frames they mirrored.

The path of one packet, by file:

1. ``listener``    raw GRE and UDP sockets; what can be opened and why not
2. ``collector``   one slab of datagrams at a time, from the sockets to the sinks
3. ``intake``      what a slab goes through: ``allow`` (sources, then tunnels by number), ``decap``
   (tunnels off, synthetic MAC headers and removed VLAN tags on), ``streams`` (per outer source,
   encapsulation and identifier: counts, loss, order); ``refused`` remembers who was turned away
4. ``delivery``    frames with their stream, gap and truncation: what every sink gets
5. ``refinement``  if asked for: ``health`` (of the mirror, by ``flow_health``, ``packet_checks`` and
   ``findings``), ``dedup`` (by ``digest``), ``reorder``
6. ``sinks/``      each with its own filter, snap length, queue and ledger

``files`` does 3 for capture files, with ``reassembly`` for outer fragments. ``ledger`` holds the
counters. Beside the packets: ``operation`` answers whoever looks at a running collector (``status``,
``metrics``), ``heartbeat`` the senders' health checks. ``cli`` and ``cli_*`` are the commands:
``show``, ``top``, ``reconcile`` (two ledgers into one), ``manifest`` (verify), ``extcap``.
"""
