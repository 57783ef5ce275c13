"""Serves omnihub.router.v1.RouterService: message in, admission, execution, message out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, Usage
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import to_rpc_error
from services.router.admission import Admission
from services.router.domain.estimate import likely_tokens
from services.router.execution import Body, Execution
from services.router.listing import describe
from services.router.request import Request
from services.router.settings import RouterSettings
from services.router.store import JournalStore

PAGE_SIZE = 100


class RouterServer:
    """See the contract in omnihub/router/v1/router_service.proto."""

    def __init__(
        self,
        settings: RouterSettings,
        admission: Admission,
        execution: Execution,
        providers: ProviderService,
        store: JournalStore,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._execution = execution
        self._providers = providers
        self._store = store

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        admitted = await self._admission.admit(
            request.chat, request.raw_body, call, streamed=False, choices=request.options.choices or 1
        )
        try:
            answer = await self._execution.answer(admitted, request)
            _take_answer(admitted, answer, request)
            await self._admission.conclude(admitted)
        except BaseException as error:
            self._fail(admitted, error)
            raise
        return _response(answer, admitted)

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        admitted = await self._admission.admit(
            request.chat, request.raw_body, call, streamed=True, choices=request.options.choices or 1
        )
        meter = _Meter(admitted, request, self._admission, self._settings.default_output_tokens)
        try:
            async with aclosing(self._execution.stream(admitted, request)) as events:
                async for event in events:
                    if event.HasField("end"):
                        _take_end(admitted, event.end, meter)
                        await self._admission.conclude(admitted)
                        yield pb.StreamChatResponse(
                            end=pb.StreamEnd(outcome=admitted.outcome(), raw_tail=event.end.raw_tail)
                        )
                        return
                    yield _translated(event, admitted)
                    await meter.count(event)
            raise RpcError("STREAM_TRUNCATED", "the provider's stream ended without its finish")
        except RpcError as error:
            if admitted.first_token_at is None:
                self._fail(admitted, error)
            else:
                await self._break(admitted, error, meter)
                yield _error(admitted, error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._leave(admitted, meter)
            raise

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        chat = ChatInput(model=request.model)
        chat.messages.extend(Message(role="user", content=text) for text in request.inputs)
        admitted = await self._admission.admit(
            chat, request.raw_body, call, streamed=False, modality="embeddings"
        )
        try:
            answer = await self._embed(admitted, request)
            admitted.usage = answer.usage
            admitted.state = "complete"
            admitted.finish = Finish(reason="stop")
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

    async def _embed(self, admitted: Request, request: pb.EmbedRequest) -> provider.EmbedResponse:
        async def ask(attempt: provider.Attempt) -> provider.EmbedResponse:
            message = provider.EmbedRequest(
                provider=attempt.provider,
                model=attempt.model,
                inputs=request.inputs,
                raw_body=request.raw_body,
                timeouts=attempt.timeouts,
            )
            if request.HasField("dimensions"):
                message.dimensions = request.dimensions
            return await self._providers.embed(message, admitted.call)

        return await self._execution.until_answered(admitted, pb.ChatRequest(), 0, ask)  # type: ignore[no-any-return]

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        (after,) = decode_page_token(request.page_token, 1) if request.page_token else ("",)
        size = request.page_size or PAGE_SIZE
        models = self._admission.catalogue.usable(call.identity.allowed_models)
        rest = sorted((model for model in models if model.name > after), key=lambda model: model.name)
        page = rest[:size]
        return pb.ListModelsResponse(
            models=[await describe(model, self._admission) for model in page],
            next_page_token=encode_page_token(page[-1].name) if len(rest) > size else "",
        )

    async def get_decision(self, request: pb.GetDecisionRequest, call: Call) -> pb.GetDecisionResponse:
        decision = await self._store.decision(request.decision_id, call.identity.organisation_id)
        if decision is None:
            raise RpcError("NOT_FOUND", f"no decision {request.decision_id!r} in this organisation")
        return pb.GetDecisionResponse(decision=decision)

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a request that produced nothing."""
        visible = to_rpc_error(error)
        request.state = "cancelled" if visible.reason == "CANCELLED" else "upstream_error"
        request.reason = visible.reason
        request.cost_source = ""
        self._admission.abandon(request)

    async def _break(self, request: Request, error: RpcError, meter: _Meter) -> None:
        """End a stream that broke: what was produced is paid."""
        states = {"STREAM_TRUNCATED": "truncated", "OUT_OF_BUDGET": "out_of_budget"}
        request.state = states.get(error.reason, "upstream_error")
        request.reason = error.reason
        meter.estimate()
        await self._admission.conclude(request)

    def _leave(self, request: Request, meter: _Meter) -> None:
        """End a stream whose caller has gone: what was produced is paid."""
        if request.state == "complete":
            return
        request.state = "cancelled"
        request.reason = "CANCELLED"
        if request.attempts:
            request.attempts[-1].state = "cancelled"
        if request.first_token_at is None:
            self._admission.abandon(request)
        else:
            meter.estimate()
            self._admission.conclude_soon(request)


