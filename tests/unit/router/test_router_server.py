"""The router as its callers see it, over the local transport, with peers that obey the test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ParameterReceipt, Usage
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.credits.money import format_nano, parse_nano
from services.router.execution import attempts, execution
from services.router.settings import RouteSettings, TimeoutSettings
from tests.support.fakes import FakeBilling, FakeProviders, events
from tests.support.router import (
    INPUT_NANO,
    OPENAI,
    OUTPUT_NANO,
    Router,
    a_call,
    a_usage,
    an_answer,
    bounded,
    build,
    chat_request,
    delta,
    end,
    failed,
    frame,
    start,
    stream_request,
)

RAW = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":50,"seed":7}'
COST = 10 * INPUT_NANO + 5 * OUTPUT_NANO


def is_clean(router: Router) -> bool:
    """Tell whether nothing stays reserved."""
    return router.reserved == 0 and not router.billing.holds


async def test_typed_answer() -> None:
    router = build()
    router.providers.answers["a/x"] = [an_answer()]
    answer = await router.chat()
    assert (answer.output, answer.model_used, answer.cost) == ("hi", "a/x", format_nano(COST))
    assert answer.outcome.usage == a_usage()
    assert answer.outcome.state == "complete"
    [charge] = router.journal.charges
    [decision] = router.journal.decisions
    assert charge.amount_nano_credits == COST
    assert charge.cost_source == "price"
    assert charge.price_version == "a/x@1000000/2000000"
    assert [(each.provider, each.id) for each in charge.attempts] == [("a", "resp_1")]
    assert charge.charge_id == decision.attempts[0].attempt_id == router.providers.asked[0].attempt_id
    assert (decision.state, decision.decision_id) == ("complete", answer.outcome.decision_id)
    assert decision.attempts[0].state == "complete"
    assert (router.reserved, router.spent) == (0, COST)


async def test_raw_answer_passes_unchanged() -> None:
    router = build()
    router.providers.answers["a/x"] = [provider.ChatResponse(raw_body=b'{"id":1}', usage=a_usage())]
    answer = await router.chat(raw_body=RAW)
    assert answer.raw_body == b'{"id":1}'
    assert not answer.HasField("message")
    [asked] = router.providers.asked
    assert (asked.raw_body, asked.wire_format) == (RAW, OPENAI)
    assert asked.output_cap == 0


async def test_without_a_limit_the_output_is_capped() -> None:
    router = build(default_output_tokens=100)
    router.providers.answers["a/x"] = [an_answer()]
    await router.chat()
    assert router.providers.asked[0].output_cap == 100


async def test_the_cap_is_at_most_what_the_model_can_write() -> None:
    billing = FakeBilling()
    billing.price("a/x", 1000, 1000)
    router = Router({"m": RouteSettings(route=["a/x"], max_output=64)}, FakeProviders("a"), billing)
    router.providers.answers["a/x"] = [an_answer()]
    await router.chat()
    assert router.providers.asked[0].output_cap == 64


@pytest.mark.parametrize("raw", [False, True])
async def test_stream(raw: bool) -> None:
    router = build()
    body = frame(b"data: 1\n\n", "h") if raw else delta("h")
    router.providers.streams["a/x"] = [events(start(raw), body, end(None, b"{}"))]
    messages, error = await router.stream(raw_body=RAW if raw else b"")
    assert error is None
    assert [message.WhichOneof("event") for message in messages] == [
        "start",
        "raw_frame" if raw else "part_delta",
        "end",
    ]
    assert messages[0].start.model_used == "a/x"
    assert messages[0].start.wire_format == (OPENAI if raw else 0)
    assert messages[-1].end.outcome.cost == format_nano(COST)
    assert list(messages[-1].end.raw_tail.documents) == [b"{}"]
    assert [charge.amount_nano_credits for charge in router.journal.charges] == [COST]
    assert router.journal.decisions[0].streamed
    assert is_clean(router)


async def test_failover_before_the_first_token() -> None:
    router = build("a/x", "b/y")
    router.providers.answers["a/x"] = [failed()]
    router.providers.answers["b/y"] = [an_answer()]
    answer = await router.chat()
    assert answer.model_used == "b/y"
    [decision] = router.journal.decisions
    assert [(a.target, a.state, a.reason) for a in decision.attempts] == [
        ("a/x", "failed", "PROVIDER_FAILED"),
        ("b/y", "complete", ""),
    ]
    [charge] = router.journal.charges
    # Who failed has named nothing.
    assert (charge.model, [each.provider for each in charge.attempts]) == ("b/y", ["b"])


@pytest.mark.parametrize(
    "broken",
    [
        events(failed()),
        events(start(), failed("STREAM_TRUNCATED")),
        events(start()),
        events(),
        events(delta("no start")),
    ],
    ids=["at once", "after start", "only start", "empty", "no start"],
)
async def test_stream_fails_over_before_content(broken: Any) -> None:
    router = build("a/x", "b/y")
    router.providers.streams["a/x"] = [broken]
    router.providers.streams["b/y"] = [events(start(), delta("h"), end())]
    messages, error = await router.stream()
    assert error is None
    assert messages[0].start.model_used == "b/y"
    assert len(router.journal.charges) == 1
    assert [a.state for a in router.journal.decisions[0].attempts] == ["failed", "complete"]


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "BACK_OFF_S", 0.0)


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(("retryable", "asked"), [(True, 3), (False, 1)])
async def test_same_provider_is_asked_again_only_when_it_says_so(retryable: bool, asked: int) -> None:
    router = build(retries=2)
    router.providers.answers["a/x"] = [failed(retryable=retryable) for _ in range(3)]
    with pytest.raises(RpcError):
        await router.chat()
    assert len(router.providers.asked) == asked
    assert len({attempt.attempt_id for attempt in router.providers.asked}) == asked


@pytest.mark.usefixtures("no_back_off")
async def test_retry_after_is_waited_for() -> None:
    router = build(retries=1)
    router.providers.answers["a/x"] = [
        failed("PROVIDER_RATE_LIMITED", retryable=True, retry_after_s=0.05),
        an_answer(),
    ]
    loop = asyncio.get_running_loop()
    started = loop.time()
    await router.chat()
    assert loop.time() - started >= 0.05


async def test_too_long_a_retry_after_means_the_next_provider() -> None:
    router = build("a/x", "b/y", retries=1, retry_after_limit_s=1)
    router.providers.answers["a/x"] = [failed("PROVIDER_RATE_LIMITED", retryable=True, retry_after_s=300)]
    router.providers.answers["b/y"] = [an_answer()]
    async with bounded(60):
        assert (await router.chat()).model_used == "b/y"


async def test_a_wait_beyond_the_callers_deadline_is_not_begun() -> None:
    router = build("a/x", "b/y", retries=1)
    router.providers.answers["a/x"] = [failed(retryable=True, retry_after_s=90)]
    router.providers.answers["b/y"] = [an_answer()]
    answer = await router.client.chat(chat_request(), a_call(timeout_s=30))
    assert answer.model_used == "b/y"


@pytest.mark.usefixtures("no_back_off")
async def test_timeout_is_not_asked_again() -> None:
    router = build("a/x", "b/y", retries=2)
    router.providers.answers["a/x"] = [failed("PROVIDER_TIMEOUT", retryable=True)]
    router.providers.answers["b/y"] = [an_answer()]
    await router.chat()
    assert [attempt.provider for attempt in router.providers.asked] == ["a", "b"]


async def test_total_limit_of_a_route_is_a_provider_timeout() -> None:
    billing = FakeBilling()
    billing.price("a/x", 1000, 1000)
    billing.price("b/y", 1000, 1000)
    route = RouteSettings(route=["a/x", "b/y"], timeouts=TimeoutSettings(total_s=0.05), retries=0)
    router = Router({"m": route}, FakeProviders("a", "b"), billing)
    never = asyncio.Event()

    async def silent(request: Any, call: Any) -> Any:
        await never.wait()

    router.providers.answers["a/x"] = [silent]
    router.providers.answers["b/y"] = [an_answer()]
    answer = await router.chat()
    assert answer.model_used == "b/y"
    assert router.journal.decisions[0].attempts[0].reason == "PROVIDER_TIMEOUT"


@pytest.mark.parametrize("reason", sorted(attempts.FINAL - {"CANCELLED", "DEADLINE_EXCEEDED"}))
async def test_the_callers_fault_is_final(reason: str) -> None:
    router = build("a/x", "b/y", retries=2)
    router.providers.answers["a/x"] = [failed(reason, retryable=True)]
    with pytest.raises(RpcError) as caught:
        await router.chat()
    assert caught.value.reason == reason
    assert len(router.providers.asked) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_all_failed(streamed: bool) -> None:
    router = build("a/x", "b/y")
    errors = {"a/x": failed("PROVIDER_OVERLOADED"), "b/y": failed("PROVIDER_RATE_LIMITED", retry_after_s=7)}
    router.providers.answers = {name: [error] for name, error in errors.items()}
    router.providers.streams = {name: [events(error)] for name, error in errors.items()}
    if streamed:
        messages, error = await router.stream()
        assert messages == []
    else:
        with pytest.raises(RpcError) as caught:
            await router.chat()
        error = caught.value
    assert error is not None
    assert (error.reason, error.retry_after_s) == ("PROVIDER_RATE_LIMITED", 7)
    await router.settle()
    [decision] = router.journal.decisions
    assert (decision.state, decision.reason) == ("upstream_error", "PROVIDER_RATE_LIMITED")
    assert len(decision.attempts) == 2
    assert router.journal.charges == []
    assert is_clean(router)
    assert router.spent == 0


@pytest.mark.parametrize(
    ("failure", "reason", "state"),
    [
        (failed("PROVIDER_FAILED"), "PROVIDER_FAILED", "upstream_error"),
        (failed("STREAM_TRUNCATED"), "STREAM_TRUNCATED", "truncated"),
        (None, "STREAM_TRUNCATED", "truncated"),
        (ValueError("a fault"), "INTERNAL", "upstream_error"),
    ],
)
async def test_stream_that_breaks_after_the_first_token(
    failure: BaseException | None, reason: str, state: str
) -> None:
    router = build("a/x", "b/y")
    steps = [start(), delta("h" * 40), *([failure] if failure else [])]
    router.providers.streams["a/x"] = [events(*steps)]
    messages, error = await router.stream(max_tokens=100)
    assert error is not None
    assert error.reason == reason
    last = messages[-1].error
    assert last.reason == reason
    assert last.outcome.state in (state, "failed")
    [charge] = router.journal.charges
    assert charge.usage.estimated
    assert charge.usage.output_total >= 10
    assert charge.cost_source == "estimate"
    assert last.outcome.cost == format_nano(charge.amount_nano_credits)
    assert router.journal.decisions[0].attempts[0].state == "failed"
    assert is_clean(router)


async def test_unary_caller_who_leaves_pays_nothing() -> None:
    router = build()
    asked, left = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, call: Any) -> Any:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    router.providers.answers["a/x"] = [slow]
    task = asyncio.create_task(router.chat())
    async with bounded():
        await asked.wait()
        task.cancel()
        await left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        await router.settle()
    [decision] = router.journal.decisions
    assert (decision.state, decision.attempts[0].state) == ("cancelled", "cancelled")
    assert router.journal.charges == []
    assert is_clean(router)


async def test_stream_caller_who_leaves_pays_what_was_produced() -> None:
    router = build()
    router.providers.streams["a/x"] = [events(start(), delta("h" * 80), asyncio.Event())]
    stream = router.client.stream_chat(stream_request(), a_call())
    async with bounded():
        async for message in stream:
            if message.HasField("part_delta"):
                break
        await stream.aclose()
        await router.providers.closed.wait()
        await router.settle()
    [charge] = router.journal.charges
    assert (charge.state, charge.usage.estimated) == ("cancelled", True)
    assert charge.usage.output_total >= 20
    assert is_clean(router)
    assert router.spent == charge.amount_nano_credits


async def test_stream_caller_who_leaves_before_the_first_token_pays_nothing() -> None:
    router = build()
    router.providers.streams["a/x"] = [events(start(), asyncio.Event())]
    stream = router.client.stream_chat(stream_request(), a_call())
    task = asyncio.create_task(anext(stream))
    async with bounded():
        await router.providers.entered.wait()
        task.cancel()
        await router.providers.closed.wait()
        await router.settle()
    assert router.journal.charges == []
    assert router.journal.decisions[0].state == "cancelled"
    assert is_clean(router)


async def test_stream_without_a_limit_extends_its_reservation() -> None:
    router = build(default_output_tokens=100)
    steps = [delta("h" * 100) for _ in range(20)]
    usage = a_usage(10, 500)
    router.providers.streams["a/x"] = [events(start(), *steps, end(usage))]
    reserved = []
    stream = router.client.stream_chat(stream_request(), a_call())
    async for _ in stream:
        reserved.append(router.reserved)
    assert max(reserved) >= 900 * OUTPUT_NANO
    assert is_clean(router)


async def test_stream_that_runs_out_of_credits_is_ended() -> None:
    # Enough for the first reservation of 100 output tokens, not for a second one.
    router = build(default_output_tokens=100, available=300 * OUTPUT_NANO)
    router.billing.refusals["acquire_lease"] = [RpcError("INSUFFICIENT_CREDITS", "none")]
    steps = [delta("h" * 100) for _ in range(20)]
    router.providers.streams["a/x"] = [events(start(), *steps, end())]
    messages, error = await router.stream()
    assert error is not None
    assert error.reason == "OUT_OF_BUDGET"
    assert messages[-1].error.outcome.state == "out_of_budget"
    assert [charge.state for charge in router.journal.charges] == ["out_of_budget"]
    assert router.journal.decisions[0].attempts[0].state == "cancelled"
    assert router.providers.closed.is_set()


async def test_stream_keeps_to_max_cost() -> None:
    router = build(default_output_tokens=100)
    steps = [delta("h" * 100) for _ in range(20)]
    router.providers.streams["a/x"] = [events(start(), *steps, end())]
    _, error = await router.stream(max_cost=350 * OUTPUT_NANO / 1e9)
    assert error is not None
    assert error.reason == "OUT_OF_BUDGET"


@pytest.mark.parametrize("streamed", [False, True])
async def test_missing_usage_is_estimated_and_says_so(streamed: bool) -> None:
    router = build()
    router.providers.answers["a/x"] = [an_answer("h" * 40, usage=Usage())]
    router.providers.streams["a/x"] = [events(start(), delta("h" * 40), end(Usage()))]
    if streamed:
        messages, _ = await router.stream()
        outcome = messages[-1].end.outcome
    else:
        outcome = (await router.chat()).outcome
    assert outcome.usage.estimated
    assert outcome.usage.output_total >= 10
    [charge] = router.journal.charges
    assert charge.cost_source == "estimate"
    assert charge.amount_nano_credits > 0


async def test_the_providers_own_figure_wins() -> None:
    router = build()
    router.providers.answers["a/x"] = [an_answer(usage=a_usage(provider_cost="0.0123"))]
    answer = await router.chat()
    assert answer.cost == "0.0123"
    assert router.journal.charges[0].cost_source == "provider"


@pytest.mark.parametrize("nonsense", ["-5", "free", "NaN", "1e99"])
async def test_a_figure_that_is_no_amount_is_not_believed(nonsense: str) -> None:
    router = build()
    router.providers.answers["a/x"] = [an_answer(usage=a_usage(provider_cost=nonsense))]
    assert (await router.chat()).cost == format_nano(COST)
    assert router.journal.charges[0].cost_source == "price"


async def test_savings_against_the_baseline() -> None:
    router = build("a/x", baseline_model="p/big")
    router.billing.price("p/big", 10 * INPUT_NANO * 1000, 10 * OUTPUT_NANO * 1000)
    router.providers.answers["a/x"] = [an_answer()]
    assert (await router.chat()).savings_estimate == format_nano(9 * COST)


async def test_record_is_durable_before_the_answer() -> None:
    router = build()
    router.journal.gate = asyncio.Event()
    router.providers.answers["a/x"] = [an_answer()]
    router.providers.streams["a/x"] = [events(start(), delta("h"), end())]
    task = asyncio.create_task(router.chat())
    async with bounded():
        await router.journal.appending.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        assert router.reserved > 0
        router.journal.gate.set()
        assert (await task).output == "hi"


async def test_record_is_durable_before_the_end_of_a_stream() -> None:
    router = build()
    router.journal.gate = asyncio.Event()
    router.providers.streams["a/x"] = [events(start(), delta("h"), end())]
    stream = router.client.stream_chat(stream_request(), a_call())
    async with bounded():
        assert (await anext(stream)).HasField("start")
        assert (await anext(stream)).HasField("part_delta")
        last = asyncio.ensure_future(anext(stream))
        await router.journal.appending.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not last.done()
        router.journal.gate.set()
        assert (await last).HasField("end")


async def test_unary_that_cannot_be_recorded_fails_and_leaks_nothing() -> None:
    router = build()
    router.journal.failing = True
    router.providers.answers["a/x"] = [an_answer()]
    with pytest.raises(RpcError) as caught:
        await router.chat()
    assert caught.value.reason == "UNAVAILABLE"
    # The write may have reached the database all the same: the cost stays out of reach of others.
    assert (router.reserved, router.spent) == (0, COST)


async def test_stream_that_cannot_be_recorded_ends_in_an_error() -> None:
    router = build()
    router.journal.failing = True
    router.providers.streams["a/x"] = [events(start(), delta("h"), end())]
    messages, error = await router.stream()
    assert error is not None
    assert error.reason == "UNAVAILABLE"
    last = messages[-1].error
    assert (last.reason, last.outcome.state, last.outcome.cost) == ("UNAVAILABLE", "failed", "0")
    assert router.reserved == 0


async def test_broken_stream_that_cannot_be_recorded_tells_its_own_failure() -> None:
    router = build()
    router.journal.failing = True
    router.providers.streams["a/x"] = [events(start(), delta("h"), failed())]
    messages, error = await router.stream()
    assert error is not None
    assert error.reason == messages[-1].error.reason == "PROVIDER_FAILED"


@pytest.mark.parametrize("streamed", [False, True])
async def test_caller_who_leaves_while_it_is_recorded_is_charged_once(streamed: bool) -> None:
    router = build()
    router.journal.gate = asyncio.Event()
    router.providers.answers["a/x"] = [an_answer()]
    router.providers.streams["a/x"] = [events(start(), delta("h"), end())]
    task = asyncio.create_task(router.stream() if streamed else router.chat())
    async with bounded():
        await router.journal.appending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(20):
            await asyncio.sleep(0)
        assert router.reserved > 0
        router.journal.gate.set()
        await router.settle()
    [charge] = router.journal.charges
    assert (charge.state, charge.amount_nano_credits) == ("complete", COST)
    assert (router.reserved, router.spent) == (0, COST)


async def test_caller_who_leaves_after_the_end_changes_nothing() -> None:
    router = build()
    router.providers.streams["a/x"] = [events(start(), delta("h"), end())]
    stream = router.client.stream_chat(stream_request(), a_call())
    async for message in stream:
        if message.HasField("end"):
            break
    await stream.aclose()
    await router.settle()
    assert [decision.state for decision in router.journal.decisions] == ["complete"]
    assert router.spent == COST


async def test_price_that_changes_meanwhile_is_not_lost() -> None:
    router = build()

    async def slow(request: Any, call: Any) -> Any:
        await router.admission.prices._forget([])
        return an_answer()

    router.providers.answers["a/x"] = [slow]
    assert (await router.chat()).cost == format_nano(COST)


async def test_a_dearer_fallback_is_reserved_when_its_turn_comes() -> None:
    router = build("a/x", "b/y", default_output_tokens=100)
    router.billing.price("b/y", 10 * INPUT_NANO * 1000, 10 * OUTPUT_NANO * 1000)
    seen = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(router.reserved)
        return an_answer()

    router.providers.answers["a/x"] = [failed()]
    router.providers.answers["b/y"] = [look]
    await router.chat()
    assert seen[0] >= 100 * 10 * OUTPUT_NANO
    assert is_clean(router)


async def test_a_fallback_that_cannot_be_paid_is_left_out() -> None:
    router = build("a/x", "b/y", default_output_tokens=100, available=400 * OUTPUT_NANO)
    router.billing.price("b/y", 10 * INPUT_NANO * 1000, 10 * OUTPUT_NANO * 1000)
    router.providers.answers["a/x"] = [failed()]
    with pytest.raises(RpcError) as caught:
        await router.chat()
    assert caught.value.reason == "PROVIDER_FAILED"
    assert len(router.providers.asked) == 1


async def test_a_paid_fallback_of_a_free_model_is_reserved() -> None:
    router = build("a/x", "b/y")
    router.billing.price("a/x", 0, 0)
    router.providers.answers["a/x"] = [failed()]
    router.providers.answers["b/y"] = [an_answer()]
    assert (await router.chat()).cost == format_nano(COST)
    assert router.spent == COST


async def test_no_credits_is_told_before_any_provider_is_asked() -> None:
    router = build(available=0)
    with pytest.raises(RpcError) as caught:
        await router.chat()
    assert caught.value.reason == "INSUFFICIENT_CREDITS"
    assert router.providers.asked == []
    await router.settle()
    (decision,) = router.journal.decisions
    assert (decision.state, decision.reason) == ("refused", "INSUFFICIENT_CREDITS")
    assert caught.value.metadata["decision_id"] == decision.decision_id
    assert router.journal.charges == []


async def test_second_request_asks_billing_for_nothing() -> None:
    router = build()
    router.providers.answers["a/x"] = [an_answer(), an_answer()]
    await router.chat()
    router.billing.calls.clear()
    await router.chat()
    assert router.billing.calls == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ChatRequest(chat={"model": "m"}), "messages"),
        (pb.ChatRequest(chat={"model": "m"}, raw_body=RAW), "wire_format"),
        (pb.ChatRequest(chat={"model": "m"}, raw_body=b'{"model":"m"}', wire_format=OPENAI), "messages"),
    ],
)
async def test_what_is_missing_is_named(request_: pb.ChatRequest, field: str) -> None:
    router = build()
    with pytest.raises(RpcError) as caught:
        await router.client.chat(request_, a_call())
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_limits_are_read_from_the_body_that_is_sent() -> None:
    router = build()
    seen = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(router.reserved)
        return an_answer()

    router.providers.answers["a/x"] = [look]
    request = chat_request(RAW.replace(b'"max_tokens":50', b'"max_tokens":5000,"n":3'))
    request.chat.max_tokens = 1
    await router.client.chat(request, a_call())
    assert seen[0] >= 3 * 5000 * OUTPUT_NANO


async def test_absurd_limits_are_refused_as_too_dear() -> None:
    router = build()
    with pytest.raises(RpcError) as caught:
        await router.chat(raw_body=RAW.replace(b"50", b"4000000000").replace(b'"seed":7', b'"n":128'))
    assert caught.value.reason == "INSUFFICIENT_CREDITS"


async def test_embeddings() -> None:
    router = build()
    vectors = [provider.Embedding(values=[1, 2])]
    router.providers.answers["a/x"] = [
        failed(),
    ]
    with pytest.raises(RpcError):
        await router.client.embed(pb.EmbedRequest(model="m", inputs=["t"]), a_call())
    receipt = [ParameterReceipt(name="user", outcome="dropped", detail="no such parameter")]
    router.providers.answers["a/x"] = [
        provider.EmbedResponse(embeddings=vectors, usage=a_usage(10, 0), receipt=receipt)
    ]
    request_ = pb.EmbedRequest(model="m", inputs=["t"], dimensions=2, strict=True)
    answer = await router.client.embed(request_, a_call())
    assert list(answer.embeddings[0].values) == [1, 2]
    assert answer.outcome.cost == format_nano(10 * INPUT_NANO)
    assert (router.providers.asked[-1].dimensions, router.providers.asked[-1].strict) == (2, True)
    assert list(answer.outcome.receipt) == receipt
    assert list(router.journal.decisions[-1].receipt) == receipt
    assert [charge.modality for charge in router.journal.charges] == ["embeddings"]
    assert is_clean(router)


async def test_embeddings_of_nothing() -> None:
    with pytest.raises(RpcError, match="inputs"):
        await build().client.embed(pb.EmbedRequest(model="m"), a_call())


async def test_models_are_listed_in_pages_with_one_question_for_prices() -> None:
    billing = FakeBilling()
    billing.price("a/x", 1_000_000, 2_500_000)
    router = Router(
        {name: RouteSettings(route=["a/x"]) for name in ("one", "two", "three")}, FakeProviders("a"), billing
    )
    first = await router.client.list_models(pb.ListModelsRequest(page_size=2), a_call())
    assert billing.calls == ["batch_get_prices"]
    rest = await router.client.list_models(
        pb.ListModelsRequest(page_size=2, page_token=first.next_page_token), a_call()
    )
    assert [model.model_id for model in (*first.models, *rest.models)] == ["one", "three", "two"]
    assert not rest.next_page_token
    assert first.models[0].input_price_per_million == "1"
    assert first.models[0].output_price_per_million == "2.5"


async def test_everything_a_stream_writes_is_metered() -> None:
    """Thoughts and arguments are output too, though they are no text."""
    router = build(default_output_tokens=100)
    hidden = provider.StreamChatResponse(
        raw_frame={"data": b"data: {}\n\n", "output_chars": 4000, "beyond_text": True}
    )
    router.providers.streams["a/x"] = [events(start(OPENAI), hidden, failed("STREAM_TRUNCATED"))]
    messages, error = await router.stream(raw_body=RAW)
    assert error is not None
    assert messages[-1].error.outcome.usage.output_total == 1000


async def test_an_estimate_knows_media_and_is_never_more_than_what_was_reserved() -> None:
    image = b"QUJD" * 500_000
    body = b'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":[{"type":"image_url",'
    body += b'"image_url":{"url":"data:image/png;base64,' + image + b'"}}]}]}'
    router = build()
    router.providers.streams["a/x"] = [
        events(start(OPENAI), frame(b"data: {}\n\n", "one word"), failed("STREAM_TRUNCATED"))
    ]
    messages, error = await router.stream(raw_body=body)
    assert error is not None
    outcome = messages[-1].error.outcome
    assert outcome.usage.input_total < len(image) // 8
    [charge] = router.journal.charges
    [decision] = router.journal.decisions
    assert charge.amount_nano_credits <= parse_nano(decision.estimate)
