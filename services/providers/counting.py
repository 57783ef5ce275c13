"""Counting the tokens of a conversation: by its provider where it counts, else by a flagged estimate."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput
from omnihub.provider.v1 import provider_service_pb2 as pb
from yarl import URL

from services.formats.documents import Fields, read_object, read_value, write_object
from services.formats.errors import FormatError
from services.providers.adapter import conversation_of
from services.providers.domain.count import estimate_input
from services.providers.domain.failure import ProviderError
from services.providers.http_adapter import HttpAdapter

# The request is refused as it is; only then its words are looked at.
_REFUSALS = frozenset({"PROVIDER_REJECTED", "MODEL_NOT_FOUND"})


def estimated(chat: ChatInput) -> pb.CountTokensResponse:
    """Return about how many tokens a conversation is."""
    return pb.CountTokensResponse(input_tokens=estimate_input(chat), estimated=True)


async def counted(
    adapter: HttpAdapter,
    attempt: pb.Attempt,
    url: URL,
    body: Mapping[str, object],
    field: str,
    unable: tuple[str, ...],
) -> pb.CountTokensResponse:
    """Let the vendor count; its answer has the number in `field`.

    Models that it does not count for say so in one of the phrases `unable`, in lower case: those are
    estimated. Raises ProviderError.
    """
    failures = adapter.failures(attempt.model)
    limits = adapter.timeouts(attempt.timeouts)
    try:
        answer, _ = await adapter.ask(url, write_object(body), adapter.headers_of(attempt), limits, failures)
    except ProviderError as error:
        told = error.message.lower()
        if error.reason in _REFUSALS and any(phrase in told for phrase in unable):
            return estimated(conversation_of(attempt))
        raise
    try:
        tokens = read_value(read_object(answer).get(field, msgspec.Raw(b"null")), int, field)
        return pb.CountTokensResponse(input_tokens=tokens)
    except (FormatError, ValueError) as error:
        raise failures.of("PROVIDER_PROTOCOL", f"its count of tokens is wrong: {error}") from None


def only(body: bytes, *names: str) -> Fields:
    """Return these fields of a body."""
    return {name: raw for name, raw in read_object(body).items() if name in names}
