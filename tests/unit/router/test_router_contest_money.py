"""Whatever candidates and callers do: what was produced is paid once, and nothing stays reserved."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from tests.support.router import (
    Router,
    a_call,
    a_chat,
    a_usage,
    an_answer,
    bounded,
    build,
    delta,
    end,
    failed,
    start,
    until,
)

TARGETS = ("a/x", "b/y", "c/z", "d/w")
RUNS = 30


async def turns(random_: random.Random) -> None:
    for _ in range(random_.randrange(12)):
        await asyncio.sleep(0)


class Upstream:
    """Counts what it has produced: an answer, or words of a stream."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.whole = 0
        self.began = 0

    def answer(self) -> Any:
        kind = self._random.choice(["good", "good", "fails", "silent"])

        async def answered(_: Any, __: Any) -> Any:
            await turns(self._random)
            if kind == "fails":
                raise failed(retryable=self._random.random() < 0.3)
            if kind == "silent":
                await asyncio.Event().wait()
            self.whole += 1
            return an_answer(usage=a_usage(10, self._random.randrange(1, 50)))

        return answered

    def stream(self) -> Any:
        kind = self._random.choice(["good", "good", "fails", "silent", "breaks", "quiet"])

        async def streamed(_: Any, __: Any) -> Any:
            await turns(self._random)
            if kind == "fails":
                raise failed()
            if kind == "silent":
                await asyncio.Event().wait()
            yield start()
            await turns(self._random)
            self.began += 1
            yield delta("some words ")
            await turns(self._random)
            if kind == "breaks":
                raise failed("STREAM_TRUNCATED")
            if kind == "quiet":
                await asyncio.Event().wait()
            yield delta("and more")
            self.whole += 1
            yield end(a_usage(10, self._random.randrange(1, 50)))

        return streamed


def router_with(upstream: Upstream, held_back: int) -> Router:
    router = build(*TARGETS, hold_back=held_back)
    for target in TARGETS:
        router.providers.answers[target] = [upstream.answer() for _ in range(5)]
        router.providers.streams[target] = [upstream.stream() for _ in range(5)]
    return router


def check(router: Router) -> None:
    (decision,) = router.journal.decisions
    charges = router.journal.charges
    assert router.reserved == 0
    assert len(charges) <= 1
    paid = sum(charge.amount_nano_credits for charge in charges)
    assert paid == router.spent
    costs = sum(round(float(attempt.cost or 0) * 1e9) for attempt in decision.attempts)
    assert paid == costs, "what is paid is what the attempts of the decision cost"
    assert paid <= round(float(decision.estimate) * 1e9), "never more than was reserved"
    assert all(each.provider_id for each in decision.attempts if each.HasField("usage"))
    named = [(each.target[0], each.provider_id) for each in decision.attempts if each.provider_id]
    assert all([(each.provider, each.id) for each in charge.attempts] == named for charge in charges)
    lost = sum(round(float(each.cost or 0) * 1e9) for each in decision.attempts if each.lost)
    assert sum(charge.lost_nano_credits for charge in charges) == lost
    for charge in charges:
        assert charge.amount_nano_credits == sum(part.amount_nano_credits for part in charge.parts) or (
            not charge.parts
        )


@pytest.mark.parametrize("strategy", ["race", "hedge"])
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_books_are_right(strategy: str, leaves: bool, stream: bool) -> None:
    for seed in range(RUNS):
        upstream = Upstream(seed)
        router = router_with(upstream, held_back=seed % 3 * 8)
        options = pb.CallOptions(strategy=strategy)
        if strategy == "race":
            options.race_width = (0, 2, 3, 4)[seed % 4]
        else:
            options.hedge_after_ms = 1
        kind = pb.StreamChatRequest if stream else pb.ChatRequest
        message = kind(chat=a_chat(max_tokens=100), options=options)

        async def ask(router: Router = router, message: Any = message) -> None:
            if stream:
                async for _ in router.client.stream_chat(message, a_call(timeout_s=0.15)):
                    pass
            else:
                await router.client.chat(message, a_call(timeout_s=0.15))

        async with bounded(10):
            task = asyncio.create_task(ask())
            if leaves:
                await turns(random.Random(seed + 1000))
                await asyncio.sleep(0)
                task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert result is None or isinstance(result, RpcError | asyncio.CancelledError), result
            if router.providers.asked:
                await until(lambda router=router: router.journal.records)
            await router.settle()
        if router.journal.records:
            check(router)
        assert router.reserved == 0
