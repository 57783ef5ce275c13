"""A whole Converse body. The model is named in its address, not in it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Tool

from services.formats.bedrock_converse.blocks import cache_point
from services.formats.bedrock_converse.families import (
    takes_thinking,
    tells_stop_sequence,
    write_effort,
    write_top_k,
)
from services.formats.bedrock_converse.messages import MessageWriter
from services.formats.documents import (
    merge,
    raw_of,
    read_value,
    says_something,
    write_object,
)
from services.formats.errors import FormatError
from services.formats.messages import drop_tool_choice
from services.formats.receipts import Receipts

# Parameters that only this format has: a caller who sends them in another format means them.
PARAMETERS = frozenset(
    {
        "additionalModelRequestFields",
        "additionalModelResponseFieldPaths",
        "guardrailConfig",
        "inferenceConfig",
        "outputConfig",
        "performanceConfig",
        "promptVariables",
        "requestMetadata",
        "serviceTier",
    }
)
# Of other formats, already read into a field of the chat.
_READ_ELSEWHERE = frozenset({"thinking", "output_config", "response_format"})
_TIERS = frozenset({"default", "flex", "priority"})
_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}")


def write_request(
    chat: ChatInput, model: str, *, output_cap: int = 0
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a Converse body, the same for an answer at once and for a stream.

    `output_cap` is asked for when the caller named no limit. Raises FormatError for content
    that this format has no word for.
    """
    receipts = Receipts()
    writer = MessageWriter(receipts)
    system, messages = writer.write(chat.messages)
    fields: dict[str, Any] = {"messages": messages}
    receipts.translated("model", model)
    if system:
        fields["system"] = system
    inference = _inference(chat, receipts, output_cap)
    extra = _extra(chat, model, inference, receipts)
    for name, value in (("inferenceConfig", inference), ("additionalModelRequestFields", extra)):
        if value:
            fields[name] = value
    tools = _tools(chat, list(writer.called), receipts)
    if tools:
        fields["toolConfig"] = tools
    if chat.stop and tells_stop_sequence(model):
        fields["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
    _write_schema(fields, chat, receipts)
    _write_user(fields, chat, receipts)
    _write_extension(fields, chat, receipts)
    return write_object(fields), receipts.all()


def _inference(chat: ChatInput, receipts: Receipts, output_cap: int) -> dict[str, Any]:
    inference: dict[str, Any] = {}
    if chat.HasField("max_tokens"):
        inference["maxTokens"] = chat.max_tokens
        receipts.translated("max_tokens", "inferenceConfig.maxTokens")
    elif output_cap:
        inference["maxTokens"] = output_cap
        receipts.added("max_tokens", str(output_cap))
    if chat.HasField("temperature"):
        inference["temperature"] = min(chat.temperature, 1.0)
        if chat.temperature > 1:
            receipts.clamped("temperature", "1, the largest of this provider")
        else:
            receipts.translated("temperature", "inferenceConfig.temperature")
    if chat.HasField("top_p"):
        inference["topP"] = chat.top_p
        receipts.translated("top_p", "inferenceConfig.topP")
    if chat.stop:
        inference["stopSequences"] = list(chat.stop)
        receipts.translated("stop", "inferenceConfig.stopSequences")
    if chat.HasField("seed"):
        receipts.dropped("seed", "this provider has no seed")
    return inference


def _extra(chat: ChatInput, model: str, inference: dict[str, Any], receipts: Receipts) -> dict[str, Any]:
    """Return what only some models take."""
    extra: dict[str, Any] = {}
    thinking = chat.extension_json.get("thinking", "null")
    if thinking != "null" and takes_thinking(thinking, chat, model):
        extra["thinking"] = raw_of(thinking)
        receipts.translated("thinking", "additionalModelRequestFields.thinking")
    write_top_k(extra, chat, model, receipts)
    write_effort(extra, inference, chat, model, receipts)
    return extra


def _tools(chat: ChatInput, called: list[str], receipts: Receipts) -> dict[str, Any] | None:
    tools: list[Any] = []
    for index, tool in enumerate(chat.tools):
        if tool.raw_json:
            receipts.dropped(f"tools[{index}]", f"{tool.name} is a tool of another provider")
            continue
        if any(says_something(name, text) for name, text in tool.extension_json.items()):
            receipts.dropped(f"tools[{index}]", "its vendor fields; the function stays")
        tools.append({"toolSpec": _specification(tool)})
        if tool.cache_hint_json:
            tools.append(cache_point(tool.cache_hint_json))
    if tools:
        receipts.translated("tools", "toolConfig.tools")
    choice = _tool_choice(chat, bool(tools), bool(called), receipts)
    if choice is None:
        return None
    if not tools:
        # The provider refuses calls in a conversation whose tools it is not told.
        tools = [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}} for name in called]
        receipts.added("tools", "those that were called before")
    return {"tools": tools, **choice}


