"""Rounds of polls: providers are asked how far they are, and none waits for another one's answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from services.workflow.engine import clockwork as clockwork_module
from services.workflow.engine.clockwork import POLL_HIDDEN_S
from tests.integration.jobs.conftest import Engine
from tests.integration.jobs.test_engine import begin, seen

BEFORE_FIRST_S = 2.0


class Answers:
    """Stands before the router's polls: the jobs named in `slow` get no answer until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self._poll = engine.router.poll_media
        self.slow: set[str] = set()
        self.broken: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.hanging, self.let_go = asyncio.Event(), asyncio.Event()
        engine.router.poll_media = self.poll_media

    async def poll_media(self, request: Any, call: Any) -> Any:
        job = request.request.provider_job_id
        self.asked[job] += 1
        if job in self.broken:
            raise ValueError("a defect in the client")
        if job in self.slow:
            self.hanging.set()
            await self.let_go.wait()
        return await self._poll(request, call)


@pytest.fixture
def answers(engine: Engine) -> Answers:
    engine.router.immediate = False
    return Answers(engine)


async def accepted(engine: Engine) -> Any:
    """Begin a job that its provider has accepted, and that is to be asked about."""
    job = await begin(engine)
    await engine.work_off()
    engine.shift_s += BEFORE_FIRST_S
    return job


async def round_of(engine: Engine, slow: int = 0) -> None:
    """Poll, and wait for all answers but those of slow providers."""
    async with asyncio.timeout(20):
        await engine.clockwork.poll()
        while len(asking := engine.clockwork.asking) > slow:
            await asyncio.wait(asking.values(), return_when=asyncio.FIRST_COMPLETED)


async def ended(engine: Engine, job: Any) -> bool:
    return bool((await seen(engine, job.job_id)).state == "succeeded")


async def hung(engine: Engine, answers: Answers) -> Any:
    """Begin a job about which its provider is being asked, and does not answer."""
    answers.slow = {"pj-0"}
    job = await accepted(engine)
    await round_of(engine, slow=1)
    await answers.hanging.wait()
    return job


async def test_a_slow_poll_holds_up_no_other(engine: Engine, answers: Answers) -> None:
    slow = await hung(engine, answers)
    quick = await accepted(engine)
    await round_of(engine, slow=1)
    assert await ended(engine, quick)
    assert not await ended(engine, slow)
    answers.let_go.set()
    await round_of(engine)
    assert await ended(engine, slow)


async def test_who_is_being_asked_is_not_asked_again(engine: Engine, answers: Answers) -> None:
    slow = await hung(engine, answers)
    for _ in range(3):
        engine.shift_s += POLL_HIDDEN_S + 1
        await round_of(engine, slow=1)
    # Nor by other replicas.
    assert not await engine.rounds.due_polls(engine.now(), POLL_HIDDEN_S)
    answers.let_go.set()
    await round_of(engine)
    assert await ended(engine, slow)
    assert answers.asked == {"pj-0": 1}


async def test_a_poll_that_breaks_is_told_of_and_comes_again(
    engine: Engine, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    answers.broken = {"pj-0"}
    job = await accepted(engine)
    await round_of(engine)
    assert "poll_broken" in caplog.text
    answers.broken.clear()
    engine.shift_s += POLL_HIDDEN_S + 1
    await round_of(engine)
    assert await ended(engine, job)


async def test_a_provider_that_does_not_answer_is_asked_about_no_more_than_so_many(
    engine: Engine, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clockwork_module, "MOST_POLLS", 1)
    await hung(engine, answers)
    same = await accepted(engine)
    engine.router.names = ["other"]
    other = await accepted(engine)
    await round_of(engine, slow=1)
    assert await ended(engine, other)
    assert set(answers.asked) == {"pj-0", "pj-2"}
    answers.let_go.set()
    await round_of(engine)
    await round_of(engine)
    assert await ended(engine, same)


async def test_a_stop_ends_polls(engine: Engine, answers: Answers) -> None:
    await hung(engine, answers)
    await engine.clockwork.stop()
    assert not engine.clockwork.asking
