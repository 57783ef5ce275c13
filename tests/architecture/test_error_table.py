"""The one table of errors: reason -> gRPC -> HTTP -> vendor bodies."""

from collections import Counter
from http import HTTPStatus

import pytest
from google.rpc import code_pb2
from omnihub.common.v1 import errors_pb2

from services.common.rpc.errors import PREFIX, TABLE, Row, RpcError, Violation
from tools import document_errors

ROWS = list(TABLE.values())
# Statuses an intermediary would not know; 499 is nginx's for a caller who left.
UNREGISTERED_HTTP = {499}
# What gRPC's own documentation pairs, widened by what HTTP can say and gRPC cannot (402, 405, 412, 413, 422).
HTTP_OF_GRPC = {
    "CANCELLED": {499},
    "INVALID_ARGUMENT": {400, 413, 415},
    "DEADLINE_EXCEEDED": {504},
    "NOT_FOUND": {404},
    "ALREADY_EXISTS": {409},
    "PERMISSION_DENIED": {403},
    "RESOURCE_EXHAUSTED": {402, 413, 429},
    "FAILED_PRECONDITION": {402, 410, 412, 422},
    "ABORTED": {409},
    "OUT_OF_RANGE": {400},
    "UNIMPLEMENTED": {405, 501},
    "INTERNAL": {500},
    "UNAVAILABLE": {502, 503},
    "UNAUTHENTICATED": {401},
}
ANTHROPIC_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
}
OPENAI_TYPES = {"invalid_request_error", "insufficient_quota", "rate_limit_error", "server_error"}


def test_every_reason_has_a_row() -> None:
    names = {value.name for value in errors_pb2.ErrorReason.DESCRIPTOR.values if value.number}
    assert {PREFIX + reason for reason in TABLE} == names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_a_row_is_complete_and_sensible(row: Row) -> None:
    code = code_pb2.Code.Name(row.grpc)
    assert row.http in HTTP_OF_GRPC[code]
    assert row.http in UNREGISTERED_HTTP or HTTPStatus(row.http) >= 400
    assert row.openai_type in OPENAI_TYPES
    assert row.anthropic_type in ANTHROPIC_TYPES
    assert row.openai_code
    assert row.recovery.endswith(".")
    # Clients decide by the status whether to retry: the vendors' words must not contradict it.
    assert (row.openai_type == "server_error") == (row.http >= 500 or row.http == 499) or row.http == 501
    assert (row.openai_type == "rate_limit_error") == (row.http == 429)
    assert (row.anthropic_type == "rate_limit_error") == (row.http == 429)


def test_openai_codes_are_unique() -> None:
    repeated = [code for code, count in Counter(row.openai_code for row in ROWS).items() if count > 1]
    assert not repeated


@pytest.mark.parametrize("reason", TABLE)
def test_a_status_is_read_back_as_it_was_written(reason: str) -> None:
    error = RpcError(
        reason,
        "what happened: ü",
        metadata={"model": "wall/gpt-x"},
        violations=[Violation("chat.model", "must be set")],
        retry_after_s=0.57,
    )
    status = error.to_status()
    assert status.code == error.row.grpc
    read = RpcError.from_status(status)
    assert (read.reason, read.message, read.metadata, read.violations, read.retry_after_s) == (
        reason,
        "what happened: ü",
        {"model": "wall/gpt-x"},
        (Violation("chat.model", "must be set"),),
        0.57,
    )


def test_the_document_is_fresh() -> None:
    assert document_errors.TARGET.read_text() == document_errors.document(), "run `make docs`"
