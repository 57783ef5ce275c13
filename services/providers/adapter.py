"""What every adapter is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, runtime_checkable

from omnihub.common.v1.chat_pb2 import ChatInput, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1 import stored_response_service_pb2 as stored_pb

from services.common.rpc.outlet import OutletStream
from services.formats import anthropic_messages, openai_chat, openai_responses
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import UnsupportedError

Stream = AsyncGenerator[pb.StreamChatResponse, None] | OutletStream[pb.StreamChatResponse]


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

    def stream_chat(self, attempt: pb.Attempt) -> Stream:
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


@runtime_checkable
class TokenCounter(Protocol):
    """An adapter whose provider counts tokens without charge."""

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Return the input tokens of an attempt."""
        ...


@runtime_checkable
class ResponseKeeper(Protocol):
    """An adapter whose provider keeps responses."""

    async def ask_stored(self, request: stored_pb.AskStoredResponseRequest) -> bytes:
        """Return the document that an operation on a stored response answers with."""
        ...

    def follow_stored(
        self, request: stored_pb.FollowStoredResponseRequest
    ) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Pass on the events of a stored response; the last message is `end`."""
        ...


_READERS = {
    WireFormat.WIRE_FORMAT_OPENAI_CHAT: openai_chat.read_request,
    WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES: anthropic_messages.read_request,
    WireFormat.WIRE_FORMAT_OPENAI_RESPONSES: openai_responses.read_portable,
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
