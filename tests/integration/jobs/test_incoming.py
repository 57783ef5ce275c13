"""What comes in beside jobs: notifications of providers, and dead letters."""

from __future__ import annotations

import asyncio

import pytest
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from services.workflow.domain.errors import DeadLetterNotFoundError
from services.workflow.engine.worker import LEASE_S
from tests.integration.jobs.conftest import CALLER
from tests.integration.jobs.test_engine import begin, seen

LATER = 60_000_000


async def running(engine, **capabilities):
    engine.router.immediate, engine.router.polls = False, 1
    job = await begin(engine)
    await engine.work_off()
    return job


async def notify(engine, body: str, provider: str = "fake0") -> str:
    request = pb.ReceiveWebhookRequest(provider=provider, headers={"X": "y"}, body=body.encode())
    return (await engine.server.receive_webhook(request, CALLER)).job_id


async def test_a_notification_ends_a_job_once_however_often_it_comes(engine):
    job = await running(engine)
    for _ in range(3):
        assert await notify(engine, "signed:e1:pj-0:succeeded") == job.job_id
    assert await engine.work_off() == 2
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert len(engine.outputs.kept) == len(engine.billing.charges) == 1


async def test_a_notification_and_a_poll_settle_once(engine):
    job = await running(engine)
    await notify(engine, "signed:e1:pj-0:succeeded")
    ((attempt, row),) = await engine.rounds.due_polls(engine.now() + LATER, 60)
    await asyncio.gather(
        engine.worker.poll(attempt, row),
        engine.worker.poll(attempt, row),
        engine.worker.notice(engine.notices, attempt.id),
    )
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert len(engine.outputs.kept) == len(engine.billing.charges) == 1


async def test_an_end_that_a_dead_worker_had_reserved_is_taken_in_by_another(engine):
    job = await running(engine)
    ((attempt, row),) = await engine.rounds.due_polls(engine.now() + LATER, 60)
    assert await engine.rounds.taking_in(attempt.id, LEASE_S, engine.now())
    await engine.worker.poll(attempt, row)
    assert not engine.outputs.kept
    engine.shift_s = LEASE_S + 1
    await engine.worker.poll(attempt, row)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert len(engine.outputs.kept) == len(engine.billing.charges) == 1


async def test_an_end_without_outputs_is_asked_for(engine):
    job = await running(engine)
    await notify(engine, "signed:e1:pj-0:succeeded!")
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert engine.router.jobs["pj-0"] == 0


async def test_a_failure_that_is_notified_fails_the_job(engine):
    job = await running(engine)
    await notify(engine, "signed:e2:pj-0:failed")
    await engine.work_off()
    assert (await seen(engine, job.job_id)).error.reason == "PROVIDER_FAILED"


@pytest.mark.parametrize("body", ["signed:e1:pj-99:succeeded", "signed:e1::succeeded"])
async def test_what_is_not_known_here_is_no_error(engine, body):
    await running(engine)
    assert await notify(engine, body) == ""
    assert await engine.work_off() == 0


async def test_another_providers_job_of_the_same_id_is_not_meant(engine):
    await running(engine)
    assert await notify(engine, "signed:e1:pj-0:succeeded", provider="other") == ""


async def test_a_forged_notification_is_refused(engine):
    await running(engine)
    with pytest.raises(RpcError, match="signature"):
        await notify(engine, "forged:e1:pj-0:succeeded")


async def lost_again_and_again(engine):
    """Return the attempt of a job whose workers all die."""
    (message,) = await engine.outbox.take(engine.now())
    await engine.outbox.passed_on([message.id])
    at = engine.now()
    while (claim := await engine.attempts.claim(message.subject_id, "w", 1.0, at)) is not None:
        at += 2_000_000
        last = claim
    # What followed is due by now.
    engine.later_s = 20.0
    return last


async def letters(engine):
    return (await engine.server.list_dead_letters(pb.ListDeadLettersRequest(), CALLER)).dead_letters


async def test_what_every_worker_dies_of_ends_among_the_dead(engine):
    job = await begin(engine)
    claim = await lost_again_and_again(engine)
    assert claim.fence == 5
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.error.reason, job.cost) == ("failed", "JOB_POISONED", "0")
    assert engine.billing.released
    (letter,) = await letters(engine)
    assert (letter.queue, letter.subject_id, letter.reason) == (
        "job.late.interactive",
        claim.attempt.id,
        "delivery_limit",
    )


async def test_a_dead_letter_of_an_ended_job_begins_a_new_one_once(engine):
    job = await begin(engine)
    await lost_again_and_again(engine)
    await engine.work_off()
    (letter,) = await letters(engine)
    request = pb.RedriveDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
    first = (await engine.server.redrive_dead_letter(request, CALLER)).job_id
    again = (await engine.server.redrive_dead_letter(request, CALLER)).job_id
    assert first == again != job.job_id
    await engine.work_off()
    assert (await seen(engine, first)).state == "succeeded"
    assert (await letters(engine))[0].redriven
    assert len(engine.billing.charges) == 1


async def test_a_letter_about_what_still_runs_sends_it_again(engine):
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    await engine.outbox.passed_on([message.id])
    # The broker gave up on it because workers died around it: it is sent again by itself.
    await engine.attempts.bury("job.late.interactive", message.subject_id, "delivery_limit", engine.now())
    assert [each.redriven for each in await letters(engine)] == [True]
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    await engine.attempts.bury("job.late.interactive", message.subject_id, "delivery_limit", engine.now())
    assert len(await letters(engine)) == 1


async def test_a_message_that_dies_again_and_again_fails_its_job(engine):
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    for _ in range(3):
        await engine.attempts.bury("job.late.interactive", message.subject_id, "expired", engine.now())
    assert (await seen(engine, job.job_id)).error.reason == "JOB_POISONED"
    assert [each.redriven for each in await letters(engine)] == [False, True, True]


async def test_an_unknown_letter_is_said_to_be_unknown(engine):
    with pytest.raises(DeadLetterNotFoundError):
        await engine.server.redrive_dead_letter(pb.RedriveDeadLetterRequest(dead_letter_id="x"), CALLER)


async def test_letters_are_listed_in_pages(engine):
    for number in range(3):
        await engine.attempts.bury("job.late.batch", f"gone_{number}", "expired", number)
    first = await engine.server.list_dead_letters(pb.ListDeadLettersRequest(page_size=2), CALLER)
    rest = await engine.server.list_dead_letters(
        pb.ListDeadLettersRequest(page_size=2, page_token=first.next_page_token), CALLER
    )
    assert [each.subject_id for each in [*first.dead_letters, *rest.dead_letters]] == [
        "gone_2",
        "gone_1",
        "gone_0",
    ]
