"""A whole Converse answer."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from omnihub.common.v1.chat_pb2 import Message

from services.formats.answers import Answer
from services.formats.bedrock_converse.blocks import read_block
from services.formats.bedrock_converse.outcome import (
    ResponseFields,
    Trace,
    WireUsage,
    model_of,
    read_finish,
    read_usage,
)
from services.formats.documents import (
    FORMAT,
    Fields,
    is_null,
    read_object,
    read_value,
    take,
    text_of,
    write_object,
)
from services.formats.errors import invalid

Value = TypeVar("Value")
# Marks in Message.extension_json: what an answer holds outside its content.
_TOP, _USAGE = "@response", "@usage"
_NAME = "bedrock_converse"


def read_response(body: bytes) -> Answer:
    """Read an answer. It names itself and its model only by what surrounds it. Raises FormatError."""
    fields = read_object(body)
    output = take(fields, "output", Fields, "")
    inner = take(output, "message", Fields, "output") if output is not None else None
    content = take(inner, "content", list[msgspec.Raw], "output.message") if inner is not None else None
    if content is None:
        raise invalid("output.message.content", "the answer has no message")
    message = Message(role="assistant")
    message.parts.extend(
        read_block(raw, f"output.message.content[{index}]") for index, raw in enumerate(content)
    )
    word = take(fields, "stopReason", str, "")
    if not word:
        raise invalid("stopReason", "the answer does not say why it ended")
    usage = None
    if not is_null(fields.get("usage", b"null")):
        raw = fields.pop("usage")
        usage = read_usage(read_value(raw, WireUsage, "usage"))
        message.extension_json[_USAGE] = text_of(raw)
    added = _peek(fields, "additionalModelResponseFields", ResponseFields)
    trace = _peek(fields, "trace", Trace)
    message.extension_json[FORMAT] = _NAME
    if fields:
        message.extension_json[_TOP] = write_object(fields).decode()
    return Answer(message, read_finish(word, added), usage, "", model_of(trace))


def _peek(fields: Fields, name: str, kind: type[Value]) -> Value | None:
    raw = fields.get(name)
    return None if raw is None or is_null(raw) else read_value(raw, kind, name)
