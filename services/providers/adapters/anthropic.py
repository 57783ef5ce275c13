"""Anthropic messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import anthropic_messages
from services.formats.answers import Answer, AnswerFacts, RawReader, StreamReader
from services.formats.details import SEALED
from services.formats.documents import from_decode_error, is_null, read_object, write_object
from services.formats.receipts import Receipts
from services.providers.adapter import conversation_of
from services.providers.counting import estimated
from services.providers.domain.classification import ErrorTable
from services.providers.domain.failure import ProviderError, UnsupportedError
from services.providers.http import Upstream
from services.providers.http_adapter import HttpAdapter
from services.providers.settings import ProviderSettings

_VERSION = "2023-06-01"
_DEFAULT_MAX_TOKENS = 4096
# Headers of a caller that belong to the format.
_CALLER_HEADERS = frozenset({"anthropic-beta", "anthropic-version"})
# Parameters of a message that its count refuses.
_NOT_COUNTED = frozenset(
    {
        "inference_geo",
        "max_tokens",
        "metadata",
        "service_tier",
        "stop_sequences",
        "stream",
        "temperature",
        "top_k",
        "top_p",
    }
)

_ERRORS = ErrorTable(
    codes={
        "authentication_error": "PROVIDER_CREDENTIAL_REFUSED",
        "permission_error": "PROVIDER_CREDENTIAL_REFUSED",
        "billing_error": "PROVIDER_BILLING",
        "enforced_spend_limit_reached": "PROVIDER_BILLING",
        "not_found_error": "MODEL_NOT_FOUND",
        "request_too_large": "CONTEXT_LENGTH_EXCEEDED",
        "rate_limit_error": "PROVIDER_RATE_LIMITED",
        "overloaded_error": "PROVIDER_OVERLOADED",
        "timeout_error": "PROVIDER_TIMEOUT",
        "api_error": "PROVIDER_FAILED",
    },
    phrases=(
        ("prompt is too long", "CONTEXT_LENGTH_EXCEEDED"),
        ("exceed context limit", "CONTEXT_LENGTH_EXCEEDED"),
        ("credit balance is too low", "PROVIDER_BILLING"),
        ("content filtering policy", "CONTENT_FILTERED"),
    ),
)


class AnthropicAdapter(HttpAdapter):
    """The Messages API."""

    adapter = "anthropic"
    wire_format = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
    features: Sequence[str] = (
        "chat",
        "stream",
        "tools",
        "vision",
        "documents",
        "json_schema",
        "reasoning",
        "prefill",
    )
    chat_path = "/v1/messages"
    models_path = "/v1/models?limit=1000"
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self._count_url = self.url("/v1/messages/count_tokens")

    def credential(self, key: str) -> dict[str, str]:
        """Return the key and the version of the format."""
        headers = {"anthropic-version": _VERSION}
        if key:
            headers["x-api-key"] = key
        return headers

    def headers_of(self, attempt: pb.Attempt) -> Mapping[str, str]:
        """Add the caller's own version and beta headers."""
        if not attempt.headers or attempt.wire_format != self.wire_format:
            return self.headers
        own = {name.lower(): value for name, value in attempt.headers.items()}
        return {**self.headers, **{name: own[name] for name in own.keys() & _CALLER_HEADERS}}

    def patch(self, attempt: pb.Attempt, stream: bool) -> tuple[bytes, list[ParameterReceipt]]:
        """Change the model, and add the output limit where the caller named none."""
        if SEALED in attempt.raw_body:  # Thoughts of another vendor, which this one would refuse.
            return self.write_request(anthropic_messages.read_request(attempt.raw_body), attempt, stream)
        fields = read_object(attempt.raw_body)
        receipts = Receipts()
        model = msgspec.Raw(msgspec.json.encode(attempt.model))
        if bytes(fields.get("model", b"")) != bytes(model):
            fields["model"] = model
            receipts.translated("model", attempt.model)
        if stream or "stream" in fields:
            fields["stream"] = msgspec.Raw(b"true" if stream else b"false")
        if is_null(fields.get("max_tokens", b"null")):
            limit = attempt.output_cap or _DEFAULT_MAX_TOKENS
            fields["max_tokens"] = msgspec.Raw(str(limit).encode())
            receipts.added("max_tokens", str(limit))
        return write_object(fields), receipts.rest(fields)

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a typed conversation as a messages body."""
        return anthropic_messages.write_request(
            chat, attempt.model, stream, source=attempt.wire_format, output_cap=attempt.output_cap
        )

    def read_facts(self, body: bytes) -> AnswerFacts:
        """Return the facts of a message."""
        return anthropic_messages.read_response_facts(body)

    def read_response(self, body: bytes) -> Answer:
        """Return a message in the normalised model."""
        return anthropic_messages.read_response(body)

    def raw_reader(self, attempt: pb.Attempt) -> RawReader:
        """Return a reader for events that are passed on; usage is part of every stream."""
        return anthropic_messages.RawReader()

    def stream_reader(self) -> StreamReader:
        """Return a reader for events that are translated."""
        return anthropic_messages.StreamReader()

    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""
        try:
            listed = msgspec.json.decode(body, type=_Models).data
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        return [pb.ProviderModel(model=m.id, display_name=m.display_name or m.id) for m in listed]

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Let the vendor count, without charge. It refuses whatever does not make the input longer."""
        own = attempt.raw_body and attempt.wire_format == self.wire_format
        if own and SEALED not in attempt.raw_body:
            fields = read_object(attempt.raw_body)
            fields["model"] = msgspec.Raw(msgspec.json.encode(attempt.model))
        else:
            written, _ = self.write_request(conversation_of(attempt), attempt, stream=False)
            fields = read_object(written)
        body = write_object({name: raw for name, raw in fields.items() if name not in _NOT_COUNTED})
        failures = self.failures(attempt.model)
        limits = self.timeouts(attempt.timeouts)
        try:
            answer, _ = await self.ask(self._count_url, body, self.headers_of(attempt), limits, failures)
        except ProviderError as error:
            # Other servers of this format have no such path; the vendor names the model that is unknown.
            if error.metadata.get("http_status") in _NO_PATH and attempt.model not in error.message:
                return estimated(conversation_of(attempt))
            raise
        try:
            return pb.CountTokensResponse(input_tokens=msgspec.json.decode(answer, type=_Count).input_tokens)
        except (msgspec.DecodeError, ValueError) as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its count of tokens is wrong: {error}") from None

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Refuse: the vendor has no embeddings."""
        raise UnsupportedError(self.name, f"{self.name} has no embeddings; choose another model", "model")


_NO_PATH = frozenset({"404", "405", "501"})


class _Count(msgspec.Struct):
    input_tokens: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Model(msgspec.Struct):
    id: str
    display_name: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]
