"""A worker that is told to stop gives back what it has in hand: that is no death."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from omnihub.router.v1 import media_router_service_pb2 as router

from services.common.rpc import RpcError
from services.workflow.store.attempts import MOST_CRASHES
from tests.integration.jobs.conftest import Engine
from tests.integration.jobs.test_engine import begin, seen
from tests.integration.jobs.test_limits import poll_all


class Hanging:
    """Stands before a call and lets nobody through until told to; says when somebody has come."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.entered, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, *arguments: Any) -> Any:
        self.entered.set()
        await self.open.wait()
        return await self._call(*arguments)


async def stopped_at(engine: Engine, hanging: Hanging) -> None:
    """Work off the message that is due, and stop the worker when it has come to the call that hangs."""
    (message,) = await engine.outbox.take(engine.now())
    hanging.entered.clear()
    working = asyncio.create_task(engine.worker.work(message.subject_id))
    await hanging.entered.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await engine.outbox.passed_on([message.id])


@pytest.mark.parametrize(
    ("capabilities", "maybe_double"), [({"idempotent": True, "cancels": True}, False), ({}, True)]
)
async def test_stops_are_not_counted_as_deaths(
    engine: Engine, capabilities: dict[str, bool], maybe_double: bool
) -> None:
    engine.router.capabilities = capabilities
    engine.router.submit_media = asking = Hanging(engine.router.submit_media)
    job = await begin(engine)
    for _ in range(MOST_CRASHES + 1):
        await stopped_at(engine, asking)
        assert (await seen(engine, job.job_id)).state == "queued"
    asking.open.set()
    # Nobody has to wait until a lease has ended.
    await engine.work_off()
    job = await seen(engine, job.job_id)
    # Who was left in the midst may have made it.
    assert (job.state, job.maybe_double_charge) == ("succeeded", maybe_double)


async def test_what_is_being_reported_is_reported(engine: Engine) -> None:
    """It has been made, and is paid for: given back, it would be made again."""
    engine.attempts.complete_all = reporting = Hanging(engine.attempts.complete_all)
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    working = asyncio.create_task(engine.worker.work(message.subject_id))
    await reporting.entered.wait()
    working.cancel()
    await asyncio.sleep(0)
    reporting.open.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert list(engine.router.submitted.values()) == [1]


@pytest.fixture
def done_at_once(engine: Engine) -> Engine:
    """A provider that takes a job over, and says in the same answer that it is done."""
    engine.router.immediate = False
    submit, poll = engine.router.submit_media, engine.router.poll_media

    async def submit_media(request: Any, call: Any) -> Any:
        answer = await submit(request, call)
        about = router.PollMediaRequest()
        about.request.provider_job_id = answer.response.provider_job_id
        answer.response.progress.CopyFrom((await poll(about, call)).progress)
        return answer

    engine.router.submit_media = submit_media
    return engine


async def test_what_a_provider_has_accepted_is_not_given_back(done_at_once: Engine) -> None:
    """It would be made twice: its end is polled."""
    engine = done_at_once
    keep = engine.outputs.keep
    engine.outputs.keep = keeping = Hanging(keep)
    job = await begin(engine)
    await stopped_at(engine, keeping)
    assert (await seen(engine, job.job_id)).state == "running"
    engine.outputs.keep = keep
    engine.shift_s += 60.0
    await poll_all(engine)
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert list(engine.router.submitted.values()) == [1]


async def test_outputs_of_an_accepted_job_that_cannot_be_kept_are_fetched_again(done_at_once: Engine) -> None:
    engine = done_at_once
    keep, failures = engine.outputs.keep, [RpcError("UNAVAILABLE", "the store is away")]

    async def keep_later(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await keep(*arguments)

    engine.outputs.keep = keep_later
    job = await begin(engine)
    await engine.work_off()
    assert not failures
    engine.shift_s += 60.0
    await engine.clockwork.sweep()
    await engine.work_off()
    await poll_all(engine)
    await engine.work_off()
    job = await seen(engine, job.job_id)
    assert (job.state, job.maybe_double_charge) == ("succeeded", False)
    assert list(engine.router.submitted.values()) == [1]


async def test_a_stop_does_not_wait_for_a_database_that_is_away(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.router.submit_media = asking = Hanging(engine.router.submit_media)
    await begin(engine)

    async def put_back(*arguments: Any) -> bool:
        raise OSError("the database is away")

    engine.attempts.put_back = put_back
    await stopped_at(engine, asking)
    assert "claim_not_given_back" in caplog.text
