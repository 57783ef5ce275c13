"""What some providers offer beside texts: answers by a schema, thoughts, answers that are begun."""

from __future__ import annotations

import json
from typing import Any

from omnihub.common.v1.chat_pb2 import Message

from services.providers.conformance.answers import REFUSALS
from services.providers.conformance.kit import QUESTION, Group, SkippedError, Subject, require
from services.providers.conformance.words import text_of

GROUP = Group("features")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CITY = '{"city":"Paris"}'


@GROUP.check("SCHEMA-1", needs=["chat", "json_schema"])
async def fit_a_schema(subject: Subject) -> None:
    """Structured output."""
    messages = [
        Message(role="system", content="Reply with the JSON document that you are sent, unchanged."),
        Message(role="user", content=CITY),
    ]
    attempt = await subject.attempt(messages=messages, response_schema_json=json.dumps(SCHEMA))
    reply = await subject.chat(attempt)
    if reply.status.reason in REFUSALS:  # A provider may have models of both kinds.
        raise SkippedError(f"the model takes no schema: {reply.status}")
    require(reply.status.ok, "SCHEMA-1", f"with a JSON Schema Chat ended with {reply.status}")
    names = {"response_schema_json", "response_format"}
    if any(entry.name in names and entry.outcome == "dropped" for entry in reply.message.receipt):
        raise SkippedError("the receipt says that this model takes no schema")
    if reply.message.finish.reason != "stop":
        raise SkippedError(f"the answer ended with {reply.message.finish.reason}")
    text = text_of(reply.message.message)
    require(_fits(text), "SCHEMA-1", f"the answer does not fit the schema: {text[:200]!r}")


def _fits(text: str) -> bool:
    try:
        document = json.loads(text)
    except ValueError:
        return False
    return isinstance(document, dict) and document.keys() == {"city"} and isinstance(document["city"], str)


@GROUP.check("REASON-1", needs=["chat", "reasoning"])
async def take_thoughts_back(subject: Subject) -> None:
    """A conversation goes on after an answer that was thought about."""
    attempt = await subject.attempt(reasoning_effort="low", max_tokens=2000)
    reply = await subject.chat(attempt)
    if reply.status.reason in REFUSALS:
        raise SkippedError(f"the model takes no effort: {reply.status}")
    require(reply.status.ok, "REASON-1", f"with an effort Chat ended with {reply.status}")
    answer = reply.message.message
    if not any(part.HasField("reasoning") for part in answer.parts):
        raise SkippedError("the answer has no reasoning")
    attempt.chat.messages.append(answer)
    attempt.chat.messages.append(Message(role="user", content=QUESTION))
    status = (await subject.chat(attempt)).status
    require(status.ok, "REASON-1", f"with the reasoning of its answer Chat ended with {status}")


@GROUP.check("PREFILL-1", needs=["chat", "prefill"])
async def go_on_from_a_beginning(subject: Subject) -> None:
    """An answer that is begun."""
    messages = [
        Message(role="user", content="Count from one to five in words."),
        Message(role="assistant", content="one, two,"),
    ]
    reply = await subject.chat(await subject.attempt(messages=messages))
    if reply.status.reason in REFUSALS:
        raise SkippedError(f"the model takes no beginning: {reply.status}")
    require(
        reply.status.ok, "PREFILL-1", f"a conversation that ends with the assistant ended with {reply.status}"
    )
    require(reply.message.HasField("message"), "PREFILL-1", "the answer has no message")
