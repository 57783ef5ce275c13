"""A whole response, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from omnihub.common.v1.chat_pb2 import Citation, Finish, Message, Part, Usage

from services.formats.answers import Answer, AnswerFacts
from services.formats.documents import (
    FORMAT,
    from_decode_error,
    is_null,
    merge,
    raw_of,
    read_object,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import FormatError, invalid
from services.formats.openai_chat.citations import write_annotation
from services.formats.openai_chat.logprobs import write_logprobs
from services.formats.openai_responses.items import ItemWriter, call_item, read_input, reasoning_item
from services.formats.openai_responses.outcome import (
    Incomplete,
    WireUsage,
    read_finish,
    read_usage,
    write_finish,
    write_usage,
)
from services.formats.openai_responses.parts import ITEM
from services.formats.receipts import Receipts

_NAME = "openai_responses"
# Marks in Message.extension_json: what an answer holds outside its output.
_TOP, _USAGE = "@response", "@usage"
UNFINISHED = frozenset({"queued", "in_progress"})
_EMPTY_PART = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


class _Piece(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    arguments: str | None = None
    content: list[_Piece] | None = None
    summary: list[_Piece] | None = None


class Body(msgspec.Struct):
    """A response, as far as the platform reads it."""

    output: list[_Item] | None = None
    id: str | None = None
    model: str | None = None
    status: str | None = None
    incomplete_details: Incomplete | None = None
    usage: WireUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    service_tier: Any = None

    @property
    def finish(self) -> Finish:
        """Return how it ended."""
        calls = any(item.type in ("function_call", "custom_tool_call") for item in self.output or ())
        return read_finish(self.status or "completed", self.incomplete_details, calls)

    @property
    def chars(self) -> int:
        """Return the characters of text, thoughts and arguments."""
        total = 0
        for item in self.output or ():
            pieces = [*(item.content or ()), *(item.summary or ())]
            total += len(item.arguments or "")
            total += sum(len(piece.text or piece.refusal or "") for piece in pieces)
        return total


_decoder = msgspec.json.Decoder(Body)


def read_response_facts(body: bytes) -> AnswerFacts:
    """Read what the platform needs from an answer that is passed on. Raises FormatError."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if read.output is None:
        raise invalid("output", "the answer has no output")
    if read.status == "failed":
        raise _failed(read.error)
    usage = read_usage(read.usage, read.service_tier) if read.usage is not None else None
    return AnswerFacts(
        finish=read.finish,
        usage=usage,
        response_id=read.id or "",
        model=read.model or "",
        output_chars=0 if usage is not None else read.chars,
    )


class StoredFacts(NamedTuple):
    """What the platform needs to know about a response that its provider keeps."""

    status: str
    """Empty when the document is no response."""
    finish: Finish | None
    """None until it is complete."""
    usage: Usage | None


