"""What the user says, read and validated: every mistake is one line. Pure: no sockets, no clocks.

* ``tunnel``  ``ENCAP://REMOTE[:PORT][?option=value&…]``
"""
