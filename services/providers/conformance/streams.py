"""Streams: their order, their end, and that they say what an answer says."""

from __future__ import annotations

from collections.abc import Iterable

from omnihub.common.v1.chat_pb2 import Message
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc.probe import Reply
from services.providers.conformance.kit import Group, SkippedError, Subject, require
from services.providers.conformance.words import check_finish, check_receipt, check_usage
from services.providers.domain.clauses import BreachError
from services.providers.domain.stream_contract import StreamContract

GROUP = Group("streams")
Content = list[tuple[str, str]]


def judge(reply: Reply, asked: pb.Attempt) -> None:
    """Hold a stream that was expected to succeed against the contract. Raises BreachError."""
    contract = StreamContract(asked.wire_format)
    for message in reply.messages:
        contract.accept(message)
    if reply.status.ok:
        contract.finish()
    else:
        after = "after `end` came the status" if contract.ended else "StreamChat ended with"
        raise BreachError("STREAM-2", f"{after} {reply.status}")


async def recorded_stream(subject: Subject) -> Reply:
    """Return the stream that answers the plain question, asked once. It may break the contract."""
    if "stream" not in subject.memory:
        subject.memory["stream"] = await subject.stream(await subject.attempt())
    reply: Reply = subject.memory["stream"]
    return reply


async def _keeps(subject: Subject, *clauses: str) -> Reply:
    """Return the recorded stream. Raises BreachError when it breaks one of `clauses`."""
    reply = await recorded_stream(subject)
    try:
        judge(reply, await subject.attempt())
    except BreachError as breach:
        if breach.clause in clauses:
            raise
        raise SkippedError(f"the stream broke {breach.clause} before that: {breach.message}") from None
    return reply


@GROUP.check("STREAM-1", "STREAM-10", needs=["stream"])
async def start_first(subject: Subject) -> None:
    """`start` comes first, once."""
    await _keeps(subject, "STREAM-1", "STREAM-10")


@GROUP.check("STREAM-2", "STREAM-3", needs=["stream"])
async def end_once(subject: Subject) -> None:
    """`end` comes last, once."""
    await _keeps(subject, "STREAM-2", "STREAM-3")


@GROUP.check("STREAM-4", "STREAM-6", needs=["stream"])
async def have_deltas_inside_parts(subject: Subject) -> None:
    """Deltas belong to a part that is open."""
    await _keeps(subject, "STREAM-4", "STREAM-6")


@GROUP.check("STREAM-5", needs=["stream"])
async def stop_each_part(subject: Subject) -> None:
    """Parts are closed."""
    await _keeps(subject, "STREAM-5")


@GROUP.check("STREAM-7", needs=["stream"])
async def are_typed_when_nothing_else_was_asked(subject: Subject) -> None:
    """No frames without a format."""
    await _keeps(subject, "STREAM-7")


@GROUP.check("STREAM-8", "ANSWER-4", "RECEIPT-1", needs=["stream"])
async def report_finish_and_usage(subject: Subject) -> None:
    """`end` holds what an answer holds."""
    reply = await _keeps(subject, "STREAM-8")
    end = reply.messages[-1].end
    check_finish(end.finish, "STREAM-8")
    check_usage(end.usage if end.HasField("usage") else None, "STREAM-8")
    check_receipt(list(reply.messages[0].start.receipt))


@GROUP.check("STREAM-9", needs=["stream", "chat"])
async def equal_the_answer(subject: Subject) -> None:
    """Streamed or not, the answer is the same, where the model answers alike at all."""
    reply = await _keeps(subject)
    first, second = [await subject.answered(await subject.attempt(), "ANSWER-1") for _ in range(2)]
    if _content_of(first.message) != _content_of(second.message):
        raise SkippedError("the model does not give the same answer twice")
    streamed, whole = content_of_stream(reply.messages), _content_of(first.message)
    require(streamed == whole, "STREAM-9", f"streamed {_short(streamed)}, but at once {_short(whole)}")
    ends = (reply.messages[-1].end.finish.reason, first.finish.reason)
    require(ends[0] == ends[1], "STREAM-9", f"streamed it ended with {ends[0]}, at once with {ends[1]}")


def _content_of(message: Message) -> Content:
    content: Content = [("text", message.content)] if message.content else []
    for part in message.parts:
        kind = part.WhichOneof("kind") or ""
        match kind:
            case "tool_call":
                content.append((kind, f"{part.tool_call.name} {part.tool_call.arguments_json}"))
            case "text" | "reasoning" | "refusal":
                content.append((kind, getattr(part, kind).text))
            case _:
                content.append((kind, ""))
    return _joined(content)


def content_of_stream(messages: Iterable[pb.StreamChatResponse]) -> Content:
    """Return the parts of a typed stream, each with its whole text."""
    parts: dict[int, tuple[str, list[str]]] = {}
    for message in messages:
        if message.HasField("part_start"):
            part = message.part_start.part
            ((kind, text),) = _content_of(Message(parts=[part])) or [(part.WhichOneof("kind") or "", "")]
            parts[message.part_start.index] = (kind, [text])
        elif message.HasField("part_delta"):
            delta = message.part_delta
            parts[delta.index][1].append(delta.text + delta.arguments_json + delta.reasoning + delta.refusal)
    return _joined([(kind, "".join(pieces)) for kind, pieces in parts.values()])


def _joined(content: Content) -> Content:
    """Return the content with texts that follow each other made one; empty ones say nothing."""
    joined: Content = []
    for kind, text in content:
        if kind in ("text", "reasoning") and not text:
            continue
        if joined and kind == "text" and joined[-1][0] == "text":
            joined[-1] = ("text", joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


def _short(content: Content) -> str:
    shown = repr(content)
    return shown if len(shown) <= 200 else shown[:200] + "..."
