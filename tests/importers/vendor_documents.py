"""Small documents in the forms that the vendors' references describe."""
# ruff: noqa: E501  (records, one a line)

from __future__ import annotations

AWS_SESSIONS = """
{"TrafficMirrorSessions": [
  {"TrafficMirrorSessionId": "tms-01", "TrafficMirrorTargetId": "tmt-01", "TrafficMirrorFilterId": "tmf-01",
   "NetworkInterfaceId": "eni-0a471a5cf3EXAMPLE", "OwnerId": "111122223333", "PacketLength": 96,
   "SessionNumber": 1, "VirtualNetworkId": 42, "Description": "TCP", "Tags": [{"Key": "Name", "Value": "tcp only"}]},
  {"TrafficMirrorSessionId": "tms-02", "TrafficMirrorTargetId": "tmt-02", "TrafficMirrorFilterId": "tmf-99",
   "NetworkInterfaceId": "eni-0a471a5cf3EXTRA", "SessionNumber": 2, "VirtualNetworkId": 13314501, "Tags": []}
]}
"""
AWS_FILTERS = """
{"TrafficMirrorFilters": [
  {"TrafficMirrorFilterId": "tmf-01", "NetworkServices": ["amazon-dns"], "Description": "example", "Tags": [],
   "IngressFilterRules": [
     {"TrafficMirrorFilterRuleId": "tmfr-01", "TrafficMirrorFilterId": "tmf-01", "TrafficDirection": "ingress",
      "RuleNumber": 100, "RuleAction": "accept", "Protocol": 6, "DestinationPortRange": {"FromPort": 80, "ToPort": 90},
      "DestinationCidrBlock": "10.0.0.0/24", "SourceCidrBlock": "10.0.0.5/24"},
     {"TrafficMirrorFilterId": "tmf-01", "RuleNumber": 50, "RuleAction": "reject",
      "DestinationCidrBlock": "0.0.0.0/0", "SourceCidrBlock": "192.0.2.0/24"}],
   "EgressFilterRules": []}
]}
"""
AWS_TARGETS = """
{"TrafficMirrorTargets": [
  {"TrafficMirrorTargetId": "tmt-01", "NetworkInterfaceId": "eni-0bbb", "Type": "network-interface", "Tags": []},
  {"TrafficMirrorTargetId": "tmt-02", "Type": "network-load-balancer",
   "NetworkLoadBalancerArn": "arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/net/N/7c"}
]}
"""
AWS_INTERFACES = """
{"NetworkInterfaces": [{"NetworkInterfaceId": "eni-0bbb", "PrivateIpAddress": "192.0.2.77"}]}
"""
HUAWEI_SESSIONS = """
{"traffic_mirror_sessions": [
  {"id": "s1", "project_id": "p", "name": "mirror-session-01", "description": "", "traffic_mirror_filter_id": "f1",
   "traffic_mirror_sources": ["6c7f26c5-78f2-4c0b-a26d-8c4a6e3b0f1a"], "traffic_mirror_target_id": "elb-1",
   "traffic_mirror_target_type": "elb", "virtual_network_id": 1, "packet_length": 96, "priority": 1,
   "enabled": true, "type": "eni", "created_at": "2023-01-01T00:00:00.000+00:00"}
]}
"""
HUAWEI_REQUEST = """
{"traffic_mirror_session": {"name": "second", "priority": 2, "traffic_mirror_filter_id": "f1",
 "traffic_mirror_sources": ["port-1", "port-2"], "traffic_mirror_target_id": "elb-1",
 "traffic_mirror_target_type": "elb"}}
"""
HUAWEI_FILTERS = """
{"traffic_mirror_filters": [
  {"id": "f1", "name": "mirror-filter-01", "egress_rules": [],
   "ingress_rules": [
     {"id": "r1", "traffic_mirror_filter_id": "f1", "direction": "ingress", "source_cidr_block": "192.168.0.161/32",
      "destination_cidr_block": "192.168.0.230/32", "source_port_range": "", "destination_port_range": "1234-1240",
      "ethertype": "IPv4", "protocol": "TCP", "action": "accept", "priority": 1}]}
]}
"""
HUAWEI_RULES = """
{"traffic_mirror_filter_rules": [
  {"id": "r1", "traffic_mirror_filter_id": "f1", "direction": "ingress", "ethertype": "IPv4", "protocol": "TCP",
   "action": "accept", "priority": 1},
  {"id": "r2", "traffic_mirror_filter_id": "f1", "direction": "egress", "source_cidr_block": "2001:db8::/64",
   "ethertype": "IPv6", "protocol": "ICMPV6", "action": "reject", "priority": 3}
]}
"""
NSX = """
{"count": 1, "results": [
  {"name": "clone profile", "uuid": "trafficcloneprofile-1", "url": "https://controller/api/x#clone", "_last_modified": "1",
   "cloud_ref": "https://controller/api/cloud/cloud-1#Default-Cloud", "tenant_ref": "/api/tenant/?name=admin",
   "preserve_client_ip": true,
   "clone_servers": [
     {"ip_address": {"addr": "192.0.2.10", "type": "V4"}, "mac": "02:00:00:00:02:10",
      "network_ref": "/api/network/?name=tap-net", "subnet": {"ip_addr": {"addr": "192.0.2.0", "type": "V4"}, "mask": 24}},
     {"ip_address": {"addr": "192.0.2.11", "type": "V4"}, "subnet": {"ip_addr": {"addr": "192.0.2.0", "type": "V4"}, "mask": 24}},
     {"ip_address": {"addr": "198.51.100.9", "type": "V4"}},
     {"subnet": {"ip_addr": {"addr": "203.0.113.0", "type": "V4"}, "mask": 24}, "mac": "02:00:00:00:00:99"},
     {"ip_address": {"addr": "ids.example", "type": "DNS"}}
   ]}
]}
"""
CN2 = """
apiVersion: core.contrail.juniper.net/v1alpha1
kind: MirrorDestination
metadata:
  name: mirrordestinationprofile1
  namespace: ns1
  labels:
    core.juniper.net/analyzer-pod-selector: analyzerpod
spec:
  trafficDirection: both
  juniperHeader: true
  udpPort: 9098
  nextHopMode: dynamic
---
apiVersion: core.contrail.juniper.net/v1alpha1
kind: MirrorDestination
metadata: {name: outside}
spec: {externalAnalyzer: true, analyzerIP: 10.87.88.88, juniperHeader: true}
---
apiVersion: core.contrail.juniper.net/v1alpha1
kind: MirrorDestination
metadata: {name: static}
spec:
  externalAnalyzer: true
  analyzerIP: 10.87.88.89
  juniperHeader: false
  nextHopMode: static
  staticNextHopHeader: {vTEPDestinationIP: 192.0.2.9, vTEPDestinationMac: "02:00:00:00:00:09", vxlanID: 77}
---
apiVersion: core.contrail.juniper.net/v1alpha1
kind: MirrorDestination
metadata: {name: dynamic}
spec: {externalAnalyzer: true, analyzerIP: 10.87.88.90, juniperHeader: false, nextHopMode: dynamic}
---
apiVersion: core.contrail.juniper.net/v1alpha1
kind: ContrailSecurityPolicy
metadata: {name: web}
spec:
  secondaryAction: {mirrorDestination: mirrordestinationprofile1}
  rules:
    - name: first rule
      action: pass
      srcEP: {ipBlock: {cidr: 10.0.0.0/24}}
      dstEP: {ipBlock: {cidr: 10.0.1.0/24}}
      ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 5000, endPort: 5010}]
      secondaryAction: {mirrorDestination: outside}
    - action: deny
      endpoint1: {subnet: {ip_prefix: 10.9.0.0, ip_prefix_len: 16}}
      endpoint2: {any: true}
      service: {protocol: tcp, dst_ports: {start_port: 22, end_port: 23}, src_ports: {start_port: -1, end_port: -1}}
    - action: pass
      srcEP: {podSelector: {matchLabels: {app: web}}}
    - action: pass
"""
