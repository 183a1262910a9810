"""Read capture files: batches that point into the mapped file, in file order.

``reader`` opens a file and tells ``pcap`` from ``pcapng``; each walks its records and makes columns
of them (``packet_blocks`` and ``timestamps`` for pcapng); ``progress`` is what both report;
``ethernet`` brings packets of other link types into Ethernet frames.
``pcapng_out`` builds pcapng's blocks. Writing is a matter of file descriptors:
``tunnelbridge.linux.record_writer``.
"""
