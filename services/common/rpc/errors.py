"""The one error that crosses a service boundary, and the table behind it.

The table reason -> gRPC -> HTTP -> vendor body is written in omnihub/common/v1/errors.proto, as
options of ErrorReason; this module only reads it. A domain error is any exception with a
`reason` attribute that names a row; it may also carry `metadata`, `retry_after_s` and `violations`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from omnihub.common.v1 import errors_pb2, options_pb2

DOMAIN = "omnihub"
PREFIX = "ERROR_REASON_"
# Errors travel in headers, and those are bounded; more than this helps nobody.
MESSAGE_LIMIT = 2000
VIOLATIONS_LIMIT = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    reason: str
    grpc: int
    http: int
    openai_type: str
    openai_code: str
    anthropic_type: str
    recovery: str


def _read_table() -> dict[str, Row]:
    table = {}
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values:
        if value.number:
            mapping = value.GetOptions().Extensions[options_pb2.reason]
            name = value.name.removeprefix(PREFIX)
            table[name] = Row(
                name,
                mapping.grpc,
                mapping.http,
                mapping.openai_type,
                mapping.openai_code,
                mapping.anthropic_type,
                mapping.recovery,
            )
    return table


TABLE: Mapping[str, Row] = _read_table()

# What a status without ErrorInfo means: it comes from gRPC itself, not from a service.
_REASON_OF_BARE_CODE = {
    1: "CANCELLED",
    4: "DEADLINE_EXCEEDED",
    8: "BODY_TOO_LARGE",
    12: "NOT_IMPLEMENTED",
    14: "UNAVAILABLE",
    16: "INVALID_CREDENTIAL",
}


class RpcError(Exception):
    """A call failed. The same class, with the same content, on both transports."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, object] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.row = TABLE[reason]
        self.reason = reason
        self.message = message[:MESSAGE_LIMIT]
        # Brought to the form that survives the wire, so that both transports show the same.
        self.metadata = {key: str(value)[:MESSAGE_LIMIT] for key, value in (metadata or {}).items()}
        self.violations = tuple(
            Violation(v.field, v.description[:MESSAGE_LIMIT]) for v in violations[:VIOLATIONS_LIMIT]
        )
        self.retry_after_s = None if retry_after_s is None else round(max(0.0, retry_after_s), 6)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def to_status(self) -> status_pb2.Status:
        """Return the rich gRPC status, each kind of detail at most once."""
        details: list[Any] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for violation in self.violations:
                bad_request.field_violations.add(field=violation.field, description=violation.description)
            details.append(bad_request)
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMicroseconds(round(self.retry_after_s * 1e6))
            details.append(retry)
        status = status_pb2.Status(code=self.row.grpc, message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> RpcError:
        """Read a status back, whoever wrote it."""
        info, bad_request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        retry_after_s = None
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
        reason = info.reason if info.reason in TABLE else _REASON_OF_BARE_CODE.get(status.code, "INTERNAL")
        return cls(
            reason,
            status.message,
            metadata=dict(info.metadata),
            violations=[Violation(v.field, v.description) for v in bad_request.field_violations],
            retry_after_s=retry_after_s,
        )

    def to_body(self, request_id: str) -> dict[str, Any]:
        """Return the body of `/api` and native `/v1` errors."""
        details: dict[str, Any] = {"recovery": self.row.recovery}
        if self.metadata:
            details["metadata"] = self.metadata
        if self.violations:
            details["fields"] = [{"field": v.field, "description": v.description} for v in self.violations]
        if self.retry_after_s is not None:
            details["retry_after_s"] = self.retry_after_s
        return {
            "error": {
                "code": self.row.http,
                "reason": self.reason,
                "message": self.message,
                "details": details,
                "request_id": request_id,
            }
        }

    def to_header_json(self, request_id: str) -> str:
        """Return `to_body` as ASCII JSON on one line, fit for a header."""
        return json.dumps(self.to_body(request_id), ensure_ascii=True, separators=(",", ":"))


class InternalError(RpcError):
    """An exception nobody foresaw. Callers see only that there was one."""

    def __init__(self) -> None:
        super().__init__("INTERNAL", "internal error; the request id finds it in the log")


def deadline_exceeded(path: str) -> RpcError:
    """Return the error of a call that ran out of time."""
    return RpcError("DEADLINE_EXCEEDED", f"{path} did not answer before its deadline")


def visible_error(error: BaseException, path: str) -> RpcError:
    """Return what a caller of `path` may see of `error`; log what nobody foresaw."""
    visible = to_rpc_error(error)
    if isinstance(visible, InternalError):
        _logger.error("rpc_failed %s", path, exc_info=error)
    return visible


def to_rpc_error(error: BaseException) -> RpcError:
    """Return what a caller may see of `error`: always a new RpcError."""
    if isinstance(error, asyncio.CancelledError):
        return RpcError("CANCELLED", "the call was cancelled")
    reason = getattr(error, "reason", None)
    if not isinstance(reason, str) or reason not in TABLE:
        return InternalError()
    return RpcError(
        reason,
        getattr(error, "message", "") or str(error),
        metadata=getattr(error, "metadata", None),
        violations=getattr(error, "violations", ()),
        retry_after_s=getattr(error, "retry_after_s", None),
    )
