"""Envoy's clusters: where the services are, and how they are called."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.edge.settings import MIB, EdgeSettings

Json = dict[str, Any]

_TYPE = "type.googleapis.com/envoy"
_UNLIMITED = 1_000_000


def seconds(value: float) -> str:
    """Return a duration as proto JSON writes it."""
    return f"{value:.3f}s"


@dataclass(frozen=True, slots=True)
class Target:
    """A gRPC target: where a service listens."""

    host: str = ""
    port: int = 0
    path: str = ""
    """Of a Unix socket, instead of host and port."""

    @classmethod
    def parse(cls, target: str) -> Target:
        """Read `host:port`, `dns:///host:port` or `unix:/path`. Raises ValueError."""
        if target.startswith("unix:"):
            return cls(path=target.removeprefix("unix:").removeprefix("//"))
        name = target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:")
        host, _, port = name.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"`{target}` is not an address: write host:port, dns:///host:port or unix:/path")
        return cls(host, int(port))

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """Return the host as an address, or None when it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def local(self) -> bool:
        """Tell whether it is on this machine."""
        return bool(self.path) or self.host == "localhost" or (self.ip is not None and self.ip.is_loopback)

    @classmethod
    def parse_all(cls, targets: str) -> list[Target]:
        """Read one target, or several separated by commas. Raises ValueError."""
        return [cls.parse(target.strip()) for target in targets.split(",")]

    def address(self) -> Json:
        """Return Envoy's form."""
        if self.path:
            return {"pipe": {"path": self.path}}
        return {"socket_address": {"address": self.host, "port_value": self.port}}


def _cluster(name: str, targets: Sequence[Target], settings: EdgeSettings) -> Json:
    limits = {
        "max_connections": _UNLIMITED,
        "max_pending_requests": _UNLIMITED,
        "max_requests": _UNLIMITED,
        "max_retries": 1000,
    }
    return {
        "name": name,
        "type": "STATIC" if all(target.path or target.ip for target in targets) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": seconds(settings.connect_timeout_s),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": target.address()}} for target in targets]}
            ],
        },
        # Our services limit themselves, with an error that says why.
        "circuit_breakers": {"thresholds": [limits]},
        "lb_policy": "LEAST_REQUEST",
    }


def _protocol(explicit: Json, **common: Any) -> Json:
    kind = f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": kind, "explicit_http_config": explicit}
    if common:
        options["common_http_protocol_options"] = common
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def grpc_cluster(name: str, address: str, settings: EdgeSettings) -> Json:
    """Return the cluster of a service at one target or several. Raises ValueError for what is no address."""
    targets = Target.parse_all(address)
    cluster = _cluster(name, targets, settings)
    http2 = {
        "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        "initial_stream_window_size": MIB,
        "initial_connection_window_size": 16 * MIB,
    }
    # An error body travels in the trailers, as JSON and as a status.
    headers = {"max_response_headers_kb": 256}
    cluster["typed_extension_protocol_options"] = _protocol({"http2_protocol_options": http2}, **headers)
    # Who may open a Unix socket, its folder says.
    if settings.upstream_ca_file is not None and not all(target.path for target in targets):
        cluster["transport_socket"] = _upstream_tls(settings, settings.upstream_ca_file, targets)
    if settings.health_check_interval_s and not all(target.local for target in targets):
        interval = seconds(settings.health_check_interval_s)
        cluster["health_checks"] = [
            {
                "interval": interval,
                "no_traffic_interval": interval,
                "timeout": seconds(settings.connect_timeout_s),
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ]
    return cluster


def http_cluster(name: str, address: str, settings: EdgeSettings) -> Json:
    """Return the cluster of one HTTP listener or several. Raises ValueError for what is no address."""
    cluster = _cluster(name, Target.parse_all(address), settings)
    idle = {"idle_timeout": seconds(settings.facade_idle_s)}
    cluster["typed_extension_protocol_options"] = _protocol({"http_protocol_options": {}}, **idle)
    return cluster


def _file(path: Path) -> Json:
    return {"filename": str(path)}


def certificate(chain: Path, key: Path) -> list[Json]:
    """Return a certificate that Envoy reads from files."""
    return [{"certificate_chain": _file(chain), "private_key": _file(key)}]


def _upstream_tls(settings: EdgeSettings, authorities: Path, targets: Sequence[Target]) -> Json:
    names = [
        {"san_type": "DNS" if target.ip is None else "IP_ADDRESS", "matcher": {"exact": target.host}}
        for target in targets
    ]
    common: Json = {
        "alpn_protocols": ["h2"],
        "validation_context": {
            "trusted_ca": _file(authorities),
            "match_typed_subject_alt_names": names,
        },
    }
    if settings.upstream_certificate_file and settings.upstream_key_file:
        common["tls_certificates"] = certificate(
            settings.upstream_certificate_file, settings.upstream_key_file
        )
    kind = f"{_TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    context = {"@type": kind, "common_tls_context": common}
    if targets[0].ip is None:
        context["sni"] = targets[0].host
    return {"name": "tls", "typed_config": context}
