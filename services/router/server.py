"""Serves omnihub.router.v1.RouterService: message in, admission, execution, message out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import explain_pb2 as explain
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.formats import anthropic_messages, openai_chat, openai_responses
from services.router.accounting.store import JournalStore
from services.router.admission import Admission
from services.router.asked import Asked
from services.router.domain.shortlist import includes
from services.router.execution.comparing import Comparing
from services.router.execution.counting import Counting
from services.router.execution.endings import Endings
from services.router.execution.execution import Execution
from services.router.execution.streaming import Streaming
from services.router.planning.explain import Explaining
from services.router.registry.listing import all_shown, describe
from services.router.request import Request
from services.router.responses.keeping import Keeping
from services.router.responses.stored_responses import StoredResponses

PAGE_SIZE = 100

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
        self._keeping = Keeping(admission, responses)
        self._admission = admission
        self._execution = execution
        self._store = store
        self._counting = counting
        self._explaining = Explaining(admission)
        self._endings = Endings(admission)
        self._streaming = Streaming(admission, execution, self._endings, self._keeping)
        self._comparing = Comparing(admission, self._streaming, self._endings)

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        return await self._answer(_asked(request, "chat"), call)

    async def _answer(self, asked: Asked, call: Call) -> pb.ChatResponse:
        admitted = await self._keeping.admit(asked, call)
        try:
            if admitted.look.answer is not None:
                return await self._again(admitted, admitted.look.answer)
            answer = await self._execution.answer(admitted)
            raw_body = answer.raw_body if answer.HasField("raw_body") else None
            admitted.receipt = list(answer.receipt)
            produced = answer.message.ByteSize() if raw_body is None else len(raw_body)
            admitted.complete(answer.usage, answer.finish, produced)
            if raw_body is not None:
                admitted.response_id = answer.response_id
            if admitted.asked.background and _goes_on(answer, admitted):
                await self._keeping.pend(admitted)
            else:
                await self._keeping.conclude(admitted)
        except BaseException as error:
            self._endings.fail(admitted, error)
            raise
        self._admission.cache.keep_whole(admitted, answer)
        return _response(answer, raw_body, admitted)

    async def _again(self, request: Request, answer: CachedAnswer) -> pb.ChatResponse:
        """Return a kept answer: as it came, or else in the normalised model."""
        request.answer_again()
        await self._admission.conclude(request)
        whole = provider.ChatResponse(message=answer.message, response_id=answer.response_id)
        return _response(whole, answer.raw_body or None, request)

    def stream_chat(self, request: pb.StreamChatRequest, call: Call) -> AsyncIterator[pb.StreamChatResponse]:
        async def admit() -> Request:
            return await self._keeping.admit(_asked(request, "stream"), call)

        return self._streaming.run(admit)

    async def compare_chat(
        self, request: pb.CompareChatRequest, call: Call
    ) -> AsyncIterator[pb.CompareChatResponse]:
        async with aclosing(self._comparing.run(_compared(request), call)) as events:
            async for event in events:
                yield event

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
        message = provider.EmbedRequest(inputs=request.inputs, raw_body=asked.raw_body, strict=request.strict)
        if request.HasField("dimensions"):
            message.dimensions = request.dimensions
        try:
            answer = await self._execution.embed(admitted, message)
            admitted.receipt = list(answer.receipt)
            admitted.complete(answer.usage, Finish(reason="stop"), 0)
            await self._admission.conclude(admitted)
        except BaseException as error:
            self._endings.fail(admitted, error)
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
        budget = self._admission.budget_of(call.identity)
        if budget is not None:
            models = [each for each in models if includes(budget, each.model, each.name)]
        rest = [model for model in models if model.name > after]
        page = rest[:size]
        return pb.ListModelsResponse(
            models=await describe(page, self._admission, call.identity.organisation_id),
            next_page_token=encode_page_token(page[-1].name) if len(rest) > size else "",
        )

    async def get_decision(self, request: pb.GetDecisionRequest, call: Call) -> pb.GetDecisionResponse:
        decision = await self._store.decision(request.decision_id, call.identity.organisation_id)
        if decision is None:
            raise RpcError("NOT_FOUND", f"no decision {request.decision_id!r} in this organisation")
        return pb.GetDecisionResponse(decision=decision)


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
    if chat.models:
        raise _invalid("models", "only POST /v1/chat:compare (CompareChat) takes several; send `model`")
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
        service_tier=facts.service_tier,
        tools=facts.has_tools,
        messages=facts.messages,
    )


def _compared(request: pb.CompareChatRequest) -> list[Asked]:
    """Read a comparison: one request for each model. Raises RpcError naming the wrong field."""
    models = list(request.chat.models)
    if request.chat.model or not 2 <= len(set(models)) == len(models):
        raise _invalid("models", "name two to four different models to compare, and no `model`")
    asked = []
    for model in models:
        one = pb.StreamChatRequest(chat=request.chat, options=request.options)
        one.chat.ClearField("models")
        one.chat.model = model
        asked.append(_asked(one, "stream"))
    return asked


def _goes_on(answer: provider.ChatResponse, request: Request) -> bool:
    """Tell whether an answer is still being made. Without an id nobody could ask for its end."""
    return bool(request.response_id) and answer.finish.raw in openai_responses.UNFINISHED


def _asked_to_embed(request: pb.EmbedRequest) -> Asked:
    raw_body = request.raw_body
    if not raw_body and not request.inputs:
        raise _invalid("inputs", "send at least one text")
    chat = ChatInput(model=request.model, agent_id=request.agent_id, run_id=request.run_id)
    chat.messages.extend(Message(role="user", content=text) for text in request.inputs)
    return Asked(chat, "embed", raw_body)


def _response(answer: provider.ChatResponse, raw_body: bytes | None, request: Request) -> pb.ChatResponse:
    outcome = request.outcome()
    response = pb.ChatResponse(
        model_used=request.target.name,
        cost=outcome.cost,
        latency_ms=outcome.latency_ms,
        savings_estimate=outcome.savings_estimate,
        response_id=answer.response_id,
        raw_body=raw_body,
    )
    response.outcome.CopyFrom(outcome)
    if raw_body is None:
        response.message.CopyFrom(answer.message)
        response.output = "".join(
            [answer.message.content, *(part.text.text for part in answer.message.parts)]
        )
    return response
