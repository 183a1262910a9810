"""Wire-true copies: what the host's interface shows becomes what is on the wire.

The kernel leaves work to the network card (or, between namespaces, to nobody): checksums are half
done, many segments travel as one super-packet, VLAN tags lie beside the frame. The ring hands over
what was left undone as two columns, ``vnet`` and ``vlan``; this package does it on a copy of the
headers. Payload octets stay where they are.

The path of one packet, file by file:

* ``restore``       the entry: which packets need what, in which order;
* ``headers``       find the headers of a super-packet, through tunnels, to its innermost TCP or UDP;
* ``segmentation``  cut a super-packet: one output packet per segment, each with its own head;
* ``fields``        write what differs between the heads: lengths, ids, sequence, flags, checksums;
* ``checksums``     finish the half-done checksum of a packet that is not cut;
* ``vlan``          put the tag back;
* ``heads``         the copies of header octets that all of them write into.

Behind it, for clones that policy sends elsewhere or gives their client's address back:

* ``readdress``     new addresses, ports and identifiers, with their checksums;
* ``internet``      where the IP and transport headers are that it writes into;
* ``window``        the first octets of packets in one piece, out of head and body;
* ``crc32c``        how SCTP's checksum changes.
"""
