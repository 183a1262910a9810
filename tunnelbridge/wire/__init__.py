"""Wire formats: one file each, pure functions on columns.

Every format file has the specification's diagram and receiver MUSTs in its docstring and, as far as
the format is sent, received or both, the same names:

    HEADER                        the header as a NumPy structured dtype, network byte order
    template(…)                   a tunnel's header, built once (one record)
    patch(rows, clones, beyond)   write the columns that vary into a batch's copies of the template
    decode(memory, start, end)    read the header of many packets: a :class:`~.layer.Layer`

Path of a packet that is received: ``walk`` decodes header after header (``ethernet`` → ``ipv4`` or
``ipv6`` → ``gre`` or ``udp`` → ``erspan2`` ``erspan3`` ``vxlan`` ``vxlan_gpe`` ``geneve`` ``tzsp``
``juniper`` ``mpls`` ``etherip`` ``nsh`` ``ppp`` → the inner ``ethernet`` → …); foreign octets end as
a code of ``reasons``, never as an exception. ``plausible`` judges payloads of the formats that do not
say what they carry; ``icmp`` reads what errors quote.

Path of a packet that is sent: ``flow`` reads its addresses into the hash that becomes the UDP source
port, ``five_tuple`` what filter rules look at; ``encapsulation`` stacks the templates of a tunnel and
patches them for a batch. ``new_addresses`` is what policy has ``restore/readdress`` write into clones.

For a stand-in: ``arp`` and ``ndp``, with RFC 5227's and RFC 4861's probes and announcements.

``octets`` holds what all share: loading header records and RFC 1071 sums.
"""
