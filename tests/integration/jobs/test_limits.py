"""What makes jobs wait: busy providers, open circuits, lost answers; and credits held meanwhile."""

from __future__ import annotations

import pytest
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from services.workflow.engine.worker import LATE_RESULT_S
from services.workflow.store.records import LOST_QUEUE
from tests.integration.jobs.conftest import CALLER
from tests.integration.jobs.test_engine import begin, seen, wanted


async def states(engine, jobs):
    return sorted([(await seen(engine, job.job_id)).state for job in jobs])


async def poll_all(engine):
    for attempt, row in await engine.rounds.due_polls(engine.now() + 60_000_000, 60):
        await engine.worker.poll(attempt, row)


async def test_a_provider_runs_as_many_as_it_may_and_no_more(engine):
    engine.router.immediate, engine.router.capabilities = False, {"concurrency": 2}
    jobs = [await begin(engine) for _ in range(5)]
    for running, left in ((2, 3), (2, 1), (1, 0)):
        await engine.work_off()
        assert (await states(engine, jobs)).count("running") == running
        assert (await states(engine, jobs)).count("queued") == left
        await poll_all(engine)
    await engine.work_off()
    assert await states(engine, jobs) == ["succeeded"] * 5
    assert set(engine.router.submitted.values()) == {1}


async def test_what_is_urgent_gets_the_next_free_place(engine):
    engine.router.immediate, engine.router.capabilities = False, {"concurrency": 1}
    first = await begin(engine)
    await engine.work_off()
    patient = await begin(engine, priority="batch")
    urgent = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, urgent.job_id)).queue_position == 0
    await poll_all(engine)
    await engine.work_off()
    assert [(await seen(engine, job.job_id)).state for job in (first, urgent, patient)] == [
        "succeeded",
        "running",
        "queued",
    ]


async def test_a_parked_job_can_be_cancelled_and_a_lost_wake_up_is_made_good(engine):
    engine.router.immediate, engine.router.capabilities = False, {"concurrency": 1}
    engine.router.polls = 5
    _, second, third = [await begin(engine) for _ in range(3)]
    await engine.work_off()
    await engine.server.cancel_job(pb.CancelJobRequest(job_id=second.job_id), CALLER)
    assert (await seen(engine, second.job_id)).state == "cancelled"
    await engine.rounds.unpark_all(engine.now())
    await engine.work_off()
    assert (await seen(engine, third.job_id)).state == "queued"


async def test_a_busy_account_is_waited_for_and_is_no_failure(engine):
    engine.router.failures = [RpcError("PROVIDER_CONCURRENCY", "all in use", retry_after_s=7.0)]
    job = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "queued"
    engine.later_s = 8.0
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.attempts, job.maybe_double_charge) == ("succeeded", 1, False)


def circuit_open():
    return RpcError("UNAVAILABLE", "circuit open", metadata={"circuit": "open"}, retry_after_s=30.0)


async def test_an_open_circuit_delays_instead_of_failing(engine):
    engine.router.failures = [circuit_open() for _ in range(8)]
    job = await begin(engine)
    for _ in range(8):
        await engine.work_off()
        job = await seen(engine, job.job_id)
        assert (job.state, job.attempts) == ("queued", 1)
        engine.shift_s += 31.0
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.maybe_double_charge) == ("succeeded", False)


async def test_behind_an_open_circuit_the_next_target_is_asked_at_once(engine):
    engine.router.targets, engine.router.failures = 2, [circuit_open()]
    job = await begin(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).model_used == "fake1/m"


@pytest.mark.parametrize(("capabilities", "flagged"), [({"idempotent": True}, False), ({}, True)])
async def test_a_lost_answer_may_have_been_paid_for(engine, capabilities, flagged):
    engine.router.capabilities = capabilities
    engine.router.failures = [RpcError("UNAVAILABLE", "the router has gone away")]
    job = await begin(engine)
    await engine.work_off()
    engine.later_s = 30.0
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.maybe_double_charge) == ("succeeded", flagged)


async def test_a_lost_answer_is_looked_for_at_the_provider(engine):
    engine.router.immediate, engine.router.capabilities = False, {"finds": True}
    engine.router.lose_answers = 1
    job = await begin(engine)
    await engine.work_off()
    engine.later_s = 30.0
    await engine.work_off()
    await poll_all(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.maybe_double_charge) == ("succeeded", False)
    assert list(engine.router.submitted.values()) == [1]


async def test_the_hold_of_a_long_job_is_extended(engine):
    engine.router.immediate, engine.router.polls = False, 100
    await engine.server.create_job(wanted(deadline_s=72 * 3600), CALLER)
    await engine.work_off()
    await engine.clockwork.sweep()
    assert not engine.billing.extended
    engine.shift_s = 20 * 3600.0
    await engine.clockwork.sweep()
    await engine.clockwork.sweep()
    assert engine.billing.extended == [86_400]
    engine.shift_s = 40 * 3600.0
    await engine.clockwork.sweep()
    assert len(engine.billing.extended) == 2


