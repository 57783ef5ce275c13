"""Serves omnihub.router.v1.RouterService: message in, admission, execution, message out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import explain_pb2 as explain
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation, to_rpc_error
from services.credits.money import parse_nano
from services.formats import anthropic_messages, openai_chat, openai_responses
from services.router.admission import Admission
from services.router.counting import Counting
from services.router.domain.transcript import Transcript
from services.router.execution import Execution
from services.router.explain import Explaining
from services.router.journal import JournalError
from services.router.listing import all_shown, describe
from services.router.request import Asked, Request
from services.router.rescue import VOID
from services.router.store import JournalStore
from services.router.stored_responses import StoredResponses

PAGE_SIZE = 100
# A reservation must hold for writing with short tokens too.
METERED_BYTES_PER_TOKEN = 2

# How a request ended, by the reason of its failure; any other reason is the provider's.
_STATES = {
    "CANCELLED": "cancelled",
    "INTERNAL": "failed",
    "OUT_OF_BUDGET": "out_of_budget",
    "STREAM_TRUNCATED": "truncated",
}
_FACTS = {
    WireFormat.WIRE_FORMAT_OPENAI_CHAT: openai_chat.read_facts,
    WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES: anthropic_messages.read_facts,
    WireFormat.WIRE_FORMAT_OPENAI_RESPONSES: openai_responses.read_facts,
}


class RouterServer:
    """See the contract in omnihub/router/v1/router_service.proto."""

    def __init__(
        self,
        admission: Admission,
        execution: Execution,
        store: JournalStore,
        counting: Counting,
        responses: StoredResponses | None = None,
    ) -> None:
        self._responses = responses
        self._admission = admission
        self._execution = execution
        self._store = store
        self._counting = counting
        self._explaining = Explaining(admission)

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        return await self._answer(_asked(request, "chat"), call)

    async def _answer(self, asked: Asked, call: Call) -> pb.ChatResponse:
        admitted = await self._admit(asked, call)
        try:
            answer = await self._execution.answer(admitted)
            raw_body = answer.raw_body if answer.HasField("raw_body") else None
            admitted.receipt = list(answer.receipt)
            produced = answer.message.ByteSize() if raw_body is None else len(raw_body)
            admitted.complete(answer.usage, answer.finish, produced)
            if raw_body is not None:
                admitted.response_id = answer.response_id
            if admitted.asked.background and _goes_on(answer, admitted):
                await self._pend(admitted)
            else:
                await self._conclude(admitted)
        except BaseException as error:
            self._fail(admitted, error)
            raise
        return _response(answer, raw_body, admitted)

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        admitted = await self._admit(_asked(request, "stream"), call)
        transcript = Transcript()
        meter = _Meter(admitted, self._admission, transcript)
        try:
            async with aclosing(self._execution.stream(admitted, transcript)) as events:
                async for event in events:
                    if event.HasField("end"):
                        admitted.complete(event.end.usage, event.end.finish, transcript.attempt_bytes)
                        await self._conclude(admitted)
                        yield _end(event.end, admitted)
                        return
                    if event.HasField("start"):
                        meter.begin()
                        if event.start.wire_format:
                            admitted.response_id = event.start.response_id
                            if admitted.asked.background and admitted.response_id:
                                await self._pend(admitted)
                        yield _started(event.start, admitted, transcript)
                    else:
                        yield _translated(event)
                        if meter.due():
                            await meter.reserve()
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(admitted, transcript)
            raise
        except Exception as error:
            if admitted.first_token_at is None:
                self._fail(admitted, error)
            else:
                await self._break(admitted, error, transcript)
                yield _error(admitted, error)
            raise

    async def _admit(self, asked: Asked, call: Call) -> Request:
        """Admit a chat; one that goes on from a stored answer only where that is kept."""
        if asked.previous and self._responses is not None:
            asked = replace(asked, pinned=await self._responses.provider_of(asked.previous, call))
        return await self._admission.admit(asked, call)

    async def _pend(self, request: Request) -> None:
        await self._admission.pend(request)
        self._remember(request)

    async def _conclude(self, request: Request) -> None:
        """Record an answer, or charge one whose record was made when it began in the background."""
        stored = request.stored(request.attempts[-1].attempt_id) if request.pending else None
        if stored is None or self._responses is None:
            await self._admission.conclude(request)
            self._remember(request)
            return
        cost = await self._responses.settle(stored, "completed", request.finish, request.usage)
        request.cost = parse_nano(cost)

    def _remember(self, request: Request) -> None:
        if self._responses is not None and request.response_id and request.attempts:
            stored = request.stored(request.attempts[-1].attempt_id)
            if stored is not None:
                self._responses.remember(stored)

    async def agent_step(self, request: pb.AgentStepRequest, call: Call) -> pb.AgentStepResponse:
        message = pb.ChatRequest(chat=request.chat, options=request.options)
        answer = await self._answer(replace(_asked(message, "chat"), task="agent_step"), call)
        finish = answer.outcome.finish.reason
        calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
        return pb.AgentStepResponse(
            message=answer.message,
            output=answer.output,
            tool_calls=calls,
            done=not calls and finish == "stop",
            state=request.state,
            outcome=answer.outcome,
        )

    async def explain_route(
        self, request: explain.ExplainRouteRequest, call: Call
    ) -> explain.ExplainRouteResponse:
        asked = _asked(request, "stream" if request.stream else "chat")
        return await self._explaining.route(asked, request.policy_json, call)

    async def estimate_cost(
        self, request: explain.EstimateCostRequest, call: Call
    ) -> explain.EstimateCostResponse:
        asked = _asked(request, "chat")
        return await self._explaining.estimate(asked, request.expected_output_tokens, call)

    async def cheapest_model(
        self, request: explain.CheapestModelRequest, call: Call
    ) -> explain.CheapestModelResponse:
        return await self._explaining.cheapest(request, call)

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        asked = _asked_to_embed(request)
        admitted = await self._admission.admit(asked, call)
        message = provider.EmbedRequest(inputs=request.inputs, raw_body=asked.raw_body)
        if request.HasField("dimensions"):
            message.dimensions = request.dimensions
        try:
            answer = await self._execution.embed(admitted, message)
            admitted.complete(answer.usage, Finish(reason="stop"), 0)
            await self._admission.conclude(admitted)
        except BaseException as error:
            self._fail(admitted, error)
            raise
        response = pb.EmbedResponse(
            embeddings=[pb.Vector(values=vector.values) for vector in answer.embeddings],
            outcome=admitted.outcome(),
        )
        if answer.HasField("raw_body"):
            response.raw_body = answer.raw_body
        return response

    async def count_tokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        if not request.raw_body and not request.chat.messages:
            raise _invalid("messages", "send at least one message")
        return await self._counting.count(request, call)

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        (after,) = decode_page_token(request.page_token, 1) if request.page_token else ("",)
        size = request.page_size or PAGE_SIZE
        models = all_shown(self._admission.catalogue, call.identity.allowed_models)
        rest = [model for model in models if model.name > after]
        page = rest[:size]
        return pb.ListModelsResponse(
            models=await describe(page, self._admission),
            next_page_token=encode_page_token(page[-1].name) if len(rest) > size else "",
        )

    async def get_decision(self, request: pb.GetDecisionRequest, call: Call) -> pb.GetDecisionResponse:
        decision = await self._store.decision(request.decision_id, call.identity.organisation_id)
        if decision is None:
            raise RpcError("NOT_FOUND", f"no decision {request.decision_id!r} in this organisation")
        return pb.GetDecisionResponse(decision=decision)

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a request that produced nothing the caller has seen: it costs nothing."""
        if request.concluded:
            return
        failure = to_rpc_error(error)
        if isinstance(error, RpcError):
            error.metadata.setdefault("decision_id", request.decision_id)
        request.state = _STATES.get(failure.reason, "upstream_error")
        request.reason = failure.reason
        request.end_attempt("cancelled" if failure.reason == "CANCELLED" else "failed", failure)
        self._admission.abandon(request)

    async def _break(self, request: Request, error: Exception, transcript: Transcript) -> None:
        """End a stream that broke: what was produced is paid."""
        if request.concluded:
            return
        failure = to_rpc_error(error)
        request.state = _STATES.get(failure.reason, "upstream_error")
        request.reason = failure.reason
        request.end_attempt("cancelled" if failure.reason == "OUT_OF_BUDGET" else "failed", failure)
        request.estimate_usage(transcript.attempt_bytes)
        try:
            await self._admission.conclude(request)
        except JournalError:
            # The stream's own failure is what its caller is told; the journal has logged this one.
            return

    def _leave(self, request: Request, transcript: Transcript) -> None:
        """End a request whose caller has gone: what was produced is paid."""
        if request.concluded:
            return
        request.state = "cancelled"
        request.reason = "CANCELLED"
        request.end_attempt("cancelled")
        if request.first_token_at is None:
            self._admission.abandon(request)
        else:
            request.estimate_usage(transcript.attempt_bytes)
            self._admission.conclude_soon(request)


