"""What is wrong with a body, naming the field. The transport turns it into the error of each surface."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


class FormatError(Exception):
    """A body is not what its wire format says. `reason` names a row of the error table."""

    def __init__(self, reason: str, message: str, field: str = "", description: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        """Path of the field, such as `messages[0].role`; empty when the whole document is wrong."""
        self.violations = (Violation(field, description or message),) if field else ()


def malformed(detail: str) -> FormatError:
    """Return the error for a body that is no JSON document of the expected kind."""
    return FormatError("MALFORMED_BODY", f"the body is not a JSON object: {detail}")


def invalid(field: str, description: str) -> FormatError:
    """Return the error for one wrong field."""
    return FormatError("INVALID_ARGUMENT", f"{field}: {description}", field, description)


def unsupported(field: str, description: str) -> FormatError:
    """Return the error for content that the other format has no word for."""
    return FormatError("PARAMETER_UNSUPPORTED", f"{field}: {description}", field, description)
