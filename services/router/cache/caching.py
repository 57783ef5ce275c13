"""The response cache: whole answers that are given again for the same request of the same organisation.

Off unless the request, its key (scope `cache`) or its route asks for it. In memory; with `persist` also in
the router's database, which is asked only by requests that want the cache and that memory does not know.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from omnihub.common.v1.chat_pb2 import Message, ParameterReceipt
from omnihub.common.v1.stream_pb2 import RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer

from services.common.rpc import Call
from services.formats.errors import FormatError
from services.router.asked import Asked, Look
from services.router.domain.cacheable import Uncacheable, key_of, may_keep, raw_document, typed_document
from services.router.domain.policy import Plan
from services.router.domain.replay import Event, assemble, read_frames, read_whole
from services.router.request import Request
from services.router.settings import CacheSettings

SCOPE = "cache"
OFF = Look()
"""A request that does not want the cache."""


class AnswerStore(Protocol):
    """Where answers outlive the process."""

    async def find(self, key: str, now_s: float) -> CachedAnswer | None:
        """Return a kept answer that has not expired."""
        ...

    def keep(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer, in the background."""
        ...


@dataclass(slots=True)
class _Entry:
    answer: CachedAnswer
    size: int


class AnswerCache:
    """Answers in memory, least recently used ones go first."""

    def __init__(
        self, settings: CacheSettings, store: AnswerStore | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._total_bytes = settings.total_mb * 2**20
        self._entry_bytes = settings.entry_kb * 2**10
        self._store = store
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.size = 0
        """Bytes of all answers in memory."""

    def wish(self, asked: Asked, call: Call, plan: Plan) -> str:
        """Return whether a request wants the cache: on, refresh, or empty when it does not."""
        wish = asked.options.cache
        if not wish:
            wish = "on" if self._by_default(call) else plan.chain[0].model.settings.cache
        return "" if wish == "off" or not self._total_bytes else wish

    async def look(self, wish: str, asked: Asked, call: Call, plan: Plan) -> Look:
        """Return what the cache has for a request, and whether its answer is to be kept."""
        try:
            key = self._key(asked, call, plan)
        except Uncacheable as why:
            return Look(receipt=ParameterReceipt(name="x-omnihub-cache", outcome="dropped", detail=str(why)))
        answer = await self._find(key) if wish == "on" else None
        if answer is not None and all(each.target.name != answer.model_used for each in plan.chain):
            # Somebody else's fallback, which this caller may not use, or could not pay.
            answer = None
        route = plan.chain[0].model.settings
        return Look(key, asked.options.cache_ttl_s or route.cache_ttl_s, answer)

    def _by_default(self, call: Call) -> bool:
        # The scopes of a person say what they may give to keys, not how they are answered.
        return SCOPE in call.identity.scopes and bool(call.identity.key_id)

    def _key(self, asked: Asked, call: Call, plan: Plan) -> str:
        if asked.feature == "embed":
            raise Uncacheable("only chats are kept")
        if asked.stateful or asked.vendor_bound:
            raise Uncacheable("the provider keeps the conversation")
        if asked.choices > 1:
            raise Uncacheable("it asks for more than one answer")
        first = plan.chain[0]
        raw = asked.raw_body
        return key_of(
            raw_document(raw, asked.wire_format) if raw else typed_document(asked.chat),
            organisation_id=call.identity.organisation_id,
            model=first.model.name,
            target=first.target.name,
            wire_format=asked.wire_format,
            headers=asked.options.headers,
            strict=asked.options.strict,
        )

    async def _find(self, key: str) -> CachedAnswer | None:
        now = self._clock()
        entry = self._entries.get(key)
        if entry is not None and entry.answer.expires_at > now:
            self._entries.move_to_end(key)
            return entry.answer
        if entry is not None:
            self._drop(key)
        if self._store is None:
            return None
        answer = await self._store.find(key, now)
        if answer is not None:
            self._remember(key, answer)
        return answer

    def keep_whole(self, request: Request, answer: provider.ChatResponse) -> None:
        """Keep a whole answer for the next request of its kind, if it may be."""
        if not request.look.key:
            return
        raw = answer.raw_body
        if len(raw) > self._entry_bytes:
            return
        try:
            message = read_whole(raw, request.asked.wire_format).message if raw else answer.message
        except FormatError:
            return
        kept = CachedAnswer(response_id=answer.response_id, model=answer.model, raw_body=raw)
        self._keep(request, message, kept)

    def keep_stream(self, request: Request, recording: Recording, end: provider.StreamEnd) -> None:
        """Keep the answer of a stream, if it may be."""
        if recording.spoilt or request.rescued_from:
            return
        frames = b"".join(event.raw_frame.data for event in recording.events if event.HasField("raw_frame"))
        try:
            if frames:
                message = read_frames(frames, request.asked.wire_format)
            else:
                message = assemble(_typed(recording.events))
        except FormatError:
            return
        start = recording.start
        kept = CachedAnswer(
            response_id=start.response_id,
            model=start.model,
            frames=frames,
            raw_tail=end.raw_tail,
            include_usage=request.asked.options.include_usage,
        )
        self._keep(request, message, kept)

    def _keep(self, request: Request, message: Message, kept: CachedAnswer) -> None:
        if not may_keep(message, request.finish):
            return
        kept.organisation_id = request.call.identity.organisation_id
        kept.decision_id = request.decision_id
        kept.model_used = request.target.name
        kept.message.CopyFrom(message)
        kept.finish.CopyFrom(request.finish)
        kept.usage.CopyFrom(request.usage)
        kept.wire_format = request.asked.wire_format
        kept.receipt.extend(request.receipt)
        kept.expires_at = self._clock() + request.look.ttl_s
        if self._remember(request.look.key, kept) and self._store is not None:
            self._store.keep(request.look.key, kept)

    def _remember(self, key: str, answer: CachedAnswer) -> bool:
        size = answer.ByteSize()
        if size > self._entry_bytes:
            return False
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(answer, size)
        self.size += size
        while self.size > self._total_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def _drop(self, key: str) -> None:
        self.size -= self._entries.pop(key).size

    def recording(self, request: Request) -> Recording | None:
        """Return what takes in the events of a stream; None when its answer is not to be kept."""
        return Recording(self._entry_bytes) if request.look.key else None


class Recording:
    """The events of one stream, as long as they are not too many."""

    def __init__(self, limit: int) -> None:
        self.events: list[provider.StreamChatResponse] = []
        self.start = provider.StreamStart()
        self.spoilt = False
        """There is too much of it, or more than text and thoughts."""
        self._left = limit

    def add(self, event: provider.StreamChatResponse) -> None:
        """Take in one event."""
        if self.spoilt:
            return
        if event.HasField("start"):
            self.start = event.start
            return
        self._left -= event.ByteSize()
        if self._left < 0 or event.raw_frame.beyond_text:
            self.spoilt = True
            self.events.clear()
        else:
            self.events.append(event)

    def add_frame(self, frame: RawFrame) -> None:
        """Take in frames that pass by themselves."""
        event = provider.StreamChatResponse()
        event.raw_frame.CopyFrom(frame)
        self.add(event)


def _typed(events: Sequence[provider.StreamChatResponse]) -> list[Event]:
    kinds = ("part_start", "part_delta", "part_stop")
    return [getattr(event, kind) for event in events if (kind := event.WhichOneof("event")) in kinds]