class _Meter:
    """Reserves more credits before a stream has used up what is reserved."""

    def __init__(self, request: Request, admission: Admission, transcript: Transcript) -> None:
        self._request = request
        self._admission = admission
        self._transcript = transcript
        self._step = 0
        self._limit_tokens: float = math.inf

    def begin(self) -> None:
        """A model begins to speak: beside what has been produced, a full step is reserved for it."""
        request = self._request
        if request.asked.max_tokens or request.candidate is None:
            # With a limit of the caller's own the reservation covers all that can come.
            return
        self._step = step = self._admission.output_cap(request.candidate.model)
        produced = self._transcript.produced_bytes // METERED_BYTES_PER_TOKEN
        self._limit_tokens = produced + step * request.asked.choices

    def due(self) -> bool:
        """Tell whether more has to be reserved. Cheap: asked after each event."""
        produced = self._transcript.produced_bytes // METERED_BYTES_PER_TOKEN
        return produced > self._limit_tokens - self._step // 4

    async def reserve(self) -> None:
        """Reserve for what comes next. Raises RpcError OUT_OF_BUDGET."""
        if not await self._admission.extend(self._request, self._step):
            raise RpcError("OUT_OF_BUDGET", "the credits for this request are used up; the answer ends here")
        self._limit_tokens += self._step


