"""What the user says, read and validated: every mistake is one line. Pure: no sockets, no clocks.

* ``tunnel``  ``ENCAP://REMOTE[:PORT][?option=value&…]``

The configuration file, in the order in which it is read:

* ``load``        TOML to ``mirror``, the root model; every mistake with file, key and value
* ``values``      addresses, ports, names and labels in one spelling
* ``rules``       filters and policies' rules · ``pools`` members, destinations, the stand-in ·
  ``sessions`` what is mirrored to which target
* ``problems``    pydantic's errors in the configuration's words
* ``references``  what names something must name something that is there
* ``targets``     from a target's name to members, and the way to each
* ``warnings``    entries without effect · ``summary`` what it does · ``difference`` what a reload
  changes
"""
