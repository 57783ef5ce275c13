"""Candidates that run side by side: the first good answer wins, the others are stopped and paid for.

What a loser has produced costs what its provider charges for it: what was reported, or else an estimate
of the input and of the output that had come. A loser that has produced nothing costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from omnihub.common.v1.chat_pb2 import Usage
from omnihub.provider.v1 import provider_service_pb2 as provider

from services.common.rpc import RpcError
from services.router.admission import Admission
from services.router.domain.transcript import Transcript
from services.router.execution.attempts import FINAL, Opened
from services.router.request import Request

Answer = TypeVar("Answer")


class NobodyLeftError(Exception):
    """There is no further candidate to run beside the others."""


class Contest(Generic[Answer]):
    """The candidates of one request that run side by side."""

    def __init__(self, request: Request, admission: Admission, role: str) -> None:
        self._request = request
        self._admission = admission
        self._role = role
        self._lanes: dict[asyncio.Task[Answer], Request] = {}
        self.failure: RpcError | None = None
        """The last one, or one that another candidate would share."""

    @property
    def over(self) -> bool:
        """Tell whether nobody runs any more."""
        return not self._lanes

    def begin(self, run: Callable[[Request], Coroutine[Any, Any, Answer]]) -> None:
        """Let one more candidate run."""
        lane = self._request.lane(self._role)
        self._lanes[asyncio.create_task(run(lane))] = lane

    async def next_answer(self, within_s: float | None = None) -> Answer | None:
        """Wait until somebody has a good answer, everybody has failed, or the time is over.

        Only with an answer the request has a winner; it then stands where that candidate does.
        """
        loop = asyncio.get_running_loop()
        until = None if within_s is None else loop.time() + within_s
        while self._lanes:
            left = None if until is None else max(0.0, until - loop.time())
            done, _ = await asyncio.wait(self._lanes, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return None
            for task in [task for task in self._lanes if task in done]:
                if task.exception() is None:
                    self._request.adopt(self._lanes.pop(task))
                    return task.result()
                self._failed(task)
        return None

    def _failed(self, task: asyncio.Task[Answer]) -> None:
        lane = self._lanes.pop(task)
        error = task.exception()
        if isinstance(error, NobodyLeftError):
            return
        if not isinstance(error, RpcError):
            assert error is not None
            raise error
        candidate = lane.candidate
        if candidate is not None:
            self._admission.failed_beside(self._request, candidate)
        self._request.adopt(lane)
        if self.failure is None or self.failure.reason not in FINAL:
            self.failure = error

    async def stop(self, won: bool) -> None:
        """Stop who still runs. When somebody has `won`, what the others have produced is put aside."""
        lanes, self._lanes = self._lanes, {}
        for task in lanes:
            task.cancel()
        if lanes:
            await asyncio.wait(lanes)
        for task, lane in lanes.items():
            finished = not task.cancelled() and task.exception() is None
            if finished:
                await _close(task.result())
            lane.end_attempt("complete" if finished and _usage_of(task.result()) else "cancelled")
            if won and (finished or task.cancelled()):
                answer = task.result() if finished else None
                self._admission.lose(self._request, lane, _usage_of(answer), _produced(lane, answer))
        self._request.running_nano = self._request.running_tokens = 0


async def _close(answer: Any) -> None:
    if isinstance(answer, Opened):
        await answer.stream.aclose()


def _usage_of(answer: Any) -> Usage | None:
    """Return the usage of an answer that is complete, or None. One without counts is no report."""
    usage: Usage | None = None
    if isinstance(answer, Opened):
        last = answer.head[-1]
        usage = last.end.usage if last.HasField("end") else None
    elif answer is not None:
        usage = answer.usage
    return usage if usage is not None and (usage.input_total or usage.output_total) else None


def _produced(lane: Request, answer: Any) -> int:
    """Return the bytes of what a candidate has produced, about."""
    if isinstance(answer, provider.ChatResponse):
        return len(answer.raw_body) or answer.message.ByteSize()
    transcript = Transcript()
    for event in lane.head:
        transcript.add(event)
    return transcript.attempt_bytes if any(map(_has_output, lane.head)) else 0


def _has_output(event: provider.StreamChatResponse) -> bool:
    return not event.HasField("start") and not event.HasField("end")
