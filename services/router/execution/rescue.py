"""Streams that broke after their first token: another model goes on, or begins again unseen.

See docs/adr/0011-rescue.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import RpcError
from services.router.admission import Admission
from services.router.domain.catalogue import Target
from services.router.domain.policy import Candidate
from services.router.domain.seam import DivergedError, Event, Overlap, Seam
from services.router.domain.transcript import Transcript
from services.router.execution.attempts import (
    FINAL,
    NOT_AGAIN,
    Opened,
    address,
    as_seen,
    open_stream,
    provider_id_of,
)
from services.router.health.health import Health
from services.router.request import Request

CONTINUE = "continue"
"""The text so far is the beginning of the answer; only what follows comes."""
RESTART = "restart"
"""The whole answer comes again; what the caller has is left out."""
VOID = "void"
"""The whole answer comes again; the caller is told to forget what there was."""
# A request whose streams break again and again ends at some point.
MOST = 3
# Surfaces that can go on with typed events after frames of their own format.
_RESUMABLE = frozenset(
    {
        WireFormat.WIRE_FORMAT_OPENAI_CHAT,
        WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
        WireFormat.WIRE_FORMAT_OPENAI_RESPONSES,
    }
)


@dataclass(frozen=True, slots=True)
class _Way:
    """One attempt at going on."""

    kind: str
    candidate: Candidate
    text: str
    """What the caller has; empty when it is void."""

    @property
    def prefill(self) -> str:
        """Return what the model goes on from. Some refuse blank space at its end."""
        return self.text.rstrip() if self.kind == CONTINUE else ""

    @property
    def overlap(self) -> Overlap:
        """Return what is not to come again."""
        if self.kind == CONTINUE:
            return Overlap(self.text[len(self.prefill) :], exact=False)
        return Overlap(self.text, exact=True)


class Rescue:
    """Finds who goes on with a broken stream."""

    def __init__(self, providers: ProviderService, admission: Admission, health: Health) -> None:
        self._providers = providers
        self._admission = admission
        self._health = health

    async def go_on(
        self,
        request: Request,
        message: provider.StreamChatRequest,
        transcript: Transcript,
        failure: RpcError,
    ) -> Opened:
        """Return a stream that goes on with what the caller has. Raises `failure` when there is none.

        Raises RpcError STREAM_TRUNCATED with `failure` inside when another answer began differently.
        """
        broken = request.candidate
        diverged = False
        silent: set[Target] = set()
        for way in self._ways(request, transcript, failure):
            if way.candidate.target in silent:
                continue
            if not await self._admission.afford_rescue(request, way.candidate, transcript.attempt_bytes):
                continue
            try:
                opened = await self._try(request, message, transcript, way)
            except RpcError as error:
                request.candidate = broken
                if error.reason in ("CANCELLED", "DEADLINE_EXCEEDED"):
                    raise failure from None
                if error.reason in NOT_AGAIN:
                    silent.add(way.candidate.target)
            except DivergedError:
                request.candidate = broken
                diverged = True
            except BaseException:
                request.candidate = broken
                raise
            else:
                self._taken_over(request, transcript, way, broken)
                return opened
        raise _diverged(failure) if diverged else failure

    async def _try(
        self, request: Request, message: provider.StreamChatRequest, transcript: Transcript, way: _Way
    ) -> Opened:
        candidate = way.candidate
        attempt = message.attempt
        address(attempt, candidate, request.begin_attempt(candidate, way.kind))
        attempt.prefill_text = way.prefill
        attempt.typed = way.kind != VOID
        began = request.attempt_started
        call = request.call.within(candidate.model.settings.timeouts.total_s)
        stream: Any = self._providers.stream_chat(message, call)
        if way.kind != VOID:
            stream = _rewritten(stream, Seam(transcript.position, way.overlap))
        try:
            opened = await open_stream(stream)
        except RpcError as error:
            seen = as_seen(error, request)
            request.end_attempt("failed", seen)
            self._health.failed(candidate.target, seen, began)
            raise seen from None
        except DivergedError:
            self._health.succeeded(candidate.target, began)
            request.end_attempt("failed", RpcError("STREAM_TRUNCATED", "its answer begins differently"))
            raise
        except BaseException:
            self._health.left(candidate.target)
            raise
        self._health.succeeded(candidate.target, began)
        request.name_attempt(provider_id_of(opened))
        return opened

    def _taken_over(
        self, request: Request, transcript: Transcript, way: _Way, broken: Candidate | None
    ) -> None:
        """Put aside what the broken stream has cost; from here on another model speaks."""
        speaking, request.candidate = request.candidate, broken
        self._admission.bank(request, transcript.attempt_bytes)
        request.candidate = speaking
        request.speak()
        request.broken.prefill_bytes = len(way.prefill.encode())
        transcript.next_attempt(len(way.text.encode()) if way.kind == RESTART else 0)
        if way.kind == VOID:
            transcript.restart()

    def _ways(self, request: Request, transcript: Transcript, failure: RpcError) -> Iterator[_Way]:
        """Yield what can be tried, best first."""
        asked, current = request.asked, request.candidate
        if current is None or failure.reason in FINAL or len(request.rescued_from) == MOST:
            return
        if request.pending:
            # Its provider goes on with it unseen, and it is paid when that ends: two would be paid for one.
            return
        # What the request says goes before the key's policy, and that before the route's.
        policy = asked.options.rescue or request.call.identity.rescue or current.model.settings.rescue
        if policy == "off":
            return
        text = transcript.text
        whole = not transcript.beyond_text and asked.choices == 1
        whole = whole and (not transcript.raw or asked.wire_format in _RESUMABLE)
        rest = self._rest(request, failure)
        if whole and not (text and asked.json):
            for candidate in rest:
                if not text or self._prefills(candidate):
                    yield _Way(CONTINUE, candidate, text)
        if policy == "restart" and asked.options.restart_events:
            yield from (_Way(VOID, candidate, "") for candidate in rest)
        elif policy == "restart" and whole and text:
            yield from (_Way(RESTART, candidate, text) for candidate in rest)

    def _rest(self, request: Request, failure: RpcError) -> list[Candidate]:
        """Return who has not been asked yet, and last the broken provider itself when that makes sense."""
        # Who only was slower may still be asked.
        tried = {attempt.target for attempt in request.attempts if not attempt.lost}
        current = request.candidate
        open_: list[Candidate] = []
        fresh: list[Candidate] = []
        for candidate in request.plan.chain:
            if candidate.target.name in tried:
                continue
            objection = self._health.pause(candidate.target)
            if objection:
                request.skipped[candidate.target] = objection
            (open_ if objection else fresh).append(candidate)
        again = failure.metadata.get("retryable") == "true" and failure.reason not in NOT_AGAIN
        if current is not None and again and current.model.settings.retries:
            fresh.append(current)
        return [*fresh, *open_]

    def _prefills(self, candidate: Candidate) -> bool:
        known = self._admission.catalogue.providers.get(candidate.target.provider)
        return known is not None and "prefill" in known.features


async def _rewritten(stream: Any, seam: Seam) -> AsyncGenerator[provider.StreamChatResponse, None]:
    """Yield a second stream as the caller of the first one reads it. Raises DivergedError."""
    async with aclosing(stream):
        async for event in stream:
            kind = event.WhichOneof("event")
            if kind == "end":
                for part in seam.finish():
                    yield _wrapped(part)
                del event.end.raw_tail[:]
                yield event
            elif kind == "start":
                yield event
            elif kind == "raw_frame":
                raise RpcError("PROVIDER_PROTOCOL", "the provider sent frames instead of typed events")
            else:
                for part in seam.rewrite(getattr(event, kind)):
                    yield _wrapped(part)


def _wrapped(event: Event) -> provider.StreamChatResponse:
    if isinstance(event, PartDelta):
        return provider.StreamChatResponse(part_delta=event)
    if isinstance(event, PartStart):
        return provider.StreamChatResponse(part_start=event)
    return provider.StreamChatResponse(part_stop=event)


def _diverged(failure: RpcError) -> RpcError:
    """Return the failure of a stream that was begun again, and came differently."""
    return RpcError(
        "STREAM_TRUNCATED",
        f"the stream broke and another answer began differently; what broke it: {failure.message}",
        metadata={**failure.metadata, "broken_by": failure.reason},
    )
