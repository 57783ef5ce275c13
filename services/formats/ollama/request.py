"""A whole chat body."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt

from services.formats.documents import merge, raw_of, read_value, says_something, write_object
from services.formats.ollama.messages import MessageWriter
from services.formats.receipts import Receipts
from services.formats.search_results import as_text

# Parameters that only this format has: a caller who sends them in another format means them.
PARAMETERS = frozenset({"format", "keep_alive", "options", "think"})
# Parameters of another format that are the same here, and the type of their values.
_SAME = {"logprobs": re.compile(r"true|false"), "top_logprobs": re.compile(r"\d+")}
# Parameters of other formats that are options here, under the same name.
_OPTIONS = frozenset({"frequency_penalty", "presence_penalty"})
# This family takes a level; the others only take thinking or not.
_WITH_LEVELS = "gpt-oss"
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}


def write_request(
    chat: ChatInput, model: str, stream: bool, *, output_cap: int = 0
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a chat body.

    `output_cap` is asked for when the caller named no limit. Raises FormatError for content that
    this format has no word for.
    """
    receipts = Receipts()
    messages = MessageWriter(receipts).write(as_text(chat.messages, receipts))
    fields: dict[str, Any] = {"model": model, "messages": messages, "stream": stream}
    receipts.translated("model", model)
    _write_tools(fields, chat, receipts)
    _write_options(fields, chat, receipts, output_cap)
    _write_schema(fields, chat, receipts)
    if chat.reasoning_effort:
        fields["think"] = _think(chat.reasoning_effort, model)
        receipts.translated("reasoning_effort", f"think {msgspec.json.encode(fields['think']).decode()}")
    if chat.user:
        receipts.dropped("user", "this provider takes no id of the end user")
    _write_extension(fields, chat, receipts)
    return write_object(fields), receipts.all()


def _think(effort: str, model: str) -> bool | str:
    if effort == "none":
        return False
    return _LEVELS.get(effort, "high") if _WITH_LEVELS in model else True


def _write_tools(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    mode = chat.tool_choice.mode
    if mode in {"required", "named"}:
        receipts.dropped("tool_choice", "this provider cannot be made to call a tool")
    elif mode:
        receipts.translated("tool_choice", "without tools" if mode == "none" else "the model chooses")
    if chat.parallel_tool_calls:
        receipts.translated("parallel_tool_calls", "the model chooses")
    elif chat.HasField("parallel_tool_calls"):
        receipts.dropped("parallel_tool_calls", "this provider may always call several tools")
    tools: list[Any] = []
    for index, tool in enumerate(chat.tools):
        if tool.raw_json:
            receipts.dropped(f"tools[{index}]", f"{tool.name} is a tool of another provider")
            continue
        function: dict[str, Any] = {"name": tool.name, "description": tool.description}
        function["parameters"] = raw_of(tool.parameters_json or '{"type":"object","properties":{}}')
        if tool.strict:
            receipts.dropped(f"tools[{index}].strict", "this provider does not enforce the schema of a tool")
        if tool.cache_hint_json or any(says_something(*field) for field in tool.extension_json.items()):
            receipts.dropped(f"tools[{index}]", "its caching and vendor fields; the function stays")
        tools.append({"type": "function", "function": function})
    if tools:
        receipts.translated("tools", "as this provider's tools")
        if mode != "none":
            fields["tools"] = tools


def _write_options(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, output_cap: int) -> None:
    options: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "seed"):
        if chat.HasField(name):
            options[name] = getattr(chat, name)
            receipts.translated(name, f"options.{name}")
    for name in sorted(_OPTIONS & chat.extension_json.keys()):
        if chat.extension_json[name] != "null":
            options[name] = raw_of(chat.extension_json[name])
            receipts.translated(name, f"options.{name}")
    if chat.stop:
        options["stop"] = list(chat.stop)
        receipts.translated("stop", "options.stop")
    if chat.HasField("max_tokens"):
        options["num_predict"] = chat.max_tokens
        receipts.translated("max_tokens", "options.num_predict")
    elif output_cap:
        options["num_predict"] = output_cap
        receipts.added("max_tokens", str(output_cap))
    if options:
        fields["options"] = options


class _ResponseFormat(msgspec.Struct):
    type: str = ""


def _write_schema(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    if chat.response_schema_json:
        fields["format"] = raw_of(chat.response_schema_json)
        receipts.translated("response_format", "format")
        return
    raw = chat.extension_json.get("response_format", "null")
    if (
        raw.startswith("{")
        and read_value(raw.encode(), _ResponseFormat, "response_format").type == "json_object"
    ):
        fields["format"] = "json"
        receipts.translated("response_format", "format")


def _write_extension(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    for name, text in chat.extension_json.items():
        if name in PARAMETERS or (name in _SAME and _SAME[name].fullmatch(text)):
            merge(fields, {name: text})
            receipts.forwarded(name)
        elif name in _OPTIONS or (name == "response_format" and "format" in fields):
            continue
        elif name in {"thinking", "output_config"} and ("think" in fields or "format" in fields):
            receipts.translated(name, "as think and format")
        elif says_something(name, text):
            receipts.dropped(name, "this provider's format has no such parameter")
