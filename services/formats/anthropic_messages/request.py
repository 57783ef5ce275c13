"""A whole messages body, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Tool, WireFormat

from services.formats.anthropic_messages.messages import MessageWriter, read_message, read_system
from services.formats.anthropic_messages.reasoning import effort_of, refusal_to_think, write_thinking
from services.formats.documents import (
    MARK,
    Fields,
    is_null,
    keep,
    merge,
    raw_of,
    read_object,
    read_value,
    says_something,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.messages import drop_tool_choice
from services.formats.receipts import Receipts

_OWN = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
# Required by the format; asked for when neither the caller nor the platform names a limit.
DEFAULT_MAX_TOKENS = 4096
# Parameters that only this format has: a caller who sends them in another format means them.
PARAMETERS = frozenset(
    {"cache_control", "container", "context_management", "inference_geo", "mcp_servers", "speed", "thinking"}
)


def read_request(body: bytes) -> ChatInput:
    """Read a messages body. Raises FormatError naming the field that is wrong."""
    fields = read_object(body)
    chat = ChatInput(model=take(fields, "model", str, "") or "")
    system = fields.get("system")
    if system is not None and not is_null(system):
        chat.messages.append(read_system(fields.pop("system")))
    messages = take(fields, "messages", list[msgspec.Raw], "")
    if not messages:
        raise invalid("messages", "send at least one message")
    chat.messages.extend(read_message(raw, f"messages[{index}]") for index, raw in enumerate(messages))
    _read_parameters(fields, chat)
    for index, tool in enumerate(take(fields, "tools", list[msgspec.Raw], "") or ()):
        chat.tools.append(_read_tool(tool, f"tools[{index}]"))
    _read_tool_choice(fields, chat)
    _read_output_config(fields, chat)
    chat.reasoning_effort = chat.reasoning_effort or effort_of(fields.get("thinking"))
    fields.pop("stream", None)
    keep(fields, chat.extension_json)
    return chat


class _Metadata(msgspec.Struct):
    user_id: str | None = None


def _read_parameters(fields: Fields, chat: ChatInput) -> None:
    limit = take(fields, "max_tokens", int, "")
    if limit is not None:
        if not 0 < limit < 2**32:
            raise invalid("max_tokens", "expected a positive whole number")
        chat.max_tokens = limit
    for name in ("temperature", "top_p"):
        if (number := take(fields, name, float, "")) is not None:
            setattr(chat, name, number)
    if (top_k := take(fields, "top_k", int, "")) is not None:
        chat.top_k = max(0, min(top_k, 2**32 - 1))
    chat.stop.extend(take(fields, "stop_sequences", list[str], "") or ())
    metadata = take(fields, "metadata", Fields, "")
    if metadata is not None:
        chat.user = take_text(metadata, "user_id", "metadata")
        if metadata or not chat.user:
            fields["metadata"] = msgspec.Raw(msgspec.json.encode(metadata))


def _read_tool(raw: msgspec.Raw, path: str) -> Tool:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    name = take_text(fields, "name", path)
    if kind not in {None, "custom"}:
        return Tool(name=(name or kind or "tool")[:128], raw_json=text_of(raw))
    if not name:
        raise invalid(f"{path}.name", "a tool needs a name")
    tool = Tool(name=name, description=take_text(fields, "description", path))
    if kind:
        fields["type"] = msgspec.Raw(b'"custom"')
    if (hint := fields.pop("cache_control", None)) is not None:
        tool.cache_hint_json = text_of(hint)
    if not is_null(fields.get("input_schema", b"null")):
        tool.parameters_json = text_of(fields.pop("input_schema"))
    if (strict := take(fields, "strict", bool, path)) is not None:
        tool.strict = strict
    keep(fields, tool.extension_json)
    return tool


_MODES = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
_TYPES = {mode: kind for kind, mode in _MODES.items()}


def _read_tool_choice(fields: Fields, chat: ChatInput) -> None:
    choice = take(fields, "tool_choice", Fields, "")
    if choice is None:
        return
    kind = take(choice, "type", str, "tool_choice")
    if kind not in _MODES:
        raise invalid("tool_choice.type", "expected auto, any, tool or none")
    chat.tool_choice.mode = _MODES[kind]
    chat.tool_choice.name = take_text(choice, "name", "tool_choice")
    if (disabled := take(choice, "disable_parallel_tool_use", bool, "tool_choice")) is not None:
        chat.parallel_tool_calls = not disabled
    if choice:
        fields["tool_choice"] = msgspec.Raw(msgspec.json.encode(choice))


class _Format(msgspec.Struct):
    type: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"")


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


def _read_output_config(fields: Fields, chat: ChatInput) -> None:
    """Copy schema and effort to their fields; the original stays, for it says more."""
    raw = fields.get("output_config")
    if raw is None or is_null(raw):
        return
    found = read_value(raw, _OutputConfig, "output_config")
    if found.format is not None and found.format.type == "json_schema":
        if not found.format.schema:
            raise invalid("output_config.format.schema", "send the JSON Schema of the answer")
        chat.response_schema_json = text_of(found.format.schema)
    chat.reasoning_effort = {"xhigh": "high", "max": "high"}.get(found.effort or "", found.effort or "")


def write_request(
    chat: ChatInput,
    model: str,
    stream: bool,
    *,
    source: WireFormat.ValueType = _OWN,
    output_cap: int = 0,
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a messages body.

    `source` is the format the raw JSON in `chat` came in, unspecified for typed callers.
    `output_cap` is asked for when the caller named no limit. Raises FormatError for content
    that this format has no word for.
    """
    receipts = Receipts()
    own = source == _OWN
    system, messages = MessageWriter(receipts, own).write(chat.messages)
    fields: dict[str, Any] = {"model": model, "messages": messages}
    receipts.translated("model", model)
    if system is not None:
        fields["system"] = system
    _write_limit(fields, chat, receipts, output_cap)
    if chat.tools:
        _write_tools(fields, chat, receipts, own)
    _write_tool_choice(fields, chat, receipts, own)
    _write_parameters(fields, chat, receipts, own)
    if not own:
        _write_schema(fields, chat, receipts)
        write_thinking(fields, chat, receipts)
    _write_extension(fields, chat, receipts, own)
    if stream:
        fields["stream"] = True
    return write_object(fields), receipts.all()


