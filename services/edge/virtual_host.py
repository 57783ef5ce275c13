"""The routes of the public port, generated from the contracts and the facade's table.

Order: the facade (the hot path), REST, native gRPC, then for each known path the answer to a wrong
method, then 404. Exact paths come before patterns, and of these the paths with a verb first, with the answers
to their wrong methods: `/jobs/{id}` does not swallow `/jobs/{id}:cancel`, and a name may hold a colon.
Nothing is routed by prefix, so an rpc that is not public has no route.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from services.edge.replies import (
    ANTHROPIC_REQUEST_ID,
    CLIENT_ADDRESS,
    ENVOY_CLIENT_ADDRESS,
    ENVOY_REQUEST_ID,
    ERROR_BODY,
    GRPC_CONTENT,
    HTTP_STATUS,
    OPENAI_REQUEST_ID,
    REQUEST_ID,
    identifying,
)
from services.edge.routes import (
    FACADE,
    FACADE_CLUSTER,
    FILES_CLUSTER,
    Binding,
    FacadeRoute,
    PathMatch,
    PublicRpc,
)
from services.edge.settings import EdgeSettings
from services.edge.status_script import BODY_FIELD

Json = dict[str, Any]
# Routes, and where they stand.
Placed = tuple[int, list[Json]]

# Names of the filters in the chain; a route switches on those it needs.
CORS = "envoy.filters.http.cors"
GRPC_WEB = "grpc_web"
BUFFER = "buffer"
HIDE = "hide"
STATUSES = "statuses"
# Under which Envoy's scripts look for what a route says, whatever the filter is called.
LUA = "envoy.filters.http.lua"
CAMEL_CASE = "transcode_camel_case"
SNAKE_CASE = "transcode_snake_case"

_TYPE = "type.googleapis.com/envoy"
_LARGEST = 2**63 - 1
# As the facade knows them: what is over our limit, but not worth a cut connection.
BODY_LIMIT = "x-omnihub-body-limit"
DISCARD_LIMIT = 512 * 2**20
# Where the facade reads and refuses what is too large for a REST path. No caller gets there by its name.
OVERSIZED = "/-/oversized"
# The SDKs show the message alone, and most who read it have set another base_url than theirs takes.
UNKNOWN_PATH = (
    "there is nothing at this path: check it; base_url ends in /v1 for OpenAI's SDKs, "
    "and without it for Anthropic's"
)
# Of Anthropic's SDKs.
ANTHROPIC_PATHS = "/v1/messages"
# What gRPC adds to an answer and REST callers have no use for.
_GRPC_HEADERS = (
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-encoding",
    "grpc-accept-encoding",
)
_MEASURES = ("requests", "tokens")
_EXPOSED = (
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "retry-after",
    REQUEST_ID,
    OPENAI_REQUEST_ID,
    ANTHROPIC_REQUEST_ID,
    "x-omnihub-decision-id",
    "x-omnihub-job-id",
    "x-omnihub-model",
    "x-omnihub-provider",
    "x-omnihub-cost",
    "x-omnihub-savings",
    "x-omnihub-receipt",
    "x-omnihub-estimated",
    *(f"x-ratelimit-{what}-{measure}" for measure in _MEASURES for what in ("limit", "remaining", "reset")),
    *(
        f"anthropic-ratelimit-{measure}-{what}"
        for measure in _MEASURES
        for what in ("limit", "remaining", "reset")
    ),
)
# `*` stands for everything but authorization; older browsers take it as a name, hence the list.
_ALLOWED = (
    "authorization",
    "x-api-key",
    "content-type",
    "x-grpc-web",
    "x-user-agent",
    "grpc-timeout",
    "idempotency-key",
    "traceparent",
    "anthropic-version",
    "anthropic-beta",
    "x-omnihub-strict",
    "x-omnihub-rescue",
    "x-omnihub-agent",
    "x-omnihub-run",
    "*",
)


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _previous_hosts() -> Json:
    name = "envoy.retry_host_predicates.previous_hosts"
    kind = f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {"name": name, "typed_config": {"@type": kind}}


def switch_on() -> Json:
    """Return the route configuration that switches on a filter as the chain configures it."""
    return {"@type": f"{_TYPE}.config.route.v3.FilterConfig", "config": {}}


def _match(path: PathMatch, *headers: Json) -> Json:
    place: Json = {"path": path.exact} if path.exact else {"safe_regex": {"regex": path.regex}}
    return {**place, "headers": list(headers)} if headers else place


def _method(*methods: str) -> Json:
    if len(methods) == 1:
        return {"name": ":method", "string_match": {"exact": methods[0]}}
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(methods)}}}


def _forward(cluster: str) -> Json:
    # A stream lasts as long as it lasts; a caller's grpc-timeout is honoured, whatever it is.
    return {
        "cluster": cluster,
        "timeout": "0s",
        "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
    }


def _answer(match: Json, status: int, text: str, headers: Mapping[str, str] | None = None) -> Json:
    # What the text becomes is in services/edge/replies.py.
    route: Json = {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": text}},
    }
    if headers:
        route["response_headers_to_add"] = [_header(key, value) for key, value in headers.items()]
    return route


def _preflight() -> Json:
    """Return the route of CORS preflights; the CORS filter answers them, but only on forwarding routes."""
    asked = {"name": "access-control-request-method", "present_match": True}
    return {
        "match": {"prefix": "/", "headers": [_method("OPTIONS"), asked]},
        "route": _forward(FACADE_CLUSTER),
    }


def _cors_of_answers(origins: Sequence[str]) -> list[Json]:
    """Return the headers that let a page read our direct responses, which the CORS filter leaves alone."""
    asks = "'origin' in request.headers"
    if "*" not in origins:
        listed = json.dumps([origin.rstrip("/") for origin in origins]).replace('"', "'")
        asks = f"{asks} && request.headers['origin'] in {listed}"
    exposed = ", ".join(_EXPOSED)
    # An empty header is not sent.
    return [
        _header("access-control-allow-origin", f"%CEL({asks} ? request.headers['origin'] : '')%"),
        _header("access-control-expose-headers", f"%CEL({asks} ? '{exposed}' : '')%"),
    ]


def _to_facade(cluster: str = FACADE_CLUSTER) -> Json:
    return {
        "route": _forward(cluster),
        # The gateway relays foreign answers: what they say in our internal headers is not ours.
        "response_headers_to_remove": [HTTP_STATUS, ERROR_BODY],
    }


def _refusing() -> Json:
    """Return the route to who reads what it refuses: many clients lose an answer while they send."""
    facade = _to_facade()
    rewrite = {"pattern": {"regex": "^.*$"}, "substitution": OVERSIZED}
    return {**facade, "route": {**facade["route"], "regex_rewrite": rewrite}}


def _over(match: Json, refuse: Json, limit_bytes: int) -> list[Json]:
    """Return the routes of bodies that say themselves that they are larger than the limit."""
    said = match.get("headers", [])
    end = max(limit_bytes, DISCARD_LIMIT)
    endless = {"name": "content-length", "range_match": {"start": end + 1, "end": _LARGEST}}
    too_large = _answer({**match, "headers": [*said, endless]}, 413, "")
    if end == limit_bytes:
        return [too_large]
    over = {"name": "content-length", "range_match": {"start": limit_bytes + 1, "end": end + 1}}
    headers = [_header(BODY_LIMIT, str(limit_bytes))]
    return [
        {"match": {**match, "headers": [*said, over]}, **refuse, "request_headers_to_add": headers},
        too_large,
    ]


def _without_length(match: Json) -> Json:
    unknown = {"name": "content-length", "present_match": False}
    return {**match, "headers": [*match.get("headers", []), unknown]}


def _facade(route: FacadeRoute, body_limit_bytes: int) -> list[Json]:
    """Return the routes of one line of the table."""
    match = _match(route.path, _method(*route.methods))
    forward = _to_facade(route.cluster)
    if "POST" not in route.methods:
        return [{"match": match, **forward}]
    if route.cluster == FILES_CLUSTER:
        # Its service counts what it reads, and takes files that are never whole in memory.
        return [{"match": match, **forward}]
    told = [_header(BODY_LIMIT, str(body_limit_bytes))]
    return [
        *_over(match, forward, body_limit_bytes),
        # Without a length, only reading tells: it counts as it reads, and reads on what it refuses.
        {"match": _without_length(match), **forward, "request_headers_to_add": told},
        {"match": match, **forward},
    ]


def _rest(rpc: PublicRpc, binding: Binding, body_limit_bytes: int) -> list[Json]:
    """Return the routes of one of an rpc's REST bindings."""
    match = _match(binding.path, _method(binding.method))
    hide_grpc = {
        "@type": f"{_TYPE}.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        "mutations": {"response_mutations": [{"remove": name} for name in _GRPC_HEADERS]},
    }
    forward: Json = {
        "route": _forward(rpc.area),
        "typed_per_filter_config": {
            HIDE: hide_grpc,
            STATUSES: switch_on(),
            SNAKE_CASE if binding.snake_case else CAMEL_CASE: switch_on(),
        },
    }
    if rpc.anonymous:
        forward["request_headers_to_add"] = _told_apart()
    if binding.body_field:
        forward["metadata"] = {"filter_metadata": {LUA: {BODY_FIELD: binding.body_field}}}
    if binding.method == "GET":
        return [{"match": match, **forward}]
    # The transcoder's own limit holds only for what it has not passed on yet.
    limited = {
        "@type": f"{_TYPE}.extensions.filters.http.buffer.v3.BufferPerRoute",
        "buffer": {"max_request_bytes": body_limit_bytes},
    }
    filters = {**forward["typed_per_filter_config"], BUFFER: limited}
    return [
        *_over(match, _refusing(), body_limit_bytes),
        # Without a length, only reading tells: these few are held back until they are complete.
        {"match": _without_length(match), **forward, "typed_per_filter_config": filters},
        {"match": match, **forward},
    ]


