"""Jobs survive whatever is killed: each ends once, is paid once, and its owner alone sees it.

The long forms are in tests/chaos, behind `make chaos`.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from services.common.rpc import RpcError
from services.workflow.engine.worker import LEASE_S
from services.workflow.store.records import SMALL
from tests.integration.jobs.test_engine import begin, seen
from tests.support.job_cluster import ServedRouter, running_cluster

pytestmark = pytest.mark.timeout(480)

# Where a worker may die, and whether what it makes takes long.
PLACES = (
    ("after_claim", True),
    ("after_provider", True),
    ("after_accept", False),
    ("after_outputs", True),
    ("after_report", True),
    ("after_settle", True),
)


async def test_a_worker_may_die_anywhere(tmp_path: Path, postgresql_url: str) -> None:
    """F1, without a broker: two workers on PostgreSQL, of which one dies at each named place."""
    async with running_cluster(tmp_path, postgresql_url) as cluster:
        await cluster.spawn()
        for place, immediate in PLACES:
            cluster.router.immediate = immediate
            dying = await cluster.spawn(settings={"crash_at": f"{place}:2"})
            while dying.returncode is None:
                await cluster.submit(4)
                await asyncio.wait([asyncio.ensure_future(dying.wait())], timeout=0.2)
            assert dying.returncode == 86, place
        await cluster.check()


async def test_a_zombie_is_kept_out(tmp_path: Path, postgresql_url: str) -> None:
    """F6: a worker stops past its lease, another one finishes; what the first says later does not count."""
    async with running_cluster(tmp_path, postgresql_url, router=ServedRouter(pause_s=1.0)) as cluster:
        zombie = await cluster.spawn()
        await cluster.submit(3)
        await cluster.until_running(3)
        zombie.send_signal(signal.SIGSTOP)
        await cluster.spawn()
        await cluster.until_all_ended()
        zombie.send_signal(signal.SIGCONT)
        await cluster.submit(2)
        await cluster.check()


async def test_clocks_that_are_minutes_apart_do_no_harm(tmp_path: Path, postgresql_url: str) -> None:
    """F8: leases are compared on the database's clock."""
    async with running_cluster(tmp_path, postgresql_url, router=ServedRouter(pause_s=0.5)) as cluster:
        await cluster.spawn(ahead_s=300)
        await cluster.spawn(ahead_s=-300)
        await cluster.submit(20)
        await cluster.check()
        assert set(cluster.router.submitted.values()) == {1}


async def test_messages_that_come_three_times_in_any_order_change_nothing(engine) -> None:
    """F5, on both databases."""
    engine.router.immediate = False
    jobs = [await begin(engine) for _ in range(8)]
    order = random.Random(7)
    for _ in range(12):
        engine.later_s += 61.0
        messages = [message for message in await engine.outbox.take(engine.now()) for _ in range(3)]
        order.shuffle(messages)
        await asyncio.gather(*(engine.handle(each.queue, each.subject_id) for each in messages))
        await engine.outbox.passed_on([message.id for message in messages])
        polls = await engine.rounds.due_polls(engine.now(), 60)
        await asyncio.gather(*(engine.worker.poll(*each) for each in polls for _ in range(3)))
    assert [(await seen(engine, job.job_id)).state for job in jobs] == ["succeeded"] * 8
    assert list(engine.router.submitted.values()) == [1] * 8
    assert len(engine.billing.charges) == 8


class Lossy:
    """Passes calls on, and loses the replies of the named one: what it did is done."""

    def __init__(self, service, name: str, count: int) -> None:
        self._service = service
        self._name = name
        self.left = count

    def __getattr__(self, name: str):
        call = getattr(self._service, name)

        async def lose(*arguments):
            answer = await call(*arguments)
            if name == self._name and self.left:
                self.left -= 1
                raise RpcError("UNAVAILABLE", "the connection was lost")
            return answer

        return lose


@pytest.mark.parametrize("name", ["submit_media", "poll_media", "settle", "release_hold"])
async def test_a_lost_reply_is_asked_for_again(engine, name: str) -> None:
    """F7: the call was done, its answer did not arrive."""
    engine.router.immediate = name != "poll_media"
    engine.router.capabilities = {"idempotent": True}
    if name == "release_hold":
        engine.router.failures = [RpcError("CONTENT_FILTERED", "no")]
    engine.worker._router = Lossy(engine.router, name, 2)
    engine.settler._billing = Lossy(engine.billing, name, 2)
    job = await begin(engine)
    for _ in range(8):
        engine.later_s += 61.0
        for message in await engine.outbox.take(engine.now()):
            if message.queue == "job.settle":
                if await engine.settler.settle_many([message.subject_id]):
                    await engine.outbox.passed_on([message.id])
                continue
            await engine.handle(message.queue, message.subject_id)
            await engine.outbox.passed_on([message.id])
        for attempt, row in await engine.rounds.due_polls(engine.now(), 60):
            await engine.worker.poll(attempt, row)
    job = await seen(engine, job.job_id)
    if name == "release_hold":
        assert (job.state, set(engine.billing.released)) == ("failed", set(engine.billing.holds))
    else:
        assert (job.state, job.cost, len(engine.billing.charges)) == ("succeeded", "0.007", 1)
    assert not job.maybe_double_charge


