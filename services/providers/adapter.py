"""What every adapter is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from omnihub.common.v1.chat_pb2 import ChatInput, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import anthropic_messages, openai_chat
from services.formats.documents import read_object, read_value
from services.formats.errors import invalid
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import UnsupportedError


class Adapter(Protocol):
    """One configured provider. Methods raise errors whose `reason` names a row of the error table."""

    adapter: str
    """Its name in the configuration."""
    wire_formats: Sequence[WireFormat.ValueType]
    features: Sequence[str]
    synthetic: bool

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        ...

    def stream_chat(self, attempt: pb.Attempt) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Answer as it comes; the last message is `end`."""
        ...

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""
        ...

    async def list_models(self) -> list[pb.ProviderModel]:
        """Return the models the provider offers."""
        ...

    async def check_health(self) -> None:
        """Raise when the provider cannot be reached or refuses the credential."""
        ...


_DIMENSIONS_LIMIT = 4096
_READERS = {
    WireFormat.WIRE_FORMAT_OPENAI_CHAT: openai_chat.read_request,
    WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES: anthropic_messages.read_request,
}


def conversation_of(attempt: pb.Attempt) -> ChatInput:
    """Return the conversation, read from the raw body when there is one. Raises FormatError.

    It ends with the text that the model is to go on from, when the attempt has one.
    """
    chat = _read(attempt)
    return _with_prefill(chat, attempt.prefill_text) if attempt.prefill_text else chat


def _with_prefill(chat: ChatInput, text: str) -> ChatInput:
    prefilled = ChatInput()
    prefilled.CopyFrom(chat)
    last = prefilled.messages[-1] if prefilled.messages else None
    if last is None or last.role != "assistant":
        last = prefilled.messages.add(role="assistant")
    # The caller's own beginning of the answer stays the beginning.
    if last.parts:
        last.parts.add().text.text = text
    else:
        last.content += text
    if prefilled.HasField("max_tokens"):
        written = estimate_usage(0, len(text)).output_total
        prefilled.max_tokens = max(1, prefilled.max_tokens - written)
    return prefilled


def _read(attempt: pb.Attempt) -> ChatInput:
    if not attempt.raw_body:
        return attempt.chat
    reader = _READERS.get(attempt.wire_format)
    if reader is None:
        name = WireFormat.Name(attempt.wire_format)
        raise UnsupportedError(attempt.provider, f"bodies of {name} cannot be translated", "wire_format")
    return reader(attempt.raw_body)


def embedding_inputs_of(request: pb.EmbedRequest) -> tuple[list[str], int]:
    """Return the texts and the wanted dimensions, 0 for none.

    They are read from the OpenAI-shaped body when there is one. Raises FormatError.
    """
    if not request.raw_body:
        return list(request.inputs), request.dimensions
    fields = read_object(request.raw_body)
    if "input" not in fields:
        raise invalid("input", "send a text or a list of texts")
    read: str | list[str] = read_value(fields["input"], str | list[str], "input")  # type: ignore[arg-type]
    dimensions = 0
    if "dimensions" in fields:
        dimensions = read_value(fields["dimensions"], int, "dimensions")
        if not 1 <= dimensions <= _DIMENSIONS_LIMIT:
            raise invalid("dimensions", f"expected a whole number from 1 to {_DIMENSIONS_LIMIT}")
    return [read] if isinstance(read, str) else read, dimensions
