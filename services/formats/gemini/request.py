"""A whole generateContent body, both ways. The model is not in it: it is part of the address."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt

from services.formats.documents import (
    Fields,
    is_null,
    keep,
    merge,
    raw_of,
    read_object,
    read_value,
    says_something,
    take,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.gemini.messages import ContentWriter, read_content, read_system, write_own
from services.formats.gemini.parts import CallIds
from services.formats.gemini.schema import receipt_schema, reduce_schema
from services.formats.gemini.thinking import effort_of, write_thinking
from services.formats.gemini.tools import (
    read_tool_config,
    read_tools,
    write_own_tools,
    write_tool_config,
    write_tools,
)
from services.formats.receipts import Receipts
from services.formats.search_results import as_text

# Parameters that only this format has: a caller who sends them in another format means them.
PARAMETERS = frozenset({"cachedContent", "generationConfig", "safetySettings", "toolConfig"})
# Parameters of other formats for which this one has a word.
_WORDS = {
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
# Ids of calls that are read from a request are told apart by their number alone.
_REQUEST_CALLS = f"call_{0:032x}"
_JSON = "application/json"


def read_request(body: bytes) -> ChatInput:
    """Read a generateContent body. Raises FormatError naming the field that is wrong."""
    fields = read_object(body)
    chat = ChatInput()
    ids = CallIds(_REQUEST_CALLS)
    if not is_null(fields.get("systemInstruction", b"null")):
        chat.messages.append(read_system(fields.pop("systemInstruction"), ids))
    contents = take(fields, "contents", list[msgspec.Raw], "")
    if not contents:
        raise invalid("contents", "send at least one content")
    for index, raw in enumerate(contents):
        chat.messages.append(read_content(raw, f"contents[{index}]", ids))
    _read_config(fields, chat)
    chat.tools.extend(read_tools(fields))
    read_tool_config(fields, chat)
    keep(fields, chat.extension_json)
    return chat


def _read_config(fields: Fields, chat: ChatInput) -> None:
    if is_null(fields.get("generationConfig", b"null")):
        return
    path = "generationConfig"
    config = read_value(fields["generationConfig"], Fields, path)
    count = len(config)
    for name, field in (("temperature", "temperature"), ("topP", "top_p")):
        if (number := take(config, name, float, path)) is not None:
            setattr(chat, field, number)
    for name, field in (("topK", "top_k"), ("seed", "seed"), ("maxOutputTokens", "max_tokens")):
        whole = take(config, name, float, path)
        if whole is None:
            continue
        if whole.is_integer() and 0 <= whole < 2**32:
            setattr(chat, field, int(whole))
        else:  # It travels on as it is: the provider's range is wider than ours.
            config[name] = msgspec.Raw(msgspec.json.encode(whole))
    stop = take(config, "stopSequences", list[str], path)
    chat.stop.extend(stop or ())
    if stop == []:
        config["stopSequences"] = msgspec.Raw(b"[]")
    if not is_null(config.get("responseJsonSchema", b"null")):
        chat.response_schema_json = text_of(config.pop("responseJsonSchema"))
    chat.reasoning_effort = effort_of(config.get("thinkingConfig"))
    if config or not count:
        fields["generationConfig"] = msgspec.Raw(write_object(config))
    else:
        del fields["generationConfig"]


def write_request(
    chat: ChatInput, model: str, *, own: bool = True, output_cap: int = 0
) -> tuple[bytes, list[ParameterReceipt]]:
    """Write a conversation as a generateContent body for `model`.

    `own` says that the raw JSON in `chat` is in this format. `output_cap` is asked for when the
    caller named no limit. Raises FormatError for content that this format has no word for.
    """
    receipts = Receipts()
    writer = ContentWriter(receipts, model)
    if own:
        system, contents = write_own(chat.messages)
    else:
        system, contents = writer.write(as_text(chat.messages, receipts))
    fields: dict[str, Any] = {"contents": contents}
    receipts.translated("model", model)
    if system is not None:
        fields["systemInstruction"] = system
    config = _write_config(chat, receipts, output_cap)
    if own:
        if chat.response_schema_json:
            config["responseJsonSchema"] = raw_of(chat.response_schema_json)
        write_own_tools(fields, chat)
    else:
        _write_schema(config, chat, receipts)
        thinking = write_thinking(chat.reasoning_effort, model, receipts)
        if thinking is not None:
            config["thinkingConfig"] = thinking
        write_tools(fields, chat, receipts)
    write_tool_config(fields, chat, receipts, own)
    if config:
        fields["generationConfig"] = config
    _write_extension(fields, config, chat, receipts, own)
    return write_object(fields), receipts.all()


def _write_config(chat: ChatInput, receipts: Receipts, output_cap: int) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, word in (
        ("temperature", "temperature"),
        ("top_p", "topP"),
        ("top_k", "topK"),
        ("seed", "seed"),
    ):
        if chat.HasField(name):  # type: ignore[arg-type]
            config[word] = getattr(chat, name)
            receipts.translated(name, f"generationConfig.{word}")
    if chat.HasField("max_tokens"):
        config["maxOutputTokens"] = chat.max_tokens
        receipts.translated("max_tokens", "generationConfig.maxOutputTokens")
    elif output_cap:
        config["maxOutputTokens"] = output_cap
        receipts.added("max_tokens", str(output_cap))
    if chat.stop:
        config["stopSequences"] = list(chat.stop)
        receipts.translated("stop", "generationConfig.stopSequences")
    if chat.user:
        receipts.dropped("user", "this provider takes no id of the end user")
    return config


def _takes(name: str, text: str) -> bool:
    """Tell whether the provider takes this value of a parameter that formats give different types."""
    if name == "logprobs":
        return text in ("true", "false")
    return name != "top_logprobs" or text.isdigit()


class _ResponseFormat(msgspec.Struct):
    type: str = ""


def _write_schema(config: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    """Ask for JSON, by the schema if there is one."""
    if chat.response_schema_json:
        schema, notes, lost = reduce_schema(chat.response_schema_json)
        config["responseMimeType"] = _JSON
        config["responseJsonSchema"] = raw_of(schema)
        receipts.translated("response_format", "generationConfig.responseJsonSchema")
        receipt_schema("response_format.schema", notes, lost, receipts)
        return
    raw = chat.extension_json.get("response_format", "null")
    if (
        raw.startswith("{")
        and read_value(raw.encode(), _ResponseFormat, "response_format").type == "json_object"
    ):
        config["responseMimeType"] = _JSON
        receipts.translated("response_format", "generationConfig.responseMimeType")


def _write_extension(
    fields: dict[str, Any], config: dict[str, Any], chat: ChatInput, receipts: Receipts, own: bool
) -> None:
    for name, text in chat.extension_json.items():
        if own or name in PARAMETERS:
            merge(fields, {name: text})
            receipts.forwarded(name)
        elif name in _WORDS and text != "null" and _takes(name, text):
            config[_WORDS[name]] = raw_of(text)
            fields["generationConfig"] = config
            receipts.translated(name, f"generationConfig.{_WORDS[name]}")
        elif name in {"response_format", "output_config", "thinking"} and (
            "responseMimeType" in config or "thinkingConfig" in config
        ):
            receipts.translated(name, "in generationConfig")
        elif says_something(name, text):
            receipts.dropped(name, "this provider's format has no such parameter")