def _write_limit(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, output_cap: int) -> None:
    if chat.HasField("max_tokens"):
        fields["max_tokens"] = chat.max_tokens
        receipts.forwarded("max_tokens")
    else:
        fields["max_tokens"] = output_cap or DEFAULT_MAX_TOKENS
        receipts.added("max_tokens", str(fields["max_tokens"]))


def _write_tools(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    tools: list[Any] = []
    for index, tool in enumerate(chat.tools):
        if tool.raw_json:
            if own:
                tools.append(raw_of(tool.raw_json))
            else:
                receipts.dropped(f"tools[{index}]", f"{tool.name} is a tool of another provider")
            continue
        schema = tool.parameters_json
        written: dict[str, Any] = {"name": tool.name}
        if schema or not own:
            written["input_schema"] = raw_of(schema) if schema else {"type": "object", "properties": {}}
        if tool.description:
            written["description"] = tool.description
        if tool.HasField("strict") and (own or tool.strict):
            written["strict"] = tool.strict
        if tool.cache_hint_json:
            written["cache_control"] = raw_of(tool.cache_hint_json)
        if own:
            merge(written, tool.extension_json)
        elif any(says_something(name, text) for name, text in tool.extension_json.items()):
            receipts.dropped(f"tools[{index}]", "its vendor fields; the function stays")
        tools.append(written)
    if tools:
        fields["tools"] = tools
        receipts.forwarded("tools") if own else receipts.translated("tools", "as this provider's tools")


def _write_tool_choice(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    mode = chat.tool_choice.mode
    parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else None
    if not own and not fields.get("tools"):
        drop_tool_choice(chat, receipts)
        return
    if not mode and parallel and not own:
        receipts.translated("parallel_tool_calls", "this provider does that by itself")
        return
    if not mode and parallel is None:
        return
    choice: dict[str, Any] = {"type": _TYPES[mode or "auto"]}
    if chat.tool_choice.name:
        choice["name"] = chat.tool_choice.name
    if parallel is not None and (own or choice["type"] != "none"):
        choice["disable_parallel_tool_use"] = not parallel
        receipts.translated("parallel_tool_calls", "tool_choice.disable_parallel_tool_use")
    elif parallel is not None:
        receipts.translated("parallel_tool_calls", "no tool is to be called")
    fields["tool_choice"] = choice
    if mode:
        receipts.forwarded("tool_choice") if own else receipts.translated("tool_choice", choice["type"])


def _write_parameters(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    if chat.HasField("temperature"):
        fields["temperature"] = chat.temperature if own else min(chat.temperature, 1.0)
        if fields["temperature"] != chat.temperature:
            receipts.clamped("temperature", "1, the largest of this provider")
        else:
            receipts.forwarded("temperature")
    for name in ("top_p", "top_k"):
        if chat.HasField(name):
            fields[name] = getattr(chat, name)
            receipts.forwarded(name)
    if chat.HasField("seed"):
        receipts.dropped("seed", "this provider has no seed")
    if chat.stop:
        fields["stop_sequences"] = list(chat.stop)
        receipts.translated("stop", "stop_sequences")
    if chat.user:
        fields["metadata"] = {"user_id": chat.user}
        receipts.translated("user", "metadata.user_id")


def _write_schema(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    if chat.response_schema_json:
        schema = raw_of(chat.response_schema_json)
        fields["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        receipts.translated("response_format", "output_config.format")


def _write_extension(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    for name, text in chat.extension_json.items():
        if name == "thinking" and (reason := refusal_to_think(text, chat, own)):
            receipts.dropped(name, reason)
        elif own or (name in PARAMETERS and name not in fields):
            merge(fields, {name: text})
            if not name.startswith(MARK):
                receipts.forwarded(name)
        elif name == "response_format" and chat.response_schema_json:
            continue
        elif says_something(name, text):
            receipts.dropped(name, "this provider's format has no such parameter")
