"""The kit is judged: each way to break the contract is reported with the clause it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ParameterReceipt, Part, ToolCall, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStop, RawFrame
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc import Call, RpcError, server
from services.providers.conformance import calls
from services.providers.domain.clauses import CLAUSES
from services.providers.domain.failure import ProviderError
from tests.support.plugins import GoodProvider, broken_clauses, serving, serving_bare, shown_failures, verdict

BREACHES: list[Any] = []


def breach(clause: str, only: str) -> Any:
    """Collect a broken provider, the clause it breaks and the checks that must find it."""

    def add(broken: type[GoodProvider]) -> type[GoodProvider]:
        BREACHES.append(pytest.param(broken, clause, only, id=broken.__name__))
        return broken

    return add


class Streams(GoodProvider):
    """A provider whose streams go through `change`."""

    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [message]

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        async for message in super().stream_chat(request, call):
            for changed in self.change(message):
                yield changed


class Answers(GoodProvider):
    """A provider whose answers go through `change`."""

    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        raise NotImplementedError

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        response = await super().chat(request, call)
        self.change(response, request.attempt)
        return response


# --- streams ---------------------------------------------------------------------------------------


@breach("STREAM-3", "streams")
class NoEnd(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [] if message.HasField("end") else [message]


@breach("STREAM-2", "streams")
class TwoEnds(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [message, message] if message.HasField("end") else [message]


@breach("STREAM-2", "streams")
class DeltaAfterEnd(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        more = pb.StreamChatResponse(part_delta=PartDelta(index=0, text="late"))
        return [message, more] if message.HasField("end") else [message]


@breach("STREAM-2", "streams")
class ErrorAfterEnd(Streams):
    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        async for message in super().stream_chat(request, call):
            yield message
        raise RpcError("PROVIDER_FAILED", "on second thoughts")


@breach("STREAM-1", "streams")
class NoStart(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [] if message.HasField("start") else [message]


@breach("STREAM-1", "streams")
class TwoStarts(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [message, message] if message.HasField("start") else [message]


@breach("STREAM-4", "streams")
class DeltaOutsideAPart(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [] if message.HasField("part_start") else [message]


@breach("STREAM-4", "streams")
class PartStartedTwice(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [message, message] if message.HasField("part_start") else [message]


@breach("STREAM-5", "streams")
class NoStop(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [] if message.HasField("part_stop") else [message]


@breach("STREAM-5", "streams")
class StopOfNothing(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        stop = pb.StreamChatResponse(part_stop=PartStop(index=7))
        return [stop, message] if message.HasField("end") else [message]


@breach("STREAM-6", "streams")
class ArgumentsInText(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        if message.HasField("part_delta"):
            message.part_delta.arguments_json = "{}"
        return [message]


@breach("STREAM-7", "streams")
class FramesWithoutFormat(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        frame = pb.StreamChatResponse(raw_frame=RawFrame(data=b"data: {}\n\n"))
        return [message, frame] if message.HasField("start") else [message]


@breach("STREAM-8", "streams")
class NoUsageInStream(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        if message.HasField("end"):
            message.end.ClearField("usage")
        return [message]


@breach("STREAM-9", "streams")
class OtherWordsInStream(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        if message.HasField("part_delta"):
            message.part_delta.text = message.part_delta.text.upper()
        return [message]


@breach("STREAM-10", "streams")
class EmptyMessage(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        return [message, pb.StreamChatResponse()] if message.HasField("start") else [message]


# --- answers ---------------------------------------------------------------------------------------


@breach("ANSWER-1", "answers")
class NoContent(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        response.ClearField("message")


@breach("ANSWER-2", "answers")
class OwnWordForItsEnd(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        response.finish.reason = "end_turn"


@breach("ANSWER-3", "answers")
class NoUsage(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        response.ClearField("usage")


@breach("ANSWER-4", "answers")
class CachedMoreThanItRead(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        response.usage.cache_read = response.usage.input_total + 1


@breach("RECEIPT-1", "answers")
class OwnWordInReceipt(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        response.receipt.append(ParameterReceipt(name="seed", outcome="ignored"))


@breach("RECEIPT-2", "answers")
class PartialReceipt(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        dropped = [entry for entry in response.receipt if entry.outcome == "dropped"]
        response.ClearField("receipt")
        response.receipt.extend(dropped)


@breach("RECEIPT-4", "answers")
class DropsToolsSilently(Answers):
    def change(self, response: pb.ChatResponse, attempt: pb.Attempt) -> None:
        if attempt.chat.tools:
            response.ClearField("receipt")


@breach("COUNT-1", "answers")
class CountsNothing(GoodProvider):
    async def count_tokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        return pb.CountTokensResponse()


@breach("RECEIPT-3", "answers")
class NeverStrict(GoodProvider):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        request.attempt.strict = False
        return await super().chat(request, call)


@breach("LIMIT-1", "answers")
class NoCap(GoodProvider):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        request.attempt.output_cap = 0
        return await super().chat(request, call)


# --- what it says about itself -----------------------------------------------------------------------


class Capabilities(GoodProvider):
    """A provider whose capabilities go through `change`."""

    def change(self, response: pb.GetCapabilitiesResponse) -> None:
        raise NotImplementedError

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        response = await super().get_capabilities(request, call)
        self.change(response)
        return response


@breach("CAP-1", "")
class NoProviders(Capabilities):
    def change(self, response: pb.GetCapabilitiesResponse) -> None:
        response.ClearField("providers")


@breach("CAP-2", "capabilities")
class UnknownFeature(Capabilities):
    def change(self, response: pb.GetCapabilitiesResponse) -> None:
        response.providers[0].features.append("telepathy")


@breach("CAP-3", "capabilities")
class ChangingCapabilities(Capabilities):
    count = 0

    def change(self, response: pb.GetCapabilitiesResponse) -> None:
        self.count += 1
        response.providers[0].synthetic = self.count % 2 == 0


@breach("HEALTH-1", "capabilities")
class Unhealthy(GoodProvider):
    async def check_health(self, request: pb.CheckHealthRequest, call: Call) -> pb.CheckHealthResponse:
        return pb.CheckHealthResponse(healthy=False)


@breach("MODEL-1", "capabilities")
class ListedTwice(GoodProvider):
    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        listed = await super().list_models(request, call)
        return pb.ListModelsResponse(models=[*listed.models, *listed.models])


@breach("MODEL-2", "capabilities")
class ShuffledModels(GoodProvider):
    count = 0

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        listed = await super().list_models(request, call)
        self.count += 1
        return pb.ListModelsResponse(models=list(listed.models)[:: 1 if self.count % 2 else -1])


# --- errors ----------------------------------------------------------------------------------------


class Failing(GoodProvider):
    """A provider whose errors for unknown models go through `change`."""

    def change(self, error: ProviderError, attempt: pb.Attempt) -> Exception:
        raise NotImplementedError

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        try:
            return await super().chat(request, call)
        except ProviderError as error:
            raise self.change(error, request.attempt) from None


@breach("ERROR-4", "failures")
class WrongReason(Failing):
    def change(self, error: ProviderError, attempt: pb.Attempt) -> Exception:
        return ProviderError("PROVIDER_FAILED", error.message, error.metadata)


@breach("ERROR-2", "failures")
class NoPhase(Failing):
    def change(self, error: ProviderError, attempt: pb.Attempt) -> Exception:
        del error.metadata["phase"]
        return error


@breach("ERROR-6", "failures")
class RepeatsThePrompt(Failing):
    def change(self, error: ProviderError, attempt: pb.Attempt) -> Exception:
        error.message += f" (asked: {attempt.chat.messages[0].content})"
        return error


@breach("ERROR-3", "failures")
class AnyProvider(GoodProvider):
    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        request.provider = "good"
        return await super().list_models(request, call)


# --- tools, embeddings, formats ----------------------------------------------------------------------


class WithTools(Streams):
    """A provider that says it has tools."""

    answer = ToolCall(id="call_1", name="get_weather", arguments_json='{"city":"Paris"}')

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        response = await super().get_capabilities(request, call)
        response.providers[0].features.append("tools")
        return response

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        response = await super().chat(request, call)
        if request.attempt.chat.tool_choice.mode == "required":
            del response.message.parts[:]
            response.message.parts.append(Part(tool_call=self.answer))
            response.finish.reason = "tool_calls"
        return response


@breach("TOOL-1", "tools/are-called")
class NamelessCall(WithTools):
    answer = ToolCall(name="get_weather", arguments_json="{}")


@breach("TOOL-1", "tools/are-called")
class InventedTool(WithTools):
    answer = ToolCall(id="call_1", name="launch", arguments_json="{}")


@breach("TOOL-2", "tools")
class LosesPieces(WithTools):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        if message.HasField("part_start"):
            message.part_start.part.tool_call.CopyFrom(ToolCall(id="call_1", name="get_weather"))
        elif message.HasField("part_delta"):
            message.part_delta.arguments_json = "{"
        return [message]


@breach("TOOL-3", "tools/results")
class RefusesResults(WithTools):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        if any(message.role == "tool" for message in request.attempt.chat.messages):
            raise RpcError("PROVIDER_REJECTED", "what is a tool result?")
        return await super().chat(request, call)


@breach("TOOL-4", "tools")
class RefusesFailures(WithTools):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        parts = [part for message in request.attempt.chat.messages for part in message.parts]
        if any(part.tool_result.is_error for part in parts):
            raise RpcError("PROVIDER_REJECTED", "tools do not fail")
        return await super().chat(request, call)


def offering(*features: str) -> type[Capabilities]:
    """Return a provider that says it has these."""

    class Offers(Capabilities):
        def change(self, response: pb.GetCapabilitiesResponse) -> None:
            response.providers[0].features.extend(features)

    return Offers


@breach("SCHEMA-1", "features")
class ProseInsteadOfJson(offering("json_schema")):  # type: ignore[misc]
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        response: pb.ChatResponse = await super().chat(request, call)
        for entry in response.receipt:
            entry.outcome = "forwarded"
        return response


@breach("REASON-1", "features")
class ForgetsItsThoughts(offering("reasoning")):  # type: ignore[misc]
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        parts = [part for message in request.attempt.chat.messages for part in message.parts]
        if any(part.HasField("reasoning") for part in parts):
            raise RpcError("PROVIDER_REJECTED", "whose thoughts are these?")
        response: pb.ChatResponse = await super().chat(request, call)
        response.message.parts.insert(0, Part(reasoning={"text": "Hm.", "signature": "c2ln"}))
        return response


@breach("PREFILL-1", "features")
class EndsWithTheUser(offering("prefill")):  # type: ignore[misc]
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        if request.attempt.chat.messages[-1].role == "assistant":
            raise RpcError("PROVIDER_FAILED", "it is not my turn")
        return await super().chat(request, call)


@breach("INPUT-3", "inputs/instructions")
class KnowsNoDevelopers(GoodProvider):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        if any(message.role == "developer" for message in request.attempt.chat.messages):
            raise RpcError("PROVIDER_REJECTED", "what is a developer?")
        return await super().chat(request, call)


@breach("INPUT-4", "inputs/media")
class LosesPictures(offering("vision")):  # type: ignore[misc]
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        for message in request.attempt.chat.messages:
            del message.parts[1:]
        response: pb.ChatResponse = await super().chat(request, call)
        response.receipt.append(ParameterReceipt(name="messages[0].content[1]", outcome="dropped"))
        return response


class Embeddings(GoodProvider):
    """A provider whose embeddings go through `change`."""

    def change(self, response: pb.EmbedResponse) -> None:
        raise NotImplementedError

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        response = await super().embed(request, call)
        self.change(response)
        return response


@breach("EMBED-1", "embeddings")
class SortedVectors(Embeddings):
    def change(self, response: pb.EmbedResponse) -> None:
        response.embeddings.sort(key=lambda each: list(each.values))


@breach("EMBED-1", "embeddings")
class OneVectorLess(Embeddings):
    def change(self, response: pb.EmbedResponse) -> None:
        del response.embeddings[-1]


@breach("EMBED-2", "embeddings")
class OwnDimensions(GoodProvider):
    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        request.ClearField("dimensions")
        return await super().embed(request, call)


@breach("EMBED-3", "embeddings")
class UncountedEmbeddings(Embeddings):
    def change(self, response: pb.EmbedResponse) -> None:
        response.ClearField("usage")


class SaysOpenAI(Capabilities):
    """A provider that says it speaks OpenAI's format."""

    def change(self, response: pb.GetCapabilitiesResponse) -> None:
        response.providers[0].wire_formats.append(WireFormat.WIRE_FORMAT_OPENAI_CHAT)


