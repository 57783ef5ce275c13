"""What callers write: emails and names."""

from __future__ import annotations

import re

from services.auth.domain.errors import InvalidArgumentError

_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")
_EMAIL_LENGTH_LIMIT = 254
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IDENTIFIER = re.compile(r"[a-z]{1,16}_[0-9a-zA-Z]{1,64}")


def normalise_email(email: str) -> str:
    """Return the one form in which an email is stored and compared. Raises InvalidArgumentError."""
    normal = email.strip().lower()
    if len(normal) > _EMAIL_LENGTH_LIMIT or not _EMAIL.fullmatch(normal):
        raise InvalidArgumentError("email", "write an address such as name@example.org")
    return normal


def check_text(field: str, value: str, limit: int = 100) -> str:
    """Return a name without surrounding blanks. Raises InvalidArgumentError when it cannot be stored."""
    if len(value) > limit:
        raise InvalidArgumentError(field, f"write at most {limit} characters")
    if _CONTROL.search(value):
        raise InvalidArgumentError(field, "remove the control characters")
    return value.strip()


def is_identifier(value: str) -> bool:
    """Tell whether `value` could be an id at all; anything else is not worth asking the database for."""
    return _IDENTIFIER.fullmatch(value) is not None