def _invalid(field: str, description: str) -> RpcError:
    return RpcError("INVALID_ARGUMENT", f"{field}: {description}", violations=[Violation(field, description)])


Conversation = (
    pb.ChatRequest | pb.StreamChatRequest | explain.ExplainRouteRequest | explain.EstimateCostRequest
)


def _asked(request: Conversation, feature: str) -> Asked:
    """Read a chat. What limits its cost is read from the body that will be sent, not from what is said of it.

    Raises RpcError and FormatError naming the wrong field.
    """
    chat, raw_body = request.chat, request.raw_body
    options = getattr(request, "options", None) or pb.CallOptions()
    if not raw_body:
        if not chat.messages:
            raise _invalid("messages", "send at least one message")
        json = bool(chat.response_schema_json) or "response_format" in chat.extension_json
        return Asked(chat, feature, options=options, max_tokens=chat.max_tokens, json=json)
    read_facts = _FACTS.get(request.wire_format)
    if read_facts is None:
        raise _invalid("wire_format", f"expected one of {', '.join(map(WireFormat.Name, _FACTS))}")
    facts = read_facts(raw_body)
    wire_format = WireFormat.ValueType(request.wire_format)
    return Asked(
        chat,
        feature,
        raw_body,
        wire_format,
        options,
        facts.max_tokens or 0,
        facts.n,
        stateful=facts.stateful,
        vendor_bound=facts.vendor_bound,
        previous=facts.previous,
        stores=facts.stores,
        background=facts.background,
        json=facts.has_schema,
        tools=facts.has_tools,
        messages=facts.messages,
    )


def _goes_on(answer: provider.ChatResponse, request: Request) -> bool:
    """Tell whether an answer is still being made. Without an id nobody could ask for its end."""
    return bool(request.response_id) and answer.finish.raw in openai_responses.UNFINISHED


def _asked_to_embed(request: pb.EmbedRequest) -> Asked:
    raw_body = request.raw_body
    if not raw_body and not request.inputs:
        raise _invalid("inputs", "send at least one text")
    chat = ChatInput(model=request.model)
    chat.messages.extend(Message(role="user", content=text) for text in request.inputs)
    return Asked(chat, "embed", raw_body)


def _end(end: provider.StreamEnd, request: Request) -> pb.StreamChatResponse:
    message = pb.StreamEnd(outcome=request.outcome())
    if end.raw_tail:
        message.raw_tail.documents.extend(end.raw_tail)
    return pb.StreamChatResponse(end=message)


def _response(answer: provider.ChatResponse, raw_body: bytes | None, request: Request) -> pb.ChatResponse:
    outcome = request.outcome()
    response = pb.ChatResponse(
        model_used=outcome.model_used,
        cost=outcome.cost,
        latency_ms=outcome.latency_ms,
        savings_estimate=outcome.savings_estimate,
        outcome=outcome,
        response_id=answer.response_id,
    )
    if raw_body is not None:
        response.raw_body = raw_body
    else:
        response.message.CopyFrom(answer.message)
        response.output = "".join(
            [answer.message.content, *(part.text.text for part in answer.message.parts)]
        )
    return response


def _translated(event: provider.StreamChatResponse) -> pb.StreamChatResponse:
    if event.HasField("raw_frame"):
        return pb.StreamChatResponse(raw_frame=event.raw_frame)
    if event.HasField("part_delta"):
        return pb.StreamChatResponse(part_delta=event.part_delta)
    if event.HasField("part_start"):
        return pb.StreamChatResponse(part_start=event.part_start)
    return pb.StreamChatResponse(part_stop=event.part_stop)


def _started(event: provider.StreamStart, request: Request, transcript: Transcript) -> pb.StreamChatResponse:
    """Return what the caller is told when a model begins to speak: the first, or one after a break."""
    request.take_receipt(event.receipt)
    reason = request.broken.reason
    if reason and request.speaker is not None and request.speaker.rescue != VOID:
        rescue = pb.StreamRescue(
            model_used=request.target.name,
            provider=request.target.provider,
            reason=reason,
            parts=transcript.position.parts,
        )
        return pb.StreamChatResponse(rescue=rescue)
    start = pb.StreamStart(
        request_id=request.call.request_id,
        decision_id=request.decision_id,
        model_used=request.target.name,
        provider=request.target.provider,
        response_id=event.response_id,
        model=event.model,
    )
    if event.wire_format:
        start.wire_format = event.wire_format
    start.started_at.FromMilliseconds(int(request.started_at * 1000))
    if reason:
        return pb.StreamChatResponse(restart=pb.StreamRestart(start=start, reason=reason))
    return pb.StreamChatResponse(start=start)


def _error(request: Request, error: Exception) -> pb.StreamChatResponse:
    failure = to_rpc_error(error)
    return pb.StreamChatResponse(
        error=pb.StreamError(reason=failure.reason, message=failure.message, outcome=request.outcome())
    )
