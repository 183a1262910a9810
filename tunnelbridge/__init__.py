"""tunnelbridge: clone packets into tunnels that cross routed networks.

The path of one packet through ``tunnelbridge send``, by file:

1. ``source``      a mirrored interface; or ``replay`` over ``capture/`` for a file
2. ``linux/ring``  the kernel's filter and ring: a block of packets becomes a ``batch``
3. ``pipeline``    the stages in order, for one batch:
   ``wire/flow`` → ``clone/guard`` → ``policy/selection`` → ``restore/`` → ``policy/session``, which
   chooses members and gives them the frames
4. ``tunnel``      one tunnel: cut to the path's MTU, ``wire/encapsulation`` for the outer headers
5. ``linux/transmit``  one system call per batch: header row + head + body of each clone

What the user says: ``cli`` with ``cli_config`` and ``cli_control``, ``config`` (the file), ``targets``
(``--to``, ``--arp``, ``--fdb``); ``policy`` makes one plan of either.

Around it: ``sender`` (the loop), ``interfaces`` (sources that come and go), ``operation`` (reload,
enable and disable, with ``control`` and ``control_client`` for the socket between), ``health`` and
``stand_in`` (members that are asked, members that are answered for), ``watch`` (losses that begin and
end), ``ledger`` (every packet in one bucket).

What people see: ``status`` and ``show`` (of a running sender), ``console``, ``check`` (what would
happen), ``explain`` with ``packet_text`` (to one packet), ``command_line`` (what both programs'
commands share), ``errors`` (what users can do wrong). ``bpf`` runs filters over columns,
``connections`` and ``records`` are what pure packages and ``linux`` both speak of.

Packages: ``wire`` formats · ``clone`` decisions · ``restore`` wire truth · ``config`` the file ·
``importers`` other systems' files, all five pure; ``policy`` sessions at work; ``linux`` every file
descriptor; ``capture`` files. Imports point down; import-linter holds it.
"""
