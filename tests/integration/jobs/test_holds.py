"""What is held belongs to a job: whatever happens between the hold and the job's beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.workflow.v1 import job_service_pb2 as pb
from sqlalchemy.exc import OperationalError

from services.common.rpc import RpcError
from services.workflow.tables import job as job_table
from tests.integration.jobs.conftest import CALLER, Engine
from tests.integration.jobs.test_batch import batch
from tests.integration.jobs.test_crashes import Lossy
from tests.integration.jobs.test_engine import begin
from tests.integration.jobs.test_incoming import letters, lost_again_and_again

Beginning = Callable[[Engine], Awaitable[Any]]


async def one(engine: Engine) -> Any:
    return await begin(engine)


async def three(engine: Engine) -> Any:
    return await engine.server.create_batch(batch(3), CALLER)


async def another(engine: Engine) -> Any:
    """Send a dead letter again."""
    (letter,) = await letters(engine)
    request = pb.RedriveDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
    return await engine.server.redrive_dead_letter(request, CALLER)


async def prepared(engine: Engine, beginning: Beginning) -> None:
    """Make what is there before: a letter of a job that has failed, if one is to be sent again."""
    if beginning is another:
        await begin(engine)
        await lost_again_and_again(engine)
        await engine.work_off()
        assert engine.billing.released
    engine.billing.holds.clear()
    engine.billing.released.clear()


async def jobs_of_holds(engine: Engine) -> set[str]:
    """Return those holds of which there is a job."""
    async with engine.jobs.database.reading() as connection:
        query = sa.select(job_table.c.hold_id).where(job_table.c.hold_id.in_(engine.billing.holds))
        return set((await connection.scalars(query)).all())


BEGINNINGS = pytest.mark.parametrize(("beginning", "count"), [(one, 1), (three, 3), (another, 1)])


@BEGINNINGS
async def test_a_caller_who_leaves_after_the_hold_leaves_a_job_that_it_is_for(
    engine: Engine, beginning: Beginning, count: int
) -> None:
    await prepared(engine, beginning)
    hold, held, left = engine.billing.create_hold, asyncio.Event(), asyncio.Event()

    async def create_hold(request: Any, call: Any) -> None:
        await hold(request, call)
        held.set()
        await left.wait()

    engine.billing.create_hold = create_hold
    asking = asyncio.ensure_future(beginning(engine))
    await held.wait()
    asking.cancel()
    left.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(engine.billing.holds) == count
    assert await jobs_of_holds(engine) == set(engine.billing.holds)
    assert not engine.billing.released


@BEGINNINGS
async def test_what_cannot_be_begun_holds_nothing(engine: Engine, beginning: Beginning, count: int) -> None:
    await prepared(engine, beginning)

    async def append_all(*arguments: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("the disk is full"))

    engine.outbox.append_all = append_all
    with pytest.raises(OperationalError, match="the disk is full"):
        await beginning(engine)
    assert len(engine.billing.holds) == count
    assert sorted(engine.billing.released) == sorted(engine.billing.holds)
    assert not await jobs_of_holds(engine)


async def test_what_may_have_been_begun_stays_held(engine: Engine) -> None:
    """The connection breaks at the commit: nobody here knows whether it was done. Here it was."""
    create = engine.jobs.create

    async def create_and_break(*arguments: Any) -> Any:
        await create(*arguments)
        raise OperationalError("COMMIT", {}, Exception("lost"), connection_invalidated=True)

    engine.jobs.create = create_and_break
    with pytest.raises(OperationalError):
        await begin(engine)
    assert await jobs_of_holds(engine) == set(engine.billing.holds)
    assert not engine.billing.released


async def test_a_hold_whose_answer_is_lost_is_set_free(engine: Engine) -> None:
    lossy = Lossy(engine.billing, "create_hold", 1)
    object.__setattr__(engine.server._admission, "billing", lossy)
    with pytest.raises(RpcError, match="the connection was lost"):
        await three(engine)
    assert lossy.left == 0
    assert len(engine.billing.holds) == 3
    assert sorted(engine.billing.released) == sorted(engine.billing.holds)


async def test_one_hold_that_cannot_be_set_free_keeps_no_other(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asks learns why nothing was begun, not what went wrong afterwards."""
    release, failed = engine.billing.release_hold, []

    async def release_hold(request: Any, call: Any) -> None:
        if not failed:
            failed.append(request.hold_id)
            raise RpcError("UNAVAILABLE", "billing is away")
        await release(request, call)

    engine.billing.release_hold = release_hold
    engine.billing.room = 2
    with pytest.raises(RpcError, match="no credits"):
        await three(engine)
    assert len(failed) == len(engine.billing.released) == 1
    assert {*failed, *engine.billing.released} == set(engine.billing.holds)
    assert caplog.text.count("hold_not_released") == 1
