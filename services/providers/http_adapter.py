"""What all adapters over HTTP share: forward or translate, relay, and say how it ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Usage, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from yarl import URL

from services.common import clock
from services.common.rpc.outlet import Outlet, OutletStream
from services.formats.answers import (
    Answer,
    AnswerFacts,
    Progress,
    RawReader,
    StreamReader,
    written_chars,
)
from services.formats.errors import FormatError
from services.formats.receipts import MOST as MOST_RECEIPTS
from services.providers.adapter import Stream, conversation_of
from services.providers.domain.classification import (
    ErrorFacts,
    ErrorTable,
    read_error,
    read_error_object,
    read_retry_after,
)
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import MID_STREAM, Failures, ProviderError
from services.providers.frame_reader import FrameReader
from services.providers.frames import FrameParser
from services.providers.http import FRAME_LIMIT, Exchange, Timeouts, Upstream, content_type
from services.providers.passing import Passing
from services.providers.receipts import account, refuse_drops
from services.providers.settings import ProviderSettings
from services.providers.sse import SseParser
from services.providers.stream_messages import typed_message

_STREAM = "text/event-stream"
_JSON = "application/json"
_HTML = "text/html"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be sent."""

    body: bytes
    receipt: Sequence[ParameterReceipt]
    raw: bool
    """The answer goes back as it is, too."""


