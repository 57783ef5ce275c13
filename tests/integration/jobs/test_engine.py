"""A job from its request to its charge, step by step."""

from __future__ import annotations

import pytest
from omnihub.common.v1.media_pb2 import ImageInput, MediaInput
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from services.workflow.domain.errors import (
    IdempotencyKeyReusedError,
    InvalidInputError,
    JobNotEndedError,
    JobNotFoundError,
)
from tests.integration.jobs.conftest import CALLER, STRANGER


def wanted(prompt: str = "a boat", **fields) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(input=MediaInput(image=ImageInput(prompt=prompt)), **fields)


async def begin(engine, **fields):
    return (await engine.server.create_job(wanted(**fields), CALLER)).job


async def seen(engine, job_id):
    return (await engine.server.get_job(pb.GetJobRequest(job_id=job_id), CALLER)).job


async def test_a_quick_job_is_made_kept_and_paid_once(engine):
    job = await begin(engine)
    assert (job.state, job.queue_position, job.estimate) == ("queued", 0, "0.01")
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.cost, job.model_used) == ("succeeded", "0.007", "fake0/m")
    assert [output.url for output in job.outputs] == ["link:file_1"]
    assert list(engine.billing.charges.values()) == [7_000_000]
    assert list(engine.router.submitted.values()) == [1]


async def test_the_same_message_again_changes_nothing(engine):
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    for _ in range(3):
        await engine.worker.work(message.subject_id)
    await engine.settler.settle(job.job_id)
    await engine.settler.settle(job.job_id)
    assert list(engine.router.submitted.values()) == [1]
    assert len(engine.billing.charges) == 1


@pytest.mark.parametrize("reason", ["INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED"])
async def test_a_charge_that_billing_refuses_holds_up_no_other_job(engine, reason, caplog):
    jobs = [(await begin(engine)).job_id for _ in range(3)]
    ended = []
    while messages := await engine.outbox.take(engine.now()):
        for message in messages:
            if message.queue == "job.settle":
                ended.append(message.subject_id)
            else:
                await engine.handle(message.queue, message.subject_id)
            await engine.outbox.passed_on([message.id])
    engine.billing.refused = {f"hold_{jobs[1]}": reason}
    # None of them is to be asked about again: the refused one is for a person to look at.
    assert sorted(await engine.settler.settle_many(ended)) == sorted(jobs)
    unsettled = {job.id for job in await engine.jobs.ended(jobs) if not job.settled}
    assert unsettled == {jobs[1]}
    assert len(engine.billing.charges) == 2
    assert f"charge_refused_by_billing {jobs[1]}" in caplog.text


async def test_a_slow_job_is_submitted_and_polled(engine):
    engine.router.immediate, engine.router.polls = False, 2
    job = await begin(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert job.state == "running"
    for _ in range(2):
        for attempt, row in await engine.rounds.due_polls(engine.now() + 60_000_000, 60):
            await engine.worker.poll(attempt, row)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert list(engine.router.submitted.values()) == [1]


async def test_a_key_begins_one_job(engine):
    first = await begin(engine, idempotency_key="k1")
    again = await begin(engine, idempotency_key="k1")
    assert first.job_id == again.job_id
    with pytest.raises(IdempotencyKeyReusedError):
        await begin(engine, idempotency_key="k1", prompt="a house")
    assert len(engine.billing.holds) == 1


async def test_a_job_belongs_to_its_key(engine):
    job = await begin(engine)
    with pytest.raises(JobNotFoundError):
        await engine.server.get_job(pb.GetJobRequest(job_id=job.job_id), STRANGER)
    listed = await engine.server.list_jobs(pb.ListJobsRequest(), STRANGER)
    assert not listed.jobs


async def test_a_queued_job_is_cancelled_at_once_and_costs_nothing(engine):
    job = await begin(engine)
    await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "cancelled"
    assert not engine.router.submitted
    assert engine.billing.released == list(engine.billing.holds)


async def test_a_running_job_is_cancelled_at_its_provider(engine):
    engine.router.immediate, engine.router.capabilities = False, {"cancels": True}
    engine.router.polls = 100
    job = await begin(engine)
    await engine.work_off()
    await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)
    assert (await seen(engine, job.job_id)).state == "cancel_requested"
    for attempt, row in await engine.rounds.due_polls(engine.now() + 1, 60):
        await engine.worker.poll(attempt, row)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "cancelled"
    assert engine.router.cancelled == ["pj-0"]
    assert not engine.billing.charges


async def test_a_failure_that_may_pass_is_tried_again_under_the_same_effect(engine):
    engine.router.failures = [RpcError("PROVIDER_FAILED", "busy", metadata={"retryable": "true"})]
    job = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "queued"
    engine.later_s = 3.0
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.attempts) == ("succeeded", 2)
    assert list(engine.router.submitted.values()) == [2]


