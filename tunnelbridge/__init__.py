"""tunnelbridge: clone packets into tunnels that cross routed networks.

The path of one packet through ``tunnelbridge send``, by file:

1. ``source``      a mirrored interface; or ``replay`` over ``capture/`` for a file
2. ``linux/ring``  the kernel's filter and ring: a block of packets becomes a ``batch``
3. ``pipeline``    the stages in order, for one batch:
   ``bpf`` (files only) → ``wire/flow`` → ``clone/guard`` → ``restore/`` → tunnels
4. ``tunnel``      one tunnel: cut to the path's MTU, ``wire/encapsulation`` for the outer headers
5. ``linux/transmit``  one system call per batch: header row + head + body of each clone

Around it: ``cli`` and ``config`` (what the user says), ``targets`` (tunnels, static ARP and FDB),
``sender`` (the loop), ``watch`` (losses that begin and end), ``check`` (what would happen), ``console``
(what people see), ``command_line`` (what both programs' commands share), ``ledger`` (every packet in
one bucket), ``errors`` (what users can do wrong).

Packages: ``wire`` formats · ``clone`` policy · ``restore`` wire truth, all three pure; ``linux`` every
file descriptor; ``capture`` files. Imports point down; import-linter holds it.
"""