@breach("RAW-1", "formats/openai-chat-answers")
class NoRawAnswer(SaysOpenAI):
    pass


@breach("RAW-1", "formats/openai-chat-answers")
class RawAnswerOfAnotherFormat(SaysOpenAI):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        response = await super().chat(request, call)
        response.raw_body = b'{"answer": 42}'
        return response


@breach("RAW-2", "formats/openai-chat-streams")
class NoRawFrames(SaysOpenAI):
    pass


# --- calls and inputs ------------------------------------------------------------------------------


@breach("CANCEL-1", "calls/cancelled-streams")
class IgnoresCancellation(GoodProvider):
    """Ten workers, each of them busy to its end with a caller who has gone."""

    def __init__(self) -> None:
        super().__init__()
        self._workers = asyncio.Semaphore(10)

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        await self._workers.acquire()
        finished = False
        try:
            async for message in super().stream_chat(request, call):
                yield message
            finished = True
        finally:
            if finished:
                self._workers.release()


@breach("TIME-2", "calls/timeouts")
class IgnoresTimeouts(GoodProvider):
    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        if request.attempt.timeouts.total_ms == 1:
            await asyncio.sleep(1.1)
        return await super().chat(request, call)


@breach("PARALLEL-2", "calls/parallel")
class MixesCallersUp(GoodProvider):
    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        async for message in super().stream_chat(request, call):
            if message.HasField("part_delta"):
                self._last, message.part_delta.text = message.part_delta.text, self._last
            yield message


