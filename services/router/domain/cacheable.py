"""Which requests may be answered from the cache, and which answers may be kept for them. Pure.

The key is a hash of what influences the answer: the organisation, the model it resolves to, the format, and
the body without what only says how to deliver it. Order of keys, blank space and `1` or `1.0` make no
difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, WireFormat

VERSION = 1
"""Part of every key: raise it when the same request should get another answer than before."""
# How to deliver the answer, or whom to tell: none of it changes what is answered.
_DELIVERY = frozenset(
    {
        "metadata",
        "model",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
# Wishes of a typed request that the plan has already answered, or that are not about the answer.
_ROUTING = (
    "agent_id",
    "extension_json",
    "latency_pref",
    "max_cost",
    "model",
    "models",
    "parallel",
    "priority",
    "response_schema_json",
    "tools",
    "user",
)
# Each makes the answer depend on more than the request, or has effects that a second answer would lack.
_FORBIDDEN = {
    "audio": "spoken answers are not kept",
    "background": "it runs in the background",
    "container": "the provider runs code",
    "conversation": "the provider keeps the conversation",
    "logprobs": "log probabilities are not kept",
    "mcp_servers": "the provider uses tools of its own",
    "modalities": "only text is kept",
    "previous_response_id": "the provider keeps the conversation",
    "prompt": "the provider keeps the prompt",
    "top_logprobs": "log probabilities are not kept",
    "web_search_options": "the provider searches the web",
}
_FUNCTIONS = frozenset({"", "custom", "function"})
_COMPLETE = frozenset({"stop", "length"})
_KEPT_PARTS = frozenset({"text", "reasoning"})


class Uncacheable(Exception):
    """A request that is never answered from the cache; the message says why."""


def raw_document(body: bytes, wire_format: WireFormat.ValueType) -> Any:
    """Return what of a caller's own body influences the answer. Raises Uncacheable."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Uncacheable("the body is not JSON") from None
    if not isinstance(document, dict):
        raise Uncacheable("the body is not an object")
    # Responses are kept by the provider unless the caller says no.
    responses = wire_format == WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
    if responses and document.get("store") is not False:
        raise Uncacheable("the provider stores the answer; send store: false")
    _check(document)
    _check_tools(document.get("tools"))
    return {name: value for name, value in document.items() if name not in _DELIVERY and value is not None}


def _check(document: Mapping[str, Any]) -> None:
    if document.get("store"):
        raise Uncacheable("the provider stores the answer")
    if document.get("n") not in (None, 1):
        raise Uncacheable("it asks for more than one answer")
    include = document.get("include")
    if isinstance(include, list) and "message.output_text.logprobs" in include:
        raise Uncacheable(_FORBIDDEN["logprobs"])
    for name, why in _FORBIDDEN.items():
        if document.get(name) not in (None, False, 0, ["text"]):
            raise Uncacheable(why)


def _check_tools(tools: Any) -> None:
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type", "") if isinstance(tool, dict) else ""
        if kind not in _FUNCTIONS:
            raise Uncacheable("the provider uses tools of its own")


def typed_document(chat: ChatInput) -> Any:
    """Return what of a typed conversation influences the answer. Raises Uncacheable."""
    if any(tool.raw_json for tool in chat.tools):
        raise Uncacheable("the provider uses tools of its own")
    more = _read_all(chat.extension_json)
    _check(more)
    plain = ChatInput()
    plain.CopyFrom(chat)
    for name in _ROUTING:
        plain.ClearField(name)  # type: ignore[arg-type]
    return {
        "chat": plain.SerializeToString(deterministic=True).hex(),
        "schema": _read(chat.response_schema_json),
        "tools": [
            [
                tool.name,
                tool.description,
                _read(tool.parameters_json),
                tool.strict,
                _read_all(tool.extension_json),
            ]
            for tool in chat.tools
        ],
        "more": {name: value for name, value in more.items() if name not in _DELIVERY},
    }


def _read_all(extension: Mapping[str, str]) -> dict[str, Any]:
    return {name: _read(value) for name, value in extension.items()}


def _read(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        return text


def key_of(
    document: Any,
    *,
    organisation_id: str,
    model: str,
    target: str,
    wire_format: int,
    headers: Mapping[str, str],
    strict: bool,
) -> str:
    """Return the hash of a request."""
    whole = [
        VERSION,
        organisation_id,
        model,
        target,
        wire_format,
        dict(headers),
        strict,
        _canonical(document),
    ]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> Any:
    """Return a value with its numbers written one way."""
    if isinstance(value, dict):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def may_keep(message: Message, finish: Finish) -> bool:
    """Tell whether an answer may be given again: whole, and nothing but text and thoughts.

    A call of a tool is an effect: whether it is to happen again is the caller's decision, not the cache's.
    """
    if finish.reason not in _COMPLETE:
        return False
    kinds: Iterable[str | None] = (part.WhichOneof("kind") for part in message.parts)
    return all(kind in _KEPT_PARTS for kind in kinds) and bool(message.content or message.parts)