class _Meter:
    """Counts what a stream produces, and reserves more credits before it runs out of them."""

    def __init__(self, request: Request, body: Body, admission: Admission, step_tokens: int) -> None:
        self._request = request
        self._admission = admission
        self._step = step_tokens
        self._input_bytes = len(body.raw_body) or body.chat.ByteSize()
        self._produced_bytes = 0
        # With a limit of the caller's own the reservation covers all that can come.
        self._limit = 0 if body.chat.max_tokens else step_tokens

    async def count(self, event: provider.StreamChatResponse) -> None:
        """Take in one event. Raises RpcError OUT_OF_BUDGET."""
        if event.HasField("raw_frame"):
            self._produced_bytes += len(event.raw_frame.text.encode())
        elif event.HasField("part_delta"):
            self._produced_bytes += event.part_delta.ByteSize()
        if self._limit and likely_tokens(self._produced_bytes) > self._limit * 3 // 4:
            if not await self._admission.extend(self._request, self._step):
                raise RpcError("OUT_OF_BUDGET", "the credits are used up; the answer ends here")
            self._limit += self._step

    def estimate(self) -> None:
        """Fill in the usage of a stream that did not report it."""
        self._request.usage = Usage(
            input_total=likely_tokens(self._input_bytes),
            output_total=likely_tokens(self._produced_bytes),
            estimated=True,
        )


def _take_answer(request: Request, answer: provider.ChatResponse, body: pb.ChatRequest) -> None:
    request.state = "complete"
    request.finish = answer.finish
    request.receipt = list(answer.receipt)
    request.usage = answer.usage
    if not answer.usage.input_total and not answer.usage.output_total:
        produced = len(answer.raw_body) or answer.message.ByteSize()
        request.usage = Usage(
            input_total=likely_tokens(len(body.raw_body) or body.chat.ByteSize()),
            output_total=likely_tokens(produced),
            estimated=True,
        )
    request.attempts[-1].latency_ms = request.latency_ms


def _take_end(request: Request, end: provider.StreamEnd, meter: _Meter) -> None:
    request.state = "complete"
    request.finish = end.finish
    request.usage = end.usage
    if not end.usage.input_total and not end.usage.output_total:
        meter.estimate()
    request.attempts[-1].latency_ms = request.latency_ms


def _response(answer: provider.ChatResponse, request: Request) -> pb.ChatResponse:
    outcome = request.outcome()
    response = pb.ChatResponse(
        model_used=outcome.model_used,
        cost=outcome.cost,
        latency_ms=outcome.latency_ms,
        savings_estimate=outcome.savings_estimate,
        outcome=outcome,
        response_id=answer.response_id,
    )
    if answer.HasField("raw_body"):
        response.raw_body = answer.raw_body
    else:
        response.message.CopyFrom(answer.message)
        response.output = "".join(
            [answer.message.content, *(part.text.text for part in answer.message.parts)]
        )
    return response


def _translated(event: provider.StreamChatResponse, request: Request) -> pb.StreamChatResponse:
    if event.HasField("raw_frame"):
        return pb.StreamChatResponse(raw_frame=event.raw_frame)
    if event.HasField("part_delta"):
        return pb.StreamChatResponse(part_delta=event.part_delta)
    if event.HasField("part_start"):
        return pb.StreamChatResponse(part_start=event.part_start)
    if event.HasField("part_stop"):
        return pb.StreamChatResponse(part_stop=event.part_stop)
    request.receipt = list(event.start.receipt)
    start = pb.StreamStart(
        request_id=request.call.request_id,
        decision_id=request.decision_id,
        model_used=request.target.name,
        provider=request.target.provider,
        response_id=event.start.response_id,
        model=event.start.model,
        wire_format=event.start.wire_format,
    )
    start.started_at.FromMilliseconds(int(request.started_at * 1000))
    return pb.StreamChatResponse(start=start)


def _error(request: Request, error: RpcError) -> pb.StreamChatResponse:
    return pb.StreamChatResponse(
        error=pb.StreamError(reason=error.reason, message=error.message, outcome=request.outcome())
    )
