"""An offline provider: rules, not a model. It needs no key and no network, and says what it is."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncGenerator, Sequence

from omnihub.common.v1.chat_pb2 import (
    ChatInput,
    Finish,
    Message,
    ParameterReceipt,
    Part,
    ToolResult,
    Usage,
    WireFormat,
)
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats.errors import invalid
from services.formats.receipts import MOST as MOST_RECEIPTS
from services.providers.adapter import conversation_of
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import Failures, UnsupportedError
from services.providers.embedding import embedding_inputs
from services.providers.http import Upstream
from services.providers.receipts import embedding_receipt, receipt_of, refuse_drops
from services.providers.settings import ProviderSettings

MODELS = {"echo": "Rule-based chat (not a model)", "hash": "Hashed n-gram embeddings (not a model)"}
DIMENSIONS = 256
_LARGEST = 4096
# Parameters that mean something to rules.
_TAKEN = frozenset({"model", "max_tokens", "max_completion_tokens", "stop", "stop_sequences"})
_NOTICE = "This is OmniHub's offline provider, not a language model."
_MEDIA = ("image", "audio", "video", "document")
_WORD = re.compile(r"\S+\s*")
_TOKEN = re.compile(r"\w+|[^\w\s]")


class LocalAdapter:
    """Answers by rule; the same question has the same answer."""

    adapter = "local"
    wire_formats: Sequence[WireFormat.ValueType] = ()
    features: Sequence[str] = ("chat", "stream", "embed")
    synthetic = True

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        self._name = name

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        self._check_model(attempt.model)
        conversation = self._conversation(attempt)
        receipt = self._receipt(attempt)
        text, finish, usage = _answer(conversation, attempt)
        part = Part()
        part.text.text = text
        return pb.ChatResponse(
            message=Message(role="assistant", parts=[part]),
            finish=finish,
            usage=usage,
            model=attempt.model,
            response_id=_response_id(attempt),
            receipt=receipt,
        )

    def _receipt(self, attempt: pb.Attempt) -> list[ParameterReceipt]:
        receipt = receipt_of(attempt, _TAKEN)
        if attempt.strict:
            refuse_drops(self._name, receipt)
        return receipt[:MOST_RECEIPTS]

    async def stream_chat(self, attempt: pb.Attempt) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Answer word by word."""
        self._check_model(attempt.model)
        conversation = self._conversation(attempt)
        receipt = self._receipt(attempt)
        text, finish, usage = _answer(conversation, attempt)
        start = pb.StreamStart(model=attempt.model, response_id=_response_id(attempt), receipt=receipt)
        yield pb.StreamChatResponse(start=start)
        part = Part()
        part.text.SetInParent()
        yield pb.StreamChatResponse(part_start=PartStart(index=0, part=part))
        for word in _WORD.findall(text):
            yield pb.StreamChatResponse(part_delta=PartDelta(index=0, text=word))
            await asyncio.sleep(0)  # Other requests of this process get their turn.
        yield pb.StreamChatResponse(part_stop=PartStop(index=0))
        yield pb.StreamChatResponse(end=pb.StreamEnd(finish=finish, usage=usage))

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return hashed n-gram vectors: they tell alike spelling, not alike meaning."""
        self._check_model(request.model)
        inputs, dimensions = embedding_inputs(request)
        size = dimensions or DIMENSIONS
        if size > _LARGEST:
            raise invalid("dimensions", f"expected a whole number from 1 to {_LARGEST}")
        receipt = embedding_receipt(self._name, request, {"dimensions": "dimensions"})
        response = pb.EmbedResponse(model=request.model, receipt=receipt)
        for text in inputs:
            response.embeddings.add(values=_embed(text, size))
        response.usage.input_total = sum(_count(text) for text in inputs)
        return response

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Count as the usage of an answer does: here the count is the definition."""
        messages = conversation_of(attempt).messages
        return pb.CountTokensResponse(input_tokens=sum(_count(_text_of(message)) for message in messages))

    async def list_models(self) -> list[pb.ProviderModel]:
        """Return what there is."""
        return [pb.ProviderModel(model=model, display_name=name) for model, name in MODELS.items()]

    async def check_health(self) -> None:
        """Do nothing: there is nothing that could be down."""

    def _check_model(self, model: str) -> None:
        if model not in MODELS:
            message = f"has no model {model!r}; it has {', '.join(MODELS)}"
            raise Failures(self._name, model).of("MODEL_NOT_FOUND", message)

    def _conversation(self, attempt: pb.Attempt) -> ChatInput:
        conversation = conversation_of(attempt)
        for index, message in enumerate(conversation.messages):
            for part in message.parts:
                if part.WhichOneof("kind") in _MEDIA:
                    raise UnsupportedError(self._name, f"{self._name} reads text alone", f"messages[{index}]")
        return conversation


def _response_id(attempt: pb.Attempt) -> str:
    return f"chatcmpl-{attempt.attempt_id or 'local'}"


def _count(text: str) -> int:
    return len(_TOKEN.findall(text))


def _text_of(message: Message | ToolResult) -> str:
    texts = [message.content] if isinstance(message, Message) and message.content else []
    for part in message.parts:
        match part.WhichOneof("kind"):
            case "text":
                texts.append(part.text.text)
            case "tool_result":
                texts.append(_text_of(part.tool_result))
    return "\n".join(texts)


def _answer(chat: ChatInput, attempt: pb.Attempt) -> tuple[str, Finish, Usage]:
    """Return text, finish and usage of the answer to the last turn."""
    last = chat.messages[-1] if chat.messages else Message()
    said = _text_of(last).strip()
    text = f"{_NOTICE} You said: {said}" if said else f"{_NOTICE} You sent no text."
    finish = Finish(reason="stop", raw="stop")
    for sequence in chat.stop:
        if sequence and sequence in text:
            text = text[: text.index(sequence)]
            finish.stop_sequence = sequence
    limit = chat.max_tokens if chat.HasField("max_tokens") else attempt.output_cap
    if limit and _count(text) > limit:
        text = text[: [token.end() for token in _TOKEN.finditer(text)][limit - 1]]
        finish = Finish(reason="length", raw="length")
    usage = estimate_usage(0, 0)
    usage.estimated = False  # Here the count is the definition.
    usage.input_total = sum(_count(_text_of(message)) for message in chat.messages)
    usage.output_total = _count(text)
    return text, finish, usage


def _embed(text: str, size: int) -> list[float]:
    """Return the normalised vector of a text's words and letter triples."""
    vector = [0.0] * size
    folded = f" {' '.join(text.lower().split())} "
    grams = folded.split() + [folded[i : i + 3] for i in range(len(folded) - 2)]
    for gram in grams:
        digest = hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        vector[value % size] += 1.0 if value >> 63 else -1.0
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector] if norm else vector
