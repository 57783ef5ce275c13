"""Jobs survive whatever is killed: each ends once, is paid once, and its owner alone sees it.

The long forms are in tests/chaos, behind `make chaos`.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from services.common.rpc import RpcError
from tests.integration.jobs.test_engine import begin, seen
from tests.support.job_cluster import ServedRouter, running_cluster

pytestmark = pytest.mark.timeout(180)

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