def _told_apart() -> list[Json]:
    """Return what tells those apart who show no credential."""
    return [_header(CLIENT_ADDRESS, ENVOY_CLIENT_ADDRESS)]


def _native(rpc: PublicRpc) -> Json:
    content = {"name": "content-type", "string_match": {"prefix": GRPC_CONTENT}}
    told = {"request_headers_to_add": _told_apart()} if rpc.anonymous else {}
    return {
        **told,
        "match": _match(PathMatch(exact=rpc.path), _method("POST"), content),
        "route": _forward(rpc.area),
        "typed_per_filter_config": {GRPC_WEB: switch_on(), HIDE: switch_on()},
    }


def _methods_by_path(rpcs: Iterable[PublicRpc], facade: Iterable[FacadeRoute]) -> dict[PathMatch, list[str]]:
    methods: dict[PathMatch, list[str]] = {}
    for line in facade:
        methods.setdefault(line.path, []).extend(line.methods)
    for rpc in rpcs:
        for binding in rpc.bindings:
            methods.setdefault(binding.path, []).append(binding.method)
    return methods


def _wrong_methods(rpcs: Sequence[PublicRpc], facade: Sequence[FacadeRoute]) -> Iterator[Placed]:
    for path, methods in _methods_by_path(rpcs, facade).items():
        allow = ", ".join(sorted(methods))
        answer = _answer(_match(path), 405, f"this path takes {allow}", {"allow": allow})
        yield _place(path, wrong=True), [answer]
    for rpc in rpcs:
        path = PathMatch(exact=rpc.path)
        text = "this is a gRPC method: send application/grpc or application/grpc-web"
        yield (
            _place(path, wrong=True),
            [
                _answer(_match(path, _method("POST")), 415, text),
                _answer(_match(path), 405, "gRPC methods take POST", {"allow": "POST"}),
            ],
        )


