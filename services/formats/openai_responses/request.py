"""A whole responses body, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, Message, ParameterReceipt, Tool, ToolChoice, WireFormat

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
    starts_with,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.facts import is_filled
from services.formats.openai_responses.items import BARE, INSTRUCTIONS, ItemWriter, read_input
from services.formats.receipts import Receipts
from services.formats.search_results import as_text

_OWN = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
# Parameters that mean the same in the vendor's other format.
SHARED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
    }
)


def read_request(body: bytes) -> ChatInput:
    """Read a responses body. Raises FormatError naming the field that is wrong."""
    fields = read_object(body)
    chat = ChatInput(model=take(fields, "model", str, "") or "")
    if instructions := take_text(fields, "instructions", ""):
        message = chat.messages.add(role="system", content=instructions)
        message.extension_json[INSTRUCTIONS] = "true"
    given = fields.get("input")
    if given is not None and (starts_with(given, b'"') or is_filled(given)):
        chat.messages.extend(read_input(fields.pop("input")))
    elif given is not None and not is_null(given) and not starts_with(given, b"["):
        raise invalid("input", "expected a text or a list of items")
    _read_parameters(fields, chat)
    tools = fields.pop("tools", None)
    if tools is not None and is_filled(tools):
        for index, tool in enumerate(read_value(tools, list[msgspec.Raw], "tools")):
            chat.tools.append(_read_tool(tool, f"tools[{index}]"))
    elif tools is not None:
        fields["tools"] = tools
    _read_tool_choice(fields, chat)
    _read_text(fields, chat)
    fields.pop("stream", None)
    keep(fields, chat.extension_json)
    return chat


def _read_parameters(fields: Fields, chat: ChatInput) -> None:
    for name in ("temperature", "top_p"):
        if (number := take(fields, name, float, "")) is not None:
            setattr(chat, name, number)
    if (limit := take(fields, "max_output_tokens", int, "")) is not None:
        if not 0 < limit < 2**32:
            raise invalid("max_output_tokens", "expected a positive whole number")
        chat.max_tokens = limit
    if (parallel := take(fields, "parallel_tool_calls", bool, "")) is not None:
        chat.parallel_tool_calls = parallel
    chat.user = take_text(fields, "user", "")
    reasoning = take(fields, "reasoning", Fields, "")
    if reasoning is not None:
        chat.reasoning_effort = take_text(reasoning, "effort", "reasoning")
        if reasoning or not chat.reasoning_effort:
            fields["reasoning"] = msgspec.Raw(write_object(reasoning))


def _read_tool(raw: msgspec.Raw, path: str) -> Tool:
    fields = read_value(raw, Fields, path)
    kind = take(fields, "type", str, path)
    if not kind:
        raise invalid(f"{path}.type", "name the kind of the tool, such as function")
    if kind != "function":
        return Tool(name=kind[:128], raw_json=text_of(raw))
    name = take_text(fields, "name", path)
    if not name:
        raise invalid(f"{path}.name", "a function needs a name")
    tool = Tool(name=name, description=take_text(fields, "description", path))
    if not is_null(fields.get("parameters", b"null")):
        tool.parameters_json = text_of(fields.pop("parameters"))
    if (strict := take(fields, "strict", bool, path)) is not None:
        tool.strict = strict
    keep(fields, tool.extension_json)
    return tool


def _read_tool_choice(fields: Fields, chat: ChatInput) -> None:
    """Read a choice that every format has; any other stays as it is."""
    raw = fields.get("tool_choice")
    if raw is None or is_null(raw):
        return
    if starts_with(raw, b'"'):
        mode = read_value(raw, str, "tool_choice")
        if mode not in {"auto", "none", "required"}:
            raise invalid("tool_choice", "expected auto, none, required or a tool")
        chat.tool_choice.mode = mode
        del fields["tool_choice"]
        return
    choice = read_value(raw, Fields, "tool_choice")
    if choice.keys() == {"type", "name"} and bytes(choice["type"]) == b'"function"':
        name = read_value(choice["name"], str, "tool_choice.name")
        chat.tool_choice.CopyFrom(ToolChoice(mode="named", name=name))
        del fields["tool_choice"]


class _Format(msgspec.Struct):
    type: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"")


class _Text(msgspec.Struct):
    format: _Format | None = None


def _read_text(fields: Fields, chat: ChatInput) -> None:
    """Copy the schema to its field; the original stays, for it says more than the schema."""
    raw = fields.get("text")
    if raw is None or is_null(raw):
        return
    found = read_value(raw, _Text, "text").format
    if found is not None and found.type == "json_schema":
        if not found.schema:
            raise invalid("text.format.schema", "send the JSON Schema of the answer")
        chat.response_schema_json = text_of(found.schema)


def write_request(
    chat: ChatInput,
    model: str,
    stream: bool,
    *,
    source: WireFormat.ValueType = _OWN,
    output_cap: int = 0,
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a responses body.

    `source` is the format the raw JSON in `chat` came in, unspecified for typed callers.
    `output_cap` is asked for when the caller named no limit. Raises FormatError for content
    that this format has no word for.
    """
    receipts = Receipts()
    own = source == _OWN
    fields: dict[str, Any] = {"model": model}
    receipts.translated("model", model)
    _write_input(fields, list(as_text(chat.messages, receipts)), receipts, own)
    _write_parameters(fields, chat, receipts, output_cap, own)
    if chat.tools:
        _write_tools(fields, chat, receipts, own)
    if stream:
        fields["stream"] = True
    if own:
        merge(fields, chat.extension_json)
        for name in chat.extension_json:
            if not name.startswith(MARK):
                receipts.forwarded(name)
    else:
        _write_foreign(fields, chat, receipts)
    return write_object(fields), receipts.all()


