"""What is asked of the kernel and of libpcap: sockets, rings, interfaces, files. It never logs.

Asking, before packets flow:

* ``names``        host names to addresses;
* ``privileges``   capabilities, and what to tell who lacks one;
* ``namespace``    set-up work in a thread that has entered another network namespace;
* ``netlink``      an interface's facts, the route to a remote;
* ``links``        tells when interfaces come, go and change;
* ``device``       an interface's facts by ioctl, for who has a socket in its namespace.

Asking while packets flow:

* ``conntrack``    which connections have their source translated;
* ``probe``        whether a member is there: by route, ICMP echo or heartbeat.

Packets in, from an interface (``send``):

* ``libpcap``      a tcpdump expression as classic BPF, behind the tests that refuse our own mark;
* ``bpf_assembler``  writes classic BPF with labels; ``bpf_join`` makes one program of several;
* ``tpacket``      opens the ring: system calls, order, layouts;
* ``ring``         its blocks as batches.

Packets out, to a tunnel's far end:

* ``options``      socket options that sending and receiving share;
* ``endpoint``     opens the sockets, with the outer IP header's options set;
* ``messages``     the gather lists of one sendmmsg, and outer IPv4 headers of our own;
* ``pushing``      the sendmmsg itself: a full queue, errors, ICMP errors of earlier packets;
* ``transmit``     the two kinds of tunnel socket;
* ``wire_socket``  the third, for clones that leave on layer 2.

Packets in, from tunnels (``collector listen``):

* ``listen``       opens the sockets tunnels arrive at;
* ``slab``         the memory datagrams are received into;
* ``receive``      one recvmmsg as a batch.

Packets out, to analysers:

* ``tap``          a silent tap interface, one write a frame;
* ``record_writer``  records of a capture file to a disk or pipe, one writev for many;
* ``pcap_writer``  the same for pcap.

Neighbours on a LAN, in the place of members that are elsewhere:

* ``neighbour_socket``  hears ARP and IPv6 neighbour discovery, and speaks it.

Below them all, ``libc``: the calls that Python lacks, and their structures.
"""
