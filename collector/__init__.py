"""collector: take what mirror sources send, hand out the frames they mirrored.

The path of one packet, by file:

1. ``listener``    raw GRE and UDP sockets; what can be opened and why not
2. ``collector``   one slab of datagrams at a time: allow-list, decapsulation, streams, sinks
3. ``allow``       source prefixes, before anything is copied
4. ``decap``       tunnels off, synthetic MAC headers and removed VLAN tags on
5. ``streams``     per (outer source, encapsulation, identifier): counts, loss, order
6. ``sinks/``      pcap and tap, each with its own ledger

``files`` does the same for capture files, with ``reassembly`` for outer fragments. ``ledger`` holds
the counters, ``cli`` the commands.
"""
