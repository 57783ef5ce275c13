"""Failover, circuit breakers and rescue, as callers of the router see them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import Part, ReasoningPart, TextPart, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.credits.money import format_nano
from services.router.execution import rescue as rescuing
from tests.support.fakes import events
from tests.support.router import (
    OUTPUT_NANO,
    Router,
    a_call,
    a_usage,
    an_answer,
    bounded,
    build,
    delta,
    end,
    failed,
    frame,
    start,
    stream_request,
)

PREFILLS = ("chat", "stream", "prefill")
RAW = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":50}'


async def outcome(router: Router) -> str:
    """Return who answered one request, or why nobody did."""
    try:
        return (await router.chat()).model_used
    except RpcError as error:
        return error.reason


async def test_a_provider_that_is_down_is_passed_over_until_it_is_back() -> None:
    router = build("a/x", "b/y", breaker={"failures": 2, "open_s": 10})
    router.now = 100.0
    down, up = router.providers.answers.setdefault("a/x", []), router.providers.answers.setdefault("b/y", [])
    down += [failed(), failed()]
    up += [an_answer() for _ in range(4)]
    assert [await outcome(router) for _ in range(4)] == ["b/y"] * 4
    assert [attempt.provider for attempt in router.providers.asked] == ["a", "b", "a", "b", "b", "b"]
    skipped = router.journal.decisions[-1].candidates[0]
    assert (skipped.target, "circuit open" in skipped.excluded_because) == ("a/x", True)
    assert [attempt.target for attempt in router.journal.decisions[-1].attempts] == ["b/y"]
    router.now += 10
    down += [an_answer(), an_answer()]
    assert [await outcome(router) for _ in range(2)] == ["a/x"] * 2
    assert not router.journal.decisions[-1].candidates[0].excluded_because


async def test_who_is_left_alone_is_asked_when_nobody_else_is_left() -> None:
    router = build("a/x", "b/y", breaker={"failures": 1})
    router.providers.answers = {"a/x": [failed(), an_answer()], "b/y": [an_answer(), failed()]}
    assert [await outcome(router) for _ in range(2)] == ["b/y", "a/x"]


async def test_streams_that_break_count_against_their_provider() -> None:
    router = build("a/x", "b/y", breaker={"failures": 1})
    router.providers.streams["a/x"] = [events(start(), delta("h"), failed())]
    await router.stream()
    router.providers.answers["b/y"] = [an_answer()]
    assert await outcome(router) == "b/y"


@pytest.mark.parametrize("reason", ["PROVIDER_BILLING", "PROVIDER_CREDENTIAL_REFUSED"])
async def test_a_refused_credential_fails_over_at_once_and_is_remembered(reason: str) -> None:
    router = build("a/x", "a/z", "b/y", retries=2)
    router.providers.answers = {"a/x": [failed(reason)], "b/y": [an_answer(), an_answer()]}
    assert [await outcome(router) for _ in range(2)] == ["b/y"] * 2
    assert [attempt.provider for attempt in router.providers.asked] == ["a", "b", "b"]
    assert "refused the credential" in router.journal.decisions[-1].candidates[1].excluded_because


async def test_a_probe_whose_caller_leaves_does_not_close_the_door() -> None:
    router = build("a/x", "b/y", breaker={"failures": 1, "open_s": 10})
    router.now = 100.0
    asked = asyncio.Event()

    async def never(request: Any, call: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    router.providers.answers = {"a/x": [failed(), never, an_answer()], "b/y": [an_answer()]}
    await outcome(router)
    router.now += 10
    task = asyncio.create_task(router.chat())
    async with bounded():
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await router.settle()
    assert await outcome(router) == "a/x"


@pytest.mark.parametrize(
    ("contexts", "asked"),
    [
        ((1000, 2000), ["a", "b"]),
        ((0, 2000), ["a", "b"]),
        ((1000, 1000), ["a"]),
        ((1000, 0), ["a"]),
    ],
)
async def test_too_long_an_input_goes_to_a_larger_model(contexts: tuple[int, int], asked: list[str]) -> None:
    router = build("a/x", "b/y", retries=2)
    for target, context in zip(("a/x", "b/y"), contexts, strict=True):
        router.billing.price(target, 1000, 1000, context_length=context)
    router.providers.answers = {"a/x": [failed("CONTEXT_LENGTH_EXCEEDED")], "b/y": [an_answer()]}
    expected = "b/y" if len(asked) == 2 else "CONTEXT_LENGTH_EXCEEDED"
    assert await outcome(router) == expected
    assert [attempt.provider for attempt in router.providers.asked] == asked


def opening(text: str) -> list[Any]:
    part = PartStart(index=0, part=Part(text=TextPart()))
    return [start(), provider.StreamChatResponse(part_start=part), delta(text)]


def texts(messages: list[pb.StreamChatResponse]) -> str:
    return "".join(message.part_delta.text or message.raw_frame.text for message in messages)


async def test_the_next_one_that_can_goes_on() -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    router.providers.streams["a/x"] = [events(*opening("Hello "), failed())]
    router.providers.streams["b/y"] = [events(*opening(" wor"), delta("ld"), end())]
    messages, error = await router.stream(max_tokens=100)
    assert error is None
    assert texts(messages) == "Hello world"
    kinds = [message.WhichOneof("event") for message in messages]
    assert kinds == [
        "start",
        "part_start",
        "part_delta",
        "rescue",
        "part_delta",
        "part_delta",
        "part_stop",
        "end",
    ]
    attempt = router.providers.asked[-1]
    assert (attempt.prefill_text, attempt.typed) == ("Hello", True)
    told = messages[-1].end.outcome
    assert (told.model_used, list(told.rescued_from)) == ("b/y", ["a/x"])
    [charge] = router.journal.charges
    first, second = router.journal.decisions[0].attempts
    # The bill of either provider lists its part.
    assert [(each.provider, each.id) for each in charge.attempts] == [("a", "resp_1"), ("b", "resp_1")]
    assert told.cost == format_nano(charge.amount_nano_credits)
    assert told.usage.output_total == first.usage.output_total + a_usage().output_total
    assert (charge.charge_id, charge.model, charge.cost_source) == (second.attempt_id, "b/y", "estimate")
    assert router.reserved == 0
    assert router.spent == charge.amount_nano_credits


async def test_one_rescue_after_the_other() -> None:
    router = build("a/x", "b/y", "c/z", features=PREFILLS)
    router.providers.streams["a/x"] = [events(*opening("one "), failed())]
    router.providers.streams["b/y"] = [events(*opening("two "), failed())]
    router.providers.streams["c/z"] = [events(*opening("three"), end())]
    messages, error = await router.stream(max_tokens=100)
    assert error is None
    assert texts(messages) == "one two three"
    assert list(messages[-1].end.outcome.rescued_from) == ["a/x", "b/y"]
    assert [attempt.prefill_text for attempt in router.providers.asked] == ["", "one", "one two"]
    assert len(router.journal.charges) == 1


async def test_the_same_provider_goes_on_when_it_may_be_asked_again() -> None:
    router = build(features=PREFILLS, retries=1)
    router.providers.streams["a/x"] = [
        events(*opening("one "), failed("STREAM_TRUNCATED", retryable=True)),
        events(*opening("two"), end()),
    ]
    messages, error = await router.stream(max_tokens=100)
    assert error is None
    assert texts(messages) == "one two"


async def test_a_silent_provider_is_not_asked_to_go_on() -> None:
    router = build(features=PREFILLS, retries=1)
    router.providers.streams["a/x"] = [events(*opening("one "), failed("PROVIDER_TIMEOUT", retryable=True))]
    _, error = await router.stream(max_tokens=100)
    assert error is not None
    assert error.reason == "PROVIDER_TIMEOUT"


async def test_who_was_silent_when_asked_to_go_on_is_not_asked_to_begin_again() -> None:
    router = build("a/x", "b/y", features=PREFILLS, breaker={"failures": 100})
    router.providers.streams["a/x"] = [events(*opening("one "), failed())]
    router.providers.streams["b/y"] = [
        events(failed("PROVIDER_TIMEOUT")),
        events(*opening("one two"), end()),
    ]
    request = stream_request()
    request.options.rescue = "restart"
    with pytest.raises(RpcError, match="provoked PROVIDER_FAILED"):
        [_ async for _ in router.client.stream_chat(request, a_call())]
    assert [attempt.provider for attempt in router.providers.asked] == ["a", "b"]


async def test_rescues_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    router = build(features=PREFILLS, retries=1, breaker={"failures": 100})
    broken = events(*opening("x"), failed(retryable=True))
    router.providers.streams["a/x"] = [broken] * 9
    messages, error = await router.stream(max_tokens=100)
    assert error is not None
    assert texts(messages) == "x" * (rescuing.MOST + 1)
    assert len(router.journal.charges) == 1


@pytest.mark.parametrize("reason", ["CONTENT_FILTERED", "PROVIDER_REJECTED"])
async def test_a_refusal_in_mid_stream_is_final(reason: str) -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    router.providers.streams["a/x"] = [events(*opening("x"), failed(reason))]
    _, error = await router.stream()
    assert error is not None
    assert error.reason == reason
    assert len(router.providers.asked) == 1


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("policy", ["continue", "restart"])
async def test_more_than_text_is_not_gone_on_with(raw: bool, policy: str) -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    part = Part(tool_call=ToolCall(id="c", name="f"))
    more: Any = provider.StreamChatResponse(part_start=PartStart(index=1, part=part))
    if raw:
        more = provider.StreamChatResponse(raw_frame=RawFrame(data=b"x", beyond_text=True))
    router.providers.streams["a/x"] = [events(start(raw), more, failed())]
    request = stream_request(RAW if raw else b"")
    request.options.rescue = policy
    with pytest.raises(RpcError, match="provoked"):
        [_ async for _ in router.client.stream_chat(request, a_call())]
    assert len(router.providers.asked) == 1


@pytest.mark.parametrize("raw", [False, True])
async def test_thoughts_alone_can_be_followed_by_anyone(raw: bool) -> None:
    router = build("a/x", "b/y")
    part = Part(reasoning=ReasoningPart(text="hm"))
    thought: Any = provider.StreamChatResponse(part_start=PartStart(index=0, part=part))
    if raw:
        thought = provider.StreamChatResponse(raw_frame=RawFrame(data=b"x", thought=True))
    router.providers.streams["a/x"] = [events(start(raw), thought, failed())]
    router.providers.streams["b/y"] = [events(*opening("hi"), end())]
    messages, error = await router.stream(raw_body=RAW if raw else b"")
    assert error is None
    assert texts(messages) == "hi"
    assert router.providers.asked[-1].prefill_text == ""


async def test_what_is_held_back_is_rescued_unseen() -> None:
    router = build("a/x", "b/y", hold_back=20)
    router.providers.streams["a/x"] = [events(start(), delta("h" * 10), delta("h" * 9), failed())]
    router.providers.streams["b/y"] = [events(start(), delta("fine"), end())]
    messages, error = await router.stream()
    assert error is None
    assert texts(messages) == "fine"
    assert messages[0].start.model_used == "b/y"
    assert not router.journal.decisions[0].attempts[0].HasField("usage")


async def test_nothing_is_promised_before_the_first_token() -> None:
    router = build("a/x", "b/y")
    request = stream_request()
    request.options.rescue = "off"
    empty = [frame(b"data: role\n\n"), delta("")]
    router.providers.streams["a/x"] = [events(start(), *empty, failed())]
    router.providers.streams["b/y"] = [events(start(), delta("fine"), end())]
    messages = [message async for message in router.client.stream_chat(request, a_call())]
    assert texts(messages) == "fine"


async def test_a_caller_who_leaves_while_another_is_asked_pays_the_first_once() -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    asked = asyncio.Event()

    async def never(request: Any, call: Any) -> Any:
        asked.set()
        yield start()
        await asyncio.Event().wait()

    router.providers.streams["a/x"] = [events(*opening("h" * 40), failed())]
    router.providers.streams["b/y"] = [never]
    task = asyncio.create_task(router.stream(max_tokens=100))
    async with bounded():
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await router.settle()
    [charge] = router.journal.charges
    [decision] = router.journal.decisions
    assert (charge.state, charge.model) == ("cancelled", "a/x")
    assert [(attempt.target, attempt.state) for attempt in decision.attempts] == [
        ("a/x", "failed"),
        ("b/y", "cancelled"),
    ]
    assert router.reserved == 0


async def test_a_rescue_that_cannot_be_paid_is_left_out() -> None:
    router = build("a/x", "b/y", features=PREFILLS, default_output_tokens=100)
    router.providers.streams["a/x"] = [events(*opening("h" * 40), failed())]
    _, error = await router.stream(max_cost=450 * OUTPUT_NANO / 1e9, max_tokens=200)
    assert error is not None
    assert error.reason == "PROVIDER_FAILED"
    router.providers.streams["a/x"] = [events(*opening("h" * 40), failed())]
    router.providers.streams["b/y"] = [events(*opening("!"), end())]
    _, error = await router.stream(max_cost=600 * OUTPUT_NANO / 1e9, max_tokens=200)
    assert error is None


async def test_frames_in_place_of_typed_events_are_refused() -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    router.providers.streams["a/x"] = [events(*opening("h"), failed("PROVIDER_OVERLOADED"))]
    router.providers.streams["b/y"] = [events(start(), frame(b"data: 1\n\n", "x"), end())]
    _, error = await router.stream()
    assert error is not None
    assert error.reason == "PROVIDER_OVERLOADED"
    assert router.journal.decisions[0].attempts[1].reason == "PROVIDER_PROTOCOL"


async def test_embeddings_fail_over_too() -> None:
    router = build("a/x", "b/y", breaker={"failures": 1})
    vectors = provider.EmbedResponse(embeddings=[provider.Embedding(values=[1])], usage=a_usage(1, 0))
    router.providers.answers = {"a/x": [failed()], "b/y": [vectors, vectors]}
    for _ in range(2):
        await router.client.embed(pb.EmbedRequest(model="m", inputs=["t"]), a_call())
    assert [asked.provider for asked in router.providers.asked] == ["a", "b", "b"]


async def test_a_delta_without_its_start_goes_on_all_the_same() -> None:
    router = build("a/x", "b/y", features=PREFILLS)
    router.providers.streams["a/x"] = [events(start(), delta("one"), failed())]
    router.providers.streams["b/y"] = [
        events(start(), provider.StreamChatResponse(part_delta=PartDelta(index=3, text=" two")), end())
    ]
    messages, error = await router.stream()
    assert error is None
    assert texts(messages) == "one two"
