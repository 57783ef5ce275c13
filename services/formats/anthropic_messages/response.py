"""A whole message, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Message, Usage

from services.formats.answers import Answer, AnswerFacts
from services.formats.anthropic_messages.blocks import read_blocks, write_block
from services.formats.anthropic_messages.citations import write_citation
from services.formats.anthropic_messages.outcome import (
    WireUsage,
    read_finish,
    read_usage,
    write_finish,
    write_usage,
)
from services.formats.documents import (
    FORMAT,
    from_decode_error,
    is_null,
    merge,
    read_object,
    read_value,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid

# Marks in Message.extension_json: what an answer holds outside its content.
_TOP, _USAGE = "@response", "@usage"
_NAME = "anthropic_messages"


class _Block(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    content: list[_Block]
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: WireUsage | None = None


_facts_decoder = msgspec.json.Decoder(_Body)


def read_response_facts(body: bytes) -> AnswerFacts:
    """Read what the platform needs from an answer that is passed on. Raises FormatError."""
    try:
        read = _facts_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    chars = sum(len(b.text or "") + len(b.thinking or "") + len(b.input) for b in read.content)
    return AnswerFacts(
        finish=read_finish(read.stop_reason or "", read.stop_sequence or ""),
        usage=read_usage(read.usage) if read.usage is not None else None,
        response_id=read.id or "",
        model=read.model or "",
        output_chars=chars,
    )


def read_response(body: bytes) -> Answer:
    """Read a message. Raises FormatError naming the field that is wrong."""
    fields = read_object(body)
    content = fields.pop("content", None)
    if content is None or is_null(content):
        raise invalid("content", "the answer has no content")
    message = Message(role="assistant", parts=read_blocks(content, "content"))
    word = take(fields, "stop_reason", str, "") or ""
    finish = read_finish(word, take_text(fields, "stop_sequence", ""))
    usage = None
    if not is_null(fields.get("usage", b"null")):
        raw = fields.pop("usage")
        usage = read_usage(read_value(raw, WireUsage, "usage"))
        message.extension_json[_USAGE] = text_of(raw)
    message.extension_json[FORMAT] = _NAME
    answer = Answer(message, finish, usage, take_text(fields, "id", ""), take_text(fields, "model", ""))
    for name in ("type", "role"):
        fields.pop(name, None)
    if fields:
        message.extension_json[_TOP] = write_object(fields).decode()
    return answer


def write_response(
    message: Message,
    finish: Finish,
    usage: Usage,
    response_id: str,
    model: str,
    created: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the answer as a message; this format has no time of creation. `extra` rides as `omnihub`."""
    own = message.extension_json.get(FORMAT) == _NAME
    parts = list(message.parts)
    blocks: list[Any] = [{"type": "text", "text": message.content}] if message.content else []
    blocks += [
        _answer_block(block) for i, part in enumerate(parts) if (block := _write(part, i, own)) is not None
    ]
    document: dict[str, Any] = {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": write_finish(finish),
        "stop_sequence": finish.stop_sequence or None,
        "usage": write_usage(usage),
    }
    if own and _TOP in message.extension_json:
        rest = read_object(message.extension_json[_TOP].encode())
        merge(document, {name: text_of(raw) for name, raw in rest.items()})
    if own and _USAGE in message.extension_json:
        document["usage"] = msgspec.Raw(message.extension_json[_USAGE].encode())
    if extra:
        document["omnihub"] = dict(extra)
    return write_object(document)


def _write(part: Any, index: int, own: bool) -> Any:
    if part.WhichOneof("kind") == "reasoning" and not part.reasoning.redacted:
        # An answer shows thoughts of any provider; only a request must have them signed.
        fields = {"type": "thinking", "thinking": part.reasoning.text, "signature": part.reasoning.signature}
        return merge(fields, part.extension_json) if own else fields
    block = write_block(part, f"content[{index}]", own)
    if not own and isinstance(block, dict) and part.text.citations:
        written = map(write_citation, part.text.citations)
        block["citations"] = [citation for citation in written if citation is not None] or None
    return block


def _answer_block(block: Any) -> Any:
    if isinstance(block, dict) and block.get("type") == "text":
        block.setdefault("citations", None)
    return block
