"""A batch: many jobs as one, some at a time, each with its own result, all or none at the start."""

from __future__ import annotations

import pytest
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from services.workflow.domain.errors import IdempotencyKeyReusedError, JobNotFoundError
from tests.integration.jobs.conftest import CALLER, STRANGER
from tests.integration.jobs.test_engine import seen, wanted


def batch(count: int, **fields) -> pb.CreateBatchRequest:
    return pb.CreateBatchRequest(items=[wanted(f"boat {number}") for number in range(count)], **fields)


async def begin(engine, count: int, **fields):
    return (await engine.server.create_batch(batch(count, **fields), CALLER)).job


async def items_of(engine, job_id):
    request = pb.ListJobsRequest(parent_job_id=job_id)
    return (await engine.server.list_jobs(request, CALLER)).jobs


async def test_a_batch_ends_when_its_items_have_and_costs_what_they_cost(engine):
    job = await begin(engine, 7, max_concurrency=2)
    assert (job.kind, job.state, job.items.queued, job.estimate) == ("batch", "running", 7, "0.07")
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.items.succeeded, job.cost, job.progress) == ("succeeded", 7, "0.049", 1.0)
    items = await items_of(engine, job.job_id)
    assert [item.item_index for item in items] == list(range(7))
    assert all(item.outputs and item.priority == "batch" for item in items)
    assert len(engine.billing.charges) == 7


async def test_items_of_a_batch_are_listed_in_pages_in_their_order(engine):
    job = await begin(engine, 5)
    first = await engine.server.list_jobs(pb.ListJobsRequest(parent_job_id=job.job_id, page_size=3), CALLER)
    rest = await engine.server.list_jobs(
        pb.ListJobsRequest(parent_job_id=job.job_id, page_size=3, page_token=first.next_page_token), CALLER
    )
    assert [item.item_index for item in [*first.jobs, *rest.jobs]] == [0, 1, 2, 3, 4]


async def test_only_so_many_items_run_at_the_same_time(engine):
    engine.router.immediate, engine.router.polls = False, 1
    job = await begin(engine, 5, max_concurrency=2)
    for running in (2, 2, 1):
        await engine.work_off()
        job = await seen(engine, job.job_id)
        assert job.items.running == running
        for attempt, row in await engine.rounds.due_polls(engine.now() + 60_000_000, 60):
            await engine.worker.poll(attempt, row)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).items.succeeded == 5


async def test_an_item_that_fails_tells_why_and_the_others_go_on(engine):
    engine.router.failures = [RpcError("CONTENT_FILTERED", "no")]
    job = await begin(engine, 3, max_concurrency=1)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.items.succeeded, job.items.failed, job.cost) == ("succeeded", 2, 1, "0.014")
    failed = [item for item in await items_of(engine, job.job_id) if item.state == "failed"]
    assert [item.error.reason for item in failed] == ["CONTENT_FILTERED"]


async def test_a_batch_of_which_nothing_succeeds_has_failed(engine):
    engine.router.failures = [RpcError("CONTENT_FILTERED", "no") for _ in range(2)]
    job = await begin(engine, 2)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.error.reason, job.cost) == ("failed", "CONTENT_FILTERED", "0")
    assert sorted(engine.billing.released) == sorted(engine.billing.holds)


async def test_a_key_begins_one_batch(engine):
    first = await begin(engine, 3, idempotency_key="b1")
    again = await begin(engine, 3, idempotency_key="b1")
    assert first.job_id == again.job_id
    with pytest.raises(IdempotencyKeyReusedError):
        await begin(engine, 4, idempotency_key="b1")
    assert len(engine.billing.holds) == 3


async def test_a_wrong_item_is_named_and_nothing_begins(engine):
    request = batch(4)
    request.items[2].idempotency_key = "mine"
    with pytest.raises(RpcError, match=r"items\[2\]: idempotency_key: belongs to the batch") as refused:
        await engine.server.create_batch(request, CALLER)
    assert refused.value.metadata["item_index"] == "2"
    assert [violation.field for violation in refused.value.violations] == ["items[2].idempotency_key"]
    assert not engine.billing.holds
    assert not (await engine.server.list_jobs(pb.ListJobsRequest(), CALLER)).jobs


async def test_what_cannot_be_paid_for_as_a_whole_does_not_begin(engine):
    engine.billing.room = 3
    with pytest.raises(RpcError, match=r"items\[\d\]: no credits") as refused:
        await begin(engine, 6)
    assert refused.value.reason == "INSUFFICIENT_CREDITS"
    assert sorted(engine.billing.released) == sorted(engine.billing.holds)
    assert not (await engine.server.list_jobs(pb.ListJobsRequest(), CALLER)).jobs


async def test_cancelling_a_batch_cancels_its_items(engine):
    engine.router.immediate, engine.router.capabilities = False, {"cancels": True}
    engine.router.polls = 100
    job = await begin(engine, 4, max_concurrency=2)
    await engine.work_off()
    job = (await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)).job
    assert (job.state, job.items.cancelled) == ("cancel_requested", 2)
    for attempt, row in await engine.rounds.due_polls(engine.now() + 1, 60):
        await engine.worker.poll(attempt, row)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.items.cancelled, job.cost) == ("cancelled", 4, "0")
    assert len(engine.router.cancelled) == 2
    assert sorted(engine.billing.released) == sorted(engine.billing.holds)


async def test_a_batch_belongs_to_its_key_and_goes_with_its_items(engine):
    job = await begin(engine, 2)
    await engine.work_off()
    with pytest.raises(JobNotFoundError):
        await engine.server.get_job(pb.GetJobRequest(job_id=job.job_id), STRANGER)
    assert not (await engine.server.list_jobs(pb.ListJobsRequest(parent_job_id=job.job_id), STRANGER)).jobs
    items = await items_of(engine, job.job_id)
    await engine.server.delete_job(pb.DeleteJobRequest(job_id=job.job_id), CALLER)
    with pytest.raises(JobNotFoundError):
        await seen(engine, items[0].job_id)


async def test_a_deadline_ends_items_and_with_them_the_batch(engine):
    request = batch(2)
    for item in request.items:
        item.deadline_s = 1
    job = (await engine.server.create_batch(request, CALLER)).job
    engine.shift_s = 2.0
    await engine.clockwork.sweep()
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.items.failed, job.error.reason) == ("failed", 2, "DEADLINE_EXCEEDED")
