"""The table of the public port, against the contracts it is generated from."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pool, message_factory
from omnihub.agents.v1alpha1 import agent_service_pb2
from omnihub.auth.v1 import auth_service_pb2, signing_key_service_pb2, workspace_service_pb2
from omnihub.billing.v1 import (
    billing_service_pb2,
    budget_service_pb2,
    ledger_service_pb2,
    price_service_pb2,
    report_service_pb2,
)
from omnihub.common.v1 import options_pb2
from omnihub.provider.v1 import plugin_service_pb2, provider_service_pb2
from omnihub.router.v1 import (
    provider_health_service_pb2,
    registry_service_pb2,
    response_service_pb2,
    router_service_pb2,
    routing_policy_service_pb2,
)
from omnihub.workflow.v1 import consent_service_pb2, file_service_pb2, job_service_pb2, webhook_service_pb2
from omnihub.workflow.v1alpha1 import workflow_service_pb2

from services.edge.config import bootstrap
from services.edge.routes import contract, match_template, read_descriptors
from services.edge.settings import EdgeSettings
from tests.support.edge import AREAS

# Read from the generated modules, not from the file the edge reads.
MODULES = (
    agent_service_pb2,
    auth_service_pb2,
    billing_service_pb2,
    budget_service_pb2,
    ledger_service_pb2,
    plugin_service_pb2,
    price_service_pb2,
    provider_service_pb2,
    report_service_pb2,
    registry_service_pb2,
    router_service_pb2,
    consent_service_pb2,
    file_service_pb2,
    response_service_pb2,
    routing_policy_service_pb2,
    provider_health_service_pb2,
    signing_key_service_pb2,
    job_service_pb2,
    webhook_service_pb2,
    workflow_service_pb2,
    workspace_service_pb2,
)
METHODS = [
    method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def path_of(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else str(value.name)


def area_of(method: Any) -> str:
    return str(method.containing_service.file.package.split(".")[1])


def configuration(**settings: Any) -> dict[str, Any]:
    return bootstrap(
        EdgeSettings(**settings),
        addresses=dict.fromkeys(AREAS, "127.0.0.1:9090"),
        facade_address="127.0.0.1:9091",
        files_address="127.0.0.1:9091",
        port=8080,
        cors_origins=(),
    )


@functools.cache
def routes() -> list[dict[str, Any]]:
    listener = configuration()["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    found: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return found


def first_route(method: str, path: str, content_type: str = "application/json") -> dict[str, Any]:
    """Return the route Envoy would take."""
    headers = {":method": method, "content-type": content_type, "content-length": "2"}
    for route in routes():
        match = route["match"]
        if "path" in match:
            fits = match["path"] == path
        elif "safe_regex" in match:
            fits = re.fullmatch(match["safe_regex"]["regex"], path) is not None
        else:
            fits = path.startswith(match["prefix"])
        if fits and all(_header_fits(matcher, headers) for matcher in match.get("headers", ())):
            return route
    raise AssertionError("no route at all")


def _header_fits(matcher: dict[str, Any], headers: dict[str, str]) -> bool:
    value = headers.get(matcher["name"])
    if "present_match" in matcher:
        return (value is not None) == matcher["present_match"]
    if "range_match" in matcher:
        limits = matcher["range_match"]
        return value is not None and limits["start"] <= int(value) < limits["end"]
    wanted = matcher["string_match"]
    if value is None:
        return False
    if "exact" in wanted:
        return bool(value == wanted["exact"])
    if "prefix" in wanted:
        return value.startswith(wanted["prefix"])
    return re.fullmatch(wanted["safe_regex"]["regex"], value) is not None


@pytest.mark.parametrize("method", METHODS, ids=path_of)
def test_native_grpc_reaches_public_rpcs_and_nothing_else(method: Any) -> None:
    path = path_of(method)
    for content_type in ("application/grpc", "application/grpc-web+proto", "application/grpc-web-text"):
        route = first_route("POST", path, content_type)
        if method.GetOptions().Extensions[options_pb2.public]:
            assert route["route"]["cluster"] == area_of(method)
        else:
            assert route["direct_response"]["status"] == 404


def test_every_forwarded_grpc_path_is_a_public_rpc() -> None:
    public = {path_of(m) for m in METHODS if m.GetOptions().Extensions[options_pb2.public]}
    forwarded = {
        route["match"]["path"]
        for route in routes()
        if "route" in route and route["match"].get("path", "").startswith("/omnihub.")
    }
    assert forwarded == public
    assert {rpc.path for rpc in contract()[1]} == public


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/omnihub.billing.v1.BillingService/",
        "/omnihub.billing.v1.BillingService/Settle",
        "/omnihub.billing.v1.BillingService/listusage",
        "/metrics",
        "/",
    ],
)
def test_nothing_else_is_forwarded(path: str) -> None:
    assert first_route("POST", path, "application/grpc")["direct_response"]["status"] == 404
    assert first_route("GET", path)["direct_response"]["status"] == 404


REST = [
    (kind.upper(), getattr(rule, kind), method)
    for method in METHODS
    for main in [method.GetOptions().Extensions[annotations_pb2.http]]
    for rule in [main, *main.additional_bindings]
    for kind in [rule.WhichOneof("pattern")]
    if kind
]


@pytest.mark.parametrize(
    ("verb", "template", "method"), REST, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_every_rest_binding_leads_to_its_owner_in_its_case(verb: str, template: str, method: Any) -> None:
    path = re.sub(r"\{[^}]*\}", "some-id", template)
    route = first_route(verb, path)
    assert route["route"]["cluster"] == area_of(method)
    transcoder = "transcode_snake_case" if template.startswith("/v1/") else "transcode_camel_case"
    assert {name for name in route["typed_per_filter_config"] if "transcode" in name} == {transcoder}
    wrong = first_route("TRACE", path)
    assert wrong["direct_response"]["status"] == 405
    allow = wrong["response_headers_to_add"][0]["header"]
    assert allow["key"] == "allow"
    assert verb in allow["value"].split(", ")


def test_a_verb_is_not_swallowed_and_a_name_may_hold_a_colon() -> None:
    def rpc(method: str, path: str) -> str:
        return str(first_route(method, path)["match"]["safe_regex"]["regex"])

    assert rpc("GET", "/api/generations/job_1:watch").endswith(":watch")
    assert rpc("GET", "/api/generations/llama3:8b") == "/api/generations/[^/]+"
    wrong = first_route("DELETE", "/api/generations/job_1:cancel")
    assert wrong["direct_response"]["status"] == 405
    assert wrong["response_headers_to_add"][0]["header"]["value"] == "POST"


def test_only_public_rpcs_have_rest_bindings() -> None:
    for _, _, method in REST:
        assert method.GetOptions().Extensions[options_pb2.public], path_of(method)


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/wall/gpt-x"),
        ("GET", "/v1/models/wall%2Fgpt-x"),
        ("GET", "/health"),
        ("HEAD", "/ready"),
    ],
)
def test_the_facade_has_its_paths(verb: str, path: str) -> None:
    route = first_route(verb, path)
    # Whether all are ready knows who has started the workers.
    assert route["route"]["cluster"] == ("probes" if path in ("/health", "/ready") else "facade")
    assert route["route"]["timeout"] == "0s"
    assert "typed_per_filter_config" not in route, "the hot path passes no filter but the router"
    assert first_route("DELETE", path)["direct_response"]["status"] == 405


def test_every_forwarding_route_lets_streams_last_and_honours_deadlines() -> None:
    for route in routes():
        if "route" in route:
            assert route["route"]["timeout"] == "0s"
            assert route["route"]["max_stream_duration"]["grpc_timeout_header_max"] == "0s"


@pytest.mark.parametrize(
    ("template", "matching", "other"),
    [
        ("/v1/chat", ["/v1/chat"], ["/v1/chat/", "/v1/chatx"]),
        ("/v1/chat:stream", ["/v1/chat:stream"], ["/v1/chat"]),
        ("/api/keys/{key_id}", ["/api/keys/a", "/api/keys/a.b"], ["/api/keys/", "/api/keys/a/b"]),
        ("/api/keys/{key.id}/rotate", ["/api/keys/a/rotate"], ["/api/keys/a/b/rotate"]),
        ("/v1/{name=projects/*/items/*}", ["/v1/projects/a/items/b"], ["/v1/projects/a/items/b/c"]),
        ("/v1/{name=files/**}", ["/v1/files/a", "/v1/files/a/b"], ["/v1/files/"]),
        ("/v1/a.b/{id}:cancel", ["/v1/a.b/7:cancel"], ["/v1/axb/7:cancel", "/v1/a.b/7"]),
    ],
)
def test_templates(template: str, matching: list[str], other: list[str]) -> None:
    pattern = match_template(template).pattern
    for path in matching:
        assert re.fullmatch(pattern, path), path
    for path in other:
        assert not re.fullmatch(pattern, path), path


def test_the_descriptor_set_holds_every_error_detail() -> None:
    # One missing type makes Envoy drop whole error bodies.
    pool = descriptor_pool.DescriptorPool()
    for proto in read_descriptors().file:
        pool.Add(proto)
    for name in ("ErrorInfo", "BadRequest", "RetryInfo", "QuotaFailure"):
        assert message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
