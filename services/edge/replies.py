"""Error bodies of answers that Envoy gives without asking a service: three shapes, one table.

`/api` and native `/v1` paths get the platform's own shape, the facade's paths the one their SDKs
read. Type, code and advice come from the table in omnihub/common/v1/errors.proto.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.rpc.errors import TABLE, Row
from services.edge.routes import PublicRpc

Json = dict[str, Any]

REQUEST_ID = "x-omnihub-request-id"
# Where OpenAI's SDKs look for it, and where Anthropic's do.
OPENAI_REQUEST_ID = "x-request-id"
ANTHROPIC_REQUEST_ID = "request-id"
CLIENT_ADDRESS = "x-omnihub-client-address"
HTTP_STATUS = "x-http-status"
ERROR_BODY = "x-omnihub-error"
GRPC_CONTENT = "application/grpc"
# Envoy fills these in.
ENVOY_REQUEST_ID = "req_%REQ(X-REQUEST-ID)%"
ENVOY_STATUS = "%RESPONSE_CODE%"
# The connection's, or what the last of the trusted proxies says of it.
ENVOY_CLIENT_ADDRESS = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
ENVOY_TEXT = "%LOCAL_REPLY_BODY%"

_TYPE = "type.googleapis.com/envoy"


@dataclass(frozen=True, slots=True)
class LocalReply:
    """What one status means when Envoy answers by itself. By default Envoy's own text is the message."""

    status: int
    reason: str
    message: str = ENVOY_TEXT
    or_above: bool = False


# The first that fits is taken. The texts of 404, 405 and 415 are those of our own routes.
LOCAL_REPLIES: tuple[LocalReply, ...] = (
    LocalReply(404, "UNKNOWN_PATH"),
    LocalReply(405, "METHOD_NOT_ALLOWED"),
    LocalReply(408, "DEADLINE_EXCEEDED", "request or answer did not move for too long; send it again"),
    LocalReply(413, "BODY_TOO_LARGE", "the body is larger than this path takes; send less"),
    LocalReply(415, "MALFORMED_BODY"),
    LocalReply(429, "RATE_LIMITED", "too many requests at the moment; retry after the time in `retry-after`"),
    LocalReply(431, "INVALID_ARGUMENT", "the headers are too large or too many; send fewer or shorter ones"),
    LocalReply(503, "UNAVAILABLE", "the service behind this path cannot be reached; retry with back-off"),
    LocalReply(504, "DEADLINE_EXCEEDED", "the answer did not come in time; retry with a longer deadline"),
    LocalReply(500, "INTERNAL", or_above=True),
    LocalReply(400, "INVALID_ARGUMENT", or_above=True),
)


def native_body(row: Row, message: str) -> Json:
    """Return the platform's own error body."""
    return {
        "error": {
            "code": ENVOY_STATUS,
            "reason": row.reason,
            "message": message,
            "details": {"recovery": row.recovery},
            "request_id": ENVOY_REQUEST_ID,
        }
    }


def openai_body(row: Row, message: str) -> Json:
    """Return the body that OpenAI's SDKs read."""
    return {
        "error": {
            "message": message,
            "type": row.openai_type,
            "param": None,
            "code": row.openai_code,
            "request_id": ENVOY_REQUEST_ID,
        }
    }


def anthropic_body(row: Row, message: str) -> Json:
    """Return the body that Anthropic's SDKs read."""
    return {
        "type": "error",
        "error": {"type": row.anthropic_type, "message": message},
        "request_id": ENVOY_REQUEST_ID,
    }


def identifying(*names: str) -> list[Json]:
    """Return what adds the request's id to an answer, under these names."""
    return [
        {
            "header": {"key": name, "value": ENVOY_REQUEST_ID},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
        for name in names
    ]


def _path_filter(patterns: Sequence[str]) -> Json:
    """Return the filter for any of these paths. One expression each: Envoy refuses large ones."""
    filters: list[Json] = [
        {
            "header_filter": {
                "header": {"name": ":path", "string_match": {"safe_regex": {"regex": rf"({pattern})(\?.*)?"}}}
            }
        }
        for pattern in patterns
    ]
    return filters[0] if len(filters) == 1 else {"or_filter": {"filters": filters}}


def _status_filter(reply: LocalReply) -> Json:
    value = {"default_value": reply.status, "runtime_key": "omnihub.edge.status"}
    return {"status_code_filter": {"comparison": {"op": "GE" if reply.or_above else "EQ", "value": value}}}


def _transcoder_filter(status: int) -> Json:
    kind = f"{_TYPE}.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    expression = f"response.code == {status} && response.code_details.contains('json_transcode_failure')"
    return {"extension_filter": {"name": "cel", "typed_config": {"@type": kind, "expression": expression}}}


def _mapper(condition: Json, body: Json | None) -> Json:
    if body is None:
        text = {"text_format_source": {"inline_string": ENVOY_TEXT}, "content_type": "text/plain"}
    return {
        "filter": condition,
        "body_format_override": text if body is None else {"json_format": body},
        "headers_to_add": identifying(REQUEST_ID, OPENAI_REQUEST_ID),
    }


def _native_paths(rpcs: Iterable[PublicRpc]) -> list[str]:
    """Return patterns of the paths below /v1/ with our own shape of errors.

    What lies below a resource such as /v1/router/ is taken together: Envoy limits the size of a pattern.
    """
    templates = [each.template for rpc in rpcs for each in rpc.bindings if each.snake_case]
    paths = [template.split("/") for template in templates]
    short = {
        f"/v1/{re.escape(path[2])}" + ("/.+" if len(path) > len(("", "v1", "resource")) else "")
        for path in paths
    }
    return sorted(short)


def local_reply_config(rpcs: Iterable[PublicRpc]) -> Json:
    """Return the mapping of Envoy's own answers to error bodies."""
    native = _native_paths(rpcs)
    shapes: list[tuple[Callable[[Row, str], Json], Sequence[str]]] = [
        (anthropic_body, ["/v1/messages(/.*)?"]),
        *([(native_body, native)] if native else []),
        (openai_body, ["/v1/.*"]),
        (native_body, [".*"]),
    ]
    grpc = {"safe_regex": {"regex": rf"{GRPC_CONTENT}(\+.*)?"}}
    # The transcoder has turned REST calls into gRPC, and keeps their path in this header.
    of_grpc = [
        {"header_filter": {"header": {"name": "content-type", "string_match": grpc}}},
        {"header_filter": {"header": {"name": "x-envoy-original-path", "present_match": False}}},
    ]
    too_large = next(reply for reply in LOCAL_REPLIES if reply.status == 413)
    mappers = [
        # Which field is wrong is in the text: the status script makes the body.
        _mapper(_transcoder_filter(400), None),
        _mapper(_transcoder_filter(413), native_body(TABLE[too_large.reason], too_large.message)),
        # The text becomes grpc-message.
        _mapper({"and_filter": {"filters": of_grpc}}, None),
    ]
    for shape, patterns in shapes:
        for reply in LOCAL_REPLIES:
            both = {"and_filter": {"filters": [_status_filter(reply), _path_filter(patterns)]}}
            mappers.append(_mapper(both, shape(TABLE[reply.reason], reply.message)))
    return {"mappers": mappers}
