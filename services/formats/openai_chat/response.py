"""A whole chat completion, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Message, Part, TextPart, Usage

from services.formats.answers import Answer, AnswerFacts
from services.formats.details import read_detail, read_details
from services.formats.documents import (
    FORMAT,
    Fields,
    from_decode_error,
    is_null,
    merge,
    read_object,
    read_value,
    starts_with,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.openai_chat.citations import read_annotations, write_annotation
from services.formats.openai_chat.logprobs import read_logprobs, write_logprobs
from services.formats.openai_chat.messages import (
    DETAILS_FIELD,
    FIELD,
    REASONING_FIELDS,
    MessageWriter,
    read_message,
)
from services.formats.openai_chat.outcome import (
    FAILED,
    WireUsage,
    read_finish,
    read_usage,
    write_finish,
    write_usage,
)
from services.formats.receipts import Receipts

# Marks in Message.extension_json: what an answer holds outside its message.
_TOP, _CHOICE, _OTHERS, _USAGE = "@response", "@choice", "@choices", "@usage"
_NAME = "openai_chat"


class _Function(msgspec.Struct):
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: Any = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: WireUsage | None = None
    service_tier: Any = None


_facts_decoder = msgspec.json.Decoder(_Body)


def read_response_facts(body: bytes) -> AnswerFacts:
    """Read what the platform needs from an answer that is passed on. Raises FormatError."""
    try:
        read = _facts_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.choices:
        raise invalid("choices", "the answer has no choice")
    usage = read_usage(read.usage, read.service_tier) if read.usage is not None else None
    return AnswerFacts(
        finish=read_finish(read.choices[0].finish_reason or ""),
        usage=usage,
        response_id=read.id or "",
        model=read.model or "",
        output_chars=0 if usage is not None else sum(map(_chars, read.choices)),
    )


class _FailedChoice(msgspec.Struct):
    error: Any = None
    finish_reason: str | None = None


class _FailedBody(msgspec.Struct):
    choices: list[_FailedChoice] = []


_failed_decoder = msgspec.json.Decoder(_FailedBody)


def read_choice_error(body: bytes) -> dict[str, Any] | None:
    """Return the error of a choice of an answer that failed; None when none did."""
    try:
        choices = _failed_decoder.decode(body).choices
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # The reader of the answer says what is wrong.
    for choice in choices:
        if isinstance(choice.error, dict):
            return choice.error
        if choice.finish_reason == "error":
            return msgspec.json.decode(FAILED, type=dict[str, Any])
    return None


def _chars(choice: _Choice) -> int:
    message = choice.message or _Message()
    texts = [message.content, message.reasoning_content, message.reasoning]
    calls = [call.function.arguments for call in message.tool_calls or () if call.function is not None]
    return sum(len(text) for text in texts + calls if isinstance(text, str))


def read_response(body: bytes, call_prefix: str = "") -> Answer:
    """Read a chat completion; calls without an id get one that starts with `call_prefix`, unless it is empty.

    Raises FormatError naming the field that is wrong.
    """
    fields = read_object(body)
    choices = take(fields, "choices", list[msgspec.Raw], "")
    if not choices:
        raise invalid("choices", "the answer has no choice")
    choice = read_value(choices[0], Fields, "choices[0]")
    inner = take(choice, "message", Fields, "choices[0]")
    if inner is None:
        raise invalid("choices[0].message", "the answer has no message")
    message = _read_answer(inner)
    if call_prefix:
        _name_calls(message, call_prefix)
    if tokens := read_logprobs(choice.get("logprobs", msgspec.Raw(b""))):
        text = _text_of(message)
        if text is not None:
            text.logprobs.extend(tokens)
    finish = read_finish(take(choice, "finish_reason", str, "choices[0]") or "")
    usage = None
    if not is_null(fields.get("usage", b"null")):
        raw = fields.pop("usage")
        tier = msgspec.json.decode(fields.get("service_tier", b"null"))
        usage = read_usage(read_value(raw, WireUsage, "usage"), tier)
        message.extension_json[_USAGE] = text_of(raw)
    message.extension_json[FORMAT] = _NAME
    answer = Answer(message, finish, usage, take_text(fields, "id", ""), take_text(fields, "model", ""))
    for name in ("object", "created"):
        fields.pop(name, None)
    choice.pop("index", None)
    for mark, rest in ((_TOP, fields), (_CHOICE, choice)):
        if rest:
            message.extension_json[mark] = write_object(rest).decode()
    if len(choices) > 1:
        message.extension_json[_OTHERS] = msgspec.json.encode(choices[1:]).decode()
    return answer


def _read_answer(fields: Fields) -> Message:
    """Read the message of an answer: as in a request, with thoughts as parts."""
    thoughts: dict[str, str] = {}
    details = read_details(fields.get(DETAILS_FIELD, msgspec.Raw(b"[]")))
    for name in () if details else REASONING_FIELDS:
        raw = fields.get(name)
        if raw is not None and starts_with(raw, b'"') and not thoughts and len(raw) > 2:
            thoughts[name] = take(fields, name, str, "choices[0].message") or ""
    fields.setdefault("role", msgspec.Raw(b'"assistant"'))
    message = read_message(msgspec.Raw(write_object(fields)), "choices[0].message")
    message.role = "assistant"
    if citations := read_annotations(fields.get("annotations")):
        cited = _text_of(message)
        if cited is not None:
            cited.citations.extend(citations)
    parts = [*map(read_detail, details)]
    for name, text in thoughts.items():
        parts.append(Part())
        parts[-1].reasoning.text = text
        parts[-1].extension_json[FIELD] = name
    for part in parts:  # Thoughts that came as details stay in the message's own fields, too.
        part.extension_json.setdefault(FIELD, "")
    _put_first(message, parts)
    return message


def _put_first(message: Message, thoughts: list[Part]) -> None:
    """Put thoughts before what was said after them."""
    if not thoughts:
        return
    said = list(message.parts)
    del message.parts[:]
    message.parts.extend(thoughts)
    if message.content:
        message.parts.add().text.text = message.content
        message.content = ""
    message.parts.extend(said)


def _name_calls(message: Message, prefix: str) -> None:
    """Give an id to each call that has none: clients match results by it, through all turns."""
    for position, part in enumerate(message.parts):
        if part.HasField("tool_call") and not part.tool_call.id:
            part.tool_call.id, part.tool_call.id_synthesised = f"{prefix}_{position}", True
            part.extension_json.pop("id", None)


def _text_of(message: Message) -> TextPart | None:
    """Return the text of an answer as a part, which has a place for what is known about it."""
    if message.content:
        rest = list(message.parts)
        del message.parts[:]
        message.parts.add().text.text = message.content
        message.parts.extend(rest)
        message.content = ""
    return next((part.text for part in message.parts if part.HasField("text")), None)


def _complete(choice: dict[str, Any], written: dict[str, Any], message: Message) -> None:
    """Write what an answer in another format says about its text; an answer's content is one text here."""
    if isinstance(written["content"], list):
        pieces = (piece.get("text", "") for piece in written["content"] if isinstance(piece, dict))
        written["content"] = "".join(pieces)
    if annotations := _annotations(message):
        written["annotations"] = annotations
    if tokens := [token for part in message.parts for token in part.text.logprobs]:
        choice["logprobs"] = write_logprobs(tokens)


