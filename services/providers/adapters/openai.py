"""OpenAI chat completions and embeddings, and every server that speaks them."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Usage, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.ids import new_id
from services.formats import openai_chat
from services.formats.answers import Answer, AnswerFacts, RawReader, StreamReader
from services.formats.documents import (
    Fields,
    from_decode_error,
    is_null,
    read_object,
    read_value,
    splice,
    write_object,
)
from services.formats.errors import FormatError, invalid
from services.formats.receipts import MOST, Receipts
from services.formats.usage import reported
from services.providers.domain.classification import ErrorTable, read_error_object
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import Failures
from services.providers.http import Upstream
from services.providers.http_adapter import HttpAdapter
from services.providers.receipts import embedding_receipt
from services.providers.settings import ProviderSettings

_LIMITS = ("max_completion_tokens", "max_tokens")
_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")

_ERRORS = ErrorTable(
    codes={
        "insufficient_quota": "PROVIDER_BILLING",
        "billing_hard_limit_reached": "PROVIDER_BILLING",
        "billing_not_active": "PROVIDER_BILLING",
        "credit_balance_exhausted": "PROVIDER_BILLING",
        "invalid_api_key": "PROVIDER_CREDENTIAL_REFUSED",
        "authentication_error": "PROVIDER_CREDENTIAL_REFUSED",
        "model_not_found": "MODEL_NOT_FOUND",
        "model_decommissioned": "MODEL_NOT_FOUND",
        "context_length_exceeded": "CONTEXT_LENGTH_EXCEEDED",
        "string_above_max_length": "CONTEXT_LENGTH_EXCEEDED",
        "content_filter": "CONTENT_FILTERED",
        "content_policy_violation": "CONTENT_FILTERED",
        "invalid_prompt": "PROVIDER_REJECTED",
        "rate_limit_exceeded": "PROVIDER_RATE_LIMITED",
        "rate_limit_error": "PROVIDER_RATE_LIMITED",
        "server_is_overloaded": "PROVIDER_OVERLOADED",
        "engine_overloaded": "PROVIDER_OVERLOADED",
    },
    phrases=(
        ("maximum context length", "CONTEXT_LENGTH_EXCEEDED"),
        ("exceeds the available context size", "CONTEXT_LENGTH_EXCEEDED"),
        ("insufficient credits", "PROVIDER_BILLING"),
        ("requires more credits", "PROVIDER_BILLING"),
        ("is not a valid model id", "MODEL_NOT_FOUND"),
    ),
)


class OpenAIAdapter(HttpAdapter):
    """OpenAI, OpenRouter, Groq, vLLM, Ollama's `/v1`, llama.cpp: instances of this one adapter."""

    adapter = "openai"
    wire_format = WireFormat.WIRE_FORMAT_OPENAI_CHAT
    features: Sequence[str] = (
        "chat",
        "stream",
        "embed",
        "tools",
        "vision",
        "audio",
        "documents",
        "json_schema",
        "reasoning",
    )
    chat_path = "/chat/completions"
    models_path = "/models"
    errors = _ERRORS

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        if settings.prefill in ("last_message", "continue_final_message"):
            self.features = (*self.features, "prefill")

    def credential(self, key: str) -> dict[str, str]:
        """Return the bearer token."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def patch(self, attempt: pb.Attempt, stream: bool) -> tuple[bytes, list[ParameterReceipt]]:
        """Change the model, ask for usage, and cap the output where the caller did not."""
        fields = read_object(attempt.raw_body)
        receipts = Receipts()
        _set_model(fields, attempt.model, receipts)
        if stream:
            fields["stream"] = _TRUE
            _ask_for_usage(fields, receipts)
        elif "stream" in fields:
            fields["stream"] = _FALSE
            if fields.pop("stream_options", None) is not None:
                receipts.dropped("stream_options", "there is no stream")
        if attempt.output_cap and all(is_null(fields.get(name, b"null")) for name in _LIMITS):
            name = self.settings.output_limit_parameter
            fields[name] = msgspec.Raw(str(attempt.output_cap).encode())
            receipts.added(name, str(attempt.output_cap))
        return write_object(fields), receipts.rest(fields)

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a typed conversation as a chat completion body."""
        body, receipt = openai_chat.write_request(
            chat,
            attempt.model,
            stream,
            source=attempt.wire_format,
            output_cap=attempt.output_cap,
            limit_name=self.settings.output_limit_parameter,
            details=bool(self.settings.reasoning_details),
        )
        if attempt.prefill_text and self.settings.prefill == "continue_final_message":
            body = splice(splice(body, "continue_final_message", True), "add_generation_prompt", False)
        return body, receipt

    def read_facts(self, body: bytes) -> AnswerFacts:
        """Return the facts of a chat completion."""
        return openai_chat.read_response_facts(body)

    def read_response(self, body: bytes) -> Answer:
        """Return a chat completion in the normalised model."""
        return openai_chat.read_response(body, new_id("call"))

    def raw_reader(self, attempt: pb.Attempt) -> RawReader:
        """Return a reader for chunks that are passed on, of as many choices as were asked for."""
        choices = msgspec.json.decode(attempt.raw_body, type=_Choices).n if b'"n"' in attempt.raw_body else 1
        return openai_chat.RawReader(
            attempt.include_usage, choices if isinstance(choices, int) else 1, self.settings.usage_field
        )

    def stream_reader(self) -> StreamReader:
        """Return a reader for chunks that are translated."""
        return openai_chat.StreamReader(self.settings.usage_field, new_id("call"))

    def check_body(self, body: bytes, failures: Failures) -> None:
        """Raise the error that came with status 200; some vendors put it into the choice that failed."""
        super().check_body(body, failures)
        if b'"error"' in body and (error := openai_chat.read_choice_error(body)):
            raise failures.rejected(self.errors.classify(0, read_error_object(error)))

    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""
        try:
            listed = msgspec.json.decode(body, type=_Models).data
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        return [
            pb.ProviderModel(
                model=model.id,
                display_name=model.name or model.id,
                context_length=_size(model.context_length, model.max_model_len, model.context_window),
                max_output=_size(model.max_completion_tokens),
            )
            for model in listed
        ]

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""
        failures = self.failures(request.model)
        if request.raw_body:
            fields, receipts = read_object(request.raw_body), Receipts()
            _set_model(fields, request.model, receipts)
            body, receipt = write_object(fields), receipts.rest(fields)[:MOST]
        else:
            body = _embed_body(request)
            receipt = embedding_receipt(self.name, request, {"inputs": "input", "dimensions": "dimensions"})
        answer, _ = await self.ask(
            self.url("/embeddings"), body, self.headers, self.timeouts(request.timeouts), failures
        )
        try:
            response, usage = _read_embeddings(answer, raw=bool(request.raw_body))
        except FormatError as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its answer is wrong: {error.message}") from None
        if not request.raw_body and len(response.embeddings) != len(request.inputs):
            message = f"returned {len(response.embeddings)} vectors for {len(request.inputs)} inputs"
            raise failures.of("PROVIDER_PROTOCOL", message)
        usage = usage or estimate_usage(len(body), 0)
        usage.output_total = 0
        response.usage.CopyFrom(usage)
        response.receipt.extend(receipt)
        return response


