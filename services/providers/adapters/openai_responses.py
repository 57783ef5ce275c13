"""OpenAI's responses, beside its chat completions, for the servers that have them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1 import stored_response_service_pb2 as stored_pb
from yarl import URL

from services.common.rpc.outlet import Outlet
from services.formats import openai_responses
from services.formats.answers import Answer, AnswerFacts, RawReader, StreamReader
from services.formats.documents import Fields, is_null, read_object, read_value, starts_with, write_object
from services.formats.receipts import Receipts
from services.providers.adapter import Stream
from services.providers.adapters.openai import OpenAIAdapter
from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import Exchange, Upstream
from services.providers.http_adapter import Prepared
from services.providers.settings import ProviderSettings

_RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
# Nothing is made while the caller waits.
STORED_TIMEOUT_MS = 30_000
_OPERATIONS = {
    stored_pb.STORED_RESPONSE_OPERATION_GET: ("GET", ""),
    stored_pb.STORED_RESPONSE_OPERATION_DELETE: ("DELETE", ""),
    stored_pb.STORED_RESPONSE_OPERATION_CANCEL: ("POST", "/cancel"),
    stored_pb.STORED_RESPONSE_OPERATION_LIST_INPUT_ITEMS: ("GET", "/input_items"),
}


class ResponsesAdapter(OpenAIAdapter):
    """The same server, asked for a response."""

    wire_format = _RESPONSES
    chat_path = "/responses"

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once. A response that goes on in the background is counted with all it may become."""
        response = await super().chat(attempt)
        if response.finish.raw in openai_responses.UNFINISHED:
            if not response.HasField("raw_body"):
                message = "it goes on in the background, which was not asked for"
                raise self.failures(attempt.model).of("PROVIDER_PROTOCOL", message)
            limit = openai_responses.read_facts(attempt.raw_body).max_tokens or attempt.output_cap
            response.usage.output_total = max(limit, response.usage.output_total)
            response.usage.estimated = True
        return response

    def patch(self, attempt: pb.Attempt, stream: bool) -> tuple[bytes, list[ParameterReceipt]]:
        """Change the model, cap the output where the caller did not, leave out thoughts of other vendors."""
        fields = read_object(attempt.raw_body)
        receipts = Receipts()
        model = msgspec.Raw(msgspec.json.encode(attempt.model))
        if bytes(fields.get("model", b"")) != bytes(model):
            fields["model"] = model
            receipts.translated("model", attempt.model)
        if stream or "stream" in fields:
            fields["stream"] = msgspec.Raw(b"true" if stream else b"false")
        if attempt.output_cap and is_null(fields.get("max_output_tokens", b"null")):
            fields["max_output_tokens"] = msgspec.Raw(str(attempt.output_cap).encode())
            receipts.added("max_output_tokens", str(attempt.output_cap))
        if openai_responses.SEAL in attempt.raw_body:
            _drop_sealed(fields, receipts)
        return write_object(fields), receipts.rest(fields)

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a conversation of another format as a responses body."""
        # A body of this format that has to be read was read as one for any provider.
        own = attempt.wire_format == _RESPONSES
        source = WireFormat.WIRE_FORMAT_UNSPECIFIED if own else attempt.wire_format
        return openai_responses.write_request(
            chat, attempt.model, stream, source=source, output_cap=attempt.output_cap
        )

    def read_facts(self, body: bytes) -> AnswerFacts:
        """Return the facts of a response."""
        return openai_responses.read_response_facts(body)

    def read_response(self, body: bytes) -> Answer:
        """Return a response in the normalised model."""
        return openai_responses.read_response(body)

    def raw_reader(self, attempt: pb.Attempt) -> RawReader:
        """Return a reader for events that are passed on; usage is part of every stream."""
        return openai_responses.RawReader()

    def stream_reader(self) -> StreamReader:
        """Return a reader for events that are translated."""
        return openai_responses.StreamReader()

    async def ask_stored(self, request: stored_pb.AskStoredResponseRequest) -> bytes:
        """Return what the server answers about a response that it keeps."""
        method, suffix = _OPERATIONS[request.operation]
        url = self.stored_url(request.response_id, suffix, request.query)
        limits = self.timeouts(pb.Timeouts(total_ms=STORED_TIMEOUT_MS))
        failures = _StoredFailures(self.name, "", self._secrets)
        answer, _ = await self.ask(url, None, self.headers, limits, failures, method)
        return answer

    def check_body(self, body: bytes, failures: Failures) -> None:
        """Raise the error that came with status 200; a stored response may hold the one it failed with."""
        if not isinstance(failures, _StoredFailures):
            super().check_body(body, failures)

    def stored_url(self, response_id: str, suffix: str, query: str) -> URL:
        """Return the address of a response that is kept, or of something of it."""
        path = f"{self.chat_path}/{quote(response_id, safe='')}{suffix}"
        return self.url(f"{path}?{query}" if query else path)


class _StoredFailures(Failures):
    """Errors about a stored response: what is not found is not a model."""

    def of(self, reason: str, message: str, *rest: Any, **more: Any) -> ProviderError:
        if reason == "MODEL_NOT_FOUND":
            reason, message = "NOT_FOUND", f"it keeps no such response (any more): {message}"
        return super().of(reason, message, *rest, **more)


@dataclass(frozen=True, slots=True)
class _Following(Prepared):
    """A request for the events of a stored response."""

    url: URL


class _Follower(ResponsesAdapter):
    """The same server, asked for what it keeps."""

    def follow(
        self, request: stored_pb.FollowStoredResponseRequest
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        query = "&".join(filter(None, ("stream=true", request.query)))
        url = self.stored_url(request.response_id, "", query)
        return self._relay(pb.Attempt(), _Following(b"", (), raw=True, url=url), Outlet())

    def failures(self, model: str) -> Failures:
        return _StoredFailures(self.name, model, self._secrets)

    @asynccontextmanager
    async def _opened(
        self, attempt: pb.Attempt, prepared: Prepared, failures: Failures
    ) -> AsyncIterator[Exchange]:
        assert isinstance(prepared, _Following)
        limits = self.timeouts(attempt.timeouts)
        exchange = await self._upstream.send(prepared.url, self.headers, None, limits, failures, stream=True)
        try:
            await self._check_stream(exchange, failures)
            yield exchange
            await exchange.finish()
        finally:
            exchange.close()


class OpenAIWithResponsesAdapter(OpenAIAdapter):
    """A server with both: bodies of responses go to its responses, all others to its chat completions."""

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self.wire_formats = (self.wire_format, _RESPONSES)
        self.features = (*self.features, "responses")
        self._responses = ResponsesAdapter(name, settings, upstream)
        self._follower = _Follower(name, settings, upstream)

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        if _is_response(attempt):
            return await self._responses.chat(attempt)
        return await super().chat(attempt)

    def stream_chat(self, attempt: pb.Attempt) -> Stream:
        """Answer as it comes; the last message is `end`."""
        if _is_response(attempt):
            return self._responses.stream_chat(attempt)
        return super().stream_chat(attempt)

    async def ask_stored(self, request: stored_pb.AskStoredResponseRequest) -> bytes:
        """Return what the server answers about a response that it keeps."""
        return await self._responses.ask_stored(request)

    def follow_stored(
        self, request: stored_pb.FollowStoredResponseRequest
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Pass on the events of a response that is made in the background."""
        return self._follower.follow(request)