class HttpAdapter(ABC):
    """Base of the adapters over HTTP. A vendor's adapter says how its format and its errors look."""

    adapter: str
    wire_format: WireFormat.ValueType = WireFormat.WIRE_FORMAT_UNSPECIFIED
    """The format whose bodies are forwarded as they are; unspecified where all are translated."""
    features: Sequence[str]
    synthetic = False
    chat_path: str
    models_path: str
    errors: ErrorTable

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        self.name = name
        self.settings = settings
        self._upstream = upstream
        self.wire_formats: Sequence[WireFormat.ValueType] = (self.wire_format,) if self.wire_format else ()
        key = settings.api_key.get_secret_value() if settings.api_key is not None else ""
        configured = [value.get_secret_value() for value in settings.headers.values()]
        self._secrets = tuple(secret for secret in (key, *configured) if len(secret) >= 4)
        self.headers = {
            "Content-Type": _JSON,
            "Accept-Encoding": "identity",
            "User-Agent": "omnihub",
            **self.credential(key),
            **{header: value.get_secret_value() for header, value in settings.headers.items()},
        }
        self._chat_url = self.url(self.chat_path)
        self._timeouts = lru_cache(maxsize=64)(self._make_timeouts)

    def url(self, path: str) -> URL:
        """Return the address of an operation."""
        return URL(self.settings.base_url.rstrip("/") + path, encoded=True)

    @abstractmethod
    def credential(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key and what the vendor always wants."""

    def patch(self, attempt: pb.Attempt, stream: bool) -> tuple[bytes, list[ParameterReceipt]]:
        """Return the caller's own body with only what must change changed. Needed with a wire format."""
        raise NotImplementedError

    @abstractmethod
    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a typed conversation in the vendor's format."""

    def read_facts(self, body: bytes) -> AnswerFacts:
        """Return the facts of an answer that is passed on. Needed with a wire format."""
        raise NotImplementedError

    @abstractmethod
    def read_response(self, body: bytes) -> Answer:
        """Return an answer in the normalised model."""

    def raw_reader(self, attempt: pb.Attempt) -> RawReader:
        """Return a reader for a stream that is passed on. Needed with a wire format."""
        raise NotImplementedError

    @abstractmethod
    def stream_reader(self) -> StreamReader:
        """Return a reader for a stream that is translated."""

    @abstractmethod
    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""

    def headers_of(self, attempt: pb.Attempt) -> Mapping[str, str]:
        """Return the headers of one attempt."""
        return self.headers

    def chat_url(self, attempt: pb.Attempt, stream: bool) -> URL:
        """Return where one attempt goes."""
        return self._chat_url

    async def sign(
        self, url: URL, headers: Mapping[str, str], body: bytes | None, failures: Failures
    ) -> Mapping[str, str]:
        """Return the headers of a request that is ready to be sent, for vendors whose credential signs it."""
        return headers

    def frame_parser(self) -> FrameParser:
        """Return what cuts a stream into frames."""
        return SseParser(FRAME_LIMIT)

    def read_refusal(self, exchange: Exchange, body: bytes) -> ErrorFacts:
        """Return what the answer with an error status says."""
        return read_error(body)

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        prepared = self._prepare(attempt, stream=False)
        failures = self.failures(attempt.model)
        url, limits = self.chat_url(attempt, stream=False), self.timeouts(attempt.timeouts)
        body, headers = await self.ask(url, prepared.body, self.headers_of(attempt), limits, failures)
        response = pb.ChatResponse(receipt=prepared.receipt, provider_request_id=_request_id(headers))
        try:
            if prepared.raw:
                facts = self.read_facts(body)
                response.raw_body = body
                usage = facts.usage or estimate_usage(len(prepared.body), facts.output_chars)
                _fill(response, facts, usage)
            else:
                answer = self.read_response(body)
                response.message.CopyFrom(answer.message)
                written = 0 if answer.usage else written_chars(answer.message)
                _fill(response, answer, answer.usage or estimate_usage(len(prepared.body), written))
        except FormatError as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its answer is wrong: {error.message}") from None
        return response

    def stream_chat(self, attempt: pb.Attempt) -> Stream:
        """Answer as it comes; the last message is `end`. Raises FormatError at once, ProviderError later."""
        prepared = self._prepare(attempt, stream=True)
        if not prepared.raw:
            return self._translate(attempt, prepared)
        outlet = Outlet()
        return OutletStream(self._relay(attempt, prepared, outlet), outlet)

    @asynccontextmanager
    async def _opened(
        self, attempt: pb.Attempt, prepared: Prepared, failures: Failures
    ) -> AsyncIterator[Exchange]:
        """Ask, and hand out the good answer that follows."""
        timeouts = self.timeouts(attempt.timeouts)
        url = self.chat_url(attempt, stream=True)
        signed = await self.sign(url, self.headers_of(attempt), prepared.body, failures)
        exchange = await self._upstream.send(url, signed, prepared.body, timeouts, failures, stream=True)
        try:
            await self._check_stream(exchange, failures)
            yield exchange
            await exchange.finish()
        finally:
            exchange.close()

    async def _relay(
        self, attempt: pb.Attempt, prepared: Prepared, outlet: Outlet
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Pass frames on as they come, those of one network read together."""
        failures = self.failures(attempt.model)
        reader = self.raw_reader(attempt)
        progress = reader.progress
        async with self._opened(attempt, prepared, failures) as exchange:
            parser = self.frame_parser()
            incoming = FrameReader(exchange, parser, progress, failures)
            passing = Passing(exchange, parser, reader, outlet)
            while events := await incoming.next():
                written, text, wrong = passing.read(events)
                if exchange.phase != MID_STREAM and (written or progress.finish is not None):
                    yield self._started(prepared, progress, exchange, self.wire_format)
                    passing.begin()
                if written:
                    yield passing.message(written, text)
                if wrong is not None:
                    raise self._unreadable(wrong, incoming.at_end, progress, exchange, failures)
                if progress.error is not None:
                    raise self._told(progress.error, exchange, failures)
            yield self._ended(progress, failures, prepared, reader.tail)

    async def _translate(
        self, attempt: pb.Attempt, prepared: Prepared
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Turn the vendor's frames into typed events."""
        failures = self.failures(attempt.model)
        reader = self.stream_reader()
        progress = reader.progress
        async with self._opened(attempt, prepared, failures) as exchange:
            incoming = FrameReader(exchange, self.frame_parser(), progress, failures)
            while events := await incoming.next():
                for name, data in events:
                    try:
                        typed = reader.read(name, data)
                    except FormatError as error:
                        raise self._unreadable(error, incoming.at_end, progress, exchange, failures) from None
                    if progress.error is not None:
                        raise self._told(progress.error, exchange, failures)
                    begun = typed or progress.model or progress.finish is not None
                    if exchange.phase != MID_STREAM and begun:
                        yield self._started(prepared, progress, exchange)
                    for event in typed:
                        yield typed_message(event)
            if progress.finish is not None:
                for event in reader.finish():
                    yield typed_message(event)
            yield self._ended(progress, failures, prepared, ())

    def _started(
        self,
        prepared: Prepared,
        progress: Progress,
        exchange: Exchange,
        wire_format: WireFormat.ValueType = WireFormat.WIRE_FORMAT_UNSPECIFIED,
    ) -> pb.StreamChatResponse:
        exchange.phase = MID_STREAM
        start = pb.StreamStart(
            model=progress.model,
            response_id=progress.response_id,
            receipt=prepared.receipt,
            provider_request_id=_request_id(exchange.headers),
            wire_format=wire_format,
        )
        return pb.StreamChatResponse(start=start)

    def _ended(
        self, progress: Progress, failures: Failures, prepared: Prepared, tail: Sequence[bytes]
    ) -> pb.StreamChatResponse:
        """Return the end. A stream without its finish is never a success."""
        if progress.finish is None:
            message = "the stream ended before the answer was complete"
            raise failures.of("STREAM_TRUNCATED", message, MID_STREAM)
        usage = progress.usage or estimate_usage(len(prepared.body), progress.output_chars)
        return pb.StreamChatResponse(end=pb.StreamEnd(finish=progress.finish, usage=usage, raw_tail=tail))

    def _told(self, error: msgspec.Raw, exchange: Exchange, failures: Failures) -> ProviderError:
        """Return the error that a provider sent in place of the rest of its answer."""
        decoded: Any = msgspec.json.decode(error)
        facts = read_error_object(decoded if isinstance(decoded, dict) else {"message": str(decoded)})
        return failures.rejected(self.errors.classify(0, facts), exchange.phase)

    def _unreadable(
        self, error: FormatError, at_end: bool, progress: Progress, exchange: Exchange, failures: Failures
    ) -> Exception:
        """Return the error for a frame that is none: cut off at the end, or wrong."""
        if at_end and progress.finish is None:
            message = "the stream ended in the middle of a frame"
            return failures.of("STREAM_TRUNCATED", message, exchange.phase)
        return failures.of(
            "PROVIDER_PROTOCOL", f"sent a frame that is wrong: {error.message}", exchange.phase
        )

    async def ask(
        self,
        url: URL,
        body: bytes | None,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        failures: Failures,
        method: str = "",
    ) -> tuple[bytes, Mapping[str, str]]:
        """Send a request and return body, a JSON object, and headers of a good answer."""
        answer, told = await self.fetch(url, body, headers, timeouts, failures, method)
        if answer[:1] != b"{" and answer.lstrip()[:1] != b"{":
            what = content_type(told) or "nothing"
            raise failures.of(
                "PROVIDER_PROTOCOL", f"answered with {what} instead of a JSON object", http_status=200
            )
        self.check_body(answer, failures)
        return answer, told

    async def fetch(
        self,
        url: URL,
        body: bytes | None,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        failures: Failures,
        method: str = "",
    ) -> tuple[bytes, Mapping[str, str]]:
        """Send a request and return body, whatever it is, and headers of an answer with status 200."""
        signed = await self.sign(url, headers, body, failures)
        exchange = await self._upstream.send(url, signed, body, timeouts, failures, False, method)
        try:
            if exchange.status != 200:
                raise await self._refused(exchange, failures)
            return await exchange.read_body(), exchange.headers
        finally:
            exchange.close()

    def check_body(self, body: bytes, failures: Failures) -> None:
        """Raise the error that came with status 200."""
        if b'"error"' not in body[:4096]:
            return
        try:
            error = _error_decoder.decode(body).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # The reader of the answer says what is wrong.
        if error and bytes(error) != b"null":
            raise failures.rejected(self.errors.classify(0, read_error(body)))

    async def _check_stream(self, exchange: Exchange, failures: Failures) -> None:
        """Raise unless a stream follows."""
        if exchange.status != 200:
            raise await self._refused(exchange, failures)
        if exchange.content_type in {_JSON, _HTML}:
            if exchange.content_type == _JSON:
                self.check_body(await exchange.read_error(), failures)
            message = f"answered with {exchange.content_type} instead of a stream"
            raise failures.of("PROVIDER_PROTOCOL", message, http_status=200)

    async def _refused(self, exchange: Exchange, failures: Failures) -> Exception:
        facts = self.read_refusal(exchange, await exchange.read_error())
        retry_after_s = read_retry_after(exchange.headers, clock.now())
        return failures.rejected(self.errors.classify(exchange.status, facts, retry_after_s))

    def _prepare(self, attempt: pb.Attempt, stream: bool) -> Prepared:
        raw = bool(attempt.raw_body) and attempt.wire_format in self.wire_formats
        raw = raw and not attempt.typed and not attempt.prefill_text
        if raw:
            body, receipt = self.patch(attempt, stream)
        else:
            body, receipt = self.write_request(conversation_of(attempt), attempt, stream)
            receipt = account(attempt, receipt)
        if attempt.strict:
            refuse_drops(self.name, receipt)
        return Prepared(body, receipt[:MOST_RECEIPTS], raw)

    def failures(self, model: str) -> Failures:
        """Return the maker of this attempt's errors."""
        return Failures(self.name, model, self._secrets)

    def timeouts(self, wanted: pb.Timeouts) -> Timeouts:
        """Return the limits of an attempt: the caller's, else the provider's own."""
        return self._timeouts(wanted.connect_ms, wanted.first_token_ms, wanted.idle_ms, wanted.total_ms)

    def _make_timeouts(self, connect_ms: int, first_token_ms: int, idle_ms: int, total_ms: int) -> Timeouts:
        own = self.settings.timeouts
        return Timeouts(
            connect_ms / 1000 or own.connect_s,
            first_token_ms / 1000 or own.first_token_s,
            idle_ms / 1000 or own.idle_s,
            total_ms / 1000 or own.total_s,
        )

    @abstractmethod
    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""

    async def list_models(self) -> list[pb.ProviderModel]:
        """Return the models the provider offers."""
        failures = self.failures("")
        limits = self.timeouts(pb.Timeouts(total_ms=30_000))
        body, _ = await self.ask(self.url(self.models_path), None, self.headers, limits, failures)
        try:
            return self.read_models(body)
        except FormatError as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its list of models is wrong: {error.message}") from None

    async def check_health(self) -> None:
        """Raise when the provider cannot be reached or refuses the credential."""
        if not self.settings.key_path:
            await self.list_models()
            return
        limits = self.timeouts(pb.Timeouts(total_ms=30_000))
        await self.ask(self.url(self.settings.key_path), None, self.headers, limits, self.failures(""))


class _WithError(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"")


_error_decoder = msgspec.json.Decoder(_WithError)


def _request_id(headers: Mapping[str, str]) -> str:
    names = ("x-request-id", "request-id", "x-amzn-requestid")
    return next((headers[name] for name in names if headers.get(name)), "")


def _fill(response: pb.ChatResponse, facts: AnswerFacts | Answer, usage: Usage) -> None:
    response.finish.CopyFrom(facts.finish)
    response.usage.CopyFrom(usage)
    response.model = facts.model
    response.response_id = facts.response_id