async def test_a_hold_that_has_ended_is_not_asked_for_again(engine, caplog):
    engine.router.immediate, engine.router.polls = False, 100
    await engine.server.create_job(wanted(deadline_s=72 * 3600), CALLER)
    engine.billing.extend_fails = RpcError("PRECONDITION_FAILED", "it has ended")
    engine.shift_s = 20 * 3600.0
    await engine.clockwork.sweep()
    await engine.clockwork.sweep()
    assert caplog.text.count("hold_not_extended") == 1


@pytest.mark.parametrize(("reason", "asked"), [("DEADLINE_EXCEEDED", 1), ("INSUFFICIENT_CREDITS", 3)])
async def test_billing_that_does_not_answer_holds_up_no_sweep(engine, reason, asked):
    engine.router.immediate, engine.router.polls = False, 100
    for _ in range(3):
        await engine.server.create_job(wanted(deadline_s=72 * 3600), CALLER)
    late = await begin(engine, deadline_s=1)
    extended = []

    async def extend_hold(request, call):
        extended.append(request.hold_id)
        raise RpcError(reason, "no")

    engine.billing.extend_hold = extend_hold
    engine.shift_s = 20 * 3600.0
    await engine.clockwork.sweep()
    assert (len(extended), (await seen(engine, late.job_id)).state) == (asked, "expired")


async def test_what_waits_in_a_queue_that_moves_is_not_lost(engine):
    for _ in range(3):
        await begin(engine)
    first, *waiting = await engine.outbox.take(engine.now())
    await engine.outbox.passed_on([message.id for message in (first, *waiting)])
    later = engine.now() + 3_600_000_000
    await engine.attempts.claim(first.subject_id, "w1", 7200.0, engine.now())
    assert await engine.rounds.bring_back_lost(later) == 0
    # Its worker has gone, and nobody else works on this queue: all are sent again, ever more seldom.
    assert await engine.rounds.bring_back_lost(later + 7_200_000_000) == 3
    assert await engine.rounds.bring_back_lost(later + 7_200_000_000) == 0


async def test_what_a_dead_worker_held_does_not_queue_up_again(engine):
    """It had had its turn: it goes before all that waits, and once."""
    for _ in range(12):
        await begin(engine)
    held = (await engine.outbox.take(engine.now()))[:3]
    await engine.outbox.passed_on([message.id for message in held])
    for message in held:
        assert await engine.attempts.claim(message.subject_id, "dead", 1.0, engine.now())
    engine.shift_s = 2.0
    for _ in range(3):
        await engine.clockwork.sweep()
    back = await engine.outbox.take(engine.now(), [LOST_QUEUE])
    assert {message.subject_id for message in back} == {message.subject_id for message in held}
    assert len(back) == len(held)
    for message in back:
        await engine.worker.work(message.subject_id)
    ended = await engine.server.list_jobs(pb.ListJobsRequest(state="succeeded"), CALLER)
    assert len(ended.jobs) == len(held)


async def expired_but_running(engine):
    """A job past its deadline whose provider goes on and cannot be stopped."""
    engine.router.immediate, engine.router.polls = False, 1_000_000
    job = await begin(engine, deadline_s=60)
    await engine.work_off()
    engine.shift_s = 61.0
    await engine.clockwork.sweep()
    await poll_all(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert job.state == "expired"
    assert not engine.billing.released
    return job


async def test_a_provider_that_never_ends_is_given_up_a_day_after_the_end(engine, caplog):
    job = await expired_but_running(engine)
    engine.shift_s = 61.0 + LATE_RESULT_S - 30.0
    await poll_all(engine)
    await engine.work_off()
    assert not engine.billing.released
    assert "attempt_abandoned" not in caplog.text
    engine.shift_s += 60.0
    await poll_all(engine)
    assert caplog.text.count("attempt_abandoned") == 1
    assert await engine.rounds.due_polls(engine.now() + 10 * LATE_RESULT_S * 1_000_000, 60) == []
    await engine.work_off()
    # Nothing is paid, the credits are free again, and the job can be removed.
    assert engine.billing.released == [f"hold_{job.job_id}"]
    assert not engine.billing.charges
    await engine.server.delete_job(pb.DeleteJobRequest(job_id=job.job_id), CALLER)


async def test_what_a_provider_makes_within_a_day_after_the_end_is_paid(engine):
    job = await expired_but_running(engine)
    engine.shift_s = 61.0 + LATE_RESULT_S - 30.0
    engine.router.jobs = dict.fromkeys(engine.router.jobs, 1)
    await poll_all(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, list(engine.billing.charges.values())) == ("expired", [7_000_000])
    assert not engine.billing.released


async def test_a_provider_that_cannot_be_asked_any_more_is_given_up_too(engine, monkeypatch):
    async def gone(request, call):
        raise RpcError("UNAVAILABLE", "switched off for ever")

    await expired_but_running(engine)
    monkeypatch.setattr(engine.router, "poll_media", gone)
    engine.shift_s = 62.0 + LATE_RESULT_S
    await poll_all(engine)
    await engine.work_off()
    assert len(engine.billing.released) == 1
