"""The adapter: one address for each model, and a format by the model's kind."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Usage, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from yarl import URL

from services.common import clock
from services.formats import bedrock_converse, titan_text
from services.formats.answers import Answer, StreamReader
from services.formats.documents import from_decode_error
from services.formats.errors import FormatError
from services.providers.adapter import Stream, conversation_of
from services.providers.adapters.bedrock.credentials import NoCredentialError, Signer, key_source
from services.providers.adapters.bedrock.errors import ERRORS, is_about_the_clock, read_refusal
from services.providers.adapters.bedrock.event_stream import EventStreamParser
from services.providers.counting import counted, only
from services.providers.domain.classification import ErrorFacts
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import Failures, UnsupportedError
from services.providers.embedding import embedding_inputs
from services.providers.frames import FrameParser
from services.providers.http import FRAME_LIMIT, Exchange, Upstream
from services.providers.http_adapter import HttpAdapter
from services.providers.receipts import embedding_receipt
from services.providers.settings import ProviderSettings

_FEATURES = ("chat", "stream", "embed", "tools", "vision", "audio", "documents", "json_schema", "reasoning")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:/_-]*")
_TITAN = re.compile(r"(^|[./])amazon\.titan-text")
_TITAN_EMBED = re.compile(r"(^|[./])amazon\.titan-embed-text")
# Of a body of Converse, what CountTokens takes.
_COUNTED = ("messages", "system", "toolConfig", "additionalModelRequestFields")
_UNABLE = ("support counting tokens", "not supported", "isn't supported")
# Vectors are asked for one by one; so many at a time.
_EMBED_AT_A_TIME = 8


class _Service(HttpAdapter):
    """What Converse and InvokeModel share: address, signature, framing and errors."""

    adapter = "bedrock"
    chat_path = ""
    models_path = "/foundation-models"
    errors = ERRORS
    operation: str
    stream_operation: str

    def __init__(
        self, name: str, settings: ProviderSettings, upstream: Upstream, signer: Signer | None
    ) -> None:
        super().__init__(name, settings, upstream)
        self._signer = signer

    def credential(self, key: str) -> dict[str, str]:
        """Return the bearer token; without one, requests are signed."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def failures(self, model: str) -> Failures:
        """Return the maker of this attempt's errors: refusals of signatures quote what was signed."""
        return Failures(self.name, model, self._secrets if self._signer is None else self._signer.secrets)

    async def sign(
        self, url: URL, headers: Mapping[str, str], body: bytes | None, failures: Failures
    ) -> Mapping[str, str]:
        """Return the headers with the signature of the request."""
        if self._signer is None:
            return headers
        method = "GET" if body is None else "POST"
        try:
            return await self._signer.sign(method, str(url), headers, body or b"", clock.now())
        except NoCredentialError as error:
            raise failures.of("PROVIDER_CREDENTIAL_REFUSED", str(error)) from None

    def read_refusal(self, exchange: Exchange, body: bytes) -> ErrorFacts:
        """Return what an error says. Where it is about the clock, the next signature goes by theirs."""
        facts = read_refusal(exchange.headers, body)
        if self._signer is None or not is_about_the_clock(facts):
            return facts
        try:
            skew = parsedate_to_datetime(exchange.headers.get("Date", "")) - clock.now()
        except (TypeError, ValueError):
            return facts
        self._signer.skew = timedelta(seconds=round(skew.total_seconds()))
        seconds = self._signer.skew.total_seconds()
        told = f"the clock of this machine differs by {seconds:g} s; asking again works"
        return replace(facts, code="RequestTimeTooSkewed", message=told)

    def frame_parser(self) -> FrameParser:
        """Return what cuts a stream into frames."""
        return EventStreamParser(FRAME_LIMIT)

    def model_url(self, model: str, operation: str) -> URL:
        """Return the address of an operation of a model; its id is one percent-encoded segment."""
        if not _MODEL.fullmatch(model):
            message = f"{model!r} is no id of a model; GET /v1/models lists them"
            raise self.failures(model).of("MODEL_NOT_FOUND", message)
        return self.url(f"/model/{quote(model, safe='')}/{operation}")

    def chat_url(self, attempt: pb.Attempt, stream: bool) -> URL:
        """Return where one attempt goes."""
        return self.model_url(attempt.model, self.stream_operation if stream else self.operation)

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once. The service names neither the model nor the answer."""
        response = await super().chat(attempt)
        response.model = response.model or attempt.model
        response.response_id = response.provider_request_id
        return response

    async def stream_chat(self, attempt: pb.Attempt) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Answer as it comes; the last message is `end`."""
        async with aclosing(super().stream_chat(attempt)) as messages:
            async for message in messages:
                if message.HasField("start"):
                    message.start.model = message.start.model or attempt.model
                    message.start.response_id = message.start.provider_request_id
                yield message

    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""
        try:
            listed = msgspec.json.decode(body, type=_Models).models
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        return [pb.ProviderModel(model=each.id, display_name=each.name or each.id) for each in listed]

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs: one request for each, several at a time."""
        if not _TITAN_EMBED.search(request.model):
            message = f"{self.name} has embeddings of Amazon Titan only, not of {request.model}"
            raise UnsupportedError(self.name, message, "model")
        inputs, dimensions = embedding_inputs(request)
        receipt = embedding_receipt(self.name, request, {"dimensions": "dimensions"})
        bodies = [titan_text.write_embedding(text, request.model, dimensions) for text in inputs]
        limit = asyncio.Semaphore(_EMBED_AT_A_TIME)
        tasks = [asyncio.create_task(self._embed_one(body, request, limit)) for body in bodies]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        response = pb.EmbedResponse(model=request.model, receipt=receipt)
        total = 0
        for (vector, tokens), body in zip(answers, bodies, strict=True):
            response.embeddings.add(values=vector)
            if tokens is None:
                response.usage.estimated = True
                tokens = estimate_usage(len(body), 0).input_total
            total += tokens
        response.usage.MergeFrom(Usage(input_total=total))
        return response

    async def _embed_one(
        self, body: bytes, request: pb.EmbedRequest, limit: asyncio.Semaphore
    ) -> tuple[list[float], int | None]:
        failures = self.failures(request.model)
        url = self.model_url(request.model, "invoke")
        async with limit:
            answer, _ = await self.ask(url, body, self.headers, self.timeouts(request.timeouts), failures)
        try:
            return titan_text.read_embedding(answer)
        except FormatError as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its answer is wrong: {error.message}") from None


class _Converse(_Service):
    operation, stream_operation = "converse", "converse-stream"

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        return bedrock_converse.write_request(chat, attempt.model, output_cap=attempt.output_cap)

    def read_response(self, body: bytes) -> Answer:
        return bedrock_converse.read_response(body)

    def stream_reader(self) -> StreamReader:
        return bedrock_converse.StreamReader()

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Let the vendor count, without charge; what does not make the input longer is no part of it."""
        written, _ = self.write_request(conversation_of(attempt), attempt, stream=False)
        body = {"input": {"converse": only(written, *_COUNTED)}}
        url = self.model_url(attempt.model, "count-tokens")
        return await counted(self, attempt, url, body, "inputTokens", _UNABLE)