async def test_the_next_target_is_asked_when_one_cannot(engine):
    engine.router.targets = 2
    engine.router.failures = [RpcError("PROVIDER_BILLING", "no money")]
    job = await begin(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.model_used) == ("succeeded", "fake1/m")


async def test_what_is_the_jobs_own_fault_fails_it(engine):
    engine.router.targets = 2
    engine.router.failures = [RpcError("CONTENT_FILTERED", "no")]
    job = await begin(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.error.reason) == ("failed", "CONTENT_FILTERED")
    assert engine.billing.released
    assert not engine.billing.charges


class LongNames(dict[str, str]):
    """A provider whose names of jobs no column takes."""

    def setdefault(self, key: str, default: str = "") -> str:
        return super().setdefault(key, f"pj\0{'x' * 10_000}")


async def test_what_a_provider_says_or_names_can_always_be_written_down(engine):
    """Otherwise it would be asked, and paid, again and again."""
    engine.router.failures = [RpcError("PROVIDER_REJECTED", "a \0 prompt")]
    job = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).error.message == "a  prompt"
    engine.router.immediate = False
    engine.router.by_effect = LongNames()
    job = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "running"
    assert list(engine.router.submitted.values()) == [1, 1]


async def test_a_zombie_is_kept_out_and_its_result_is_not_lost(engine):
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    first = await engine.attempts.claim(message.subject_id, "w1", 0.0, engine.now())
    second = await engine.attempts.claim(message.subject_id, "w2", 60.0, engine.now() + 1_000)
    assert (first.fence, second.fence) == (1, 2)
    assert await engine.attempts.renew_all([first, second], 60.0, engine.now()) == [False, True]
    assert not await engine.attempts.accepted(first, "pj", 0, engine.now())
    assert await engine.attempts.accepted(second, "pj", 0, engine.now())
    assert (await seen(engine, job.job_id)).state == "running"


async def test_a_worker_lost_after_asking_is_looked_for_at_the_provider(engine):
    engine.router.immediate, engine.router.capabilities = False, {"finds": True}
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    lost = await engine.attempts.claim(message.subject_id, "w0", 0.0, engine.now())
    engine.router.by_effect[lost.attempt.effect_key] = "pj-7"
    engine.router.jobs["pj-7"] = 1
    await engine.worker.work(message.subject_id)
    assert not engine.router.submitted
    for attempt, row in await engine.rounds.due_polls(engine.now() + 1_000_000, 60):
        await engine.worker.poll(attempt, row)
    assert (await seen(engine, job.job_id)).state == "succeeded"


async def test_a_deadline_ends_a_job_that_nobody_took(engine):
    job = await begin(engine, deadline_s=1)
    assert await engine.jobs.expire_due(engine.now() + 2_000_000) == [job.job_id]
    job = await seen(engine, job.job_id)
    assert (job.state, job.error.reason) == ("expired", "DEADLINE_EXCEEDED")


async def test_an_attempt_that_nobody_came_for_gets_another_message(engine):
    await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    await engine.outbox.passed_on([message.id])
    assert await engine.rounds.bring_back_lost(engine.now()) == 0
    assert await engine.rounds.bring_back_lost(engine.now() + 31_000_000) == 1
    assert [again.subject_id for again in await engine.outbox.take(engine.now() + 31_000_000)] == [
        message.subject_id
    ]


async def test_only_an_ended_job_is_removed(engine):
    job = await begin(engine)
    with pytest.raises(JobNotEndedError):
        await engine.server.delete_job(pb.DeleteJobRequest(job_id=job.job_id), CALLER)
    await engine.work_off()
    await engine.server.delete_job(pb.DeleteJobRequest(job_id=job.job_id), CALLER)
    with pytest.raises(JobNotFoundError):
        await seen(engine, job.job_id)


async def test_a_job_without_a_kind_is_refused(engine):
    with pytest.raises(InvalidInputError, match="say what to make"):
        await engine.server.create_job(pb.CreateJobRequest(input=MediaInput()), CALLER)
    assert not engine.billing.holds


async def test_jobs_are_listed_in_pages(engine):
    made = [(await begin(engine)).job_id for _ in range(3)]
    first = await engine.server.list_jobs(pb.ListJobsRequest(page_size=2), CALLER)
    rest = await engine.server.list_jobs(
        pb.ListJobsRequest(page_size=2, page_token=first.next_page_token), CALLER
    )
    assert [job.job_id for job in [*first.jobs, *rest.jobs]] == made[::-1]
    assert not rest.next_page_token


async def test_a_race_has_one_winner_and_every_result_is_paid(engine):
    engine.router.targets = 3
    job = await begin(engine, parallel=True)
    assert job.estimate == "0.03"
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, len(job.outputs)) == ("succeeded", 1)
    assert len(engine.router.submitted) == 1
    assert len(engine.billing.charges) == 1
