"""A whole answer."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import Message

from services.formats.answers import Answer
from services.formats.documents import (
    FORMAT,
    Fields,
    is_null,
    read_object,
    read_value,
    take,
    take_text,
    text_of,
    write_object,
)
from services.formats.errors import invalid
from services.formats.gemini.citations import citations_of, read_cited
from services.formats.gemini.logprobs import read_logprobs
from services.formats.gemini.outcome import WireUsage, read_finish, read_usage
from services.formats.gemini.parts import CallIds, read_part

# Marks in Message.extension_json: what an answer holds outside its content.
_TOP, _CANDIDATE, _USAGE = "@response", "@candidate", "@usage"
_NAME = "gemini"


def read_response(body: bytes, call_prefix: str) -> Answer:
    """Read an answer; calls without an id get one that starts with `call_prefix`.

    Raises FormatError naming the field that is wrong. Blocked prompts are found by `read_block`.
    """
    fields = read_object(body)
    candidates = take(fields, "candidates", list[msgspec.Raw], "")
    if not candidates:
        raise invalid("candidates", "the answer has no candidate")
    path = "candidates[0]"
    candidate = read_value(candidates[0], Fields, path)
    message = Message(role="assistant")
    content = take(candidate, "content", Fields, path) or {}
    parts = content.get("parts", msgspec.Raw(b"null"))
    ids = CallIds(call_prefix)
    if not is_null(parts):
        for index, raw in enumerate(read_value(parts, list[msgspec.Raw], f"{path}.content.parts")):
            part = read_part(raw, f"{path}.content.parts[{index}]", ids)
            if part.HasField("tool_call") and not part.tool_call.arguments_json:
                part.tool_call.arguments_json = "{}"
            message.parts.append(part)
    texts = {at: part.text.text for at, part in enumerate(message.parts) if part.HasField("text")}
    for at, citation in citations_of(read_cited(candidate), texts):
        message.parts[at].text.citations.append(citation)
    if texts and (tokens := read_logprobs(candidate.get("logprobsResult", msgspec.Raw(b"")))):
        message.parts[min(texts)].text.logprobs.extend(tokens)
    word = take(candidate, "finishReason", str, path)
    if not word:
        raise invalid(f"{path}.finishReason", "the answer does not say why it ended")
    finish = read_finish(word, any(part.HasField("tool_call") for part in message.parts))
    usage = None
    if not is_null(fields.get("usageMetadata", b"null")):
        raw = fields.pop("usageMetadata")
        usage = read_usage(read_value(raw, WireUsage, "usageMetadata"))
        message.extension_json[_USAGE] = text_of(raw)
    message.extension_json[FORMAT] = _NAME
    response_id, model = take_text(fields, "responseId", ""), take_text(fields, "modelVersion", "")
    for mark, rest in ((_TOP, fields), (_CANDIDATE, candidate)):
        if rest:
            message.extension_json[mark] = write_object(rest).decode()
    return Answer(message, finish, usage, response_id, model)