def _specification(tool: Tool) -> dict[str, Any]:
    schema: Any = {"type": "object", "properties": {}}
    if tool.parameters_json:
        schema = raw_of(tool.parameters_json)
    specification: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": schema}}
    if tool.description:
        specification["description"] = tool.description
    if tool.strict:
        specification["strict"] = True
    return specification


def _tool_choice(
    chat: ChatInput, has_tools: bool, was_called: bool, receipts: Receipts
) -> dict[str, Any] | None:
    """Return the choice, perhaps empty; None when the tools are to be left out."""
    mode = chat.tool_choice.mode
    if chat.HasField("parallel_tool_calls") and has_tools:
        if chat.parallel_tool_calls:
            receipts.translated("parallel_tool_calls", "the provider's default")
        else:
            receipts.dropped("parallel_tool_calls", "this provider cannot be kept from parallel calls")
    if not has_tools:
        drop_tool_choice(chat, receipts)
        return {} if was_called else None
    match mode:
        case "none" if was_called:
            receipts.dropped("tool_choice", "this provider must be told the tools that were called before")
            return {}
        case "none":
            receipts.translated("tool_choice", "the tools are left out")
            return None
        case "required":
            receipts.translated("tool_choice", "toolConfig.toolChoice.any")
            return {"toolChoice": {"any": {}}}
        case "named":
            receipts.translated("tool_choice", "toolConfig.toolChoice.tool")
            return {"toolChoice": {"tool": {"name": chat.tool_choice.name}}}
        case "auto":
            receipts.translated("tool_choice", "toolConfig.toolChoice.auto")
            return {"toolChoice": {"auto": {}}}
    return {}


class _JsonSchema(msgspec.Struct):
    name: str | None = None
    description: str | None = None


class _ResponseFormat(msgspec.Struct):
    json_schema: _JsonSchema | None = None


def _write_schema(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    if not chat.response_schema_json:
        return
    # The provider wants the schema as a text.
    definition = {"schema": chat.response_schema_json}
    named = _JsonSchema()
    if "response_format" in chat.extension_json:
        raw = chat.extension_json["response_format"].encode()
        named = read_value(raw, _ResponseFormat, "response_format").json_schema or named
    for name, value in (("name", named.name), ("description", named.description)):
        if value:
            definition[name] = value
    structure = {"jsonSchema": definition}
    fields["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": structure}}
    receipts.translated("response_format", "outputConfig.textFormat")


def _write_user(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    if not chat.user:
        return
    if _METADATA.fullmatch(chat.user):
        fields["requestMetadata"] = {"user": chat.user}
        receipts.translated("user", "requestMetadata.user")
    else:
        receipts.dropped("user", "this provider does not take these characters")


def _write_extension(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    for name, text in chat.extension_json.items():
        if not says_something(name, text):
            continue
        if name in PARAMETERS:
            merge(fields, {name: text})
            receipts.forwarded(name)
        elif name == "service_tier":
            _write_tier(fields, text, receipts)
        elif name in _READ_ELSEWHERE and _was_read(name, fields, chat):
            if name == "output_config":
                receipts.translated(name, "as reasoning_effort and response_format")
        else:
            receipts.dropped(name, "this provider's format has no such parameter")


def _was_read(name: str, fields: dict[str, Any], chat: ChatInput) -> bool:
    if name == "response_format":
        return bool(chat.response_schema_json)
    if name == "thinking":
        return "thinking" in fields.get("additionalModelRequestFields", {}) or bool(chat.reasoning_effort)
    return bool(chat.reasoning_effort or chat.response_schema_json)


def _write_tier(fields: dict[str, Any], text: str, receipts: Receipts) -> None:
    try:
        tier = read_value(text.encode(), str, "service_tier")
    except FormatError:
        tier = ""
    if tier in _TIERS:
        fields["serviceTier"] = {"type": tier}
        receipts.translated("service_tier", "serviceTier")
    elif tier == "auto":
        receipts.translated("service_tier", "the provider's default")
    else:
        receipts.dropped("service_tier", "this provider has no such tier")
