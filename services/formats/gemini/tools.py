"""Tools and how to choose among them, both ways."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, Tool, ToolChoice

from services.formats.documents import (
    Fields,
    is_null,
    keep,
    merge,
    raw_of,
    read_value,
    says_something,
    take,
    take_text,
    text_of,
)
from services.formats.errors import invalid
from services.formats.gemini.schema import receipt_schema, reduce_schema
from services.formats.messages import drop_tool_choice
from services.formats.receipts import Receipts

# Marks in Tool.extension_json: the list a declaration stood in, and the name of its schema.
_GROUP, _SCHEMA = "@group", "@schema"
_DECLARATIONS = "functionDeclarations"
_SCHEMA_NAMES = ("parametersJsonSchema", "parameters")


def read_tools(fields: Fields) -> list[Tool]:
    """Take `tools`: functions one by one, tools of the vendor as they are."""
    raws = take(fields, "tools", list[msgspec.Raw], "")
    if raws is None:
        return []
    if not raws:
        fields["tools"] = msgspec.Raw(b"[]")
    tools: list[Tool] = []
    for index, raw in enumerate(raws):
        path = f"tools[{index}]"
        tool = read_value(raw, Fields, path)
        declared = take(tool, _DECLARATIONS, list[msgspec.Raw], path)
        if tool or not declared:
            name = next(iter(tool), _DECLARATIONS)
            tools.append(Tool(name=name[:128] or "tool", raw_json=text_of(raw)))
            continue
        for position, declaration in enumerate(declared):
            tools.append(_read_declaration(declaration, f"{path}.{_DECLARATIONS}[{position}]"))
            tools[-1].extension_json[_GROUP] = str(index)
    return tools


def _read_declaration(raw: msgspec.Raw, path: str) -> Tool:
    fields = read_value(raw, Fields, path)
    name = take_text(fields, "name", path)
    if not name:
        raise invalid(f"{path}.name", "a function needs a name")
    tool = Tool(name=name, description=take_text(fields, "description", path))
    for key in _SCHEMA_NAMES:
        if not is_null(fields.get(key, b"null")):
            tool.parameters_json = text_of(fields.pop(key))
            tool.extension_json[_SCHEMA] = key
            break
    keep(fields, tool.extension_json)
    return tool


def write_own_tools(fields: dict[str, Any], chat: ChatInput) -> None:
    """Add the tools of a conversation that came in this format."""
    tools: list[Any] = []
    for group, members in groupby(chat.tools, key=lambda tool: tool.extension_json.get(_GROUP, "")):
        if not group:
            tools.extend(raw_of(tool.raw_json) for tool in members)
            continue
        tools.append({_DECLARATIONS: [_write_own(tool) for tool in members]})
    if tools:
        fields["tools"] = tools


def _write_own(tool: Tool) -> dict[str, Any]:
    declaration = _declaration(tool)
    if tool.parameters_json:
        declaration[tool.extension_json[_SCHEMA]] = raw_of(tool.parameters_json)
    return merge(declaration, tool.extension_json)


def _declaration(tool: Tool) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": tool.name}
    if tool.description:
        declaration["description"] = tool.description
    return declaration


def write_tools(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    """Add the tools of a conversation that came in another format."""
    declarations: list[Any] = []
    for index, tool in enumerate(chat.tools):
        path = f"tools[{index}]"
        if tool.raw_json:
            receipts.dropped(path, f"{tool.name} is a tool of another provider")
            continue
        declaration = _declaration(tool)
        if tool.parameters_json:
            schema, notes, lost = reduce_schema(tool.parameters_json)
            declaration["parametersJsonSchema"] = raw_of(schema)
            receipt_schema(f"{path}.parameters", notes, lost, receipts)
        if tool.strict:
            receipts.dropped(f"{path}.strict", "this provider does not enforce the schema of a tool")
        if tool.cache_hint_json:
            receipts.dropped("cache_control", "this provider's format has no such mark")
        if any(says_something(name, text) for name, text in tool.extension_json.items()):
            receipts.dropped(path, "its vendor fields; the function stays")
        declarations.append(declaration)
    if declarations:
        fields["tools"] = [{_DECLARATIONS: declarations}]
        receipts.translated("tools", _DECLARATIONS)


_MODES = {"AUTO": "auto", "NONE": "none", "ANY": "required"}
_WORDS = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}


class _FunctionCalling(msgspec.Struct, forbid_unknown_fields=True):
    mode: str
    allowedFunctionNames: list[str] | None = None  # noqa: N815 - the vendor's name


def read_tool_config(fields: Fields, chat: ChatInput) -> None:
    """Take the choice out of `toolConfig` when it says no more than we can."""
    if is_null(fields.get("toolConfig", b"null")):
        return
    config = read_value(fields["toolConfig"], Fields, "toolConfig")
    raw = config.get("functionCallingConfig", msgspec.Raw(b"null"))
    try:
        calling = msgspec.json.decode(raw, type=_FunctionCalling)
    except msgspec.ValidationError:
        return
    names = calling.allowedFunctionNames
    if calling.mode not in _MODES or (names is not None and (calling.mode != "ANY" or len(names) != 1)):
        return
    chat.tool_choice.CopyFrom(
        ToolChoice(mode="named", name=names[0]) if names else ToolChoice(mode=_MODES[calling.mode])
    )
    del config["functionCallingConfig"], fields["toolConfig"]
    if config:
        fields["toolConfig"] = msgspec.Raw(msgspec.json.encode(config))


def write_tool_config(fields: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool) -> None:
    """Say how to choose among the tools; the vendor refuses that where none of them is left."""
    if not own and "tools" not in fields:
        drop_tool_choice(chat, receipts)
        return
    if chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls:
        receipts.dropped("parallel_tool_calls", "this provider may always call several tools")
    elif chat.HasField("parallel_tool_calls"):
        receipts.translated("parallel_tool_calls", "this provider may always call several tools")
    if not chat.tool_choice.mode:
        return
    calling: dict[str, Any] = {"mode": _WORDS[chat.tool_choice.mode]}
    if chat.tool_choice.mode == "named":
        calling["allowedFunctionNames"] = [chat.tool_choice.name]
    fields["toolConfig"] = {"functionCallingConfig": calling}
    receipts.translated("tool_choice", f"functionCallingConfig {calling['mode']}")
