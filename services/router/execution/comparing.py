"""Several models answer one conversation side by side, each as a request of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from omnihub.router.v1 import router_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import to_rpc_error
from services.credits.money import format_nano
from services.router.admission import Admission
from services.router.asked import Asked
from services.router.execution.endings import Endings
from services.router.execution.streaming import Streaming
from services.router.request import Request

# Events that candidates may be ahead of the caller, all together.
BUFFER = 16
# Nobody begins when the money or the limits do not allow all of them.
_REFUSALS = (402, 429)
_BUDGET = "BUDGET_LIMIT"

_Lane = Request | RpcError


class Comparing:
    """Runs comparisons."""

    def __init__(self, admission: Admission, streaming: Streaming, endings: Endings) -> None:
        self._admission = admission
        self._streaming = streaming
        self._endings = endings

    async def run(self, asked: Sequence[Asked], call: Call) -> AsyncGenerator[pb.CompareChatResponse, None]:
        """Yield the events of all candidates as they come, then `end`, or `error` when all have failed.

        After `error` it raises. Raises RpcError before the first event when no candidate can begin.
        """
        lanes = await self._admit(asked, call)
        comparison_id = new_id("cmp")
        for lane in lanes:
            if isinstance(lane, Request):
                lane.comparison_id = comparison_id
        queue: asyncio.Queue[pb.CompareChatResponse | int] = asyncio.Queue(BUFFER)
        running = [
            asyncio.create_task(self._candidate(index, lane, queue)) for index, lane in enumerate(lanes)
        ]
        left = len(running)
        try:
            while left:
                message = await queue.get()
                if isinstance(message, int):
                    left -= 1
                else:
                    yield message
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        failures = [task.result() for task in running]
        if all(failures):
            failure = failures[0]
            assert failure is not None
            outcome = lanes[0].outcome() if isinstance(lanes[0], Request) else None
            yield pb.CompareChatResponse(
                error=pb.StreamError(reason=failure.reason, message=failure.message, outcome=outcome)
            )
            raise failure
        yield pb.CompareChatResponse(end=_end(lanes, comparison_id))

    async def _admit(self, asked: Sequence[Asked], call: Call) -> list[_Lane]:
        """Plan all candidates and reserve what they may cost, before the first one begins."""
        lanes: list[_Lane] = []
        try:
            for one in asked:
                try:
                    lanes.append(await self._admission.admit(one, call))
                except Exception as error:
                    failure = to_rpc_error(error)
                    if failure.row.http in _REFUSALS or failure.reason == _BUDGET:
                        raise
                    lanes.append(failure)
        except BaseException:
            refused = RpcError("CANCELLED", "not begun: another model of the comparison was refused")
            for lane in lanes:
                if isinstance(lane, Request):
                    self._endings.fail(lane, refused)
            raise
        if not any(isinstance(lane, Request) for lane in lanes):
            raise next(lane for lane in lanes if isinstance(lane, RpcError))
        return lanes

    async def _candidate(
        self, index: int, lane: _Lane, queue: asyncio.Queue[pb.CompareChatResponse | int]
    ) -> RpcError | None:
        """Put a candidate's events into the queue, then its index. Returns how it failed."""
        failure: RpcError | None = None
        told = False

        def event(message: pb.StreamChatResponse) -> pb.CompareChatResponse:
            return pb.CompareChatResponse(candidate=pb.ComparedEvent(index=index, event=message))

        if isinstance(lane, RpcError):
            failure = lane
        else:

            async def admitted() -> Request:
                return lane

            try:
                async with aclosing(self._streaming.run(admitted)) as stream:
                    async for message in stream:
                        told = told or message.HasField("error")
                        await queue.put(event(message))
            except Exception as error:  # noqa: BLE001 - the failure of one candidate is an event, not the end
                failure = to_rpc_error(error)
        if failure is not None and not told:
            outcome = lane.outcome() if isinstance(lane, Request) else pb.Outcome(state="failed")
            last = pb.StreamError(reason=failure.reason, message=failure.message, outcome=outcome)
            await queue.put(event(pb.StreamChatResponse(error=last)))
        await queue.put(index)
        return failure


def _end(lanes: Sequence[_Lane], comparison_id: str) -> pb.CompareEnd:
    requests = [lane for lane in lanes if isinstance(lane, Request)]
    return pb.CompareEnd(
        outcomes=[
            lane.outcome() if isinstance(lane, Request) else pb.Outcome(state="failed") for lane in lanes
        ],
        cost=format_nano(sum(request.cost for request in requests)),
        comparison_id=comparison_id,
    )