def _annotations(message: Message) -> list[Any]:
    """Return the annotations of an answer in another format; there the texts are one."""
    annotations: list[Any] = []
    offset = 0
    for part in message.parts:
        length = len(part.text.text)
        written = (write_annotation(citation, offset, length) for citation in part.text.citations)
        annotations.extend(each for each in written if each is not None)
        offset += length
    return annotations


def write_response(
    message: Message,
    finish: Finish,
    usage: Usage,
    response_id: str,
    model: str,
    created: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the answer as a chat completion; `created` in seconds since 1970, `extra` rides as `omnihub`."""
    own = message.extension_json.get(FORMAT) == _NAME
    written = MessageWriter(Receipts(), own=own).assistant(message, reasoning=True)
    written.setdefault("refusal", None)
    choice: dict[str, Any] = {"index": 0, "message": written, "finish_reason": write_finish(finish)}
    if not own:
        _complete(choice, written, message)
    document: dict[str, Any] = {
        "id": response_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": write_usage(usage),
    }
    if own:
        _restore(document, choice, message.extension_json)
    if extra:
        document["omnihub"] = dict(extra)
    return write_object(document)


def _restore(document: dict[str, Any], choice: dict[str, Any], marks: Mapping[str, str]) -> None:
    """Put back what the answer held outside its message."""
    for target, mark in ((choice, _CHOICE), (document, _TOP)):
        if mark in marks:
            rest = read_object(marks[mark].encode())
            merge(target, {name: text_of(raw) for name, raw in rest.items()})
    if _USAGE in marks:
        document["usage"] = msgspec.Raw(marks[_USAGE].encode())
    if _OTHERS in marks:
        document["choices"] += msgspec.json.decode(marks[_OTHERS], type=list[msgspec.Raw])
