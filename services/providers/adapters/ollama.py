"""Ollama's own API. Its OpenAI-shaped one is served by the OpenAI adapter, at `/v1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.ids import new_id
from services.formats import ollama
from services.formats.answers import Answer, StreamReader
from services.formats.documents import decode_document, write_object
from services.formats.errors import FormatError
from services.formats.usage import believable
from services.providers.domain.classification import ErrorTable
from services.providers.domain.estimate import estimate_usage
from services.providers.embedding import embedding_inputs
from services.providers.frames import FrameParser
from services.providers.http import FRAME_LIMIT
from services.providers.http_adapter import HttpAdapter
from services.providers.lines import LineParser
from services.providers.receipts import embedding_receipt

# Its errors are texts alone.
_ERRORS = ErrorTable(
    codes={},
    phrases=(
        ("exceeds the context length", "CONTEXT_LENGTH_EXCEEDED"),
        ("exceeds maximum context length", "CONTEXT_LENGTH_EXCEEDED"),
        ("exceeds the available context size", "CONTEXT_LENGTH_EXCEEDED"),
        ("maximum pending requests exceeded", "PROVIDER_OVERLOADED"),
        ("try pulling it first", "MODEL_NOT_FOUND"),
    ),
)


class OllamaAdapter(HttpAdapter):
    """Chat as newline-delimited JSON. No caller speaks this format, so every body is translated."""

    adapter = "ollama"
    features: Sequence[str] = (
        "chat",
        "stream",
        "embed",
        "tools",
        "vision",
        "json_schema",
        "reasoning",
        "prefill",
    )
    chat_path = "/api/chat"
    models_path = "/api/tags"
    errors = _ERRORS

    def credential(self, key: str) -> dict[str, str]:
        """Return the bearer token of a server behind a proxy, or of the vendor's cloud."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def write_request(
        self, chat: ChatInput, attempt: pb.Attempt, stream: bool
    ) -> tuple[bytes, list[ParameterReceipt]]:
        """Return a conversation as a chat body."""
        return ollama.write_request(chat, attempt.model, stream, output_cap=attempt.output_cap)

    def read_response(self, body: bytes) -> Answer:
        """Return an answer in the normalised model."""
        return ollama.read_response(body, new_id("call"))

    def frame_parser(self) -> FrameParser:
        """Return what cuts a stream into lines."""
        return LineParser(FRAME_LIMIT)

    def stream_reader(self) -> StreamReader:
        """Return a reader for lines."""
        return ollama.StreamReader(new_id("call"))

    def read_models(self, body: bytes) -> list[pb.ProviderModel]:
        """Return the models of a listing."""
        listed = decode_document(body, _Models).models
        return [pb.ProviderModel(model=model.name, display_name=model.name) for model in listed]

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""
        inputs, dimensions = embedding_inputs(request)
        receipt = embedding_receipt(self.name, request, {"dimensions": "dimensions"})
        failures = self.failures(request.model)
        fields: dict[str, Any] = {"model": request.model, "input": inputs}
        if dimensions is not None:
            fields["dimensions"] = dimensions
        body, limits = write_object(fields), self.timeouts(request.timeouts)
        answer, _ = await self.ask(self.url("/api/embed"), body, self.headers, limits, failures)
        try:
            read = decode_document(answer, _Embeddings)
        except FormatError as error:
            raise failures.of("PROVIDER_PROTOCOL", f"its answer is wrong: {error.message}") from None
        if len(read.embeddings) != len(inputs):
            message = f"returned {len(read.embeddings)} vectors for {len(inputs)} inputs"
            raise failures.of("PROVIDER_PROTOCOL", message)
        response = pb.EmbedResponse(model=read.model or request.model, receipt=receipt)
        for values in read.embeddings:
            response.embeddings.add(values=values)
        response.usage.CopyFrom(estimate_usage(sum(map(len, inputs)), 0))
        if tokens := believable(read.prompt_eval_count):
            response.usage.input_total, response.usage.estimated = tokens, False
        response.usage.output_total = 0
        return response


class _Model(msgspec.Struct):
    name: str


class _Models(msgspec.Struct):
    models: list[_Model]


class _Embeddings(msgspec.Struct):
    embeddings: list[list[float]]
    model: str | None = None
    prompt_eval_count: int | None = None
