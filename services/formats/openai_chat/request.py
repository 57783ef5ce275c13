"""A whole chat completion body, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Tool, ToolChoice, WireFormat

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
from services.formats.openai_chat.messages import MessageWriter, read_message
from services.formats.receipts import Receipts
from services.formats.search_results import as_text

_OWN = WireFormat.WIRE_FORMAT_OPENAI_CHAT
# Marks in ChatInput.extension_json: how the caller wrote what has a field.
LIMIT_NAME = "@output_limit"
_STOP_FORM = "@stop"
# Parameters that only this format has: a caller who sends them in another format means them.
PARAMETERS = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "modalities",
        "presence_penalty",
        "prompt_cache_key",
        "safety_identifier",
        "store",
        "top_logprobs",
        "verbosity",
    }
)
# Parameters of responses that mean the same here. What cannot be asked for is how an answer is kept.
_FROM_RESPONSES = PARAMETERS - {"store"} | {
    "metadata",
    "prompt_cache_options",
    "prompt_cache_retention",
    "response_format",
    "service_tier",
}


def read_request(body: bytes) -> ChatInput:
    """Read a chat completion body. Raises FormatError naming the field that is wrong."""
    fields = read_object(body)
    chat = ChatInput(model=take(fields, "model", str, "") or "")
    messages = take(fields, "messages", list[msgspec.Raw], "")
    if not messages:
        raise invalid("messages", "send at least one message")
    chat.messages.extend(read_message(raw, f"messages[{index}]") for index, raw in enumerate(messages))
    _read_parameters(fields, chat)
    for index, tool in enumerate(take(fields, "tools", list[msgspec.Raw], "") or ()):
        chat.tools.append(_read_tool(tool, f"tools[{index}]"))
    _read_tool_choice(fields, chat)
    _read_response_format(fields, chat)
    fields.pop("stream", None)
    _read_stream_options(fields)
    keep(fields, chat.extension_json)
    return chat


def _read_parameters(fields: Fields, chat: ChatInput) -> None:
    for name in ("temperature", "top_p"):
        if (number := take(fields, name, float, "")) is not None:
            setattr(chat, name, number)
    for name in ("seed", "top_k"):
        if (whole := take(fields, name, int, "")) is not None:
            if 0 <= whole < 2**32:
                setattr(chat, name, whole)
            else:  # It travels on as it is: the provider's range is wider than ours.
                fields[name] = msgspec.Raw(str(whole).encode())
    name = "max_completion_tokens"
    if is_null(fields.get(name, b"null")):
        name = "max_tokens"
        if not is_null(fields.get(name, b"null")):
            chat.extension_json[LIMIT_NAME] = name
    if (limit := take(fields, name, int, "")) is not None:
        if not 0 < limit < 2**32:
            raise invalid(name, "expected a positive whole number")
        chat.max_tokens = limit
    if (parallel := take(fields, "parallel_tool_calls", bool, "")) is not None:
        chat.parallel_tool_calls = parallel
    chat.reasoning_effort = take_text(fields, "reasoning_effort", "")
    chat.user = take_text(fields, "user", "")
    stop: str | list[str] | None = take(fields, "stop", str | list[str], "")  # type: ignore[arg-type]
    if isinstance(stop, str):
        chat.extension_json[_STOP_FORM] = "string"
        chat.stop.append(stop)
    elif stop:
        chat.stop.extend(stop)


def _read_tool(raw: msgspec.Raw, path: str) -> Tool:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path) or "function"
    function = take(fields, "function", Fields, path)
    if kind != "function":
        return Tool(name=kind[:128], raw_json=text_of(raw))
    name = take_text(function, "name", f"{path}.function") if function is not None else ""
    if function is None or not name:
        raise invalid(f"{path}.function.name", "a function needs a name")
    tool = Tool(name=name, description=take_text(function, "description", f"{path}.function"))
    if (hint := fields.pop("cache_control", None)) is not None:
        tool.cache_hint_json = text_of(hint)
    if not is_null(function.get("parameters", b"null")):
        tool.parameters_json = text_of(function.pop("parameters"))
    if (strict := take(function, "strict", bool, f"{path}.function")) is not None:
        tool.strict = strict
    if function:
        fields["function"] = msgspec.Raw(msgspec.json.encode(function))
    keep(fields, tool.extension_json)
    return tool


class _NamedFunction(msgspec.Struct):
    name: str = ""


class _NamedTool(msgspec.Struct):
    type: str = ""
    function: _NamedFunction | None = None


def _read_tool_choice(fields: Fields, chat: ChatInput) -> None:
    raw = fields.get("tool_choice")
    if raw is None or is_null(raw):
        return
    choice: str | _NamedTool = read_value(raw, str | _NamedTool, "tool_choice")  # type: ignore[arg-type]
    if isinstance(choice, str):
        if choice not in {"auto", "none", "required"}:
            raise invalid("tool_choice", "expected auto, none, required or a named function")
        chat.tool_choice.mode = choice
    elif choice.type == "function" and choice.function is not None:
        chat.tool_choice.CopyFrom(ToolChoice(mode="named", name=choice.function.name))
    else:
        return
    del fields["tool_choice"]


class _Schema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"")


class _ResponseFormat(msgspec.Struct):
    type: str = ""
    json_schema: _Schema | None = None


def _read_response_format(fields: Fields, chat: ChatInput) -> None:
    """Copy the schema to its field; the original stays, for it says more than the schema."""
    raw = fields.get("response_format")
    if raw is None or is_null(raw):
        return
    found = read_value(raw, _ResponseFormat, "response_format")
    if found.type == "json_schema":
        if found.json_schema is None or not found.json_schema.schema:
            raise invalid("response_format.json_schema.schema", "send the JSON Schema of the answer")
        chat.response_schema_json = text_of(found.json_schema.schema)


def _read_stream_options(fields: Fields) -> None:
    """Leave out the wish for a usage chunk: that is a matter of this surface alone."""
    options = take(fields, "stream_options", Fields, "")
    if options:
        options.pop("include_usage", None)
    if options:
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))


def write_request(
    chat: ChatInput,
    model: str,
    stream: bool,
    *,
    source: WireFormat.ValueType = _OWN,
    output_cap: int = 0,
    limit_name: str = "max_completion_tokens",
    details: bool = False,
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a chat completion body.

    `source` is the format the raw JSON in `chat` came in, unspecified for typed callers.
    `output_cap` is asked for when the caller named no limit. `details` says that the provider takes back
    thoughts in the details that it sent. Raises FormatError for content that this format has no word for.
    """
    receipts = Receipts()
    own = source in (_OWN, WireFormat.WIRE_FORMAT_UNSPECIFIED)
    messages = MessageWriter(receipts, own, details).write(as_text(chat.messages, receipts))
    fields: dict[str, Any] = {"model": model, "messages": messages}
    receipts.translated("model", model)
    _write_parameters(fields, chat, receipts, source)
    _write_tool_choice(fields, chat, receipts, source)
    _write_limit(fields, chat, receipts, output_cap, limit_name)
    if chat.tools:
        _write_tools(fields, chat, receipts, own)
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    taken = _FROM_RESPONSES if source == WireFormat.WIRE_FORMAT_OPENAI_RESPONSES else PARAMETERS
    _write_extension(fields, chat, receipts, own, taken)
    return write_object(fields), receipts.all()


