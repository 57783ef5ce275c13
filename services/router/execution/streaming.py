"""Answers as they are written: the events of one admitted request, metered, and ended for its record."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop, RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer

from services.common.rpc import RpcError
from services.common.rpc.errors import to_rpc_error
from services.common.rpc.outlet import Accept, Outlet, OutletStream
from services.router.admission import Admission
from services.router.cache.caching import Recording
from services.router.domain.replay import disassemble
from services.router.domain.transcript import Transcript
from services.router.execution.endings import Endings
from services.router.execution.execution import Execution
from services.router.execution.rescue import VOID
from services.router.request import Request
from services.router.responses.keeping import Keeping

_ARMS = {PartStart: "part_start", PartDelta: "part_delta", PartStop: "part_stop"}
# A reservation must hold for writing with short tokens too.
METERED_BYTES_PER_TOKEN = 2


class Streaming:
    """Runs streams."""

    def __init__(
        self, admission: Admission, execution: Execution, endings: Endings, keeping: Keeping
    ) -> None:
        self._admission = admission
        self._keeping = keeping
        self._execution = execution
        self._endings = endings

    def run(self, admit: Callable[[], Awaitable[Request]]) -> OutletStream[pb.StreamChatResponse]:
        """Return the events of a request, `end` or `error` last; after `error` it raises. Records it."""
        outlet = Outlet()
        return OutletStream(self._run(admit, outlet), outlet)

    async def _run(
        self, admit: Callable[[], Awaitable[Request]], outlet: Outlet
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Yield the events.

        One generator for all of it: each event pays for every further one it passes through.
        """
        admitted = await admit()
        # It holds the request, with a body that is kept elsewhere.
        del admit
        transcript = Transcript()
        meter = _Meter(admitted, self._admission, transcript)
        try:
            if admitted.look.answer is not None:
                async for message in self._again(admitted, admitted.look.answer):
                    yield message
                return
            recording = self._admission.cache.recording(admitted)
            accept = _passing(outlet, meter, transcript, recording)
            async with aclosing(self._execution.stream(admitted, transcript, accept)) as events:
                async for event in events:
                    if recording is not None:
                        recording.add(event)
                    if event.HasField("raw_frame"):
                        # First, as it is by far the most frequent.
                        message = pb.StreamChatResponse()
                        message.raw_frame.CopyFrom(event.raw_frame)
                        yield message
                        if meter.due():
                            await meter.reserve()
                        continue
                    if event.HasField("end"):
                        # What has been yielded goes out first: the journal's thread takes the interpreter
                        # for a while, and the first token of a short stream would wait for the record.
                        await asyncio.sleep(0)
                        admitted.complete(event.end.usage, event.end.finish, transcript.attempt_bytes)
                        await self._keeping.conclude(admitted)
                        if recording is not None:
                            self._admission.cache.keep_stream(admitted, recording, event.end)
                        yield _ended(admitted, event.end.raw_tail)
                        return
                    if event.HasField("start"):
                        meter.begin()
                        if event.start.wire_format:
                            await self._note_id(admitted, event.start.response_id)
                        yield _started(event.start, admitted, transcript)
                    else:
                        yield _translated(event)
                        if meter.due():
                            await meter.reserve()
        except (asyncio.CancelledError, GeneratorExit):
            self._endings.leave(admitted, transcript)
            raise
        except Exception as error:
            if admitted.first_token_at is None:
                self._endings.fail(admitted, error)
            else:
                await self._endings.break_off(admitted, error, transcript)
                yield _error(admitted, error)
            raise

    async def _note_id(self, request: Request, response_id: str) -> None:
        """Take in the provider's own id; an answer in the background is recorded as soon as it has one."""
        request.response_id = response_id
        if request.asked.background and response_id:
            await self._keeping.pend(request)

    async def _again(
        self, request: Request, answer: CachedAnswer
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Yield a kept answer as a stream: in its own frames, if they are as this caller wants them."""
        request.answer_again()
        await self._admission.conclude(request)
        raw = bool(answer.frames) and answer.include_usage == request.asked.options.include_usage
        start = _start(request, answer.response_id, answer.model)
        if raw:
            start.wire_format = answer.wire_format
        yield pb.StreamChatResponse(start=start)
        if raw:
            message = pb.StreamChatResponse()
            message.raw_frame.data = answer.frames
            yield message
        else:
            for event in disassemble(answer.message):
                message = pb.StreamChatResponse()
                getattr(message, _ARMS[type(event)]).CopyFrom(event)
                yield message
        yield _ended(request, answer.raw_tail if raw else ())


def _passing(outlet: Outlet, meter: _Meter, transcript: Transcript, recording: Recording | None) -> Accept:
    """Return what gives frames away at once, as long as there is nothing to wait for."""

    def accept(event: RawFrame | provider.StreamChatResponse) -> bool:
        give = outlet.accept
        if give is None:
            return False
        # In one process only the frame is given.
        if type(event) is RawFrame:
            frame = event
        elif event.HasField("raw_frame"):
            frame = event.raw_frame
        else:
            return False
        # A character has four bytes at most.
        most = 4 * max(frame.output_chars, len(frame.text), 1)
        if transcript.produced_bytes + most >= meter.due_at_bytes:
            return False
        if not give(frame):
            return False
        transcript.add_frame(frame)
        if recording is not None:
            recording.add_frame(frame)
        return True

    return accept


class _Meter:
    """Reserves more credits before a stream has used up what is reserved."""

    __slots__ = ("_admission", "_limit_tokens", "_request", "_step", "_transcript", "due_at_bytes")

    def __init__(self, request: Request, admission: Admission, transcript: Transcript) -> None:
        self._request = request
        self._admission = admission
        self._transcript = transcript
        self._step = 0
        self._limit_tokens = 0
        self.due_at_bytes: float = math.inf
        """Once this much has been produced, more has to be reserved."""

    def begin(self) -> None:
        """A model begins to speak: beside what has been produced, a full step is reserved for it."""
        request = self._request
        if request.asked.max_tokens or request.candidate is None:
            # With a limit of the caller's own the reservation covers all that can come.
            return
        self._step = step = self._admission.output_cap(request.candidate.model)
        produced = self._transcript.produced_bytes // METERED_BYTES_PER_TOKEN
        self._allow(produced + step * request.asked.choices)

    def _allow(self, tokens: int) -> None:
        self._limit_tokens = tokens
        self.due_at_bytes = (tokens - self._step // 4 + 1) * METERED_BYTES_PER_TOKEN

    def due(self) -> bool:
        """Tell whether more has to be reserved. Cheap: asked after each event."""
        return self._transcript.produced_bytes >= self.due_at_bytes

    async def reserve(self) -> None:
        """Reserve for what comes next. Raises RpcError OUT_OF_BUDGET."""
        if not await self._admission.extend(self._request, self._step):
            raise RpcError("OUT_OF_BUDGET", "the credits for this request are used up; the answer ends here")
        self._allow(self._limit_tokens + self._step)


def _ended(request: Request, raw_tail: Sequence[bytes]) -> pb.StreamChatResponse:
    message = pb.StreamChatResponse()
    message.end.outcome.CopyFrom(request.outcome())
    if raw_tail:
        message.end.raw_tail.documents.extend(raw_tail)
    return message


def _translated(event: provider.StreamChatResponse) -> pb.StreamChatResponse:
    # Copied into its place: given to the constructor it is merged, at twice the price.
    message = pb.StreamChatResponse()
    if event.HasField("part_delta"):
        message.part_delta.CopyFrom(event.part_delta)
    elif event.HasField("part_start"):
        message.part_start.CopyFrom(event.part_start)
    else:
        message.part_stop.CopyFrom(event.part_stop)
    return message


def _start(request: Request, response_id: str, model: str) -> pb.StreamStart:
    start = pb.StreamStart(
        request_id=request.call.request_id,
        decision_id=request.decision_id,
        model_used=request.target.name,
        provider=request.target.provider,
        response_id=response_id,
        model=model,
        cache=request.look.state,
        rate_limits=request.rate_limits,
    )
    start.started_at.FromMilliseconds(int(request.started_at * 1000))
    return start


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
    start = _start(request, event.response_id, event.model)
    start.wire_format = event.wire_format
    if reason:
        return pb.StreamChatResponse(restart=pb.StreamRestart(start=start, reason=reason))
    return pb.StreamChatResponse(start=start)


def _error(request: Request, error: Exception) -> pb.StreamChatResponse:
    failure = to_rpc_error(error)
    return pb.StreamChatResponse(
        error=pb.StreamError(reason=failure.reason, message=failure.message, outcome=request.outcome())
    )