class ResponsesOnlyAdapter(ResponsesAdapter):
    """A server, or some of its models, that answers nowhere else: chats are translated and go there, too."""

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self.features = (*self.features, "responses")
        self._follower = _Follower(name, settings, upstream)

    def follow_stored(
        self, request: stored_pb.FollowStoredResponseRequest
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Pass on the events of a response that is made in the background."""
        return self._follower.follow(request)


def openai_adapter(name: str, settings: ProviderSettings, upstream: Upstream) -> OpenAIAdapter:
    """Return the adapter for an OpenAI-shaped server, as its settings say what it has."""
    make: type[OpenAIAdapter] = OpenAIWithResponsesAdapter if settings.responses else OpenAIAdapter
    if settings.responses == "only":
        make = ResponsesOnlyAdapter
    return make(name, settings, upstream)


def _is_response(attempt: pb.Attempt) -> bool:
    """Tell whether a body is to be passed on; one that has to be read goes to the chat completions."""
    raw = bool(attempt.raw_body) and attempt.wire_format == _RESPONSES
    return raw and not attempt.typed and not attempt.prefill_text


def _drop_sealed(fields: Fields, receipts: Receipts) -> None:
    """Leave out reasoning items that only another vendor can read: this one refuses them."""
    given = fields.get("input")
    if given is None or not starts_with(given, b"["):
        return
    kept = []
    for index, item in enumerate(read_value(given, list[msgspec.Raw], "input")):
        path = f"input[{index}]"
        own = openai_responses.SEAL not in bytes(item) or not _is_sealed(read_value(item, Fields, path))
        if own:
            kept.append(item)
        else:
            receipts.dropped(path, "reasoning goes back only to the provider it came from")
    fields["input"] = msgspec.Raw(msgspec.json.encode(kept))


def _is_sealed(item: Fields) -> bool:
    return bytes(item.get("encrypted_content", b"")).startswith(openai_responses.SEAL)