def _write_parameters(
    fields: dict[str, Any], chat: ChatInput, receipts: Receipts, source: WireFormat.ValueType
) -> None:
    for name in ("temperature", "top_p", "seed"):
        if chat.HasField(name):
            fields[name] = getattr(chat, name)
            receipts.forwarded(name)
    if chat.HasField("top_k"):
        if source == WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES:
            receipts.dropped("top_k", "this provider's format has no top_k")
        else:
            fields["top_k"] = chat.top_k
            receipts.forwarded("top_k")
    if chat.stop:
        fields["stop"] = chat.stop[0] if chat.extension_json.get(_STOP_FORM) else list(chat.stop)
        receipts.forwarded("stop")
    for name in ("reasoning_effort", "user"):
        if getattr(chat, name):
            fields[name] = getattr(chat, name)
            receipts.forwarded(name)
    if chat.response_schema_json and "response_format" not in chat.extension_json:
        schema = {"name": "answer", "schema": raw_of(chat.response_schema_json)}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        receipts.translated("response_format", "asked for as response_format json_schema")


def _write_tool_choice(
    fields: dict[str, Any], chat: ChatInput, receipts: Receipts, source: WireFormat.ValueType
) -> None:
    """Say how to choose among the tools; the vendor refuses that where none of them is left."""
    kept = chat.tools if source == WireFormat.WIRE_FORMAT_UNSPECIFIED else _functions(chat)
    if not kept and source != _OWN:
        drop_tool_choice(chat, receipts)
        return
    if chat.HasField("parallel_tool_calls"):
        fields["parallel_tool_calls"] = chat.parallel_tool_calls
        receipts.forwarded("parallel_tool_calls")
    if chat.tool_choice.mode == "named":
        fields["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice.name}}
    elif chat.tool_choice.mode:
        fields["tool_choice"] = chat.tool_choice.mode
    if chat.tool_choice.mode:
        receipts.forwarded("tool_choice")


def _functions(chat: ChatInput) -> list[Tool]:
    """Return the tools that every vendor has."""
    return [tool for tool in chat.tools if not tool.raw_json]


def _write_limit(
    fields: dict[str, Any], chat: ChatInput, receipts: Receipts, output_cap: int, limit_name: str
) -> None:
    name = chat.extension_json.get(LIMIT_NAME, limit_name)
    if chat.HasField("max_tokens"):
        fields[name] = chat.max_tokens
        receipts.forwarded("max_tokens") if name == "max_tokens" else receipts.translated("max_tokens", name)
    elif output_cap:
        fields[name] = output_cap
        receipts.added(name, str(output_cap))


def _write_tools(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    tools: list[Any] = []
    for index, tool in enumerate(chat.tools):
        if tool.raw_json:
            if own:
                tools.append(raw_of(tool.raw_json))
            else:
                receipts.dropped(f"tools[{index}]", f"{tool.name} is a tool of another provider")
            continue
        tools.append(_write_tool(tool, own))
        if not own and (tool.cache_hint_json or tool.extension_json):
            receipts.dropped(f"tools[{index}]", "its caching and vendor fields; the function stays")
    if tools:
        fields["tools"] = tools
        receipts.forwarded("tools")


def _write_tool(tool: Tool, own: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = raw_of(tool.parameters_json)
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    fields: dict[str, Any] = {"type": "function", "function": function}
    if own:
        if tool.cache_hint_json:
            fields["cache_control"] = raw_of(tool.cache_hint_json)
        merge(fields, tool.extension_json)
    return fields


# Parameters of other formats that have already been read into a field of the chat.
_READ_ELSEWHERE = frozenset({"thinking", "output_config"})


def _write_extension(
    fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool, taken: frozenset[str]
) -> None:
    for name, text in chat.extension_json.items():
        if not says_something(name, text) and not own:
            continue
        if own or name in taken:
            merge(fields, {name: text})
            if not name.startswith(MARK):
                receipts.forwarded(name)
        elif name in _READ_ELSEWHERE and (chat.reasoning_effort or chat.response_schema_json):
            receipts.translated(name, "as reasoning_effort and response_format")
        else:
            receipts.dropped(name, "this provider's format has no such parameter")