def read_stored_facts(body: bytes) -> StoredFacts:
    """Read the facts of a document that a provider keeps, whatever became of it. Raises FormatError."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    status = read.status or ""
    if not status:
        return StoredFacts("", None, None)
    finish = None if status in UNFINISHED else read.finish
    return StoredFacts(status, finish, read_usage(read.usage) if read.usage is not None else None)


def _failed(error: msgspec.Raw) -> FormatError:
    return invalid("status", f"the response failed: {bytes(error)[:300].decode('utf-8', 'replace')}")


def read_response(body: bytes) -> Answer:
    """Read a response. Raises FormatError naming the field that is wrong."""
    facts = read_response_facts(body)
    fields = read_object(body)
    read = read_input(fields.pop("output"), "output", answer=True)
    message = read[0] if read else Message(role="assistant")
    if len(read) > 1:
        raise invalid("output", "an answer holds only what the assistant made")
    if not is_null(fields.get("usage", b"null")):
        message.extension_json[_USAGE] = text_of(fields.pop("usage"))
    message.extension_json[FORMAT] = _NAME
    response_id, model = take_text(fields, "id", ""), take_text(fields, "model", "")
    for name in ("object", "created_at"):
        fields.pop(name, None)
    message.extension_json[_TOP] = write_object(fields).decode()
    return Answer(message, facts.finish, facts.usage, response_id, model)


def skeleton(
    response_id: str, model: str, created: int, echo: Mapping[str, msgspec.Raw] | None = None
) -> dict[str, Any]:
    """Return a response without output; `echo` is what it repeats of its request."""
    return {
        "id": response_id if response_id.startswith("resp_") else f"resp_{response_id}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
        **{name: raw for name, raw in (echo or {}).items() if not is_null(raw)},
    }


def write_response(
    message: Message,
    finish: Finish,
    usage: Usage,
    response_id: str,
    model: str,
    created: int,
    extra: Mapping[str, Any] | None = None,
    echo: Mapping[str, msgspec.Raw] | None = None,
) -> bytes:
    """Return the answer as a response; `created` in seconds since 1970, `extra` rides as `omnihub`.

    `echo` is what it repeats of its request, see read_echo.
    """
    if message.extension_json.get(FORMAT) == _NAME:
        document = _restored(message, response_id, model, created)
    else:
        document = skeleton(response_id, model, created, echo)
        document["output"] = output_items(message, finish, document["id"])
        document.update(write_finish(finish))
        document["usage"] = write_usage(usage)
    if extra:
        document["omnihub"] = dict(extra)
    return write_object(document)


def _restored(message: Message, response_id: str, model: str, created: int) -> dict[str, Any]:
    """Return an answer that was a response before."""
    document: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "model": model,
        "output": ItemWriter(Receipts(), own=True).assistant(message),
    }
    rest = read_object(message.extension_json[_TOP].encode())
    merge(document, {name: text_of(raw) for name, raw in rest.items()})
    if _USAGE in message.extension_json:
        document["usage"] = raw_of(message.extension_json[_USAGE])
    return document


def item_id(prefix: str, response_id: str, index: int) -> str:
    """Return the id of an item, stable for one response."""
    return f"{prefix}_{response_id.removeprefix('resp_')}_{index}"


def text_piece(text: str) -> dict[str, Any]:
    """Return a text of an answer."""
    return {**_EMPTY_PART, "text": text}


def write_annotations(citations: Iterable[Citation], length: int) -> list[Any]:
    """Return the annotations of a text of so many characters; what has no address has no place here."""
    written = (write_annotation(citation, 0, length) for citation in citations)
    return [{"type": each["type"], **each["url_citation"]} for each in written if each is not None]


def refusal_piece(text: str) -> dict[str, Any]:
    """Return a refusal of an answer."""
    return {"type": "refusal", "refusal": text}


def message_item(identifier: str, content: list[Any], status: str) -> dict[str, Any]:
    """Return a message of an answer."""
    return {
        "id": identifier,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def output_items(message: Message, finish: Finish, response_id: str) -> list[Any]:
    """Return the output of an answer that came in another format."""
    items: list[Any] = []
    content: list[Any] | None = None
    status = "completed" if write_finish(finish)["status"] == "completed" else "incomplete"
    parts = list(message.parts)
    if message.content:
        said = Part()
        said.text.text = message.content
        parts.insert(0, said)
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind in ("text", "refusal"):
            if content is None:
                content = []
                items.append(message_item(item_id("msg", response_id, len(items)), content, status))
            if kind == "text":
                annotations = write_annotations(part.text.citations, len(part.text.text))
                logprobs = write_logprobs(part.text.logprobs)["content"]
                piece = {**text_piece(part.text.text), "annotations": annotations, "logprobs": logprobs}
                content.append(piece)
            else:
                content.append(refusal_piece(part.refusal.text))
        elif kind == "tool_call":
            content = None
            identifier = item_id("fc", response_id, len(items))
            items.append({"id": identifier, "status": "completed", **call_item(part.tool_call)})
        elif kind == "reasoning":
            content = None
            items.append({"id": item_id("rs", response_id, len(items)), **reasoning_item(part)})
        elif kind == "opaque" and part.opaque.provider == ITEM:
            content = None
            items.append(raw_of(part.opaque.raw_json))
    return items
