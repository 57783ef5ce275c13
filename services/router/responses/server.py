"""Serves omnihub.router.v1.ResponseService: what providers keep, for the organisation whose answer it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from omnihub.provider.v1 import stored_response_service_pb2 as stored_pb
from omnihub.router.v1 import response_service_pb2 as pb
from omnihub.router.v1 import router_service_pb2 as router_pb

from services.common.rpc import Call
from services.router.responses.store import StoredResponse
from services.router.responses.stored_responses import CANCEL, GET, StoredResponses


class ResponseServer:
    """See the contract in omnihub/router/v1/response_service.proto."""

    def __init__(self, responses: StoredResponses) -> None:
        self._responses = responses

    async def get_response(self, request: pb.GetResponseRequest, call: Call) -> pb.GetResponseResponse:
        document = await self._ask(request.response_id, GET, call, request.query)
        return pb.GetResponseResponse(document=document)

    async def cancel_response(
        self, request: pb.CancelResponseRequest, call: Call
    ) -> pb.CancelResponseResponse:
        return pb.CancelResponseResponse(document=await self._ask(request.response_id, CANCEL, call))

    async def list_input_items(
        self, request: pb.ListInputItemsRequest, call: Call
    ) -> pb.ListInputItemsResponse:
        operation = stored_pb.STORED_RESPONSE_OPERATION_LIST_INPUT_ITEMS
        document = await self._ask(request.response_id, operation, call, request.query)
        return pb.ListInputItemsResponse(document=document)

    async def delete_response(
        self, request: pb.DeleteResponseRequest, call: Call
    ) -> pb.DeleteResponseResponse:
        stored = await self._responses.find(request.response_id, call)
        body = await self._responses.delete(stored, call)
        return pb.DeleteResponseResponse(document=_document(stored, body))

    async def stream_response(
        self, request: pb.StreamResponseRequest, call: Call
    ) -> AsyncIterator[pb.StreamResponseResponse]:
        stored = await self._responses.find(request.response_id, call)
        async with aclosing(self._responses.follow(stored, request.query, call)) as events:
            async for event, cost in events:
                if event.HasField("raw_frame"):
                    yield pb.StreamResponseResponse(raw_frame=event.raw_frame)
                elif event.HasField("end"):
                    outcome = router_pb.Outcome(
                        request_id=call.request_id,
                        decision_id=stored.decision_id,
                        model_used=stored.target,
                        provider=stored.provider,
                        usage=event.end.usage,
                        finish=event.end.finish,
                        cost=cost,
                        state="complete",
                    )
                    tail = router_pb.RawTail(documents=event.end.raw_tail)
                    end = router_pb.StreamEnd(outcome=outcome, raw_tail=tail)
                    yield pb.StreamResponseResponse(end=end)

    async def _ask(
        self,
        response_id: str,
        operation: stored_pb.StoredResponseOperation.ValueType,
        call: Call,
        query: str = "",
    ) -> pb.StoredDocument:
        stored = await self._responses.find(response_id, call)
        body, cost = await self._responses.ask(stored, operation, call, query)
        return _document(stored, body, cost)


def _document(stored: StoredResponse, body: bytes, cost: str = "") -> pb.StoredDocument:
    return pb.StoredDocument(
        raw_body=body,
        decision_id=stored.decision_id,
        model_used=stored.target,
        provider=stored.provider,
        cost=cost,
    )