def _forwards(
    rpcs: Sequence[PublicRpc], facade: Sequence[FacadeRoute], settings: EdgeSettings
) -> Iterator[Placed]:
    for line in facade:
        yield _place(line.path), _facade(line, settings.body_limit_bytes)
    for rpc in rpcs:
        for binding in rpc.bindings:
            yield _place(binding.path), _rest(rpc, binding, settings.json_body_limit_bytes)
    for rpc in rpcs:
        yield _place(PathMatch(exact=rpc.path)), [_native(rpc)]


def _place(path: PathMatch, *, wrong: bool = False) -> int:
    """Return where a path's routes stand: the smallest first."""
    if path.verb:
        return 1
    return (0 if path.exact else 2) + (3 if wrong else 0)


def _cors(origins: Sequence[str]) -> Json:
    anyone = {"safe_regex": {"regex": ".*"}}
    return {
        "@type": f"{_TYPE}.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [
            anyone if origin == "*" else {"exact": origin.rstrip("/")} for origin in origins
        ],
        "allow_methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        "allow_headers": ", ".join(_ALLOWED),
        "expose_headers": ", ".join(_EXPOSED),
        "max_age": "7200",
        "forward_not_matching_preflights": False,
    }


def virtual_host(
    settings: EdgeSettings,
    rpcs: Sequence[PublicRpc],
    cors_origins: Sequence[str],
    facade: Sequence[FacadeRoute] = FACADE,
) -> Json:
    """Return the one virtual host of the public port."""
    placed = [*_forwards(rpcs, facade, settings), *_wrong_methods(rpcs, facade)]
    routes = [route for _, group in sorted(placed, key=itemgetter(0)) for route in group]
    routes.append(_answer({"prefix": "/"}, 404, UNKNOWN_PATH))
    host: Json = {
        "name": "public",
        "domains": ["*"],
        "routes": routes,
        # The router service owns every other retry.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream",
            "num_retries": 2,
            # Where there are several, another one: one that has died refuses until it is back.
            "retry_host_predicate": [_previous_hosts()],
            "host_selection_retry_max_attempts": 5,
        },
        "request_headers_to_add": [_header(REQUEST_ID, ENVOY_REQUEST_ID)],
        "response_headers_to_add": identifying(REQUEST_ID, OPENAI_REQUEST_ID),
    }
    for route in routes:
        if route["match"].get("path", "").startswith(ANTHROPIC_PATHS):
            route.setdefault("response_headers_to_add", []).extend(identifying(ANTHROPIC_REQUEST_ID))
    if cors_origins:
        host["typed_per_filter_config"] = {CORS: _cors(cors_origins)}
        for route in routes:
            if "direct_response" in route:
                route.setdefault("response_headers_to_add", []).extend(_cors_of_answers(cors_origins))
        routes.insert(0, _preflight())
    return host