class _Titan(_Service):
    operation, stream_operation = "invoke", "invoke-with-response-stream"

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        return titan_text.write_request(chat, attempt.model, output_cap=attempt.output_cap)

    def read_response(self, body: bytes) -> Answer:
        return titan_text.read_response(body)

    def stream_reader(self) -> StreamReader:
        return titan_text.StreamReader()

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Let the vendor count the body as it would be sent."""
        written, _ = self.write_request(conversation_of(attempt), attempt, stream=False)
        body = {"input": {"invokeModel": {"body": b64encode(written).decode()}}}
        url = self.model_url(attempt.model, "count-tokens")
        return await counted(self, attempt, url, body, "inputTokens", _UNABLE)


class BedrockAdapter:
    """Every model of the service, each in the format it has."""

    adapter = "bedrock"
    wire_formats: Sequence[WireFormat.ValueType] = ()
    features: Sequence[str] = _FEATURES
    synthetic = False

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        signer = None
        if settings.api_key is None:
            headers = [value.get_secret_value() for value in settings.headers.values()]
            signer = Signer(key_source(name, settings), settings.region, headers)
        self._converse = _Converse(name, settings, upstream, signer)
        self._titan = _Titan(name, settings, upstream, signer)
        # Models are listed by the service that manages them, which is on a host of its own.
        listing = settings.base_url.replace("://bedrock-runtime", "://bedrock", 1)
        self._listing = _Converse(name, settings.model_copy(update={"base_url": listing}), upstream, signer)

    def _of(self, model: str) -> _Converse | _Titan:
        return self._titan if _TITAN.search(model) else self._converse

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        return await self._of(attempt.model).chat(attempt)

    def stream_chat(self, attempt: pb.Attempt) -> Stream:
        """Answer as it comes; the last message is `end`."""
        return self._of(attempt.model).stream_chat(attempt)

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Return the input tokens of an attempt; estimated for models that the service does not count for."""
        return await self._of(attempt.model).count_tokens(attempt)

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""
        return await self._titan.embed(request)

    async def list_models(self) -> list[pb.ProviderModel]:
        """Return the models the service offers."""
        return await self._listing.list_models()

    async def check_health(self) -> None:
        """Raise when the service cannot be reached or refuses the credential; a listing costs nothing."""
        await self._listing.list_models()


class _Model(msgspec.Struct):
    id: str = msgspec.field(name="modelId")
    name: str | None = msgspec.field(default=None, name="modelName")


class _Models(msgspec.Struct):
    models: list[_Model] = msgspec.field(name="modelSummaries")
