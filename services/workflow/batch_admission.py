"""Lets a batch in: every item is planned and paid for before any is begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.admission import Admission, fingerprint_of, owner_of
from services.workflow.domain.errors import InvalidInputError, JobError
from services.workflow.domain.kinds import BATCH, BATCH_KIND
from services.workflow.store.batches import Batches
from services.workflow.store.jobs import NewJob

DEFAULT_CONCURRENCY = 4
# Items planned, or held for, at the same time.
AT_ONCE = 8


class BatchAdmission:
    """Begins batches: all items or none."""

    def __init__(self, admission: Admission, batches: Batches) -> None:
        self._admission = admission
        self._batches = batches

    async def begin(self, request: pb.CreateBatchRequest, call: Call) -> Any:
        """Begin a batch and return its row, or that of the one this idempotency key began.

        Raises RpcError and JobError that name the first item that is wrong; nothing has then been begun.
        """
        key = request.idempotency_key or call.idempotency_key
        fingerprint = fingerprint_of(request)
        known = await self._admission.known(key, fingerprint, call)
        if known is not None:
            return known
        items = await self._prepare(request, call)
        parent = _parent(items, request, call, key, fingerprint)
        concurrency = parent.max_concurrency
        items = [
            replace(item, parent_id=parent.id, item_index=index, waiting=index >= concurrency)
            for index, item in enumerate(items)
        ]
        now = self._admission.now()
        create = partial(self._batches.create_batch, parent, items, now)
        return await self._admission.begin_held(items, partial(self._hold, items, now), create)

    async def _prepare(self, request: pb.CreateBatchRequest, call: Call) -> list[NewJob]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def prepare(index: int, item: pb.CreateJobRequest) -> NewJob | RpcError:
            async with gate:
                try:
                    return await self._item(index, item, call)
                except (RpcError, JobError) as error:
                    return _of_item(index, error)

        prepared = await asyncio.gather(*(prepare(*each) for each in enumerate(request.items)))
        for outcome in prepared:
            if isinstance(outcome, RpcError):
                raise outcome
        return [outcome for outcome in prepared if isinstance(outcome, NewJob)]

    async def _item(self, index: int, item: pb.CreateJobRequest, call: Call) -> NewJob:
        for name in ("idempotency_key", "wait_s"):
            if getattr(item, name):
                raise InvalidInputError(name, "belongs to the batch, not to an item; leave it out")
        wanted = pb.CreateJobRequest()
        wanted.CopyFrom(item)
        wanted.priority = item.priority or BATCH
        return await self._admission.prepare(wanted, call, "", fingerprint_of(item))

    async def _hold(self, items: Sequence[NewJob], now: int) -> None:
        """Hold for every item; when one cannot be paid for, none is held."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def hold(index: int, item: NewJob) -> RpcError | None:
            async with gate:
                try:
                    await self._admission.hold(item, now)
                except RpcError as error:
                    return _of_item(index, error)
            return None

        outcomes = await asyncio.gather(*(hold(*each) for each in enumerate(items)))
        refusal = next((outcome for outcome in outcomes if outcome is not None), None)
        if refusal is not None:
            held = [item for item, outcome in zip(items, outcomes, strict=True) if outcome is None]
            await self._admission.release(held)
            raise refusal


def _parent(
    items: Sequence[NewJob], request: pb.CreateBatchRequest, call: Call, key: str, fingerprint: str
) -> NewJob:
    models = {item.model for item in items}
    return NewJob(
        id=new_id("job"),
        organisation_id=call.identity.organisation_id,
        owner=owner_of(call).owner,
        key_id=call.identity.key_id,
        user_id=call.identity.user_id,
        workspace_id=call.identity.workspace_id,
        project_id=call.identity.project_id,
        kind=BATCH_KIND,
        priority=BATCH,
        model=models.pop() if len(models) == 1 else "",
        input=b"",
        targets=b"",
        idempotency_key=key,
        fingerprint=fingerprint,
        strict=False,
        parallel=False,
        webhook_endpoint_id="",
        # Each item has a hold of its own.
        hold_id="",
        estimate=sum(item.estimate for item in items),
        deadline_at=max(item.deadline_at for item in items),
        max_concurrency=request.max_concurrency or DEFAULT_CONCURRENCY,
        routes=(),
        waiting=True,
    )


def _of_item(index: int, error: RpcError | JobError) -> RpcError:
    """Return the refusal of an item as one of the batch: it says which."""
    place = f"items[{index}]"
    violations = [Violation(f"{place}.{each.field}", each.description) for each in error.violations]
    return RpcError(
        error.reason,
        f"{place}: {error.message}",
        metadata={**error.metadata, "item_index": str(index)},
        violations=violations,
        retry_after_s=error.retry_after_s,
    )