@breach("PARALLEL-1", "calls/parallel")
class OneAtATime(GoodProvider):
    busy = False

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        if self.busy:
            raise RpcError("PROVIDER_OVERLOADED", "one at a time")
        self.busy = True
        try:
            async for message in super().stream_chat(request, call):
                yield message
                await asyncio.sleep(0)
        finally:
            self.busy = False


@breach("INPUT-1", "inputs/any-script")
class CutsCharacters(Streams):
    def change(self, message: pb.StreamChatResponse) -> list[pb.StreamChatResponse]:
        if message.HasField("part_delta"):
            cut = message.part_delta.text.encode()[:-2]
            message.part_delta.text = cut.decode(errors="replace")
        return [message]


@pytest.mark.parametrize(("broken", "clause", "only"), BREACHES)
async def test_each_breach_is_reported_with_its_clause(
    broken: type[GoodProvider], clause: str, only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PATIENCE_S", 1.0)
    async with serving(broken()) as address:
        results = await verdict(address, only)
    assert broken_clauses(results) == {clause}, shown_failures(results)


async def test_errors_without_details_and_small_messages_are_reported() -> None:
    async with serving_bare(GoodProvider()) as address:
        failures = await verdict(address, "failures")
        large = await verdict(address, "inputs/large")
    assert broken_clauses(failures) == {"ERROR-1"}, shown_failures(failures)
    assert broken_clauses(large) == {"INPUT-2"}, shown_failures(large)


async def test_unchecked_constraints_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "check_constraints", lambda *arguments: None)
    async with serving(GoodProvider()) as address:
        results = await verdict(address, "failures")
    assert broken_clauses(results) == {"ERROR-5"}, shown_failures(results)


async def test_a_good_provider_breaks_nothing() -> None:
    async with serving(GoodProvider()) as address:
        results = await verdict(address)
    assert not broken_clauses(results), shown_failures(results)
    passed = {clause for result in results if result.state == "pass" for clause in result.clauses}
    assert len(passed) > 30


def test_every_clause_can_be_broken() -> None:
    """A clause that nothing here breaks would be one that the kit may not see."""
    elsewhere = {
        "ERROR-1": "by servers without details",
        "ERROR-5": "by servers that check no constraints",
        "INPUT-2": "by servers with small messages",
        "HEALTH-2": "tests/conformance/test_command.py",
        "TIME-1": "a deadline is kept by the caller's own gRPC: only what follows it can break",
    }
    assert set(CLAUSES) == {param.values[1] for param in BREACHES} | set(elsewhere)
