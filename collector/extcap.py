"""``collector-extcap``: the collector as a capture interface of Wireshark and tshark.

Wireshark asks its extcaps for their interfaces at every start, so nothing heavy is imported here
before a capture begins; then this process becomes ``collector listen``. Protocol: Wireshark
Developer's Guide, "Extcap: Developer Reference", and extcap(4).
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final, NoReturn

INTERFACE: Final = "tunnelbridge"
USUAL: Final = {
    "vxlan": (4789, 8472),
    "vxlan-gpe": (4790,),
    "geneve": (6081,),
    "tzsp": (37008,),
    "juniper": (8099,),
    "mpls": (6635,),
}
"""UDP ports of a kind that is named without one."""

_INTERFACES: Final = f"""\
extcap {{version=1.0}}{{display=tunnelbridge collector}}
interface {{value={INTERFACE}}}{{display=Mirrored traffic without its tunnels}}
"""
_DLTS: Final = "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"
_LISTENERS: Final = (
    ("all", "everything that can be opened"),
    ("gre", "GRE and ERSPAN"),
    ("vxlan", "VXLAN on UDP 4789 and 8472"),
    ("vxlan-gpe", "VXLAN-GPE on UDP 4790"),
    ("geneve", "GENEVE on UDP 6081"),
    ("tzsp", "TZSP on UDP 37008"),
    ("juniper", "Juniper header on UDP 8099"),
    ("mpls", "MPLS on UDP 6635"),
)
_ARGUMENTS: Final = f"""\
arg {{number=0}}{{call=--listen}}{{display=Listen for}}{{type=selector}}\
{{tooltip=What carries the mirrored frames}}
arg {{number=1}}{{call=--udp}}{{display=Other UDP ports}}{{type=string}}\
{{tooltip={", ".join(name for name, _ in _LISTENERS[2:])} or gre, each with its port, with commas \
between them; they take the place of everything}}{{placeholder=vxlan:4799,geneve:7000}}
arg {{number=2}}{{call=--bind}}{{display=Local address}}{{type=string}}\
{{tooltip=Only what is sent to this address of this host}}{{placeholder=any}}
arg {{number=3}}{{call=--filter}}{{display=Frames to keep}}{{type=string}}\
{{tooltip=A capture filter for the frames inside the tunnels}}{{placeholder=tcp port 443}}
"""
_CONFIG: Final = _ARGUMENTS + "".join(
    f"value {{arg=0}}{{value={value}}}{{display={display}}}"
    f"{{default={'true' if value == 'all' else 'false'}}}\n"
    for value, display in _LISTENERS
)


def main() -> None:
    """Run ``collector-extcap``."""
    options = _parser().parse_args()
    if options.extcap_interfaces:
        sys.stdout.write(_INTERFACES)
    elif options.extcap_interface is None:
        _parser().print_help()
    elif options.extcap_interface != INTERFACE:
        _fail(f"no interface {options.extcap_interface}, only {INTERFACE}")
    elif options.extcap_dlts:
        sys.stdout.write(_DLTS)
    elif options.extcap_config:
        sys.stdout.write("" if options.extcap_reload_option else _CONFIG)
    elif options.capture:
        _capture(options)
    elif options.extcap_capture_filter is not None:
        sys.stdout.write(_what_is_wrong_with(options.extcap_capture_filter))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collector-extcap",
        description="Wireshark calls this program; `collector extcap --install` shows it where.",
        allow_abbrev=False,
    )
    protocol = parser.add_argument_group("what Wireshark asks")
    protocol.add_argument("--extcap-interfaces", action="store_true")
    protocol.add_argument("--extcap-version", metavar="VERSION")
    protocol.add_argument("--extcap-interface", metavar="NAME")
    protocol.add_argument("--extcap-dlts", action="store_true")
    protocol.add_argument("--extcap-config", action="store_true")
    protocol.add_argument("--extcap-reload-option", metavar="OPTION")
    protocol.add_argument("--extcap-capture-filter", metavar="EXPR")
    protocol.add_argument("--extcap-cleanup-postkill", action="store_true")
    protocol.add_argument("--capture", action="store_true")
    protocol.add_argument("--fifo", metavar="PATH")
    user = parser.add_argument_group("what the user chose")
    user.add_argument("--listen", metavar="KIND,…", default="all")
    user.add_argument("--udp", metavar="KIND:PORT,…", default="")
    user.add_argument("--bind", metavar="ADDR", default="")
    user.add_argument("--filter", metavar="EXPR", default="")
    return parser


def _what_is_wrong_with(expression: str) -> str:
    """Return what Wireshark shows of a wrong capture filter; nothing for a good one."""
    from tunnelbridge.errors import UserError
    from tunnelbridge.linux.libpcap import compile_filter

    try:
        compile_filter(expression)
    except UserError as error:
        return f"{error}\n"
    return ""


def _capture(options: argparse.Namespace) -> NoReturn:
    """Become the collector, which leaves on SIGTERM and when nobody reads the FIFO any more."""
    if not options.fifo:
        _fail("--capture needs --fifo")
    arguments = ["listen", "--quiet", *listener_options(options.listen, options.udp)]
    if options.bind:
        arguments += ["--bind", options.bind]
    wanted = both(options.extcap_capture_filter or "", options.filter)
    arguments += ["--pcap", sink(options.fifo, wanted)]
    sys.stdout.flush()
    # -P: Wireshark may have been started in any folder, even one with a `collector` in it
    os.execv(sys.executable, [sys.executable, "-P", "-m", "collector.cli", *arguments])


def listener_options(kinds: str, ports: str) -> list[str]:
    """Return ``collector listen``'s options for ``KIND,…`` and ``KIND:PORT,…``; none for all."""
    options = [word for port in _split(ports) for word in ("--udp", port)]
    for kind in _split(kinds):
        if kind == "gre":
            options.append("--gre")
        elif kind in USUAL:
            options += [word for port in USUAL[kind] for word in ("--udp", f"{kind}:{port}")]
        elif kind != "all":
            _fail(f"--listen {kind}: expected all, gre, {', '.join(USUAL)}")
    return options


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def both(first: str, second: str) -> str:
    """Return the expression for frames that both expressions accept; empty ones accept all."""
    expressions = [text.strip() for text in (first, second) if text.strip()]
    if len(expressions) < 2:
        return "".join(expressions)
    return " and ".join(f"({expression})" for expression in expressions)


def sink(path: str, expression: str) -> str:
    """Return how ``--pcap`` writes a path and a filter (:mod:`collector.sinks.options`)."""
    from urllib.parse import quote

    return f"{path}?filter={quote(expression)}" if expression else path


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"collector-extcap: {message}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