def losing(call, count: int):
    """Return the call with its first answers lost: what it wrote is written."""
    left = [count]

    async def lossy(*arguments):
        answer = await call(*arguments)
        if left[0]:
            left[0] -= 1
            raise OperationalError("COMMIT", {}, Exception("the connection was lost"))
        return answer

    return lossy


@pytest.mark.parametrize(("name", "count"), [("claim_all", 1), ("complete_all", 1), ("complete_all", 4)])
async def test_a_commit_whose_answer_was_lost_counts_once(engine, monkeypatch, name: str, count: int) -> None:
    """F7, at the database: several attempts in one transaction, then each again alone."""
    engine.router.capabilities = {"idempotent": True}
    jobs = [await begin(engine) for _ in range(3)]
    monkeypatch.setattr(engine.attempts, name, losing(getattr(engine.attempts, name), count))
    messages = await engine.outbox.take(engine.now())
    working = (engine.worker.work(each.subject_id) for each in messages)
    outcomes = await asyncio.gather(*working, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), OperationalError}
    assert any(outcomes) == (count > 1)
    await engine.outbox.passed_on([each.id for each in messages])
    # What was claimed without anybody knowing is free again after its lease.
    engine.shift_s = LEASE_S + 1
    await engine.clockwork.sweep()
    await engine.work_off()
    assert [(await seen(engine, job.job_id)).state for job in jobs] == ["succeeded"] * 3
    assert len(engine.billing.charges) == 3
    assert set(engine.router.submitted.values()) == {1}


async def test_one_claim_that_fails_costs_no_other_its_worker(engine, monkeypatch) -> None:
    """What has been claimed together stays claimed for whom it was, whatever becomes of the rest."""
    jobs = [await begin(engine) for _ in range(3)]
    messages = await engine.outbox.take(engine.now())
    lost = messages[1].subject_id
    # Its worker is gone: it cannot be claimed with the others.
    await engine.attempts.claim(lost, "w0", 0.0, engine.now() - 1_000)
    claim = engine.attempts.claim

    async def failing(attempt_id, *arguments):
        if attempt_id == lost:
            raise OperationalError("SELECT", {}, Exception("the connection was lost"))
        return await claim(attempt_id, *arguments)

    monkeypatch.setattr(engine.attempts, "claim", failing)
    working = (engine.worker.work(each.subject_id) for each in messages)
    outcomes = await asyncio.gather(*working, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), OperationalError, type(None)]
    states = [(await seen(engine, job.job_id)).state for job in jobs]
    assert states == ["succeeded", "running", "succeeded"]
    assert len(engine.router.submitted) == 2


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)
async def test_renewing_locks_in_the_order_in_which_everyone_does(engine) -> None:
    """Otherwise it and a worker that reports several attempts could wait for each other."""
    store, connections = engine.attempts, engine.attempts.database
    for _ in range(2):
        await begin(engine)
    claims = [
        await store.claim(each.subject_id, "w1", 60.0, engine.now())
        for each in await engine.outbox.take(engine.now())
    ]
    first, last = sorted(claims, key=lambda claim: claim.job.id)
    for claim in (last, first):
        # In this order they then lie in the table.
        await store.renew_all([claim], 60.0, engine.now())

    async def waiting() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with connections.reading() as connection:
            return bool((await connection.exec_driver_sql(query)).scalar())

    async with connections.transaction() as connection:
        await store.lock_all(connection, [first.attempt.id], SMALL)
        renewing = asyncio.create_task(store.renew_all([first, last], 60.0, engine.now()))
        async with asyncio.timeout(60):
            while not await waiting():
                pass
        assert await store.lock_all(connection, [last.attempt.id], SMALL)
    assert await renewing == [True, True]


async def test_after_the_database_was_away_the_living_may_renew_first(engine, monkeypatch) -> None:
    """A worker that could not renew its lease is not a dead one."""
    await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    await engine.outbox.passed_on([message.id])
    claim = await engine.attempts.claim(message.subject_id, "w1", 1.0, engine.now())
    engine.shift_s = 2.0

    async def away(now: int) -> None:
        raise OperationalError("SELECT", {}, Exception("the database is away"))

    with monkeypatch.context() as patch:
        patch.setattr(engine.jobs, "expire_due", away)
        with pytest.raises(OperationalError):
            await engine.clockwork.sweep()
    await engine.clockwork.sweep()
    assert await engine.outbox.oldest() is None
    assert await engine.attempts.renew_all([claim], 60.0, engine.now()) == [True]
    engine.shift_s = 3.0 + LEASE_S
    await engine.clockwork.sweep()
    assert await engine.outbox.oldest() is None
    # Its lease is over, and nothing was away any more.
    engine.shift_s = 70.0
    await engine.clockwork.sweep()
    assert await engine.outbox.oldest() is not None
