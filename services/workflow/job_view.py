"""A job's row as its caller sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from omnihub.common.v1.media_pb2 import MediaFile, MediaInput
from omnihub.workflow.v1.effect_pb2 import EffectResult
from omnihub.workflow.v1.job_pb2 import Job, JobError
from omnihub.workflow.v1.job_service_pb2 import DeadLetter

from services.credits.money import format_nano
from services.workflow.domain.states import (
    CANCEL_REQUESTED,
    CANCELLED,
    EXPIRED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
)

Link = Callable[[str], str]
"""Returns a signed, expiring link to a file."""


def view(row: Any, link: Link, queue_position: int | None = None) -> Job:
    """Return a job. `queue_position` counts what waits before it here."""
    message = Job(
        job_id=row.id,
        kind=row.kind,
        state=row.state,
        model=row.model,
        model_used=row.model_used,
        estimate=format_nano(row.estimate),
        priority=row.priority,
        attempts=row.attempts,
        parent_job_id=row.parent_id,
        item_index=row.item_index,
        version=row.version,
        webhook_endpoint_id=row.webhook_endpoint_id,
        maybe_double_charge=row.maybe_double_charge,
    )
    _times(message, row)
    message.input.CopyFrom(_asked(row.input))
    if row.ended_at:
        message.cost = format_nano(row.cost)
    if row.progress is not None:
        message.progress = row.progress
    position = row.queue_position if row.state == RUNNING else queue_position
    if position is not None and row.state in (QUEUED, RUNNING):
        message.queue_position = position
    if row.error_reason:
        error = JobError(reason=row.error_reason, message=row.error_message, retryable=row.error_retryable)
        message.error.CopyFrom(error)
    if row.result:
        _result(message, EffectResult.FromString(row.result), link)
    return message


def _asked(given: bytes) -> MediaInput:
    """Return what was asked for, without contents of files and without texts by the thousand."""
    asked = MediaInput.FromString(given)
    _without_data(asked)
    if asked.HasField("embedding_batch"):
        asked.embedding_batch.ClearField("inputs")
    return asked


def _without_data(message: Message) -> None:
    if isinstance(message, MediaFile):
        message.ClearField("data")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                _without_data(part)


def _times(message: Job, row: Any) -> None:
    for name in ("created_at", "started_at", "ended_at"):
        if at := getattr(row, name):
            getattr(message, name).FromMicroseconds(at)
    message.deadline.FromMicroseconds(row.deadline_at)


def _result(message: Job, result: EffectResult, link: Link) -> None:
    message.outputs.extend(result.outputs)
    for output in message.outputs:
        if output.file_id:
            output.url = link(output.file_id)
    message.usage.CopyFrom(result.usage)
    message.receipt.extend(result.receipt)


def count_items(message: Job, items: Mapping[str, int]) -> None:
    """Say of a batch how many of its items are in each state. One that has expired has failed."""
    message.items.queued = items.get(QUEUED, 0)
    message.items.running = items.get(RUNNING, 0) + items.get(CANCEL_REQUESTED, 0)
    message.items.succeeded = items.get(SUCCEEDED, 0)
    message.items.failed = items.get(FAILED, 0) + items.get(EXPIRED, 0)
    message.items.cancelled = items.get(CANCELLED, 0)


def letter_view(row: Any) -> DeadLetter:
    """Return a dead letter."""
    message = DeadLetter(
        dead_letter_id=row.id,
        queue=row.queue,
        subject_id=row.subject_id,
        reason=row.reason,
        redriven=row.redriven_at > 0,
    )
    message.at.FromMicroseconds(row.at)
    return message
