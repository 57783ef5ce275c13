"""Google Gemini."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, Usage
from omnihub.provider.v1 import provider_service_pb2 as pb
from yarl import URL

from services.common.ids import new_id
from services.formats import gemini
from services.formats.answers import Answer, StreamReader
from services.formats.documents import decode_document, read_object, write_object
from services.formats.errors import FormatError
from services.formats.usage import believable
from services.providers.adapter import conversation_of
from services.providers.counting import counted
from services.providers.domain.classification import ErrorTable, read_error_object
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import Failures
from services.providers.embedding import embedding_inputs
from services.providers.http_adapter import HttpAdapter
from services.providers.receipts import embedding_receipt

_UNABLE = ("not supported for counttokens",)
# The vendor takes no more texts at once.
_EMBED_BATCH = 100

_ERRORS = ErrorTable(
    codes={
        "API_KEY_INVALID": "PROVIDER_CREDENTIAL_REFUSED",
        "API_KEY_SERVICE_BLOCKED": "PROVIDER_CREDENTIAL_REFUSED",
        "BILLING_DISABLED": "PROVIDER_BILLING",
        "UNAUTHENTICATED": "PROVIDER_CREDENTIAL_REFUSED",
        "PERMISSION_DENIED": "PROVIDER_CREDENTIAL_REFUSED",
        "NOT_FOUND": "MODEL_NOT_FOUND",
        "UNAVAILABLE": "PROVIDER_OVERLOADED",
        "DEADLINE_EXCEEDED": "PROVIDER_TIMEOUT",
        "INTERNAL": "PROVIDER_FAILED",
        "prompt_blocked": "CONTENT_FILTERED",
    },
    phrases=(
        ("api key not valid", "PROVIDER_CREDENTIAL_REFUSED"),
        ("api key expired", "PROVIDER_CREDENTIAL_REFUSED"),
        ("exceeds the maximum number of tokens", "CONTEXT_LENGTH_EXCEEDED"),
        ("request payload size exceeds", "CONTEXT_LENGTH_EXCEEDED"),
        ("prepayment credits are depleted", "PROVIDER_BILLING"),
        ("spending cap", "PROVIDER_BILLING"),
        ("enable billing", "PROVIDER_BILLING"),
    ),
)


class GeminiAdapter(HttpAdapter):
    """generateContent. No caller speaks this format, so every body is translated."""

    adapter = "gemini"
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
    chat_path = ""
    models_path = "/v1beta/models?pageSize=1000"
    errors = _ERRORS

    def credential(self, key: str) -> dict[str, str]:
        """Return the key."""
        return {"x-goog-api-key": key} if key else {}

    def chat_url(self, attempt: pb.Attempt, stream: bool) -> URL:
        """Return the address, which holds the model and the way to answer."""
        return self._operation(
            attempt.model, "streamGenerateContent?alt=sse" if stream else "generateContent"
        )

    def _operation(self, model: str, operation: str) -> URL:
        return self.url(f"/v1beta/models/{quote(model.removeprefix('models/'), safe='')}:{operation}")

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a conversation as a generateContent body."""
        return gemini.write_request(chat, attempt.model, own=False, output_cap=attempt.output_cap)

    def read_response(self, body: bytes) -> Answer:
        """Return an answer in the normalised model."""
        return gemini.read_response(body, new_id("call"))

    def stream_reader(self) -> StreamReader:
        """Return a reader for chunks."""
        return gemini.StreamReader(new_id("call"))

    def check_body(self, body: bytes, failures: Failures) -> None:
        """Raise the error that came with status 200; a blocked prompt comes so, without an answer."""
        super().check_body(body, failures)
        block = gemini.read_block(body)
        if block is not None:
            raise failures.rejected(self.errors.classify(0, read_error_object(block)))

    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""
        listed = decode_document(body, _Models).models
        return [
            pb.ProviderModel(
                model=model.name.removeprefix("models/"),
                display_name=model.display_name or model.name,
                context_length=model.input_token_limit or 0,
                max_output=model.output_token_limit or 0,
            )
            for model in listed
        ]

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Let the vendor count, without charge: system, tools and all."""
        written, _ = self.write_request(conversation_of(attempt), attempt, stream=False)
        name = f"models/{attempt.model.removeprefix('models/')}"
        body = {"generateContentRequest": {"model": name, **read_object(written)}}
        url = self._operation(attempt.model, "countTokens")
        return await counted(self, attempt, url, body, "totalTokens", _UNABLE)

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs, asking for at most 100 at once."""
        inputs, dimensions = embedding_inputs(request)
        receipt = embedding_receipt(self.name, request, {"dimensions": "outputDimensionality"})
        failures = self.failures(request.model)
        limits = self.timeouts(request.timeouts)
        url = self._operation(request.model, "batchEmbedContents")
        response = pb.EmbedResponse(model=request.model, receipt=receipt)
        usage, reported = Usage(), True
        for start in range(0, len(inputs), _EMBED_BATCH):
            batch = inputs[start : start + _EMBED_BATCH]
            body = _embed_body(request.model, batch, dimensions)
            answer, _ = await self.ask(url, body, self.headers, limits, failures)
            try:
                read = decode_document(answer, _Embeddings)
            except FormatError as error:
                raise failures.of("PROVIDER_PROTOCOL", f"its answer is wrong: {error.message}") from None
            if len(read.embeddings) != len(batch):
                message = f"returned {len(read.embeddings)} vectors for {len(batch)} inputs"
                raise failures.of("PROVIDER_PROTOCOL", message)
            for vector in read.embeddings:
                response.embeddings.add(values=vector.values)
            metadata = read.usage_metadata
            tokens = believable(metadata.prompt_token_count) if metadata is not None else None
            reported = reported and tokens is not None
            usage.input_total += tokens or 0
        response.usage.CopyFrom(usage if reported else estimate_usage(sum(map(len, inputs)), 0))
        response.usage.output_total = 0
        return response


class _Model(msgspec.Struct, rename="camel"):
    name: str
    display_name: str | None = None
    input_token_limit: int | None = None
    output_token_limit: int | None = None


class _Models(msgspec.Struct):
    models: list[_Model] = []


class _Vector(msgspec.Struct):
    values: list[float]


class _EmbedUsage(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None


class _Embeddings(msgspec.Struct, rename="camel"):
    embeddings: list[_Vector]
    usage_metadata: _EmbedUsage | None = None


def _embed_body(model: str, texts: Sequence[str], dimensions: int | None) -> bytes:
    size: Mapping[str, int] = {} if dimensions is None else {"outputDimensionality": dimensions}
    name = f"models/{model.removeprefix('models/')}"
    requests = [{"model": name, "content": {"parts": [{"text": text}]}, **size} for text in texts]
    return write_object({"requests": requests})
