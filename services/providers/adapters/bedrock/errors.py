"""The vendor's words for what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error

# The service says it by name; what has no name here is told by its status or its message.
ERRORS = ErrorTable(
    codes={
        "AccessDeniedException": "PROVIDER_CREDENTIAL_REFUSED",
        "ExpiredTokenException": "PROVIDER_CREDENTIAL_REFUSED",
        "IncompleteSignatureException": "PROVIDER_CREDENTIAL_REFUSED",
        "InvalidSignatureException": "PROVIDER_CREDENTIAL_REFUSED",
        "MissingAuthenticationTokenException": "PROVIDER_CREDENTIAL_REFUSED",
        "UnrecognizedClientException": "PROVIDER_CREDENTIAL_REFUSED",
        # A quota of the account: asking again does not help.
        "ServiceQuotaExceededException": "PROVIDER_BILLING",
        "ResourceNotFoundException": "MODEL_NOT_FOUND",
        "ModelTimeoutException": "PROVIDER_TIMEOUT",
        "ModelErrorException": "PROVIDER_FAILED",
        "ModelStreamErrorException": "PROVIDER_FAILED",
        "InternalServerException": "PROVIDER_FAILED",
        "InternalFailure": "PROVIDER_FAILED",
        # Ours: the signature was refused because of its time, and the next one will be right.
        "RequestTimeTooSkewed": "PROVIDER_FAILED",
        "ThrottlingException": "PROVIDER_RATE_LIMITED",
        "TooManyRequestsException": "PROVIDER_RATE_LIMITED",
        # It is being loaded.
        "ModelNotReadyException": "PROVIDER_OVERLOADED",
        "ServiceUnavailableException": "PROVIDER_OVERLOADED",
    },
    phrases=(
        ("model identifier is invalid", "MODEL_NOT_FOUND"),
        ("on-demand throughput isn", "MODEL_NOT_FOUND"),
        ("end of its life", "MODEL_NOT_FOUND"),
        ("input is too long", "CONTEXT_LENGTH_EXCEEDED"),
        ("prompt is too long", "CONTEXT_LENGTH_EXCEEDED"),
        ("too many input tokens", "CONTEXT_LENGTH_EXCEEDED"),
        ("maximum context length", "CONTEXT_LENGTH_EXCEEDED"),
        ("exceed context limit", "CONTEXT_LENGTH_EXCEEDED"),
        ("maximum tokens you requested exceeds", "PROVIDER_REJECTED"),
        ("content filtering policy", "CONTENT_FILTERED"),
        ("blocked by our content filters", "CONTENT_FILTERED"),
    ),
)
_SKEW_PHRASES = ("signature expired", "signature not yet current", "request timestamp")


def read_refusal(headers: Mapping[str, str], body: bytes) -> ErrorFacts:
    """Read an error: the name in a header or in the body, the message under one of two names."""
    facts = read_error(body)
    code = headers.get("x-amzn-ErrorType", "")
    try:
        fields = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = _Body()
    # Such as "com.amazon#ValidationException:http://internal/".
    code = (code or fields.type).partition(":")[0].rpartition("#")[2]
    message = facts.message or fields.message or ""
    return replace(facts, code=code or facts.code, message=message, found=facts.found or bool(code))


class _Body(msgspec.Struct):
    type: str = msgspec.field(default="", name="__type")
    message: str | None = msgspec.field(default=None, name="Message")


def is_about_the_clock(facts: ErrorFacts) -> bool:
    """Tell whether a signature was refused because of its time."""
    message = facts.message.lower()
    return any(phrase in message for phrase in _SKEW_PHRASES)
