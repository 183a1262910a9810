"""collector: take what mirror sources send, hand out the frames they mirrored.

The path of one packet, by file:

1. ``listener``    raw GRE and UDP sockets; what can be opened and why not
2. ``collector``   one slab of datagrams at a time, from the sockets to the sinks
3. ``intake``      what a slab goes through: ``allow`` (sources, then tunnels by number), ``decap``
   (tunnels off, synthetic MAC headers and removed VLAN tags on), ``streams`` (per outer source,
   encapsulation and identifier: counts, loss, order); ``refused`` remembers who was turned away
4. ``delivery``    frames with their stream, gap and truncation: what every sink gets
5. ``sinks/``      each with its own filter, snap length, queue and ledger

``files`` does the same for capture files, with ``reassembly`` for outer fragments. ``ledger`` holds
the counters, ``cli`` the commands, ``cli_*`` their options.
"""
