"""Other systems' mirrors become ours, and what cannot be said is told."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vendor_documents as documents
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelbridge.clone.rules import Rule
from tunnelbridge.config.load import loads
from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.targets import resolve
from tunnelbridge.errors import UsageError
from tunnelbridge.importers import KINDS, import_text


def imported(kind: str, *texts: str) -> tuple[Mirror, str]:
    """Return the configuration, and what was lost, in lines."""
    toml, lost = import_text(kind, "\n".join(texts))
    assert all("\n" not in line for line in lost)
    return loads(toml), "\n".join(lost)


def urls(mirror: Mirror, target: str) -> list[tuple[str, ...]]:
    return [way.tunnels for way in resolve(mirror, target).ways]


AWS = (
    documents.AWS_SESSIONS,
    documents.AWS_FILTERS,
    documents.AWS_TARGETS,
    documents.AWS_INTERFACES,
)


def test_aws() -> None:
    mirror, lost = imported("aws", *AWS)

    session = mirror.sessions["tcp-only"]
    assert (session.enabled, session.priority, session.vni) == (True, 1, 42)
    assert (session.packet_length, session.direction) == (96, "both")
    assert session.labels["source"] == "eni-0a471a5cf3EXAMPLE"
    assert urls(mirror, session.target) == [("vxlan://192.0.2.77",)]
    reject, accept = mirror.filters["tmf-01"].rules()
    assert (reject.accept, str(reject.source), reject.protocol) == (False, "192.0.2.0/24", None)
    assert (accept.protocol, accept.destination_ports) == (6, ((80, 90),))
    assert str(accept.source) == "10.0.0.0/24"  # EC2 keeps the network of what was typed
    assert accept.name == "inbound rule 1 (priority 100)"

    other = mirror.sessions["tms-02"]
    assert not other.enabled
    assert (other.filter, other.packet_length) == (None, None)
    assert set(session.sources).isdisjoint(other.sources)  # identifiers that begin alike
    assert "session tms-02: filter tmf-99 is not in the document; it is left disabled" in lost
    assert "amazon-dns is a service of the cloud" in lost
    assert "target tmt-02: is arn:aws:elasticloadbalancing" in lost
    assert urls(mirror, other.target) == [("vxlan://tmt-02.invalid",)]


def test_aws_takes_the_documents_in_any_order() -> None:
    assert imported("aws", *AWS) == imported("aws", *reversed(AWS))


def test_a_lost_reject_leaves_its_sessions_disabled() -> None:
    broken = documents.AWS_FILTERS.replace(
        '"RuleNumber": 50, "RuleAction": "reject"',
        '"RuleNumber": 50, "RuleAction": "reject", "Protocol": 1, "SourcePortRange": {"FromPort": 5}',
    )
    mirror, lost = imported("aws", documents.AWS_SESSIONS, broken)
    assert not mirror.sessions["tcp-only"].enabled
    assert "inbound rule 50 is left out: only tcp, udp" in lost
    assert "filter tmf-01 lost a rule that rejects" in lost

    broken = documents.HUAWEI_RULES.replace('"2001:db8::/64"', '"10.0.0.0/8"')
    mirror, lost = imported("huawei", documents.HUAWEI_SESSIONS, documents.HUAWEI_FILTERS, broken)
    assert not mirror.sessions["mirror-session-01"].enabled
    assert "source 10.0.0.0/8 is not IPv6" in lost


def test_huawei() -> None:
    mirror, lost = imported(
        "huawei",
        documents.HUAWEI_SESSIONS,
        documents.HUAWEI_FILTERS,
        documents.HUAWEI_REQUEST,
        documents.HUAWEI_RULES,
    )

    session = mirror.sessions["mirror-session-01"]
    assert (session.enabled, session.priority, session.vni, session.packet_length) == (
        True,
        1,
        1,
        96,
    )
    assert session.filter == "mirror-filter-01"
    inbound, outbound = mirror.filters["mirror-filter-01"].rules()
    assert (inbound.family, inbound.protocol, inbound.accept) == (4, 6, True)
    assert (inbound.source_ports, inbound.destination_ports) == (None, ((1234, 1240),))
    assert (outbound.family, outbound.protocol, outbound.accept) == (6, 58, False)
    second = mirror.sessions["second"]  # what a request leaves out has the API's defaults
    assert (second.enabled, second.vni, second.packet_length) == (False, 1, 96)
    assert second.sources == ("port-1", "port-2")
    assert second.target == session.target
    assert lost.count("target elb-1: is a load balancer") == 1


def test_nsx() -> None:
    mirror, lost = imported("nsx", documents.NSX)

    pool = mirror.pools["clone-profile"]
    assert (pool.distribution, pool.preserve_client_ip) == ("round-robin", True)
    ways = resolve(mirror, "clone-profile").ways
    assert [(way.name, way.mac, way.subnet) for way in ways] == [
        ("192.0.2.10", "02:00:00:00:02:10", "192.0.2.0/24"),
        ("192.0.2.11", "02:00:c0:00:02:0b", "192.0.2.0/24"),
        ("198.51.100.9", None, None),
        ("203.0.113.254", "02:00:00:00:00:99", "203.0.113.0/24"),
    ]
    assert pool.members[0].network == "tap-net"
    assert "clone server 2: NSX asks ARP for its MAC" in lost
    assert "clone server 3: it has no subnet" in lost
    assert "clone server 5 is left out: ids.example is a name" in lost
    assert "tenant admin has no like" in lost
    assert "cloud Default-Cloud has no like" in lost
    single, _ = imported("nsx", json.dumps(json.loads(documents.NSX)["results"][0]))
    assert single == mirror


@pytest.mark.parametrize(("mask", "expected"), [(24, 254), (25, 126), (30, 2), (31, 0), (32, 0)])
def test_an_nsx_server_without_address_gets_a_host_of_its_subnet(mask: int, expected: int) -> None:
    server = {
        "mac": "02:00:00:00:00:01",
        "subnet": {"ip_addr": {"addr": "192.0.2.0"}, "mask": mask},
    }
    mirror, _ = imported("nsx", json.dumps({"name": "p", "clone_servers": [server]}))
    assert mirror.pools["p"].members[0].ip == f"192.0.2.{expected}"


def test_cn2() -> None:
    mirror, lost = imported("cn2", documents.CN2)

    found = {name: urls(mirror, name) for name in mirror.destinations}
    assert found == {
        "mirrordestinationprofile1": [("juniper://192.0.2.1:9098",)],
        "outside": [("juniper://10.87.88.88:8099",)],
        "static": [("vxlan://192.0.2.9?vni=77",)],
        "dynamic": [("vxlan://vtep-of-10-87-88-90.invalid",)],
    }
    decisions = mirror.policies["web"].decisions()
    assert [(one.rule.accept, one.rule.protocol, one.mirror) for one in decisions] == [
        (True, 6, "outside"),
        (True, 17, "outside"),
        (False, 6, None),
        (True, None, "mirrordestinationprofile1"),
    ]
    assert decisions[0].rule.name == "rule first-rule"
    assert decisions[0].rule.destination_ports == ((80, 80),)
    assert decisions[1].rule.destination_ports == ((5000, 5010),)
    assert str(decisions[2].rule.source) == "10.9.0.0/16"
    assert (decisions[2].rule.source_ports, decisions[2].rule.destination_ports) == (
        None,
        ((22, 23),),
    )
    assert decisions[3].rule == Rule(accept=True, name="rule 4")
    assert "policy web, rule 3 is left out: podSelector: known in the cluster only" in lost
    assert mirror.policies["web"].enabled


def test_a_lost_deny_leaves_the_policy_disabled() -> None:
    text = documents.CN2.replace("endpoint2: {any: true}", "endpoint2: {tags: [app=web]}")
    mirror, lost = imported("cn2", text)
    assert not mirror.policies["web"].enabled
    assert "rule 2 is left out: tags: known in the cluster only" in lost
    assert "the policy is left disabled" in lost


def test_a_rule_to_a_destination_that_is_not_there_is_left_out() -> None:
    text = documents.CN2.replace("{mirrorDestination: outside}", "{mirrorDestination: gone}")
    mirror, lost = imported("cn2", text)
    assert len(mirror.policies["web"].rules) == 2
    assert "rule first rule is left out: mirror destination gone is not in the document" in lost


def test_names_that_would_clash() -> None:
    """A destination that is called as its pods are labelled; a profile called as an address."""
    mirror, _ = imported("cn2", documents.CN2.replace("mirrordestinationprofile1", "analyzerpod"))
    assert set(mirror.pools) == {"analyzerpod-2"}
    assert urls(mirror, "analyzerpod") == [("juniper://192.0.2.1:9098",)]
    mirror, _ = imported("nsx", documents.NSX.replace("clone profile", "10.0.0.1"))
    assert set(mirror.pools) == {"pools-10.0.0.1"}


def test_cn2_as_kubectl_lists_it() -> None:
    items = list(yaml.safe_load_all(documents.CN2))
    assert imported("cn2", yaml.safe_dump({"kind": "List", "items": items})) == imported(
        "cn2", documents.CN2
    )


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Yield a runner of ovs-vsctl on a real database with Open vSwitch's own schema."""
    schema = Path("/usr/share/openvswitch/vswitch.ovsschema")
    if shutil.which("ovsdb-server") is None or not schema.exists():
        pytest.skip("needs Open vSwitch's ovsdb-server and its schema")
    database, socket = tmp_path / "conf.db", tmp_path / "s"
    subprocess.run(["ovsdb-tool", "create", database, schema], check=True, timeout=20)
    server = subprocess.Popen(
        ["ovsdb-server", database, f"--remote=punix:{socket}", f"--unixctl={tmp_path}/c",
         "--no-chdir", "--pidfile=" + str(tmp_path / "pid")],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(arguments: str) -> str:
        command = ["ovs-vsctl", "--no-wait", "--retry", "-t", "10", f"--db=unix:{socket}"]
        return subprocess.run(
            [*command, *arguments.split()], check=True, capture_output=True, text=True, timeout=20
        ).stdout

    try:
        run("init")
        yield run
    finally:
        server.terminate()
        server.wait(10)


def listed(switch: Callable[[str], str], *tables: str) -> str:
    wanted = tables or ("mirror", "port", "interface", "bridge")
    return "\n".join(switch(f"--format=json list {table}") for table in wanted)


def test_ovs(switch: Callable[[str], str]) -> None:
    """The switch's own words: ports selected each way, tunnels of each kind."""
    switch("add-br br0 -- add-port br0 tap0 -- add-port br0 tap1 -- add-port br0 eth9")
    for name, options in {
        "er2": "type=erspan options:remote_ip=192.0.2.7 options:key=100 options:erspan_ver=1"
        " options:erspan_idx=0x5",
        "er3": "type=erspan options:remote_ip=192.0.2.7 options:key=9 options:erspan_ver=2"
        " options:erspan_hwid=7 options:erspan_dir=1",
        "gre0": "type=gre options:remote_ip=2001:db8::7 options:key=7 options:seq=true",
        "vx0": "type=vxlan options:remote_ip=192.0.2.8 options:key=42 options:dst_port=8472"
        " options:local_ip=192.0.2.1",
        "flow0": "type=vxlan options:remote_ip=flow options:key=flow",
    }.items():
        switch(f"add-port br0 {name} -- set interface {name} {options}")
    uuid = {
        name: switch(f"get port {name} _uuid").strip()
        for name in ("br0", "tap0", "tap1", "eth9", "er2", "er3", "gre0", "vx0", "flow0")
    }
    mirrors = {
        "m-both": f"select_src_port={uuid['tap0']} select_dst_port={uuid['tap0']},{uuid['tap1']}"
        f" output_port={uuid['er2']} snaplen=128",
        "m-all": f"select_all=true output_port={uuid['er3']} select_vlan=10",
        "m-host": f"select_src_port={uuid['br0']} output_port={uuid['gre0']}",
        "m-vx": f"select_src_port={uuid['tap1']} output_port={uuid['vx0']}",
        "m-local": f"select_dst_port={uuid['tap1']} output_port={uuid['eth9']}",
        "m-vlan": f"select_src_port={uuid['tap1']} output_vlan=99",
        "m-flow": f"select_src_port={uuid['tap1']} output_port={uuid['flow0']}",
        "m-none": f"output_port={uuid['vx0']}",
    }
    for name, columns in mirrors.items():
        create = f"--id=@m create mirror name={name} {columns}"
        switch(f"-- {create} -- add bridge br0 mirrors @m")

    mirror, lost = imported("ovs", listed(switch))

    found = {
        name: (set(one.sources), one.direction, urls(mirror, one.target)[0][0], one.packet_length)
        for name, one in mirror.sessions.items()
    }
    erspan3 = "erspan3://192.0.2.7?hwid=7&session=9"
    every = {"tap0", "tap1", "eth9", "er2", "gre0", "vx0", "flow0"}
    assert found == {
        "m-both-both": ({"tap0"}, "both", "erspan2://192.0.2.7?index=5&session=100", 128),
        "m-both-out": ({"tap1"}, "out", "erspan2://192.0.2.7?index=5&session=100", 128),
        "m-all-in": (every, "in", erspan3, None),
        "m-all-out": ({"br0"}, "out", erspan3, None),
        "m-host": ({"br0"}, "out", "gre://[2001:db8::7]?key=7&seq=true", None),
        "m-vx": ({"tap1"}, "in", "vxlan://192.0.2.8:8472?vni=42&local=192.0.2.1", None),
        "m-local": ({"tap1"}, "out", "ether://eth9", None),
    }
    assert "mirror m-vlan is left out: output_vlan 99" in lost
    assert "mirror m-flow is left out: output port flow0 is vxlan to flow" in lost
    assert "mirror m-none is left out: it selects no port" in lost
    assert "mirror m-all: select_vlan is not taken over" in lost
    assert "option erspan_dir=1 is not taken over" in lost


def test_ovs_without_the_other_tables(switch: Callable[[str], str]) -> None:
    switch("add-br br0 -- add-port br0 tap0")
    port = switch("get port tap0 _uuid").strip()
    switch(
        f"-- --id=@m create mirror name=m select_src_port={port} output_port={port}"
        " -- add bridge br0 mirrors @m"
    )
    mirror, lost = imported("ovs", listed(switch, "mirror"))
    assert not mirror.sessions
    assert "is not in the document: add list port" in lost
    mirror, _ = imported("ovs", listed(switch, "mirror", "port"))
    assert mirror.sessions["m"].sources == ("tap0",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "3", "{", "\ufeff{}", '"x"', "[1]", "a: [", "\x00"]
)
def test_documents_of_no_kind(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^f\.json: ") as refused:
        import_text(kind, text, "f.json")
    assert "\n" not in str(refused.value)


def test_a_kind_that_is_unknown() -> None:
    with pytest.raises(UsageError, match="cannot import f5: known kinds are aws, huawei, nsx, cn2"):
        import_text("f5", "{}")


WHOLE: dict[str, list[Any]] = {
    "aws": [json.loads(text) for text in AWS],
    "huawei": [
        json.loads(text)
        for text in (
            documents.HUAWEI_SESSIONS,
            documents.HUAWEI_FILTERS,
            documents.HUAWEI_REQUEST,
            documents.HUAWEI_RULES,
        )
    ],
    "nsx": [json.loads(documents.NSX)],
    "cn2": list(yaml.safe_load_all(documents.CN2)),
}
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70000),
    st.text(max_size=5),
    st.sampled_from(["10.0.0.1/8", "::1", "-", "0-70000", [], {}, [None], {"a": "b"}, [[1]]]),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_strange_value_anywhere_is_told_of_or_harmless(kind: str, data: st.DataObject) -> None:
    whole = copy.deepcopy(WHOLE[kind])
    *path, last = data.draw(st.sampled_from(list(places(whole))))
    node: Any = whole
    for key in path:
        node = node[key]
    node[last] = data.draw(STRANGE)
    text = yaml.safe_dump_all(whole) if kind == "cn2" else "\n".join(map(json.dumps, whole))
    try:
        toml, lost = import_text(kind, text)
    except UsageError:
        return
    loads(toml)
    assert all("\n" not in line for line in lost)
