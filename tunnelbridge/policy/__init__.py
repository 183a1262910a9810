"""Policy at work: which session mirrors a packet, and which members get the clone.

What the user said becomes a plan; a plan becomes something that runs, and on ``reload`` only what
differs is made anew. ``wishes`` reads either; ``clients`` knows who is behind source NAT; ``captured``
is a batch with what was read of it.

1. ``plan``          sessions, groups, members and tunnels as wanted; compared on reload
2. ``from_options``  the plan of ``-i``, ``--to``, ``--arp``, ``--fdb``, ``--filter``
3. ``from_config``   the plan of ``--config``: names become addresses, subnets interfaces
4. ``programs``      what the kernel lets through (``rule_programs``: rule tables as classic BPF)
5. ``selection``     one source's packets: which session takes which, by ``clone/classifier``
6. ``session``       cuts, restores client addresses, chooses members
7. ``member``        a pool member: its tunnels, its counters
8. ``policy``        all of it: opens tunnels, follows reloads, enables and disables sessions
"""
