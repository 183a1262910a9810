"""Stand in for members that are elsewhere: answer for their addresses on a LAN, and nothing else.

A BIG-IP, an NSX service engine or a switch that clones to layer-2-adjacent members only finds them by
ARP and IPv6 neighbour solicitation. :class:`Answers` gives the member's configured MAC address as the
answer. Frames in, frames out; control traffic, so one at a time.

What is asked in another VLAN is another segment's affair: never answered, never a conflict. An answer
has the tag of its question (a priority tag, of VLAN 0, is as good as none).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final, NamedTuple

from tunnelbridge.errors import UsageError
from tunnelbridge.wire import arp, ethernet, ndp

_BROADCAST: Final = b"\xff" * 6
_ARP: Final = ethernet.ARP.to_bytes(2)
_IPV6: Final = ethernet.IPV6.to_bytes(2)
_TAGS: Final = tuple(kind.to_bytes(2) for kind in ethernet.TAG_TYPES)


class Claim(NamedTuple):
    """Somebody uses a member's address; both as text."""

    address: str
    mac: str


class _Heard(NamedTuple):
    """An ARP or neighbour discovery frame."""

    destination: bytes
    source: bytes
    tag: bytes
    """TPID and TCI, empty for none."""
    message: arp.Message | ndp.Message


