"""How an attempt can fail, as ProviderService's contract says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Phase = Literal["before_first_byte", "mid_stream"]
BEFORE: Phase = "before_first_byte"
MID_STREAM: Phase = "mid_stream"
# Longer texts of a provider help nobody.
_TEXT_LIMIT = 500
# Asking the same provider again may help. A silent one is not asked again.
_RETRYABLE = frozenset(
    {
        "PROVIDER_CONCURRENCY",
        "PROVIDER_FAILED",
        "PROVIDER_OVERLOADED",
        "PROVIDER_PROTOCOL",
        "PROVIDER_RATE_LIMITED",
        "STREAM_TRUNCATED",
    }
)


# What an attempt may fail with by contract.
ATTEMPT_REASONS = frozenset(
    {
        "CONTENT_FILTERED",
        "CONTEXT_LENGTH_EXCEEDED",
        "INVALID_ARGUMENT",
        "MALFORMED_BODY",
        "MODEL_NOT_FOUND",
        "PARAMETER_UNSUPPORTED",
        "PROVIDER_BILLING",
        "PROVIDER_CREDENTIAL_REFUSED",
        "PROVIDER_FAILED",
        "PROVIDER_OVERLOADED",
        "PROVIDER_PROTOCOL",
        "PROVIDER_RATE_LIMITED",
        "PROVIDER_REJECTED",
        "PROVIDER_TIMEOUT",
        "STREAM_TRUNCATED",
    }
)


class FieldViolation(Protocol):
    """One field that is wrong, and what to do about it."""

    @property
    def field(self) -> str:
        """Return its path."""
        ...

    @property
    def description(self) -> str:
        """Return what is wrong."""
        ...


class ProviderError(Exception):
    """One attempt failed. `reason` names a row of the error table."""

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: dict[str, str],
        retry_after_s: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata
        self.retry_after_s = retry_after_s
        self.violations = violations
        self.sent = True
        """The request may have reached the provider."""


class UnknownProviderError(Exception):
    """No provider of this name is configured."""

    reason = "NOT_FOUND"

    def __init__(self, provider: str, configured: Sequence[str]) -> None:
        super().__init__(f"no provider is called {provider!r}; configured: {', '.join(sorted(configured))}")


class UnsupportedError(Exception):
    """A provider cannot do what was asked."""

    reason = "PARAMETER_UNSUPPORTED"

    def __init__(self, provider: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.metadata = {"provider": provider}
        self.violations = (_Violation(field, message),) if field else ()


class ForgedWebhookError(Exception):
    """A notification is not what a provider sent, or too old."""

    reason = "INVALID_CREDENTIAL"

    def __init__(self, provider: str, message: str) -> None:
        super().__init__(f"not a notification of {provider}: {message}")
        self.metadata = {"provider": provider}


@dataclass(frozen=True, slots=True)
class _Violation:
    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a provider's own error says."""

    reason: str
    message: str
    code: str = ""
    param: str = ""
    http_status: int = 0
    retry_after_s: float | None = None
    again: bool = True
    """Asking the same provider again may help, where the reason allows that."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Makes the errors of one attempt: they name provider and model, and hold no secret."""

    provider: str
    model: str
    secrets: Sequence[str] = ()
    """May grow while the attempt runs, when its credential is fetched then."""

    def of(
        self,
        reason: str,
        message: str,
        phase: Phase = BEFORE,
        *,
        http_status: int = 0,
        code: str = "",
        param: str = "",
        retry_after_s: float | None = None,
        sent: bool = True,
        again: bool = True,
    ) -> ProviderError:
        """Return the error for `reason`."""
        metadata = {
            "provider": self.provider,
            "model": self.model,
            "phase": phase,
            "retryable": "true" if again and reason in _RETRYABLE else "false",
        }
        for name, value in (
            ("http_status", str(http_status) if http_status else ""),
            ("provider_code", self.clean(code)[:100]),
            ("param", self.clean(param)[:100]),
        ):
            if value:
                metadata[name] = value
        error = ProviderError(reason, f"{self.provider}: {self.clean(message)}", metadata, retry_after_s)
        error.sent = sent
        return error

    def rejected(self, rejection: Rejection, phase: Phase = BEFORE) -> ProviderError:
        """Return the error for what the provider itself said."""
        return self.of(
            rejection.reason,
            rejection.message,
            phase,
            http_status=rejection.http_status,
            code=rejection.code,
            param=rejection.param,
            retry_after_s=rejection.retry_after_s,
            again=rejection.again,
        )

    def clean(self, text: str) -> str:
        """Return a provider's text on one line, cut, without our credentials."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        # PostgreSQL refuses a NUL: what could not be written down would be asked for again.
        text = " ".join(text.replace("\0", "").split())
        return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "..."
