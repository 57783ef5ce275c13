"""Tools: calls, streamed calls, results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from omnihub.common.v1.chat_pb2 import (
    Message,
    ParameterReceipt,
    Part,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.providers.conformance.kit import Group, SkippedError, Subject, require
from services.providers.conformance.streams import judge

GROUP = Group("tools")
NAME = "get_weather"
QUESTION = "What is the weather in Paris? Use the tool."
SCHEMA = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'


async def _attempt(subject: Subject) -> pb.Attempt:
    tool = Tool(name=NAME, description="Tells the weather of a city.", parameters_json=SCHEMA)
    return await subject.attempt(QUESTION, tools=[tool], tool_choice=ToolChoice(mode="required"))


def _check_calls(calls: Iterable[ToolCall], receipt: Iterable[ParameterReceipt]) -> None:
    found = list(calls)
    if not found and any(entry.name == "tool_choice" and entry.outcome == "dropped" for entry in receipt):
        raise SkippedError("the provider cannot be made to call a tool")
    require(bool(found), "TOOL-1", "no tool was called although `tool_choice` is required")
    ids = [call.id for call in found]
    require(all(ids), "TOOL-1", "a tool call has no id; make one and set `id_synthesised`")
    require(len(set(ids)) == len(ids), "TOOL-1", "two tool calls have the same id")
    strange = [call.name for call in found if call.name != NAME]
    require(not strange, "TOOL-1", f"calls of tools that were not sent: {strange}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@GROUP.check("TOOL-1", needs=["chat", "tools"])
async def are_called(subject: Subject) -> None:
    """A tool that must be called is."""
    answer = await subject.answered(await _attempt(subject), "TOOL-1")
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    _check_calls(calls, answer.receipt)
    ends = ("tool_calls", "stop")
    require(
        answer.finish.reason in ends, "TOOL-1", f"tools were called, but it ended with {answer.finish.reason}"
    )


@GROUP.check("TOOL-2", "TOOL-1", needs=["stream", "tools"])
async def are_called_in_pieces(subject: Subject) -> None:
    """The pieces of a call make the call."""
    attempt = await _attempt(subject)
    reply = await subject.stream(attempt)
    judge(reply, attempt)
    calls: dict[int, ToolCall] = {}
    for message in reply.messages:
        if message.part_start.part.HasField("tool_call"):
            calls[message.part_start.index] = message.part_start.part.tool_call
        elif message.part_delta.arguments_json:
            calls[message.part_delta.index].arguments_json += message.part_delta.arguments_json
    _check_calls(calls.values(), reply.messages[0].start.receipt)
    broken = [call.arguments_json for call in calls.values() if not _is_json(call.arguments_json)]
    if broken and reply.messages[-1].end.finish.reason == "length":
        raise SkippedError("the model ran out of tokens in a call")
    require(not broken, "TOOL-2", f"the pieces of the arguments make no JSON: {broken[:1]}")


def _result(call_id: str, said: str, is_error: bool = False) -> Part:
    part, text = Part(), Part()
    text.text.text = said
    part.tool_result.CopyFrom(ToolResult(call_id=call_id, name=NAME, parts=[text], is_error=is_error))
    return part


def _call(call_id: str, city: str) -> Part:
    part = Part()
    part.tool_call.CopyFrom(ToolCall(id=call_id, name=NAME, arguments_json=f'{{"city":"{city}"}}'))
    return part


async def _judge_results(
    subject: Subject, clause: str, calls: Sequence[Part], results: Sequence[Part]
) -> None:
    attempt = await _attempt(subject)
    attempt.chat.ClearField("tool_choice")
    attempt.chat.messages.append(Message(role="assistant", parts=calls))
    attempt.chat.messages.append(Message(role="tool", parts=results))
    reply = await subject.chat(attempt)
    if reply.status.reason == "PARAMETER_UNSUPPORTED":  # A provider may have models of both kinds.
        raise SkippedError(f"the model takes no results of tools: {reply.status}")
    require(reply.status.ok, clause, f"Chat ended with {reply.status}")
    require(reply.message.HasField("message"), clause, "the answer after a tool's result has no message")


@GROUP.check("TOOL-3", needs=["chat", "tools"])
async def results_are_taken(subject: Subject) -> None:
    """A conversation goes on after a tool's result."""
    results = [_result("call_1", "18 degrees, light rain")]
    await _judge_results(subject, "TOOL-3", [_call("call_1", "Paris")], results)


@GROUP.check("TOOL-4", needs=["chat", "tools"])
async def parallel_results_are_taken(subject: Subject) -> None:
    """A conversation goes on after the results of calls that were made together."""
    calls = [_call("call_1", "Paris"), _call("call_2", "Atlantis")]
    results = [_result("call_1", "18 degrees, light rain"), _result("call_2", "no such city", is_error=True)]
    await _judge_results(subject, "TOOL-4", calls, results)
