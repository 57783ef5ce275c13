"""Envoy's bootstrap configuration, as plain data: one listener, the services as clusters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.edge import virtual_host as hosts
from services.edge.clusters import certificate, grpc_cluster, http_cluster, seconds
from services.edge.replies import (
    CLIENT_ADDRESS,
    ENVOY_CLIENT_ADDRESS,
    ENVOY_REQUEST_ID,
    ERROR_BODY,
    HTTP_STATUS,
    REQUEST_ID,
    local_reply_config,
)
from services.edge.routes import FACADE_CLUSTER, FILES_CLUSTER, PROBES_CLUSTER, PublicRpc, contract
from services.edge.settings import MIB, EdgeSettings
from services.edge.status_script import status_script

Json = dict[str, Any]

_TYPE = "type.googleapis.com/envoy"
_HTTP = f"{_TYPE}.extensions.filters.http"
# Nothing of this is a caller's to say.
_STRIPPED = ("x-omnihub-identity", REQUEST_ID, CLIENT_ADDRESS, HTTP_STATUS, ERROR_BODY)


def _downstream_tls(settings: EdgeSettings) -> Json:
    assert settings.certificate_file is not None
    assert settings.key_file is not None
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": certificate(settings.certificate_file, settings.key_file),
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
    }
    kind = f"{_TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common}}


def _filter(name: str, kind: str, *, disabled: bool = False, **options: Any) -> Json:
    item: Json = {"name": name, "typed_config": {"@type": f"{_HTTP}.{kind}", **options}}
    if disabled:
        item["disabled"] = True
    return item


def _transcoder(name: str, settings: EdgeSettings, rpcs: Sequence[PublicRpc], *, snake_case: bool) -> Json:
    binary, _ = contract()
    services = {r.service for r in rpcs for b in r.bindings if b.snake_case == snake_case}
    return _filter(
        name,
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        disabled=True,
        proto_descriptor_bin=base64.b64encode(binary).decode(),
        services=sorted(services),
        # The route of the REST path counts, so each binding has its own.
        match_incoming_request_route=True,
        convert_grpc_status=True,
        case_insensitive_enum_parsing=True,
        print_options={
            "preserve_proto_field_names": snake_case,
            # A REST caller expects `"models": []` and `"requests": 0`; unset optional fields stay absent.
            "always_print_primitive_fields": True,
            "stream_newline_delimited": True,
            "stream_sse_style_delimited": True,
        },
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            # Otherwise a body could name another resource than the path that was authorised.
            "reject_binding_body_field_collisions": True,
        },
        max_request_body_size=settings.json_body_limit_bytes,
        max_response_body_size=settings.json_response_limit_bytes,
    )


def _rate_limit(settings: EdgeSettings) -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return _filter(
        "rate_limit",
        "local_ratelimit.v3.LocalRateLimit",
        stat_prefix="public",
        token_bucket={
            "max_tokens": settings.requests_per_second,
            "tokens_per_fill": settings.requests_per_second,
            "fill_interval": "1s",
        },
        filter_enabled=always,
        filter_enforced=always,
        response_headers_to_add=[{"header": {"key": "retry-after", "value": "1"}}],
    )


def _filters(settings: EdgeSettings, rpcs: Sequence[PublicRpc], cors: bool) -> list[Json]:
    """Return the chain. What is `disabled` runs only on the routes that switch it on."""
    hidden = [{"remove": HTTP_STATUS}, {"remove": ERROR_BODY}]
    chain = [_filter(hosts.CORS, "cors.v3.Cors")] if cors else []
    if settings.requests_per_second:
        chain.append(_rate_limit(settings))
    return [
        *chain,
        _filter(hosts.GRPC_WEB, "grpc_web.v3.GrpcWeb", disabled=True),
        _filter(hosts.BUFFER, "buffer.v3.Buffer", disabled=True, max_request_bytes=settings.body_limit_bytes),
        # Answers pass the chain upwards: this one sees what the transcoder and the script have made.
        _filter(
            hosts.HIDE,
            "header_mutation.v3.HeaderMutation",
            disabled=True,
            mutations={"response_mutations": hidden, "response_trailers_mutations": hidden},
        ),
        _filter(
            hosts.STATUSES,
            "lua.v3.Lua",
            disabled=True,
            default_source_code={"inline_string": status_script()},
        ),
        _transcoder(hosts.CAMEL_CASE, settings, rpcs, snake_case=False),
        _transcoder(hosts.SNAKE_CASE, settings, rpcs, snake_case=True),
        _filter("router", "router.v3.Router", suppress_envoy_headers=True),
    ]


def _access_log() -> Json:
    """Return the log: no query, no headers that may hold a secret, no bodies."""
    fields = {
        "time": "%START_TIME%",
        "event": "edge_request",
        "request_id": ENVOY_REQUEST_ID,
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "client": ENVOY_CLIENT_ADDRESS,
    }
    kind = f"{_TYPE}.extensions.access_loggers.stream.v3.StdoutAccessLog"
    return {"name": "stdout", "typed_config": {"@type": kind, "log_format": {"json_format": fields}}}


def _connection_manager(
    settings: EdgeSettings, rpcs: Sequence[PublicRpc], cors_origins: Sequence[str]
) -> Json:
    mutations: list[Json] = [{"remove": name} for name in _STRIPPED]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}})
    early = {
        "name": "strip",
        "typed_config": {
            "@type": f"{_TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": mutations,
        },
    }
    kind = f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    manager: Json = {
        "@type": kind,
        "stat_prefix": "public",
        "codec_type": "AUTO",
        "server_name": "omnihub",
        "route_config": {
            "name": "public",
            "virtual_hosts": [hosts.virtual_host(settings, rpcs, cors_origins)],
        },
        "http_filters": _filters(settings, rpcs, bool(cors_origins)),
        "local_reply_config": local_reply_config(rpcs),
        "early_header_mutation_extensions": [early],
        "use_remote_address": True,
        "xff_num_trusted_hops": settings.trusted_proxies,
        # Nobody is trusted for an address: no caller comes from the broadcast address.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "generate_request_id": True,
        "preserve_external_request_id": settings.trust_request_id,
        "normalize_path": True,
        "merge_slashes": True,
        # `%2F` belongs to the names of models.
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "common_http_protocol_options": {
            "headers_with_underscores_action": "DROP_HEADER",
            "idle_timeout": "3600s",
            "max_headers_count": 200,
        },
        "max_request_headers_kb": 64,
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": MIB,
            "initial_connection_window_size": 4 * MIB,
        },
        "request_headers_timeout": seconds(settings.request_headers_timeout_s),
        "request_timeout": seconds(settings.request_timeout_s),
        "stream_idle_timeout": seconds(settings.stream_idle_timeout_s),
    }
    if settings.access_log:
        manager["access_log"] = [_access_log()]
    return manager


def _listener(settings: EdgeSettings, port: int, manager: Json) -> Json:
    chain: Json = {"filters": [{"name": "http", "typed_config": manager}]}
    if settings.certificate_file is not None:
        chain["transport_socket"] = _downstream_tls(settings)
    address: Json = {"address": settings.listen_host, "port_value": port}
    if settings.listen_host == "::":
        address["ipv4_compat"] = True
    return {
        "name": "public",
        "address": {"socket_address": address},
        "filter_chains": [chain],
        # Shared ports hide a second instance on the same port behind every other request.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": MIB,
    }


def bootstrap(
    settings: EdgeSettings,
    *,
    addresses: Mapping[str, str],
    facade_address: str,
    files_address: str,
    probes_address: str = "",
    port: int,
    cors_origins: Sequence[str],
    admin_socket: Path | None = None,
) -> Json:
    """Return the whole configuration.

    `addresses` maps each area with public rpcs to a gRPC target, or to several separated by commas, as all
    addresses may be. `probes_address` answers /health and /ready; empty: the facade does.

    Without `admin_socket` there is no admin interface. Raises ValueError for an address that is missing or
    not one.
    """
    _, rpcs = contract()
    areas = sorted({rpc.area for rpc in rpcs})
    if missing := [area for area in areas if area not in addresses]:
        raise ValueError(f"no address for {', '.join(missing)}: the edge needs one for each service")
    clusters = [grpc_cluster(area, addresses[area], settings) for area in areas]
    clusters.append(http_cluster(FACADE_CLUSTER, facade_address, settings))
    clusters.append(http_cluster(FILES_CLUSTER, files_address, settings))
    clusters.append(http_cluster(PROBES_CLUSTER, probes_address or facade_address, settings))
    monitor = f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    configuration: Json = {
        "node": {"id": "omnihub-edge", "cluster": "omnihub"},
        "static_resources": {
            "listeners": [_listener(settings, port, _connection_manager(settings, rpcs, cors_origins))],
            "clusters": clusters,
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": monitor,
                        "max_active_downstream_connections": settings.max_connections,
                    },
                }
            ]
        },
    }
    if admin_socket is not None:
        # 0600: whoever can connect can stop Envoy.
        configuration["admin"] = {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}}
    return configuration


def render(
    settings: EdgeSettings,
    *,
    addresses: Mapping[str, str],
    facade_address: str,
    files_address: str,
    probes_address: str = "",
    port: int,
    cors_origins: Sequence[str],
) -> str:
    """Return the configuration as JSON for an Envoy of one's own: `omnihub edge config`."""
    configuration = bootstrap(
        settings,
        addresses=addresses,
        facade_address=facade_address,
        files_address=files_address,
        probes_address=probes_address,
        port=port,
        cors_origins=cors_origins,
    )
    return json.dumps(configuration, indent=2)
