"""Policy: what is cloned and to whom. Pure: no sockets, no clocks.

A frame's path: ``bpf`` runs a tcpdump expression over the packets of a file (for interfaces the
kernel does), ``guard`` refuses what would loop, ``neighbours`` says which tunnel a pool member sits
behind and which MAC address its clones get.

``nat`` knows what clients' addresses are behind source NAT, for clones that show them.
"""
