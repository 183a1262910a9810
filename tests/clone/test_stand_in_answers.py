"""What a stand-in says, to whom, and when not: scapy asks and reads, tshark reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

import lab
from tunnelbridge.clone.defence import DEFEND_INTERVAL, Defence, Step
from tunnelbridge.clone.stand_in import Answers, Claim
from tunnelbridge.errors import UsageError

V4, OTHER4, V6 = "10.77.0.10", "10.77.0.11", "fd77::12:3456"
MAC4, OTHER_MAC4, MAC6 = "02:00:0a:00:00:10", "02:00:0a:00:00:11", "02:00:0a:00:00:16"
MEMBERS = {V4: MAC4, OTHER4: OTHER_MAC4, V6: MAC6}
ASKER, ASKER4, ASKER6 = "02:00:00:00:00:aa", "10.77.0.1", "fd77::1"
THIEF = "02:00:00:00:00:99"
OWN = "02:00:00:00:00:01"
ALL, GROUP, GROUP_MAC = "ff:ff:ff:ff:ff:ff", "ff02::1:ff12:3456", "33:33:ff:12:34:56"

answers = Answers(MEMBERS)


def who_has(pdst: str = V4, dst: str = ALL, psrc: str = ASKER4, hwsrc: str = ASKER, **more: object
            ) -> Packet:  # fmt: skip
    return Ether(dst=dst, src=hwsrc) / ARP(op=1, hwsrc=hwsrc, psrc=psrc, pdst=pdst, **more)


def solicits(
    tgt: str = V6,
    mac: str = GROUP_MAC,
    dst: str = GROUP,
    src: str = ASKER6,
    sll: str | None = ASKER,
) -> Packet:
    asked = Ether(dst=mac, src=ASKER) / IPv6(src=src, dst=dst, hlim=255) / ICMPv6ND_NS(tgt=tgt)
    return asked if sll is None else asked / ICMPv6NDOptSrcLLAddr(lladdr=sll)


def advertises(tgt: str = V6, mac: str | None = THIEF, src: str = THIEF) -> Packet:
    told = Ether(dst="33:33:00:00:00:01", src=src) / IPv6(src=tgt, dst="ff02::1", hlim=255)
    told /= ICMPv6ND_NA(tgt=tgt, R=0, S=0, O=1)
    return told if mac is None else told / ICMPv6NDOptDstLLAddr(lladdr=mac)


def tagged(frame: Packet, *tags: Packet) -> bytes:
    octets = bytes(frame)
    stack = b"".join(bytes(Ether(dst=ALL, src=OWN) / tag)[12:16] for tag in tags)
    return octets[:12] + stack + octets[12:]


@pytest.mark.parametrize(
    ("address", "mac", "dst"),
    [(V4, MAC4, ALL), (OTHER4, OTHER_MAC4, ALL), (V4, MAC4, MAC4)],
    ids=["broadcast", "the other member", "unicast, as to confirm a neighbour"],
)
def test_an_arp_request_is_answered(address: str, mac: str, dst: str) -> None:
    for padding in (b"", bytes(18)):
        reply = answers.answer(bytes(who_has(address, dst)) + padding)
        expected = Ether(dst=ASKER, src=mac) / ARP(
            op=2, hwsrc=mac, psrc=address, hwdst=ASKER, pdst=ASKER4
        )
        assert reply == bytes(expected)


def test_an_arp_probe_is_answered_so_that_nobody_takes_the_address() -> None:
    reply = answers.answer(bytes(who_has(psrc="0.0.0.0")))
    expected = ARP(op=2, hwsrc=MAC4, psrc=V4, hwdst=ASKER, pdst="0.0.0.0")
    assert reply == bytes(Ether(dst=ASKER, src=MAC4) / expected)


@pytest.mark.parametrize(
    ("asked", "to"),
    [
        (solicits(), ASKER),
        (solicits(sll=None), ASKER),
        (solicits(sll="02:00:00:00:00:bb"), "02:00:00:00:00:bb"),
        (solicits(mac=MAC6, dst=V6, sll=None), ASKER),
    ],
    ids=["multicast", "without an option", "by way of another", "unicast, as NUD does"],
)
def test_a_solicitation_is_answered(asked: Packet, to: str) -> None:
    expected = (
        Ether(dst=to, src=MAC6)
        / IPv6(src=V6, dst=ASKER6, hlim=255)
        / ICMPv6ND_NA(tgt=V6, R=0, S=1, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=MAC6)
    )
    assert answers.answer(bytes(asked)) == bytes(expected)


def test_duplicate_address_detection_is_answered_to_all() -> None:
    expected = (
        Ether(dst="33:33:00:00:00:01", src=MAC6)
        / IPv6(src=V6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=V6, R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=MAC6)
    )
    assert answers.answer(bytes(solicits(src="::", sll=None))) == bytes(expected)


SILENCE = {
    "another address": who_has("10.77.0.12"),
    "a reply": Ether(dst=MAC4, src=ASKER) / ARP(op=2, hwsrc=ASKER, psrc=ASKER4, pdst=V4),
    "to another station": who_has(dst=OTHER_MAC4),
    "to a third station": who_has(dst="02:00:00:00:00:77"),
    "from a group": who_has(hwsrc="03:00:00:00:00:aa"),
    "from nobody's MAC": who_has(hwsrc="00:00:00:00:00:00"),
    "somebody announces the address": who_has(psrc=V4, hwsrc=THIEF),
    "somebody with the address asks": who_has(psrc=OTHER4, hwsrc=THIEF),
    "our own announcement again": who_has(psrc=V4, hwsrc=MAC4),
    "RARP": Ether(dst=ALL, src=ASKER, type=0x8035) / ARP(op=3, pdst=V4),
    "another IPv6 address": solicits("fd77::12:3457", "33:33:ff:12:34:57", "ff02::1:ff12:3457"),
    "the same group, another address": solicits("fd78::12:3456"),
    "a solicitation to another station": solicits(mac=MAC4, dst=V6),
    "a solicitation to another address": solicits(dst="ff02::1"),
    "a solicitation from a group's MAC": solicits(sll="33:33:00:00:00:01"),
    "somebody with the IPv6 address asks": solicits(src=V6, sll=THIEF),
    "an advertisement": advertises(),
    "ping": Ether(dst=MAC6, src=ASKER) / IPv6(src=ASKER6, dst=V6, hlim=255) / ICMPv6EchoRequest(),
    "TCP": Ether(dst=MAC4, src=ASKER) / IP(src=ASKER4, dst=V4) / TCP(dport=80, flags="S"),
    "forwarded": Ether(dst=GROUP_MAC, src=ASKER)
    / IPv6(src=ASKER6, dst=GROUP, hlim=254)
    / ICMPv6ND_NS(tgt=V6),
}


@pytest.mark.parametrize("name", SILENCE)
def test_nothing_else_is_answered(name: str) -> None:
    assert answers.answer(bytes(SILENCE[name])) is None


@pytest.mark.parametrize("frame", [who_has(), solicits()])
def test_answers_have_the_priority_tag_of_the_question(frame: Packet) -> None:
    plain = answers.answer(bytes(frame))
    assert plain is not None
    for tag in (Dot1Q(prio=5, vlan=0), Dot1AD(vlan=0)):
        reply = answers.answer(tagged(frame, tag))
        assert reply == tagged(Ether(plain), tag)


@pytest.mark.parametrize("frame", [who_has(), solicits()])
def test_other_vlans_are_other_segments(frame: Packet) -> None:
    for tags in ([Dot1Q(vlan=7)], [Dot1AD(vlan=7)], [Dot1Q(vlan=0), Dot1Q(vlan=0)]):
        assert answers.answer(tagged(frame, *tags)) is None
    theft = tagged(who_has(psrc=V4, hwsrc=THIEF), Dot1Q(vlan=7))
    assert answers.conflict(theft) is None
    assert answers.rival(theft, bytes(6)) is None


@pytest.mark.parametrize("frame", [who_has(), solicits()])
def test_in_a_vlan(frame: Packet) -> None:
    inside = Answers(MEMBERS, vlan=7)
    question = tagged(frame, Dot1Q(vlan=7, prio=3))
    reply, plain = inside.answer(question), answers.answer(bytes(frame))
    assert plain is not None
    assert reply == tagged(Ether(plain), Dot1Q(vlan=7, prio=3))
    assert inside.answer(bytes(frame)) is None
    assert inside.answer(tagged(frame, Dot1Q(vlan=8))) is None
    own = bytes.fromhex(OWN.replace(":", ""))
    for ours, without in (
        (inside.announcements(), answers.announcements()),
        (inside.probes(own), answers.probes(own)),
    ):
        assert ours == [tagged(Ether(each), Dot1Q(vlan=7)) for each in without]


def test_announcements() -> None:
    expected = [
        Ether(dst=ALL, src=mac) / ARP(op=1, hwsrc=mac, psrc=address, pdst=address)
        for address, mac in ((V4, MAC4), (OTHER4, OTHER_MAC4))
    ]
    expected.append(advertises(mac=MAC6, src=MAC6))
    assert answers.announcements() == [bytes(each) for each in expected]


def test_probes() -> None:
    expected = [
        Ether(dst=ALL, src=OWN) / ARP(op=1, hwsrc=OWN, psrc="0.0.0.0", pdst=address)
        for address in (V4, OTHER4)
    ]
    expected.append(
        Ether(dst=GROUP_MAC, src=OWN) / IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=V6)
    )
    probes = answers.probes(bytes.fromhex(OWN.replace(":", "")))
    assert probes == [bytes(each) for each in expected]


def test_tshark_calls_them_what_they_are(tmp_path: Path) -> None:
    lab.need("tshark")
    frames = [
        *answers.probes(bytes.fromhex(OWN.replace(":", ""))),
        *answers.announcements(),
        answers.answer(bytes(who_has())),
        answers.answer(bytes(solicits())),
    ]
    wrpcap(str(tmp_path / "said.pcap"), [Ether(each) for each in frames])
    fields = ("arp.isprobe", "arp.isannouncement", "arp.opcode", "icmpv6.type",
              "icmpv6.checksum.status", "_ws.malformed", "_ws.expert.message")  # fmt: skip
    command = ["tshark", "-n", "-r", str(tmp_path / "said.pcap"), "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = [tuple(line.split("\t")) for line in done.stdout.splitlines()]
    probe, announcement = ("1", "", "1", "", "", "", ""), ("", "1", "1", "", "", "", "")
    assert rows == [
        *[probe] * 2,
        ("", "", "", "135", "1", "", ""),
        *[announcement] * 2,
        ("", "", "", "136", "1", "", ""),
        ("", "", "2", "", "", "", ""),
        ("", "", "", "136", "1", "", ""),
    ]


THEFTS = {
    "announced": (who_has(psrc=V4, pdst=V4, hwsrc=THIEF), V4),
    "asks with it": (who_has("10.77.0.12", psrc=OTHER4, hwsrc=THIEF), OTHER4),
    "answers": (
        Ether(dst=OWN, src=THIEF) / ARP(op=2, hwsrc=THIEF, psrc=V4, hwdst=OWN, pdst="0.0.0.0"),
        V4,
    ),
    "advertised": (advertises(), V6),
    "advertised without an option": (advertises(mac=None), V6),
    "solicits with it": (solicits("fd77::5", src=V6, sll=THIEF), V6),
}


@pytest.mark.parametrize("name", THEFTS)
def test_who_uses_a_member_s_address_is_a_conflict(name: str) -> None:
    frame, address = THEFTS[name]
    claim = Claim(address, THIEF)
    assert answers.conflict(bytes(frame)) == claim
    assert answers.claim(bytes(frame)) == claim
    assert answers.rival(bytes(frame), bytes(6)) == claim
    assert answers.answer(bytes(frame)) is None


@pytest.mark.parametrize(
    "frame",
    [
        *answers.announcements(),
        bytes(who_has()),
        bytes(who_has(psrc="0.0.0.0", hwsrc=THIEF)),
        bytes(solicits()),
        bytes(solicits(src="::", sll=None)),
        bytes(who_has(psrc="10.77.0.12", hwsrc=THIEF)),
        bytes(advertises("fd77::5")),
        b"",
    ],
)
def test_what_is_no_conflict(frame: bytes) -> None:
    assert answers.conflict(frame) is None


def test_while_we_probe_a_second_stand_in_and_another_s_probe_count_too() -> None:
    own = bytes.fromhex(OWN.replace(":", ""))
    for frame, claim in (
        (answers.announcement(V4), Claim(V4, MAC4)),
        (answers.announcement(V6), Claim(V6, MAC6)),
        (bytes(who_has(psrc="0.0.0.0", hwsrc=THIEF)), Claim(V4, THIEF)),
        (bytes(solicits(src="::", sll=None)), Claim(V6, ASKER)),
    ):
        assert answers.rival(frame, own) == claim
    for frame in (*answers.probes(own), bytes(who_has()), bytes(solicits()), b""):
        assert answers.rival(frame, own) is None


def test_a_silenced_address_is_neither_answered_nor_announced() -> None:
    own = Answers(MEMBERS)
    own.silence(V4, True)
    own.silence(V6, True)
    assert [own.answer(bytes(q)) for q in (who_has(), solicits())] == [None, None]
    assert own.announcements() == [answers.announcement(OTHER4)]
    assert own.conflict(bytes(THEFTS["announced"][0])) == Claim(V4, THIEF)
    own.silence(V4, False)
    assert own.answer(bytes(who_has())) == answers.answer(bytes(who_has()))
    assert len(own.announcements()) == 2


@given(st.binary(max_size=100), st.sampled_from([b"\x08\x06", b"\x86\xdd", b"\x81\x00", b""]))
@settings(max_examples=300, deadline=None)
def test_any_octets_are_met_with_silence(octets: bytes, kind: bytes) -> None:
    frame = octets[:12] + kind + octets[12:]
    assert answers.answer(frame) is None
    assert answers.conflict(frame) is None


@pytest.mark.parametrize("question", [who_has(), solicits()])
def test_every_truncation_is_met_with_silence(question: Packet) -> None:
    whole = bytes(question)
    for octets in range(len(whole)):
        assert answers.answer(whole[:octets]) is None


@pytest.mark.parametrize(
    ("address", "mac", "says"),
    [
        ("10.77.0", MAC4, "^stand-in member 10.77.0: not an IP address$"),
        ("224.0.0.5", MAC4, "no single station has this address"),
        ("ff02::5", MAC4, "no single station has this address"),
        ("0.0.0.0", MAC4, "no single station has this address"),
        ("::1", MAC4, "no single station has this address"),
        (V4, "03:00:0a:00:00:10", f"^stand-in member {V4}: 03:.* is not the MAC address of one"),
        (V4, "00:00:00:00:00:00", "is not the MAC address of one station"),
        (V4, "02:00:0a:00:00", "is not the MAC address of one station"),
        (V4, "zz:00:0a:00:00:10", "is not the MAC address of one station"),
    ],
)
def test_members_that_no_station_can_be(address: str, mac: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Answers({address: mac})


def test_one_conflict_is_met_with_an_announcement_a_second_one_soon_gives_up() -> None:
    defence = Defence()
    assert defence.meet(V4, 100) is Step.DEFEND
    assert defence.meet(V6, 101) is Step.DEFEND, "each address for itself"
    assert defence.meet(V4, 100 + DEFEND_INTERVAL) is Step.DEFEND
    assert defence.given_up == []
    assert defence.meet(V4, 100 + 2 * DEFEND_INTERVAL - 0.1) is Step.GIVE_UP
    assert defence.given_up == [V4]
    assert defence.meet(V4, 500) is Step.NOTHING


def test_what_was_given_up_comes_back_after_a_probe_that_nobody_answered() -> None:
    defence = Defence()
    assert defence.review() == ([], [])
    for now in (1, 2):
        defence.meet(V4, now)
    assert defence.review() == ([], [V4]), "first it is probed"
    assert defence.meet(V4, 40) is Step.NOTHING
    assert defence.review() == ([], [V4]), "somebody answered: probed again"
    assert defence.review() == ([V4], []), "nobody answered"
    assert defence.given_up == []
    assert defence.meet(V4, 41) is Step.DEFEND, "as new"