def _write_input(fields: dict[str, Any], messages: list[Message], receipts: Receipts, own: bool) -> None:
    if own and messages and INSTRUCTIONS in messages[0].extension_json:
        fields["instructions"] = messages.pop(0).content
    if own and len(messages) == 1 and BARE in messages[0].extension_json:
        fields["input"] = messages[0].content
    elif messages:
        fields["input"] = ItemWriter(receipts, own).write(messages)


def _write_parameters(
    fields: dict[str, Any], chat: ChatInput, receipts: Receipts, output_cap: int, own: bool
) -> None:
    for name in ("temperature", "top_p", "parallel_tool_calls"):
        if chat.HasField(name):
            fields[name] = getattr(chat, name)
            receipts.forwarded(name)
    if chat.HasField("max_tokens"):
        fields["max_output_tokens"] = chat.max_tokens
        receipts.translated("max_tokens", "max_output_tokens")
    elif output_cap:
        fields["max_output_tokens"] = output_cap
        receipts.added("max_output_tokens", str(output_cap))
    if chat.user:
        fields["user"] = chat.user
        receipts.forwarded("user")
    if chat.reasoning_effort:
        fields["reasoning"] = {"effort": chat.reasoning_effort}
        receipts.translated("reasoning_effort", "reasoning.effort")
    mode = chat.tool_choice.mode
    if mode:
        named = {"type": "function", "name": chat.tool_choice.name}
        fields["tool_choice"] = named if mode == "named" else mode
        receipts.forwarded("tool_choice")
    for name, given in (
        ("stop", bool(chat.stop)),
        ("seed", chat.HasField("seed")),
        ("top_k", chat.HasField("top_k")),
    ):
        if given:
            receipts.dropped(name, "this provider's format has no such parameter")


def _write_tools(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    tools: list[Any] = []
    for index, tool in enumerate(chat.tools):
        if tool.raw_json:
            if own:
                tools.append(raw_of(tool.raw_json))
            else:
                receipts.dropped(f"tools[{index}]", f"{tool.name} is a tool of another provider")
            continue
        written: dict[str, Any] = {"type": "function", "name": tool.name}
        if tool.description:
            written["description"] = tool.description
        if tool.parameters_json:
            written["parameters"] = raw_of(tool.parameters_json)
        if tool.HasField("strict") or not own:  # Where nothing is said, this format means strict.
            written["strict"] = tool.strict
        if own:
            merge(written, tool.extension_json)
        elif tool.cache_hint_json or any(says_something(*entry) for entry in tool.extension_json.items()):
            receipts.dropped(f"tools[{index}]", "its caching and vendor fields; the function stays")
        tools.append(written)
    if tools:
        fields["tools"] = tools
        receipts.forwarded("tools") if own else receipts.translated("tools", "as this provider's tools")


# Parameters of other formats that have already been read into a field of the chat.
_READ_ELSEWHERE = frozenset({"thinking", "output_config"})


def _write_foreign(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    """Write what is special when the conversation came in another format."""
    fields["store"] = False
    receipts.added("store", "false")
    text: dict[str, Any] = {}
    if chat.response_schema_json:
        schema = raw_of(chat.response_schema_json)
        text["format"] = {"type": "json_schema", "name": "answer", "schema": schema, "strict": False}
        receipts.translated("response_format", "text.format")
    for name, raw in chat.extension_json.items():
        if not says_something(name, raw):
            continue
        if name in SHARED:
            fields[name] = raw_of(raw)
            receipts.forwarded(name)
        elif name == "response_format":
            # A schema has been read into its field; what else there is has the same form here.
            text.setdefault("format", raw_of(raw))
            receipts.translated(name, "text.format")
        elif name == "verbosity":
            text["verbosity"] = raw_of(raw)
            receipts.translated(name, "text.verbosity")
        elif name not in _READ_ELSEWHERE or not (chat.reasoning_effort or chat.response_schema_json):
            receipts.dropped(name, "this provider's format has no such parameter")
    if text:
        fields["text"] = text