class _Choices(msgspec.Struct):
    n: Any = 1


class _Model(msgspec.Struct):
    id: str
    name: str | None = None
    # What different servers call the same.
    context_length: Any = None
    max_model_len: Any = None
    context_window: Any = None
    max_completion_tokens: Any = None


class _Models(msgspec.Struct):
    data: list[_Model]


def _size(*values: Any) -> int:
    return next((value for value in values if isinstance(value, int) and 0 < value < 2**32), 0)


def _set_model(fields: Fields, model: str, receipts: Receipts) -> None:
    raw = msgspec.Raw(msgspec.json.encode(model))
    if bytes(fields.get("model", b"")) != bytes(raw):
        fields["model"] = raw
        receipts.translated("model", model)


def _ask_for_usage(fields: Fields, receipts: Receipts) -> None:
    """Set include_usage, leaving other stream options as they are."""
    raw = fields.get("stream_options")
    options = read_value(raw, Fields, "stream_options") if raw is not None and not is_null(raw) else {}
    if bytes(options.get("include_usage", b"")) != b"true":
        options["include_usage"] = _TRUE
        fields["stream_options"] = msgspec.Raw(write_object(options))
        receipts.added("stream_options.include_usage", "true")


def _embed_body(request: pb.EmbedRequest) -> bytes:
    fields: dict[str, Any] = {
        "model": request.model,
        "input": list(request.inputs),
        "encoding_format": "float",
    }
    if request.HasField("dimensions"):
        fields["dimensions"] = request.dimensions
    return write_object(fields)


class _EmbedUsage(msgspec.Struct):
    prompt_tokens: int | None = None


class _EmbedFacts(msgspec.Struct):
    data: msgspec.Raw
    model: str | None = None
    usage: _EmbedUsage | None = None


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


def _read_embeddings(body: bytes, raw: bool) -> tuple[pb.EmbedResponse, Usage | None]:
    try:
        facts = msgspec.json.decode(body, type=_EmbedFacts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    tokens = facts.usage.prompt_tokens if facts.usage is not None else None
    usage = reported(input_total=tokens) if tokens is not None else None
    response = pb.EmbedResponse(model=facts.model or "")
    if raw:
        response.raw_body = body
        return response, usage
    vectors: list[_Vector] = read_value(facts.data, list[_Vector], "data")
    ordered = sorted(enumerate(vectors), key=lambda item: item[0] if item[1].index is None else item[1].index)
    for _, vector in ordered:
        response.embeddings.add(values=_floats(vector.embedding))
    return response, usage


def _floats(embedding: list[float] | str) -> list[float] | tuple[float, ...]:
    if isinstance(embedding, list):
        return embedding
    try:
        data = base64.b64decode(embedding, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("data[].embedding", "is neither numbers nor base64") from None
    if len(data) % 4:
        raise invalid("data[].embedding", "is no whole number of 32-bit floats")
    return struct.unpack(f"<{len(data) // 4}f", data)
