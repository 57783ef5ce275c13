"""What a conversation asks of a plugin, and how it is made to fit what the plugin offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.providers.domain.failure import UnsupportedError

_MEDIA = {"image": "vision", "audio": "audio", "document": "documents"}


def needed_features(chat: ChatInput) -> Iterator[tuple[str, str]]:
    """Yield what a conversation cannot do without, each with the field that needs it."""
    if chat.tools:
        yield "tools", "tools"
    if chat.response_schema_json:
        yield "json_schema", "response_schema_json"
    for index, message in enumerate(chat.messages):
        for part in message.parts:
            feature = _MEDIA.get(part.WhichOneof("kind") or "")
            if feature is not None:
                yield feature, f"messages[{index}]"


def fit(attempt: pb.Attempt, features: Sequence[str], provider: str) -> list[ParameterReceipt]:
    """Take out wishes that are not offered. Raises UnsupportedError instead when the caller is strict."""
    if attempt.raw_body or not attempt.chat.reasoning_effort or "reasoning" in features:
        return []
    if attempt.strict:
        raise UnsupportedError(provider, f"{provider} does not offer reasoning", "reasoning_effort")
    attempt.chat.reasoning_effort = ""
    detail = "this provider does not offer reasoning"
    return [ParameterReceipt(name="reasoning_effort", outcome="dropped", detail=detail)]
