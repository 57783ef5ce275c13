"""A plugin's stream, held within its limits and its contract, and errors in the terms of that contract."""

from __future__ import annotations

import asyncio
from typing import Any

from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc import RpcError
from services.providers.domain.clauses import BreachError
from services.providers.domain.failure import (
    ATTEMPT_REASONS,
    BEFORE,
    MID_STREAM,
    Failures,
    Phase,
    ProviderError,
)
from services.providers.domain.stream_contract import StreamContract
from services.providers.http import FRAME_LIMIT, Timeouts

# How long after `end` a stream may take to close.
CLOSE_S = 1.0


class PluginStream:
    """Reads a plugin's stream within the limits, and holds it against the contract."""

    def __init__(self, stream: Any, contract: StreamContract, limits: Timeouts, failures: Failures) -> None:
        self.output_chars = 0
        self._stream = stream
        self._contract = contract
        self._limits = limits
        self._failures = failures
        self._phase: Phase = BEFORE
        self._loop = asyncio.get_running_loop()
        self._first_token_by = self._loop.time() + limits.first_token_s

    async def read(self) -> pb.StreamChatResponse:
        """Return the next message, `end` once nothing has followed it. Raises ProviderError."""
        message = await self._next()
        self._judge(message)
        if self._contract.ended:
            await self._expect_nothing()
        elif not message.HasField("start"):
            self._phase = MID_STREAM
            self.output_chars += _chars_of(message)
        return message

    async def _next(self) -> pb.StreamChatResponse:
        idle = self._phase == MID_STREAM
        try:
            limit = self._loop.time() + self._limits.idle_s if idle else self._first_token_by
            async with asyncio.timeout_at(limit):
                message: pb.StreamChatResponse = await anext(self._stream)
        except StopAsyncIteration:
            text = "the stream ended before the answer was complete"
            raise self._failures.of("STREAM_TRUNCATED", text, self._phase) from None
        except TimeoutError:
            text = f"no progress within {self._limits.idle_s:g} s"
            if not idle:
                text = f"no first token within {self._limits.first_token_s:g} s"
            raise self._failures.of("PROVIDER_TIMEOUT", text, self._phase) from None
        except RpcError as error:
            raise failed(error, self._failures, self._phase) from None
        return message

    def _judge(self, message: pb.StreamChatResponse) -> None:
        if message.ByteSize() > FRAME_LIMIT:
            text = f"a message exceeds {FRAME_LIMIT} bytes"
            raise self._failures.of("PROVIDER_PROTOCOL", text, self._phase)
        try:
            self._contract.accept(message)
        except BreachError as breach:
            text = f"broke its contract ({breach.clause}): {breach.message}"
            raise self._failures.of("PROVIDER_PROTOCOL", text, self._phase) from None

    async def _expect_nothing(self) -> None:
        """Wait for the stream to close. The answer is complete: only another message would spoil it."""
        try:
            async with asyncio.timeout(CLOSE_S):
                self._judge(await anext(self._stream))
        except (StopAsyncIteration, TimeoutError, RpcError):
            return


def failed(error: RpcError, failures: Failures, phase: Phase = BEFORE) -> ProviderError:
    """Return a plugin's error in the contract's terms."""
    if error.reason in ATTEMPT_REASONS:
        reason, message = error.reason, error.message
    elif error.reason == "DEADLINE_EXCEEDED":
        reason, message = "PROVIDER_TIMEOUT", "it did not finish in time"
    elif error.reason == "UNAVAILABLE" and phase == MID_STREAM:
        reason, message = "STREAM_TRUNCATED", "the connection broke before the answer was complete"
    else:
        reason, message = "PROVIDER_FAILED", f"the plugin failed with {error.reason}: {error.message}"
    status = error.metadata.get("http_status", "")
    failed = failures.of(
        reason,
        message,
        phase,
        http_status=int(status) if status.isascii() and status.isdigit() else 0,
        code=error.metadata.get("provider_code", ""),
        param=error.metadata.get("param", ""),
        retry_after_s=error.retry_after_s,
    )
    if reason == error.reason and error.metadata.get("retryable") in ("true", "false"):
        failed.metadata["retryable"] = error.metadata["retryable"]
    failed.violations = error.violations
    return failed


def _chars_of(message: pb.StreamChatResponse) -> int:
    if message.HasField("raw_frame"):
        return message.raw_frame.output_chars or len(message.raw_frame.text)
    delta = message.part_delta
    return len(delta.text) + len(delta.arguments_json) + len(delta.reasoning) + len(delta.refusal)
