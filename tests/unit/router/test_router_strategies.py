"""Hedge, race, split and comparison, over providers that answer as they are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from tests.support.fakes import events
from tests.support.router import (
    INPUT_NANO,
    OUTPUT_NANO,
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

COST = 10 * INPUT_NANO + 5 * OUTPUT_NANO


def request(stream: bool = False, options: dict[str, Any] | None = None, **chat: Any) -> Any:
    make = pb.StreamChatRequest if stream else pb.ChatRequest
    return make(chat=a_chat(max_tokens=100, **chat), options=pb.CallOptions(**(options or {})))


def hedged(after_ms: int = 1) -> dict[str, Any]:
    return {"strategy": "hedge", "hedge_after_ms": after_ms}


async def streamed(router: Router, message: Any) -> tuple[list[Any], RpcError | None]:
    messages = []
    try:
        async for each in router.client.stream_chat(message, a_call()):
            messages.append(each)
    except RpcError as error:
        return messages, error
    return messages, None


def text_of(messages: list[Any]) -> str:
    return "".join(each.part_delta.text for each in messages)


def silent(entered: asyncio.Event, left: asyncio.Event) -> Any:
    async def answer(_: Any, __: Any) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    return answer


class TestRace:
    async def test_the_first_good_answer_wins_and_the_others_are_stopped(self) -> None:
        router = build("a/x", "b/y", "c/z")
        entered, left = asyncio.Event(), asyncio.Event()
        router.providers.answers["a/x"] = [silent(entered, left)]

        async def after_a(_: Any, __: Any) -> Any:
            await entered.wait()
            return an_answer("from b")

        router.providers.answers["b/y"] = [after_a]
        async with bounded():
            answer = await router.client.chat(request(parallel=True), a_call())
            await left.wait()
            await router.settle()
        assert answer.output == "from b"
        assert (answer.model_used, answer.outcome.strategy) == ("b/y", "race")
        assert {each.provider for each in router.providers.asked} == {"a", "b"}
        (decision,) = router.journal.decisions
        states = {each.target: (each.state, each.lost, each.role) for each in decision.attempts}
        assert states == {"a/x": ("cancelled", True, "race"), "b/y": ("complete", False, "race")}
        assert router.spent == COST
        assert router.reserved == 0

    async def test_credits_for_all_are_reserved_before_one_is_asked(self) -> None:
        router = build("a/x", "b/y", "c/z")
        reserved: list[int] = []
        estimates = []

        async def look(_: Any, __: Any) -> Any:
            reserved.append(router.reserved)
            await asyncio.sleep(0)
            return an_answer()

        for target in ("a/x", "b/y", "c/z"):
            router.providers.answers[target] = [look]
        async with bounded():
            message = request(parallel=True, options={"race_width": 3})
            await router.client.chat(message, a_call())
            await router.settle()
        (decision,) = router.journal.decisions
        for candidate in decision.candidates:
            estimates.append(round(float(candidate.estimated_cost) * 1e9))
        assert reserved[0] == sum(estimates)
        assert router.reserved == 0

    async def test_each_answer_that_was_produced_is_charged_once(self) -> None:
        router = build("a/x", "b/y", "c/z")
        gate = asyncio.Event()

        async def together(_: Any, __: Any) -> Any:
            await gate.wait()
            return an_answer()

        for target in ("a/x", "b/y", "c/z"):
            router.providers.answers[target] = [together]
        async with bounded():
            message = request(parallel=True, options={"race_width": 3})
            task = asyncio.create_task(router.client.chat(message, a_call()))
            await until(lambda: len(router.providers.asked) == 3)
            gate.set()
            answer = await task
            await router.settle()
        (decision,) = router.journal.decisions
        (charge,) = router.journal.charges
        produced = [each for each in decision.attempts if each.HasField("usage")]
        # Who was complete when the first one won is paid; who was stopped before has produced nothing.
        assert Counter(each.lost for each in decision.attempts) == {True: 2, False: 1}
        assert charge.amount_nano_credits == COST * len(produced) == router.spent
        assert charge.lost_nano_credits == COST * (len(produced) - 1)
        assert charge.usage.output_total == 5 * len(produced)
        assert answer.outcome.usage.output_total == 5
        assert router.spent <= int(float(decision.estimate) * 1e9)

    async def test_a_stream_that_has_begun_is_paid_for_what_it_had_produced(self) -> None:
        router = build("a/x", "b/y", hold_back=30)
        loser_wrote, winner = asyncio.Event(), asyncio.Event()

        async def slow(_: Any, __: Any) -> Any:
            yield start()
            yield delta("held back text")
            loser_wrote.set()
            await asyncio.Event().wait()

        async def fast(_: Any, __: Any) -> Any:
            yield start()
            await loser_wrote.wait()
            yield delta("a long text that is more than was held back")
            winner.set()
            yield end()

        router.providers.streams = {"a/x": [slow], "b/y": [fast]}
        async with bounded():
            messages, error = await streamed(router, request(stream=True, parallel=True))
            await router.settle()
        assert error is None
        assert text_of(messages).startswith("a long text")
        (decision,) = router.journal.decisions
        lost = next(each for each in decision.attempts if each.lost)
        assert lost.usage.estimated
        assert lost.usage.output_total > 0
        (charge,) = router.journal.charges
        assert charge.cost_source == "estimate"
        assert charge.amount_nano_credits == COST + charge.lost_nano_credits == router.spent
        assert charge.lost_nano_credits > 0
        assert messages[-1].end.outcome.lost_cost == lost.cost

    async def test_all_fail_and_the_next_in_the_route_is_asked(self) -> None:
        router = build("a/x", "b/y", "c/z")
        router.providers.answers = {"a/x": [failed()], "b/y": [failed()], "c/z": [an_answer("third")]}
        async with bounded():
            answer = await router.client.chat(request(parallel=True), a_call())
            await router.settle()
        assert answer.output == "third"
        assert router.spent == COST
        (decision,) = router.journal.decisions
        assert [each.role for each in decision.attempts] == ["race", "race", ""]

    async def test_a_refusal_that_all_share_ends_it(self) -> None:
        router = build("a/x", "b/y", "c/z")
        router.providers.answers = {"a/x": [failed("PROVIDER_REJECTED")], "b/y": [failed()]}
        async with bounded():
            with pytest.raises(RpcError, match="PROVIDER_REJECTED"):
                await router.client.chat(request(parallel=True), a_call())
            await router.settle()
        assert len(router.providers.asked) == 2
        assert router.reserved == router.spent == 0

    async def test_a_caller_who_leaves_stops_all_and_leaves_nothing_reserved(self) -> None:
        router = build("a/x", "b/y")
        signs = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
        router.providers.answers = {"a/x": [silent(*signs[0])], "b/y": [silent(*signs[1])]}
        async with bounded():
            task = asyncio.create_task(router.client.chat(request(parallel=True), a_call()))
            for entered, _ in signs:
                await entered.wait()
            task.cancel()
            for _, left in signs:
                await left.wait()
            await until(lambda: router.journal.records)
            await router.settle()
        assert router.reserved == router.spent == 0
        (decision,) = router.journal.decisions
        assert decision.state == "cancelled"
        assert [each.state for each in decision.attempts] == ["cancelled", "cancelled"]
        assert not router.journal.charges

    async def test_max_cost_holds_for_all_together(self) -> None:
        router = build("a/x", "b/y")
        router.providers.answers["a/x"] = [an_answer()]
        async with bounded():
            # One candidate fits: at least 100 output tokens at 2,000, and the input.
            answer = await router.client.chat(request(parallel=True, max_cost=0.0003), a_call())
            await router.settle()
        assert answer.model_used == "a/x"
        assert len(router.providers.asked) == 1
        (decision,) = router.journal.decisions
        assert "credits" in decision.candidates[1].excluded_because

    async def test_an_open_circuit_does_not_run_beside_others(self) -> None:
        router = build("a/x", "b/y", breaker={"failures": 1})
        router.providers.answers["a/x"] = [failed(), an_answer("a")]
        router.providers.answers["b/y"] = [an_answer("b"), an_answer("b")]
        async with bounded():
            await router.client.chat(request(), a_call())
            router.providers.asked.clear()
            answer = await router.client.chat(request(parallel=True), a_call())
        assert answer.output == "b"
        assert [each.provider for each in router.providers.asked] == ["b"]


class TestHedge:
    async def test_a_silent_candidate_gets_company_and_the_first_token_wins(self) -> None:
        router = build("a/x", "b/y")
        asked = asyncio.Event()

        async def silent_stream(_: Any, __: Any) -> Any:
            yield start()
            asked.set()
            await asyncio.Event().wait()

        router.providers.streams = {
            "a/x": [silent_stream],
            "b/y": [events(start(), delta("hi"), end())],
        }
        async with bounded():
            messages, error = await streamed(router, request(stream=True, options=hedged()))
            await router.settle()
        assert error is None
        assert text_of(messages) == "hi"
        (decision,) = router.journal.decisions
        assert [(each.target, each.lost) for each in decision.attempts] == [("a/x", True), ("b/y", False)]
        assert router.spent == COST
        assert router.reserved == 0

    async def test_an_answer_in_time_stays_alone(self) -> None:
        router = build("a/x", "b/y")
        router.providers.streams["a/x"] = [events(start(), delta("hi"), end())]
        async with bounded():
            messages, _ = await streamed(router, request(stream=True, options=hedged(60_000)))
        assert text_of(messages) == "hi"
        assert len(router.providers.asked) == 1

    async def test_a_failure_before_the_time_fails_over(self) -> None:
        router = build("a/x", "b/y")
        router.providers.streams = {"a/x": [events(failed())], "b/y": [events(start(), delta("b"), end())]}
        async with bounded():
            messages, _ = await streamed(router, request(stream=True, options=hedged(60_000)))
            await router.settle()
        assert text_of(messages) == "b"
        assert router.spent == COST

    async def test_the_silent_one_may_still_win(self) -> None:
        router = build("a/x", "b/y")
        beside = asyncio.Event()

        async def first(_: Any, __: Any) -> Any:
            await beside.wait()
            return an_answer("a after all")

        async def second(_: Any, __: Any) -> Any:
            beside.set()
            await asyncio.Event().wait()

        router.providers.answers = {"a/x": [first], "b/y": [second]}
        async with bounded():
            answer = await router.client.chat(request(options=hedged()), a_call())
            await router.settle()
        assert answer.output == "a after all"
        assert router.spent == COST
        assert router.reserved == 0

    async def test_without_credits_for_two_there_is_one(self) -> None:
        router = build("a/x", "b/y", available=300_000)
        gate = asyncio.Event()

        async def first(_: Any, __: Any) -> Any:
            await until(lambda: "extend_hold" in router.billing.calls)
            gate.set()
            return an_answer("alone")

        router.providers.answers["a/x"] = [first]
        async with bounded():
            answer = await router.client.chat(request(options=hedged()), a_call())
            await router.settle()
        assert answer.output == "alone"
        assert len(router.providers.asked) == 1
        assert router.reserved == 0

    async def test_a_caller_who_leaves_while_two_run_leaves_nothing_reserved(self) -> None:
        router = build("a/x", "b/y")
        signs = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
        router.providers.answers = {"a/x": [silent(*signs[0])], "b/y": [silent(*signs[1])]}
        async with bounded():
            task = asyncio.create_task(router.client.chat(request(options=hedged()), a_call()))
            for entered, _ in signs:
                await entered.wait()
            task.cancel()
            for _, left in signs:
                await left.wait()
            await until(lambda: router.journal.records)
            await router.settle()
        assert router.reserved == router.spent == 0
        assert not router.journal.charges

    async def test_both_fail_and_the_last_failure_is_told(self) -> None:
        router = build("a/x", "b/y")
        beside = asyncio.Event()

        async def first(_: Any, __: Any) -> Any:
            await beside.wait()
            raise failed("PROVIDER_OVERLOADED")

        async def second(_: Any, __: Any) -> Any:
            beside.set()
            raise failed("PROVIDER_FAILED")

        router.providers.answers = {"a/x": [first], "b/y": [second]}
        async with bounded():
            with pytest.raises(RpcError, match="PROVIDER_"):
                await router.client.chat(request(options=hedged()), a_call())
            await router.settle()
        assert router.reserved == router.spent == 0

    async def test_without_a_delay_what_was_measured_counts(self) -> None:
        router = build("a/x", "b/y")
        health = router.health.measurements
        target = router.admission.catalogue.models["m"].targets[0]
        assert health.silence_ms(target, streamed=True) == 1000
        for _ in range(20):
            health.first_token(target, 100)
        assert 95 <= health.silence_ms(target, streamed=True) <= 115


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "chat", "word"),
        [
            ({"strategy": "hedge"}, {"parallel": True}, "parallel"),
            ({"hedge_after_ms": 5}, {}, "hedge"),
            ({}, {"models": ["m", "n"]}, "models"),
        ],
    )
    async def test_wishes_that_exclude_each_other(
        self, options: dict[str, Any], chat: dict[str, Any], word: str
    ) -> None:
        router = build("a/x", "b/y")
        with pytest.raises(RpcError, match="INVALID_ARGUMENT") as caught:
            await router.client.chat(request(options=options, **chat), a_call())
        assert word in caught.value.message
        assert not router.providers.asked


class TestCompare:
    def message(self, *models: str, **chat: Any) -> pb.CompareChatRequest:
        message = pb.CompareChatRequest(chat=a_chat(model="", max_tokens=100, **chat))
        message.chat.models.extend(models)
        return message

    async def compared(self, router: Router, *models: str, **chat: Any) -> tuple[list[Any], RpcError | None]:
        messages = []
        try:
            async for each in router.client.compare_chat(self.message(*models, **chat), a_call()):
                messages.append(each)
        except RpcError as error:
            return messages, error
        return messages, None

    def of(self, messages: list[Any], index: int) -> list[Any]:
        return [
            each.candidate.event
            for each in messages
            if each.HasField("candidate") and each.candidate.index == index
        ]

    async def test_each_model_answers_and_is_paid(self) -> None:
        router = build("a/x", "b/y")
        router.providers.streams = {
            "a/x": [events(start(), delta("from a"), end())],
            "b/y": [events(start(), delta("from b"), end(a_usage(10, 10)))],
        }
        async with bounded():
            messages, error = await self.compared(router, "a/x", "b/y")
            await router.settle()
        assert error is None
        assert text_of(self.of(messages, 0)) == "from a"
        assert text_of(self.of(messages, 1)) == "from b"
        for index in (0, 1):
            assert self.of(messages, index)[-1].end.outcome.state == "complete"
        last = messages[-1].end
        assert [each.model_used for each in last.outcomes] == ["a/x", "b/y"]
        assert sorted(each.amount_nano_credits for each in router.journal.charges) == [COST, COST + 10_000]
        assert int(float(last.cost) * 1e9) == 2 * COST + 10_000 == router.spent
        assert {each.comparison_id for each in router.journal.decisions} == {last.comparison_id}
        assert router.reserved == 0

    async def test_the_failure_of_one_does_not_end_the_others(self) -> None:
        router = build("a/x", "b/y")
        failed_first = asyncio.Event()

        async def patient(_: Any, __: Any) -> Any:
            yield start()
            await failed_first.wait()
            yield delta("still here")
            yield end()

        async def failing(_: Any, __: Any) -> Any:
            failed_first.set()
            raise failed()
            yield

        router.providers.streams = {"a/x": [failing], "b/y": [patient]}
        async with bounded():
            messages, error = await self.compared(
                router,
                "a/x",
                "b/y",
            )
            await router.settle()
        assert error is None
        assert self.of(messages, 0)[-1].error.reason == "PROVIDER_FAILED"
        assert text_of(self.of(messages, 1)) == "still here"
        assert [each.state for each in messages[-1].end.outcomes] == ["upstream_error", "complete"]
        assert router.spent == COST

    async def test_a_model_that_does_not_exist_is_one_failure(self) -> None:
        router = build("a/x")
        router.providers.streams["a/x"] = [events(start(), delta("hi"), end())]
        async with bounded():
            messages, error = await self.compared(router, "nothing", "a/x")
        assert error is None
        assert self.of(messages, 0)[-1].error.reason == "MODEL_NOT_FOUND"
        assert text_of(self.of(messages, 1)) == "hi"

    async def test_all_fail(self) -> None:
        router = build("a/x", "b/y")
        router.providers.streams = {"a/x": [events(failed())], "b/y": [events(failed())]}
        async with bounded():
            messages, error = await self.compared(router, "a/x", "b/y")
            await router.settle()
        assert error is not None
        assert error.reason == messages[-1].error.reason == "PROVIDER_FAILED"
        assert router.reserved == router.spent == 0

    async def test_nobody_begins_without_the_credits_for_all(self) -> None:
        router = build("a/x", "b/y", available=300_000)
        router.providers.streams["a/x"] = [events(start(), delta("hi"), end())]
        async with bounded():
            messages, error = await self.compared(router, "a/x", "b/y")
            await router.settle()
        assert error is not None
        assert error.row.http in (402, 429)
        assert not messages
        assert not router.providers.asked
        assert router.reserved == 0
        assert router.billing.available == 300_000
        states = {each.state for each in router.journal.decisions}
        assert states <= {"cancelled", "refused"}, "one is refused, the other one never begins"

    async def test_leaving_stops_all_and_pays_what_was_produced(self) -> None:
        router = build("a/x", "b/y")
        left = [asyncio.Event(), asyncio.Event()]

        def endless(sign: asyncio.Event) -> Any:
            async def stream(_: Any, __: Any) -> Any:
                try:
                    yield start()
                    yield delta("some words")
                    await asyncio.Event().wait()
                finally:
                    sign.set()

            return stream

        router.providers.streams = {"a/x": [endless(left[0])], "b/y": [endless(left[1])]}
        async with bounded():
            stream = router.client.compare_chat(self.message("a/x", "b/y"), a_call())
            seen: set[int] = set()
            async for message in stream:
                if message.candidate.event.HasField("part_delta"):
                    seen.add(message.candidate.index)
                if len(seen) == 2:
                    break
            await stream.aclose()
            for sign in left:
                await sign.wait()
            await until(lambda: len(router.journal.records) == 2)
            await router.settle()
        assert [each.state for each in router.journal.decisions] == ["cancelled", "cancelled"]
        assert len(router.journal.charges) == 2
        assert router.reserved == 0

    @pytest.mark.parametrize("models", [(), ("a/x",), ("a/x", "a/x")])
    async def test_two_to_four_different_models(self, models: tuple[str, ...]) -> None:
        router = build("a/x")
        _, error = await self.compared(router, *models)
        assert error is not None
        assert (error.reason, "models" in error.message) == ("INVALID_ARGUMENT", True)
