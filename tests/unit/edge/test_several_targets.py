"""Clusters with several endpoints: workers behind their sockets, replicas of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.edge.clusters import grpc_cluster, http_cluster
from services.edge.settings import EdgeSettings

TLS = EdgeSettings(upstream_ca_file=Path("ca.pem"))


def endpoints(cluster: dict[str, Any]) -> list[Any]:
    """Return the addresses of a cluster."""
    (group,) = cluster["load_assignment"]["endpoints"]
    return [each["endpoint"]["address"] for each in group["lb_endpoints"]]


def test_each_socket_is_an_endpoint_without_tls() -> None:
    cluster = grpc_cluster("router", "unix:/run/1.grpc,unix:/run/2.grpc", TLS)
    assert endpoints(cluster) == [{"pipe": {"path": "/run/1.grpc"}}, {"pipe": {"path": "/run/2.grpc"}}]
    assert cluster["type"] == "STATIC"
    assert "transport_socket" not in cluster


def test_replicas_by_name_are_resolved_and_each_may_show_its_own_certificate() -> None:
    cluster = grpc_cluster("router", "a.internal:9090, 10.0.0.2:9090", TLS)
    assert [each["socket_address"]["address"] for each in endpoints(cluster)] == ["a.internal", "10.0.0.2"]
    assert cluster["type"] == "STRICT_DNS"
    common = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    assert common["validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "a.internal"}},
        {"san_type": "IP_ADDRESS", "matcher": {"exact": "10.0.0.2"}},
    ]


def test_one_wrong_address_among_several_is_named() -> None:
    with pytest.raises(ValueError, match="`nowhere` is not an address"):
        http_cluster("facade", "10.0.0.1:9091,nowhere", EdgeSettings())
