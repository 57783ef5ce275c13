"""The response cache: what makes two requests the same, what may be kept, and how it is given again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import Finish, Message, Part, TextPart, Tool, ToolCall, WireFormat
from omnihub.common.v1.stream_pb2 import RawFrame
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.common.rpc.outlet import Outlet, OutletStream, offer
from services.router.cache.caching import AnswerCache
from services.router.domain.cacheable import Uncacheable, key_of, raw_document, typed_document
from services.router.domain.catalogue import Catalogue
from services.router.domain.replay import assemble, disassemble
from services.router.settings import CacheSettings, RouteSettings
from tests.support.fakes import FakeProviders, events
from tests.support.router import (
    IDENTITY,
    OPENAI,
    Router,
    a_call,
    a_chat,
    a_usage,
    an_answer,
    build,
    delta,
    end,
    failed,
    frame,
    start,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(JSON, min_size=1, max_size=3)},
    optional={
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(1, 1000),
        "seed": st.integers(0, 9),
        "stop": st.lists(st.text(max_size=3), max_size=2),
        "response_format": JSON,
    },
)
RELEVANT = ("temperature", "max_tokens", "seed", "stop", "response_format", "messages")


def raw_key(document: Any, organisation_id: str = "org_1", **more: Any) -> str:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    facts: dict[str, Any] = {
        "model": "m",
        "target": "a/x",
        "wire_format": int(OPENAI),
        "headers": {},
        "strict": False,
        **more,
    }
    return key_of(raw_document(body, OPENAI), organisation_id=organisation_id, **facts)


def shuffled(value: Any, order: Any) -> Any:
    if isinstance(value, dict):
        names = order.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], order) for name in names}
    if isinstance(value, list):
        return [shuffled(each, order) for each in value]
    return value


class TestKey:
    @given(document=BODIES, order=st.data(), indent=st.sampled_from([None, 1, 4]))
    def test_order_of_keys_and_blank_space_make_no_difference(
        self, document: Any, order: Any, indent: int | None
    ) -> None:
        other = json.dumps(shuffled(document, order), indent=indent, ensure_ascii=indent is None)
        assert raw_key(document) == raw_key(other.encode("utf-8", "surrogatepass"))

    @given(document=BODIES, name=st.sampled_from(RELEVANT), value=st.integers(2000, 3000))
    def test_a_field_that_influences_the_answer_does(self, document: Any, name: str, value: int) -> None:
        assert raw_key(document) != raw_key({**document, name: value})

    @given(document=BODIES, value=JSON.filter(bool))
    def test_how_to_deliver_it_makes_none(self, document: Any, value: Any) -> None:
        for name in ("user", "metadata", "stream_options", "service_tier"):
            assert raw_key(document) == raw_key({**document, name: value})
        assert raw_key(document) == raw_key({**document, "stream": True, "seed": document.get("seed")})

    @given(document=BODIES)
    def test_it_is_bound_to_organisation_model_target_format_and_headers(self, document: Any) -> None:
        same = raw_key(document)
        assert same != raw_key(document, "org_2")
        for more in (
            {"model": "n"},
            {"target": "a/y"},
            {"wire_format": 2},
            {"headers": {"anthropic-beta": "x"}},
            {"strict": True},
        ):
            assert same != raw_key(document, **more)

    def test_numbers_have_one_form(self) -> None:
        body = b'{"model":"m","messages":["x"],"temperature":%b}'
        assert raw_key(body % b"1") == raw_key(body % b"1.0") == raw_key(body % b"1e0")
        assert raw_key(body % b"1") != raw_key(body % b"1.5")
        assert raw_key(body % b"true") != raw_key(body % b"1")

    def test_typed_requests(self) -> None:
        def key(**fields: Any) -> str:
            return key_of(
                typed_document(a_chat(**fields)),
                organisation_id="org_1",
                model="m",
                target="a/x",
                wire_format=0,
                headers={},
                strict=False,
            )

        same = key(temperature=0.5)
        assert same == key(temperature=0.5, priority="cheap", max_cost=3, user="u", parallel=True)
        assert same != key(temperature=0.6)
        assert same != key(temperature=0.5, text="other")
        one = key(response_schema_json='{"a": 1, "b": 2}')
        assert one == key(response_schema_json='{"b":2,"a":1}')
        tools = [Tool(name="f", parameters_json='{"x": {"type": "string"}, "y": 1}')]
        other = [Tool(name="f", parameters_json='{"y":1,"x":{"type":"string"}}')]
        assert key(tools=tools) == key(tools=other) != key(tools=[Tool(name="g")])
        extended = key(extension_json={"logit_bias": '{"1": 2}', "metadata": "{}"})
        assert extended == key(extension_json={"logit_bias": '{"1":2}'}) != key()


class TestUncacheable:
    @pytest.mark.parametrize(
        "more",
        [
            {"n": 2},
            {"store": True},
            {"logprobs": True},
            {"include": ["message.output_text.logprobs"]},
            {"modalities": ["text", "audio"]},
            {"web_search_options": {}},
            {"tools": [{"type": "web_search"}]},
            {"mcp_servers": [{}]},
        ],
    )
    def test_raw(self, more: dict[str, Any]) -> None:
        with pytest.raises(Uncacheable):
            raw_key({"model": "m", "messages": ["x"], **more})

    @pytest.mark.parametrize("more", [{}, {"store": True}, {"store": False, "background": True}])
    def test_responses(self, more: dict[str, Any]) -> None:
        with pytest.raises(Uncacheable):
            raw_document(json.dumps({"input": "x", **more}).encode(), WireFormat.WIRE_FORMAT_OPENAI_RESPONSES)

    def test_functions_are_no_obstacle(self) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        assert raw_key({"model": "m", "messages": ["x"], "tools": tools})

    def test_bodies_that_are_none(self) -> None:
        for body in (b"[1]", b"nonsense"):
            with pytest.raises(Uncacheable):
                raw_document(body, OPENAI)


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "reasoning"]), st.text(min_size=1, max_size=20)),
        min_size=1,
        max_size=4,
    )
)
def test_an_answer_survives_becoming_a_stream(pieces: list[tuple[str, str]]) -> None:
    message = Message(role="assistant")
    for kind, text in pieces:
        getattr(message.parts.add(), kind).text = text
    assert assemble(disassemble(message)) == message


def request(stream: bool = False, cache: str = "on", ttl_s: int = 0, raw: bytes = b"", **chat: Any) -> Any:
    make = pb.StreamChatRequest if stream else pb.ChatRequest
    message = make(chat=a_chat(**chat), options=pb.CallOptions(cache=cache, cache_ttl_s=ttl_s))
    if raw:
        message.chat.ClearField("messages")
        message.raw_body, message.wire_format = raw, OPENAI
    return message


RAW = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
RAW_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"x","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'
)


def raw_answer() -> provider.ChatResponse:
    return provider.ChatResponse(
        raw_body=RAW_ANSWER, usage=a_usage(), finish=Finish(reason="stop"), response_id="chatcmpl-1"
    )


async def streamed(router: Router, message: Any, **call: Any) -> list[Any]:
    return [each async for each in router.client.stream_chat(message, a_call(**call))]


def text_of(messages: list[Any]) -> str:
    return "".join(each.part_delta.text for each in messages)


class TestGivenAgain:
    async def test_the_second_time_nobody_is_asked_and_nothing_is_paid(self) -> None:
        router = build("a/x", baseline_model="a/x")
        router.providers.answers["a/x"] = [an_answer("once")]
        first = await router.client.chat(request(), a_call())
        await router.settle()
        spent = router.spent
        again = await router.client.chat(request(), a_call())
        await router.settle()
        assert [each.outcome.cache for each in (first, again)] == ["miss", "hit"]
        assert again.output == first.output == "once"
        assert again.response_id == first.response_id
        assert (first.cost, again.cost) == ("0.00002", "0")
        assert len(router.providers.asked) == 1
        assert (router.spent, router.reserved) == (spent, 0)
        outcome = again.outcome
        assert outcome.usage == first.outcome.usage
        assert outcome.cached_from == first.outcome.decision_id
        assert (outcome.savings_estimate, outcome.savings.cache, outcome.savings.routing) == (
            "0.00002",
            "0.00002",
            "0",
        )
        decision = router.journal.decisions[1]
        assert (decision.cache, decision.cost, len(decision.attempts)) == ("hit", "0", 0)
        charge = router.journal.charges[1]
        assert (charge.cached, charge.amount_nano_credits, charge.cost_source) == (True, 0, "cache")
        assert charge.savings_cache_nano_credits == charge.savings_nano_credits == 20_000
        assert charge.usage.output_total == 5

    async def test_it_needs_no_credits(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [an_answer("once")]
        await router.client.chat(request(), a_call())
        await router.settle()
        router.leases._open.clear()
        router.leases._current.clear()
        router.billing.available = 0
        calls = len(router.billing.calls)
        assert (await router.client.chat(request(), a_call())).output == "once"
        assert len(router.billing.calls) == calls
        with pytest.raises(RpcError, match=r"INSUFFICIENT|EXHAUSTED"):
            await router.client.chat(request(text="other"), a_call())

    @pytest.mark.parametrize("first", [False, True], ids=["whole", "stream"])
    @pytest.mark.parametrize("second", [False, True], ids=["whole", "stream"])
    async def test_as_it_is_asked_for(self, first: bool, second: bool) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [an_answer("text of it")]
        router.providers.streams["a/x"] = [events(start(), delta("text "), delta("of it"), end())]

        async def ask(stream: bool) -> tuple[str, Any]:
            if stream:
                messages = await streamed(router, request(stream=True))
                return text_of(messages), messages[-1].end.outcome
            answer = await router.client.chat(request(), a_call())
            return answer.output, answer.outcome

        texts = []
        for stream, cache in ((first, "miss"), (second, "hit")):
            text, outcome = await ask(stream)
            assert (outcome.cache, outcome.state) == (cache, "complete")
            texts.append(text)
        assert texts == ["text of it"] * 2
        assert len(router.providers.asked) == 1

    async def test_a_raw_answer_comes_again_byte_for_byte(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [raw_answer()]
        first = await router.client.chat(request(raw=RAW), a_call())
        spaced = RAW.replace(b",", b" ,\n ")
        again = await router.client.chat(request(raw=spaced), a_call())
        assert again.raw_body == first.raw_body == RAW_ANSWER
        assert again.outcome.cache == "hit"
        messages = await streamed(router, request(stream=True, raw=RAW))
        assert text_of(messages) == "hi"
        assert messages[0].start.cache == "hit"
        assert len(router.providers.asked) == 1

    async def test_a_raw_stream_comes_again_frame_for_frame(self) -> None:
        router = build("a/x")
        chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
        router.providers.streams["a/x"] = [
            events(start(raw=True), frame(chunk, "hi"), end(None, b'{"last":1}'))
        ]
        await streamed(router, request(stream=True, raw=RAW))
        messages = await streamed(router, request(stream=True, raw=RAW))
        assert messages[0].start.wire_format == OPENAI
        assert b"".join(each.raw_frame.data for each in messages) == chunk
        assert list(messages[-1].end.raw_tail.documents) == [b'{"last":1}']
        whole = await router.client.chat(request(raw=RAW), a_call())
        assert (whole.output, whole.outcome.cache) == ("hi", "hit")
        message = request(stream=True, raw=RAW)
        message.options.include_usage = True
        # The frames at hand have no usage chunk, so the surface writes them anew.
        messages = await streamed(router, message)
        assert (text_of(messages), messages[0].start.wire_format) == ("hi", 0)

    async def test_frames_that_pass_without_their_messages_are_kept_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outlet, taken = Outlet(), list[bytes]()
        delta = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
        chunks = [delta % word for word in (b"hi", b"ho")]

        async def passing() -> AsyncGenerator[Any, None]:
            yield start(raw=True)
            yield frame(chunks[0], "hi")
            while not outlet.give(RawFrame(data=chunks[1], text="ho")):  # noqa: ASYNC110 - nobody tells that the reader waits
                await asyncio.sleep(0)
            yield end(None, b'{"last":1}')

        def accept(message: Any) -> bool:
            if isinstance(message, RawFrame):
                taken.append(message.data)
            return isinstance(message, RawFrame)

        monkeypatch.setattr(FakeProviders, "stream_chat", lambda *_: OutletStream(passing(), outlet))
        router = build("a/x")
        stream = router.client.stream_chat(request(stream=True, raw=RAW), a_call())
        offer(stream, accept)
        read = [each.raw_frame.data async for each in stream if each.HasField("raw_frame")]
        assert (read, taken) == (chunks[:1], chunks[1:])
        again = await streamed(router, request(stream=True, raw=RAW))
        assert again[0].start.cache == "hit"
        assert b"".join(each.raw_frame.data for each in again) == b"".join(chunks)

    async def test_it_is_bound_to_the_organisation_and_to_the_allowed_models(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [an_answer("one"), an_answer("two")]
        await router.client.chat(request(), a_call())
        stranger = replace(IDENTITY, organisation_id="org_2")
        answer = await router.client.chat(request(), a_call(stranger))
        assert (answer.output, answer.outcome.cache) == ("two", "miss")
        limited = replace(IDENTITY, allowed_models=("other",))
        with pytest.raises(RpcError, match="MODEL_NOT_ALLOWED"):
            await router.client.chat(request(), a_call(limited))

    async def test_an_answer_of_a_target_that_the_plan_leaves_out_is_not_given(self) -> None:
        router = build("a/x", "b/y")
        router.providers.answers["a/x"] = [failed(), an_answer("allowed")]
        router.providers.answers["b/y"] = [an_answer("fallback")]
        assert (await router.client.chat(request(), a_call())).output == "fallback"
        providers = router.admission.catalogue.providers.values()
        router.admission.catalogue = Catalogue.build({"m": RouteSettings(route=["a/x"])}, providers)
        answer = await router.client.chat(request(), a_call())
        assert (answer.output, answer.outcome.cache) == ("allowed", "miss")

    async def test_refresh_asks_anew_and_replaces(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [an_answer("old"), an_answer("new")]
        await router.client.chat(request(), a_call())
        answer = await router.client.chat(request(cache="refresh"), a_call())
        assert (answer.output, answer.outcome.cache) == ("new", "miss")
        assert (await router.client.chat(request(), a_call())).output == "new"

    async def test_off_is_the_default_and_a_key_or_route_may_turn_it_on(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [an_answer() for _ in range(4)]
        for _ in range(2):
            answer = await router.client.chat(request(cache=""), a_call())
            assert answer.outcome.cache == "off"
        holder = replace(IDENTITY, scopes=frozenset({"chat", "cache"}))
        seen = [(await router.client.chat(request(cache=""), a_call(holder))).outcome.cache for _ in "ab"]
        assert seen == ["miss", "hit"]
        off = await router.client.chat(request(cache="off"), a_call(holder))
        assert off.outcome.cache == "off"

    async def test_what_may_not_be_kept_says_so(self) -> None:
        router = build("a/x")
        router.providers.answers["a/x"] = [raw_answer(), raw_answer()]
        body = RAW[:-1] + b',"store":true}'
        for _ in range(2):
            answer = await router.client.chat(request(raw=body), a_call())
            (receipt,) = answer.outcome.receipt
            assert (answer.outcome.cache, receipt.name) == ("off", "x-omnihub-cache")
            assert "stores" in receipt.detail

    async def test_tool_calls_failures_and_cut_answers_are_not_kept(self) -> None:
        router = build("a/x")
        call = an_answer()
        call.message.parts.append(Part(tool_call=ToolCall(id="1", name="f")))
        filtered = an_answer()
        filtered.finish.reason = "content_filter"
        router.providers.answers["a/x"] = [call, filtered, failed(), an_answer("good")]
        for _ in range(2):
            assert (await router.client.chat(request(), a_call())).outcome.cache == "miss"
        with pytest.raises(RpcError, match="PROVIDER_FAILED"):
            await router.client.chat(request(), a_call())
        assert (await router.client.chat(request(), a_call())).output == "good"

    async def test_a_broken_stream_is_not_kept(self) -> None:
        router = build("a/x")
        router.providers.streams["a/x"] = [
            events(start(), delta("half"), failed("STREAM_TRUNCATED")),
            events(start(), delta("whole"), end()),
        ]
        with pytest.raises(RpcError, match="STREAM_TRUNCATED"):
            await streamed(router, request(stream=True))
        messages = await streamed(router, request(stream=True))
        assert messages[-1].end.outcome.cache == "miss"


class TestBounds:
    def answers(self, router: Router, number: int, text: str = "x") -> None:
        router.providers.answers["a/x"] = [an_answer(text) for _ in range(number)]

    async def test_an_answer_expires(self) -> None:
        router = build("a/x")
        now = [1000.0]
        router.admission.cache = AnswerCache(CacheSettings(), None, lambda: now[0])
        self.answers(router, 2)
        await router.client.chat(request(ttl_s=60), a_call())
        now[0] += 59
        assert (await router.client.chat(request(), a_call())).outcome.cache == "hit"
        now[0] += 1
        assert (await router.client.chat(request(), a_call())).outcome.cache == "miss"

    async def test_the_least_recently_used_goes_first(self) -> None:
        router = build("a/x")
        cache = router.admission.cache = AnswerCache(CacheSettings(total_mb=1, entry_kb=400), None)
        self.answers(router, 5, "x" * 300_000)

        async def ask(text: str) -> str:
            return str((await router.client.chat(request(text=text), a_call())).outcome.cache)

        assert [await ask(text) for text in ("a", "b", "c", "a")] == ["miss", "miss", "miss", "hit"]
        assert await ask("d") == "miss"
        assert cache.size <= 2**20
        assert [await ask("a"), await ask("b")] == ["hit", "miss"]

    async def test_one_that_is_too_large_is_not_kept(self) -> None:
        router = build("a/x")
        router.admission.cache = AnswerCache(CacheSettings(entry_kb=1), None)
        self.answers(router, 2, "x" * 3000)
        router.providers.streams["a/x"] = [events(start(), delta("x" * 3000), end()) for _ in "ab"]
        for _ in range(2):
            assert (await router.client.chat(request(), a_call())).outcome.cache == "miss"
            messages = await streamed(router, request(stream=True))
            assert messages[-1].end.outcome.cache == "miss"

    async def test_without_memory_it_is_off(self) -> None:
        router = build("a/x", cache={"total_mb": 0})
        self.answers(router, 1)
        assert (await router.client.chat(request(), a_call())).outcome.cache == "off"


def test_plain_content_becomes_a_stream_too() -> None:
    (begun, written, _) = list(disassemble(Message(role="assistant", content="hi")))
    assert (begun.part, written.text) == (Part(text=TextPart()), "hi")  # type: ignore[union-attr]