class Answers:
    """What is said in the place of ``members`` (address → MAC address), in one VLAN (0: untagged).

    Raises UsageError: an address or MAC address that no single station can have.
    """

    def __init__(self, members: Mapping[str, str], vlan: int = 0) -> None:
        self._macs = {_station(address): _mac(address, mac) for address, mac in members.items()}
        self._vlan = vlan
        self._tag = b"" if vlan == 0 else ethernet.TPID_8021Q.to_bytes(2) + vlan.to_bytes(2)
        self._silent: set[bytes] = set()

    @property
    def members(self) -> list[str]:
        """The addresses, as text."""
        return [_text(address) for address in self._macs]

    def answer(self, frame: bytes) -> bytes | None:
        """Return the answer to a question for a member's address, None for every other frame."""
        heard = self._hear(frame)
        if heard is None:
            return None
        if isinstance(heard.message, arp.Message):
            return self._arp_reply(heard, heard.message)
        return self._advertisement(heard, heard.message)

    def claim(self, frame: bytes) -> Claim | None:
        """Return who says to have a member's address; a claim with the member's MAC counts too."""
        heard = self._hear(frame)
        if heard is None:
            return None
        message = heard.message
        if isinstance(message, arp.Message):
            address, mac = message.sender_ip, message.sender_mac
        else:
            asks = message.type == ndp.SOLICITATION
            address = message.source if asks else message.target
            mac = message.link_address or heard.source
        return Claim(_text(address), mac.hex(":")) if address in self._macs else None

    def conflict(self, frame: bytes) -> Claim | None:
        """Return who claims a member's address with a MAC address that is not the member's."""
        claim = self.claim(frame)
        if claim is None or claim.mac == self._macs[_packed(claim.address)].hex(":"):
            return None  # our own words, that a switch or a second stand-in repeats
        return claim

    def rival(self, frame: bytes, own: bytes) -> Claim | None:
        """Return who has, or is about to take, a member's address; for the time of our probes.

        ``own`` is the MAC address that our probes come from (RFC 5227 §2.1.1).
        """
        heard = self._hear(frame)
        if heard is None or heard.source == own:
            return None
        message = heard.message
        if isinstance(message, arp.Message):
            is_probe = message.operation == arp.REQUEST and message.sender_ip == arp.NOBODY
            address = message.target_ip
        else:
            is_probe = message.type == ndp.SOLICITATION and message.source == ndp.UNSPECIFIED
            address = message.target
        if is_probe and address in self._macs:
            return Claim(_text(address), heard.source.hex(":"))
        return self.claim(frame)

    def probes(self, own: bytes) -> list[bytes]:
        """Return a question for each address, whether anybody has it, from the MAC address ``own``."""
        return [self.probe(_text(address), own) for address in self._macs]

    def probe(self, address: str, own: bytes) -> bytes:
        """Return the ARP probe, or the solicitation of duplicate address detection (RFC 4862)."""
        target = _packed(address)
        if len(target) == 4:
            body = arp.template(arp.REQUEST, own, arp.NOBODY, arp.UNKNOWN_MAC, target)
            return self._frame(_BROADCAST, own, _ARP, body.tobytes())
        group = ndp.solicited_node(target)
        asked = ndp.Message(ndp.SOLICITATION, ndp.UNSPECIFIED, group, target, 0, None)
        octets = ndp.template(asked).tobytes()
        return self._frame(ndp.multicast_mac(group), own, _IPV6, octets)

    def announcements(self) -> list[bytes]:
        """Return an announcement of each address that was not given up."""
        return [self.announcement(_text(a)) for a in self._macs if a not in self._silent]

    def announcement(self, address: str) -> bytes:
        """Return a gratuitous ARP request, or an unsolicited advertisement with the override flag."""
        member = _packed(address)
        mac = self._macs[member]
        if len(member) == 4:
            body = arp.template(arp.REQUEST, mac, member, arp.UNKNOWN_MAC, member)
            return self._frame(_BROADCAST, mac, _ARP, body.tobytes())
        told = ndp.Message(
            ndp.ADVERTISEMENT, member, ndp.ALL_NODES, member, ndp.OVERRIDE, link_address=mac
        )
        octets = ndp.template(told).tobytes()
        return self._frame(ndp.multicast_mac(ndp.ALL_NODES), mac, _IPV6, octets)

    def silence(self, address: str, silent: bool) -> None:
        """Answer and announce an address no more, or again."""
        (self._silent.add if silent else self._silent.discard)(_packed(address))

    def _hear(self, frame: bytes) -> _Heard | None:
        """Take a frame of our VLAN apart; None where it is neither ARP nor neighbour discovery."""
        tag = frame[12:16] if frame[12:14] in _TAGS else b""
        if int.from_bytes(tag[2:]) & 0xFFF != self._vlan:
            return None
        at = 12 + len(tag)
        kind, packet = frame[at : at + 2], frame[at + 2 :]
        message: arp.Message | ndp.Message | None = None
        if kind == _ARP:
            message = arp.decode(packet)
        elif kind == _IPV6:
            message = ndp.decode(packet)
        return message and _Heard(frame[:6], frame[6:12], tag, message)

    def _arp_reply(self, heard: _Heard, asked: arp.Message) -> bytes | None:
        mac = self._asked_for(heard, asked.target_ip)
        if mac is None or asked.operation != arp.REQUEST or asked.sender_ip in self._macs:
            return None
        to = asked.sender_mac
        if not _is_station(to):
            return None
        body = arp.template(arp.REPLY, mac, asked.target_ip, to, asked.sender_ip)
        return to + mac + heard.tag + _ARP + body.tobytes()

    def _advertisement(self, heard: _Heard, asked: ndp.Message) -> bytes | None:
        mac = self._asked_for(heard, asked.target)
        if mac is None or asked.type != ndp.SOLICITATION or asked.source in self._macs:
            return None
        if asked.destination not in (asked.target, ndp.solicited_node(asked.target)):
            return None
        to, destination, flags = asked.link_address or heard.source, asked.source, ndp.SOLICITED
        if asked.source == ndp.UNSPECIFIED:  # duplicate address detection: tell everybody
            to, destination, flags = ndp.multicast_mac(ndp.ALL_NODES), ndp.ALL_NODES, 0
        elif not _is_station(to):
            return None
        told = ndp.Message(
            ndp.ADVERTISEMENT, asked.target, destination, asked.target, flags | ndp.OVERRIDE, mac
        )
        return to + mac + heard.tag + _IPV6 + ndp.template(told).tobytes()

    def _asked_for(self, heard: _Heard, address: bytes) -> bytes | None:
        """Return the member's MAC address, where the question came to it or to everybody."""
        mac = self._macs.get(address)
        if mac is None or address in self._silent:
            return None
        return mac if heard.destination[0] & 1 or heard.destination == mac else None

    def _frame(self, destination: bytes, source: bytes, kind: bytes, body: bytes) -> bytes:
        return destination + source + self._tag + kind + body


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _station(text: str) -> bytes:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(f"stand-in member {text}: not an IP address") from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise UsageError(f"stand-in member {text}: no single station has this address")
    return address.packed


def _mac(address: str, text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if not _is_station(mac):
        raise UsageError(
            f"stand-in member {address}: {text} is not the MAC address of one station"
            " (as in 02:00:0a:0a:0a:0a)"
        )
    return mac


def _is_station(mac: bytes) -> bool:
    """Tell a MAC address that one station can have."""
    return len(mac) == 6 and any(mac) and not mac[0] & 1
