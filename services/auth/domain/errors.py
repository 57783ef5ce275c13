"""What can go wrong, each with the row of the error table it is.

AuthError
  InvalidArgumentError  InvalidCredentialError  PermissionDeniedError  RegistrationClosedError
  NotFoundError  AlreadyExistsError  IdempotencyKeyReusedError  PreconditionFailedError
  RateLimitedError  IssuerUnavailableError  TryAgainError
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class FieldViolation(NamedTuple):
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


class AuthError(Exception):
    """Base of all errors of this service; the message tells the caller what to do."""

    reason: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = {}
        self.violations: tuple[FieldViolation, ...] = ()
        self.retry_after_s: float | None = None


class InvalidArgumentError(AuthError):
    """A field holds what cannot be stored or understood."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.violations = (FieldViolation(field, description),)


class InvalidCredentialError(AuthError):
    """One answer for everything that is no valid credential, so that nothing can be learned from it."""

    reason = "INVALID_CREDENTIAL"

    def __init__(
        self, message: str = "the credential is unknown, expired or revoked: use a valid API key or log in"
    ) -> None:
        super().__init__(message)


class PermissionDeniedError(AuthError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class RegistrationClosedError(AuthError):
    """Nobody registers, or not without a valid invitation."""

    reason = "REGISTRATION_CLOSED"


class NotFoundError(AuthError):
    """No such thing in the caller's organisation."""

    reason = "NOT_FOUND"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"there is no {kind} `{identifier[:64]}` in your organisation: check the id")
        self.metadata = {"kind": kind}


class AlreadyExistsError(AuthError):
    """The email is registered."""

    reason = "ALREADY_EXISTS"


class IdempotencyKeyReusedError(AuthError):
    """The idempotency key belongs to another request."""

    reason = "IDEMPOTENCY_KEY_REUSED"


class PreconditionFailedError(AuthError):
    """The thing is not in a state that allows this."""

    reason = "PRECONDITION_FAILED"


class RateLimitedError(AuthError):
    """Too many failures."""

    reason = "RATE_LIMITED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IssuerUnavailableError(AuthError):
    """The external issuer's keys cannot be read, so its tokens can be neither accepted nor refused."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_after_s = 1.0


class TryAgainError(AuthError):
    """Others changed the same thing at the same moment."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_after_s = 1.0
