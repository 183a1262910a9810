"""What is cloned and to whom, decided on columns. Pure: no sockets, no clocks.

May a frame be cloned at all:

* ``guard``          refuses what is, carries or quotes one of our tunnels;
* ``breaker``        stops loops that hide from it.

Which rule it falls to:

* ``rules``          filter rules as values; names of protocols, port ranges;
* ``classifier``     tries all rules on a batch at once, with ``match_tables`` for each field;
* ``expression``     rules as a tcpdump expression, and the packets that it sees otherwise;
* ``flow_table``     what was decided for a flow, for as long as it goes on.

Which member gets it:

* ``innermost``      the hash of the flow inside a tunnel; ``fragments``, of a fragment's first one;
* ``pool``           five ways to share, ``rendezvous`` for those that every sender agrees on;
* ``health``         when a member that is probed counts as down;
* ``neighbours``     static ARP and FDB of the command line: a member's MAC, and the tunnel behind it.

What else clones need to know:

* ``nat``            clients' addresses behind source NAT, for clones that show them;
* ``stand_in``       the frames with which members that are elsewhere are answered for; ``defence``,
  what to do when somebody else uses their address.
"""
