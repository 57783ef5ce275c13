"""Streams cut, stalled, broken by errors and nonsense at every position: no text lost, none doubled.

Through the whole chat path in this process, over real HTTP on both sides.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings, TimeoutSettings
from tests.integration.chat import upstreams
from tests.integration.chat.upstreams import FRAMES, PIECES, TEXT, Case
from tests.support.chat_stack import KEY, Stack, running_stack
from tests.support.fault_server import FaultServer, running_fault_server
from tests.support.node import run_client
from tests.support.router import IDENTITY, a_call

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORMATS = ("openai", "anthropic", "responses")
FAULTS = ("cut", "stall", "error", "malformed", "half", "silent_end")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages", "responses": "/v1/responses"}
# Frames before the first text.
BEFORE = {"openai": 1, "anthropic": 2, "responses": 4}
LIMITS = TimeoutSettings(connect_s=2, first_token_s=2, idle_s=0.6, total_s=20)


def provider_settings(role: str, form: str, url: str, prefill: str) -> ProviderSettings:
    base_url = f"{url}/{role}-{form}"
    adapter = "anthropic" if form == "anthropic" else "openai"
    known = {"adapter": adapter, "base_url": base_url, "api_key": "sk-upstream", "prefill": prefill}
    return ProviderSettings.model_validate({**known, "responses": form == "responses"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[FaultServer]:
    def configure(server: FaultServer) -> None:
        server.choose = upstreams.respond

    async with running_fault_server(configure) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(upstream: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    providers = {}
    for form in FORMATS:
        providers[f"bad-{form}"] = provider_settings("bad", form, upstream.url, "no")
        providers[f"good-{form}"] = provider_settings("good", form, upstream.url, "last_message")
    providers["plain-openai"] = provider_settings("plain", "openai", upstream.url, "no")
    routes = {}
    for first in FORMATS:
        for second in ("good-openai", "good-anthropic", "plain-openai"):
            targets = [f"bad-{first}/m", f"{second}/m"]
            routes[f"{first}+{second}"] = RouteSettings(route=targets, retries=0, timeouts=LIMITS)
    breaker = {"failures": 1000}
    async with running_stack(tmp_path_factory.mktemp("chat"), providers, routes, breaker=breaker) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack, upstream: FaultServer) -> Stack:
    running.router.journal.records.clear()
    upstream.requests.clear()
    upstream.injected.clear()
    return running


class Received:
    """A stream as a client of the format reads it, strictly."""

    def __init__(self, form: str, body: bytes) -> None:
        self.form = form
        self.text = ""
        self.thought = ""
        self.ids: set[str] = set()
        self.models: list[str] = []
        self.error: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {}
        self.complete = False
        self._open: set[int] = set()
        self._begun = 0
        self._sequence = 0
        self._items: list[str] = []
        self._done: list[dict[str, Any]] = []
        self._places: dict[tuple[Any, ...], str] = {}
        roles = 0
        for block in body.decode().strip().split("\n\n"):
            assert not self.complete, "something follows the end"
            assert self.error is None, "something follows the error"
            data = block.partition("data: ")[2]
            if data == "[DONE]":
                self.complete = True
                continue
            document = json.loads(data)
            self.facts = document.get("omnihub") or self.facts
            if form == "responses":
                roles += self._response_event(document)
            elif "error" in document:
                self.error = document["error"]
            elif form == "openai":
                roles += self._chunk(document)
            else:
                roles += self._event(document)
        assert roles == 1, "the answer begins once"

    def _chunk(self, document: dict[str, Any]) -> int:
        self.ids.add(document["id"])
        self.models.append(document["model"])
        delta = document["choices"][0]["delta"] if document["choices"] else {}
        self.text += delta.get("content") or ""
        self.thought += delta.get("reasoning_content") or ""
        return "role" in delta

    def _event(self, document: dict[str, Any]) -> int:
        kind = document["type"]
        if kind == "content_block_start":
            assert document["index"] == self._begun
            assert not self._open
            self._begun += 1
            self._open.add(document["index"])
        elif kind == "content_block_stop":
            self._open.remove(document["index"])
        elif kind == "content_block_delta":
            assert document["index"] in self._open
            self.text += document["delta"].get("text", "")
            self.thought += document["delta"].get("thinking", "")
        elif kind == "message_stop":
            assert not self._open
            self.complete = True
        return kind == "message_start"

    def _response_event(self, document: dict[str, Any]) -> int:
        kind = document["type"]
        if kind == "error":
            self.error = document
            return 0
        assert document["sequence_number"] == self._sequence
        self._sequence += 1
        index = document.get("output_index")
        place = (index, document.get("content_index"), document.get("summary_index"))
        if kind == "response.output_item.added":
            assert index == len(self._items)
            self._items.append(document["item"]["id"])
        elif kind == "response.output_item.done":
            assert document["item"]["id"] == self._items[index]
            assert not self._places, "pieces of it are open"
            self._done.append(document["item"])
        elif kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            self._places[place] = ""
        elif kind in ("response.content_part.done", "response.reasoning_summary_part.done"):
            assert document["part"]["text"] == self._places.pop(place)
        elif kind.endswith("_text.delta"):
            assert document["item_id"] == self._items[index]
            self._places[place] += document["delta"]
            thought = "reasoning" in kind
            self.thought += document["delta"] if thought else ""
            self.text += "" if thought else document["delta"]
        elif kind == "response.completed":
            self.complete = True
            response = document["response"]
            assert response["output"] == self._done
            assert response["metadata"] == {"kept": "yes"} or self.ids != {"resp_first"}
            self.facts = response["omnihub"]
        if "response" in document:
            self.ids.add(document["response"]["id"])
            self.models.append(document["response"]["model"])
        return kind == "response.created"


async def ask(stack: Stack, form: str, second: str, case: Case, policy: str = "", **more: Any) -> Received:
    headers = {"x-omnihub-rescue": policy} if policy else {}
    body = case.body(f"{form}+{second}", **more)
    answer = await stack.http.post(PATHS[form], json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return Received(form, answer.content)


def content_at(form: str, position: int) -> str:
    """Return the text in the first `position` frames."""
    return "".join(PIECES[: max(0, position - BEFORE[form])])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("second", ["good-openai", "good-anthropic"])
@pytest.mark.parametrize("form", FORMATS)
async def test_continue(stack: Stack, upstream: FaultServer, form: str, second: str, fault: str) -> None:
    frames = FRAMES[form](PIECES)
    cases = [Case(fault, position) for position in range(len(frames))]
    rescued = 0
    for case, got in zip(
        cases, await asyncio.gather(*(ask(stack, form, second, case) for case in cases)), strict=True
    ):
        assert (got.text, got.complete, got.error) == (TEXT, True, None), case
        assert len(got.ids) <= 1
        if got.facts.get("rescued_from"):
            rescued += 1
            assert got.facts["rescued_from"] == [f"bad-{form}/m"]
            assert got.facts["model"] == f"{second}/m"
            if form != "anthropic":
                assert got.models[-1] == f"{second}/m"
                assert got.models[0] == "gpt-x-2026"
    # Only before the first token, and once the finish is there, nobody needs to go on.
    assert rescued >= len(PIECES) - 1
    if fault in ("cut", "stall", "half"):
        assert upstream.injected["disconnect" if fault != "stall" else "stall"] == len(cases)
    elif fault != "silent_end":  # That one is nothing but the end of what was sent.
        assert upstream.injected[fault] >= len(PIECES)
    assert len(stack.router.journal.records) == len(cases)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMATS)
async def test_off(stack: Stack, form: str, fault: str) -> None:
    frames = FRAMES[form](PIECES)
    cases = [Case(fault, position) for position in range(len(frames))]
    answers = await asyncio.gather(*(ask(stack, form, "good-openai", case, "off") for case in cases))
    for case, got in zip(cases, answers, strict=True):
        told = content_at(form, case.position)
        if not told:
            assert (got.text, got.complete) == (TEXT, True), case
        elif got.complete:
            assert got.text == TEXT
            assert case.position > len(frames) - upstreams.TAIL[form] - 1
        else:
            assert (got.text, got.error is not None) == (told, True), case


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMATS)
async def test_restart_where_prefill_is_impossible(stack: Stack, form: str, fault: str) -> None:
    frames = FRAMES[form](PIECES)
    cases = [Case(fault, position) for position in range(len(frames))]
    answers = await asyncio.gather(*(ask(stack, form, "plain-openai", case, "restart") for case in cases))
    for case, got in zip(cases, answers, strict=True):
        assert (got.text, got.complete, got.error) == (TEXT, True, None), case


@pytest.mark.parametrize(
    ("key", "header", "rescued"),
    [("off", "", False), ("off", "continue", True), ("restart", "", True), ("restart", "off", False)],
)
async def test_the_key_has_a_policy_of_its_own(stack: Stack, key: str, header: str, rescued: bool) -> None:
    # Nobody here goes on from text, so only `restart` would; the route says `continue`.
    second = "plain-openai" if key == "restart" else "good-openai"
    options = pb.CallOptions(rescue=header)
    request = typed_request(f"openai+{second}", Case("cut", 5))
    request.options.CopyFrom(options)
    call = a_call(replace(IDENTITY, rescue=key))
    seen: list[pb.StreamChatResponse] = []

    async def read() -> None:
        seen.extend([event async for event in stack.router.client.stream_chat(request, call)])

    if rescued:
        await read()
        assert seen[-1].end.outcome.rescued_from == ["bad-openai/m"]
    else:
        with pytest.raises(RpcError):
            await read()


@pytest.mark.parametrize("form", FORMATS)
async def test_continue_without_anyone_who_can(stack: Stack, form: str) -> None:
    got = await ask(stack, form, "plain-openai", Case("error", 7))
    assert got.text == content_at(form, 7)
    assert not got.complete
    assert got.error is not None
    assert "overloaded" in got.error["message"]


@pytest.mark.parametrize("form", FORMATS)
async def test_restart_that_comes_out_differently(stack: Stack, form: str) -> None:
    got = await ask(stack, form, "plain-openai", Case("error", 7, "different"), "restart")
    assert got.text == content_at(form, 7)
    assert got.error is not None
    assert "began differently" in got.error["message"]
    assert "overloaded" in got.error["message"]
    [decision] = stack.router.journal.decisions
    assert (decision.state, decision.reason) == ("truncated", "STREAM_TRUNCATED")
    assert [attempt.rescue for attempt in decision.attempts] == ["", "restart"]


@pytest.mark.parametrize("second", ["good-openai", "good-anthropic"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("policy", ["continue", "restart"])
async def test_prefill_that_is_rejected(stack: Stack, form: str, second: str, policy: str) -> None:
    got = await ask(stack, form, second, Case("error", 7, "rejects"), policy)
    [decision] = stack.router.journal.decisions
    if policy == "restart":
        assert (got.text, got.complete) == (TEXT, True)
        assert [attempt.rescue for attempt in decision.attempts] == ["", "continue", "restart"]
    else:
        assert got.error is not None
        assert "overloaded" in got.error["message"]
        assert decision.reason == "PROVIDER_OVERLOADED"
        assert decision.attempts[1].reason == "PROVIDER_REJECTED"
        assert decision.model_used == f"bad-{form}/m"


@pytest.mark.parametrize("second", ["good-openai", "good-anthropic"])
@pytest.mark.parametrize("form", FORMATS)
async def test_thoughts_are_no_text(stack: Stack, form: str, second: str) -> None:
    frames = FRAMES[form](PIECES, "thought")
    cases = [Case("cut", position, shape="thought") for position in range(2, len(frames))]
    answers = await asyncio.gather(*(ask(stack, form, second, case) for case in cases))
    for case, got in zip(cases, answers, strict=True):
        assert (got.text, got.complete, got.error) == (TEXT, True, None), case
        assert got.thought in ("hm", "")


@pytest.mark.parametrize("policy", ["continue", "restart"])
@pytest.mark.parametrize("form", FORMATS)
async def test_a_tool_call_is_not_gone_on_with(stack: Stack, form: str, policy: str) -> None:
    frames = FRAMES[form](PIECES, "tool")
    ends = {"openai": 1, "anthropic": 2, "responses": 4}
    told = len(PIECES) + BEFORE[form] + ends[form]
    for position in range(told, len(frames) - upstreams.TAIL[form]):
        got = await ask(stack, form, "good-openai", Case("cut", position, shape="tool"), policy)
        assert got.error is not None, position
        assert not got.complete


@pytest.mark.parametrize("form", FORMATS)
async def test_half_a_document_is_not_gone_on_with(stack: Stack, form: str) -> None:
    schema: dict[str, Any] = {"type": "object"}
    wanted: dict[str, Any] = {
        "openai": {"response_format": {"type": "json_object"}},
        "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        "responses": {"text": {"format": {"type": "json_object"}}},
    }[form]
    got = await ask(stack, form, "good-openai", Case("cut", 7), "continue", **wanted)
    assert got.error is not None
    got = await ask(stack, form, "good-openai", Case("cut", 7), "restart", **wanted)
    assert (got.text, got.complete) == (TEXT, True)


async def test_several_choices_are_not_gone_on_with(stack: Stack) -> None:
    got = await ask(stack, "openai", "good-openai", Case("cut", 5), "restart", n=2)
    assert got.error is not None


async def test_money_across_the_seam(stack: Stack) -> None:
    got = await ask(stack, "openai", "good-openai", Case("cut", 4))
    [decision] = stack.router.journal.decisions
    [charge] = stack.router.journal.charges
    first, second = decision.attempts
    assert (first.state, second.state) == ("failed", "complete")
    assert first.usage.estimated
    assert not second.usage.estimated
    assert decision.usage.output_total == first.usage.output_total + second.usage.output_total
    assert float(decision.cost) == pytest.approx(float(first.cost) + float(second.cost))
    assert float(first.cost) > 0
    assert float(second.cost) > 0
    assert charge.amount_nano_credits == round(float(decision.cost) * 1e9)
    assert got.facts["cost"] == decision.cost
    assert charge.charge_id == second.attempt_id
    assert stack.router.reserved == 0


async def test_the_limit_of_the_caller_holds_across_the_seam(stack: Stack, upstream: FaultServer) -> None:
    await ask(stack, "openai", "good-openai", Case("cut", 5), max_tokens=20)
    last = upstream.requests[-1].json()
    assert last["messages"][-1] == {"role": "assistant", "content": content_at("openai", 5)}
    assert 1 <= last["max_tokens"] < 20


async def test_official_clients_read_a_rescued_stream(stack: Stack) -> None:
    case = Case("cut", 5)
    content = case.body("")["messages"][0]["content"]
    messages: Any = [{"role": "user", "content": content}]
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="openai+good-anthropic",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 9
    async with (
        anthropic.AsyncAnthropic(base_url=stack.url, api_key=KEY, max_retries=0) as claude,
        claude.messages.stream(model="anthropic+good-openai", max_tokens=99, messages=messages) as written,
    ):
        message = await written.get_final_message()
    [block] = message.content
    assert block.type == "text"
    assert block.text == TEXT
    assert message.stop_reason == "end_turn"


async def test_the_openai_client_accumulates_a_rescued_response(stack: Stack) -> None:
    for position, shape in ((6, "text"), (8, "text"), (12, "text"), (6, "thought"), (13, "thought")):
        body = Case("cut", position, shape=shape).body("responses+good-anthropic")
        del body["stream"]
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as client:
            numbers, snapshot = [], ""
            async with client.responses.stream(**body) as written:
                async for event in written:
                    numbers.append(event.sequence_number)
                    if event.type == "response.output_text.delta":
                        snapshot = event.snapshot
                final = await written.get_final_response()
        assert numbers == list(range(len(numbers)))
        assert snapshot == final.output_text == TEXT
        assert (final.id, final.model) == ("resp_first", "good-anthropic/m")
        assert final.usage is not None
        assert final.usage.output_tokens > 9
        assert (final.model_extra or {})["omnihub"]["rescued_from"] == ["bad-responses/m"]


async def test_the_openai_client_for_node_accumulates_a_rescued_response(stack: Stack) -> None:
    cases = [Case("cut", 6), Case("cut", 8), Case("cut", 6, shape="thought")]
    jobs = [
        {"surface": "responses", "body": case.body("responses+good-openai", store=False)} for case in cases
    ]
    for seen in await run_client("openai", stack.url, KEY, jobs):
        assert seen["text"] == seen["snapshot"] == TEXT, seen
        assert seen["finish"] == "completed"
        assert seen["sequence"] == list(range(len(seen["types"])))


def typed_request(model: str, case: Case, **options: Any) -> pb.StreamChatRequest:
    content = case.body("")["messages"][0]["content"]
    chat = ChatInput(model=model, messages=[Message(role="user", content=content)])
    return pb.StreamChatRequest(chat=chat, options=pb.CallOptions(**options))


@pytest.mark.parametrize("form", ["openai", "anthropic"])
async def test_typed_callers_are_told_who_goes_on(stack: Stack, form: str) -> None:
    request = typed_request(f"{form}+good-openai", Case("cut", 5))
    events = [event async for event in stack.router.client.stream_chat(request, a_call())]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.count("rescue") == 1
    rescue = events[kinds.index("rescue")].rescue
    assert (rescue.model_used, rescue.reason) == ("good-openai/m", "STREAM_TRUNCATED")
    assert kinds.count("part_start") == 1
    assert "".join(event.part_delta.text for event in events) == TEXT
    assert {event.part_delta.index for event in events if event.HasField("part_delta")} == {0}
    assert list(events[-1].end.outcome.rescued_from) == [f"bad-{form}/m"]


@pytest.mark.parametrize(("shape", "position"), [("text", 6), ("tool", 9)])
async def test_a_caller_who_takes_restarts_begins_anew(stack: Stack, shape: str, position: int) -> None:
    case = Case("cut", position, "different", shape=shape)
    request = typed_request("openai+plain-openai", case, rescue="restart", restart_events=True)
    text = ""
    reason = ""
    async for event in stack.router.client.stream_chat(request, a_call()):
        if event.HasField("restart"):
            text, reason = "", event.restart.reason
            assert event.restart.start.model_used == "plain-openai/m"
        text += event.part_delta.text
    assert (text, reason) == ("Something else.", "STREAM_TRUNCATED")
    [decision] = stack.router.journal.decisions
    assert decision.attempts[1].rescue == "void"
