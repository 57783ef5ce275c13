"""Hedge, race, comparison and cache over real HTTP: who is asked, who is hung up on, what is paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.router.v1 import router_service_pb2 as pb

from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.integration.chat.upstreams import FRAMES, PIECES, TEXT
from tests.support.chat_stack import Stack, running_stack
from tests.support.fault_server import (
    FaultServer,
    Head,
    Recorded,
    Send,
    Stall,
    Step,
    Wait,
    answer,
    running_fault_server,
)
from tests.support.router import INPUT_NANO, OUTPUT_NANO, a_call, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORMATS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


class Upstreams:
    """One server for several providers, told apart by the model's name."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    def script(self, request: Recorded) -> list[Step]:
        document = request.json()
        form = "anthropic" if request.path.endswith("/messages") else "openai"
        kind = document["model"]
        if kind == "broken":
            return answer({"error": {"message": "no", "type": "server_error"}}, 500)
        if not document.get("stream"):
            if kind == "silent":
                return [Stall()]
            return answer(whole(form, kind))
        frames = FRAMES[form](PIECES)
        stream = Head(content_type="text/event-stream")
        if kind == "silent":
            return [stream, Stall()]
        if kind == "endless":
            return [stream, *map(Send, frames[:4]), Stall()]
        if kind == "waits":
            return [stream, Wait(self.gate), *map(Send, frames)]
        return [stream, *map(Send, frames)]


def whole(form: str, model: str) -> dict[str, Any]:
    if form == "openai":
        return {
            "id": "chatcmpl-9",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29},
        }
    return {
        "id": "msg_9",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": 9},
    }


COST = 20 * INPUT_NANO + 9 * OUTPUT_NANO


def cost_of(form: str, stream: bool) -> int:
    """Return what an answer costs: OpenAI's frames report 5 tokens of the provider's cache, free ones."""
    return COST - 5 * INPUT_NANO if stream and form == "openai" else COST


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[tuple[FaultServer, Upstreams]]:
    upstreams = Upstreams()

    def configure(server: FaultServer) -> None:
        server.choose = upstreams.script

    async with running_fault_server(configure) as server:
        yield server, upstreams


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    upstream: tuple[FaultServer, Upstreams], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    server, _ = upstream
    providers, routes = {}, {}
    for form in FORMATS:
        base = f"{server.url}/{form}"
        providers[form] = ProviderSettings.model_validate({"adapter": form, "base_url": base})
        for first in ("silent", "broken", "good", "endless"):
            routes[f"{form}-{first}"] = RouteSettings(
                route=[f"{form}/{first}", f"{form}/other", f"{form}/third"], retries=0
            )
    routes["silent-twice"] = RouteSettings(route=["openai/silent", "anthropic/silent"])
    folder = tmp_path_factory.mktemp("chat")
    async with running_stack(folder, providers, routes, baseline_model="openai/good") as stack:
        yield stack


@pytest.fixture
def stack(running: Stack, upstream: tuple[FaultServer, Upstreams]) -> Stack:
    server, upstreams = upstream
    running.router.journal.records.clear()
    server.requests.clear()
    server.hang_ups.clear()
    server.hung_up.clear()
    upstreams.gate.clear()
    return running


def models(server: FaultServer) -> list[str]:
    return [each.json()["model"] for each in server.requests]


def body(model: str, stream: bool = False, text: str = "hi", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"model": model, "max_tokens": 50, "messages": [message], "stream": stream, **more}


async def hung_up(server: FaultServer, times: int) -> None:
    async with asyncio.timeout(60):
        while len(server.hang_ups) < times:
            await server.hung_up.wait()
            server.hung_up.clear()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-omnihub-parallel": "true"},
        {"x-omnihub-strategy": "race"},
        {"x-omnihub-strategy": "hedge", "x-omnihub-hedge-after-ms": "5"},
    ],
    ids=["parallel", "race", "hedge"],
)
async def test_who_is_silent_loses_and_is_hung_up_on(
    stack: Stack,
    upstream: tuple[FaultServer, Upstreams],
    form: str,
    stream: bool,
    headers: dict[str, str],
) -> None:
    server, _ = upstream
    got = await stack.http.post(FORMATS[form], json=body(f"{form}-silent", stream), headers=headers)
    assert got.status_code == 200, got.text
    assert got.headers["x-omnihub-model"] == f"{form}/other"
    await hung_up(server, 1)
    assert sorted(models(server)) == ["other", "silent"]
    await stack.router.settle()
    (decision,) = stack.router.journal.decisions
    assert [(each.target.partition("/")[2], each.lost) for each in decision.attempts] == [
        ("silent", True),
        ("other", False),
    ]
    (charge,) = stack.router.journal.charges
    assert charge.amount_nano_credits == cost_of(form, stream)
    assert stack.router.reserved == 0


@pytest.mark.parametrize("width", [2, 3])
async def test_every_produced_answer_is_charged_once(
    stack: Stack, upstream: tuple[FaultServer, Upstreams], width: int
) -> None:
    server, _ = upstream
    headers = {"x-omnihub-parallel": "true", "x-omnihub-race-width": str(width)}
    for number in range(10):
        got = await stack.http.post(
            FORMATS["openai"], json=body("openai-good", text=f"{number}"), headers=headers
        )
        assert got.status_code == 200
    await stack.router.settle()
    assert len(server.requests) <= 10 * width
    charges = stack.router.journal.charges
    assert len(charges) == len({each.charge_id for each in charges}) == 10
    for decision, charge in zip(stack.router.journal.decisions, charges, strict=True):
        produced = sum(each.HasField("usage") for each in decision.attempts)
        assert charge.amount_nano_credits == COST * produced
        assert charge.lost_nano_credits == COST * (produced - 1)
        assert charge.amount_nano_credits <= Decimal(decision.estimate) * 10**9
    assert stack.router.reserved == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strategy", ["race", "hedge"])
async def test_leaving_hangs_up_on_all_and_leaves_nothing_reserved(
    stack: Stack, upstream: tuple[FaultServer, Upstreams], stream: bool, strategy: str
) -> None:
    server, _ = upstream
    chat = ChatInput(model="silent-twice", messages=[Message(role="user", content="hi")], max_tokens=50)
    options = pb.CallOptions(strategy=strategy, hedge_after_ms=5 if strategy == "hedge" else 0)
    spent = stack.router.spent

    async def ask() -> None:
        if stream:
            request = pb.StreamChatRequest(chat=chat, options=options)
            async for _ in stack.router.client.stream_chat(request, a_call()):
                pass
        else:
            await stack.router.client.chat(pb.ChatRequest(chat=chat, options=options), a_call())

    task = asyncio.create_task(ask())
    async with asyncio.timeout(60):
        while len(server.requests) < 2:
            await server.reached.wait()
            server.reached.clear()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await hung_up(server, 2)
    await until(lambda: stack.router.journal.records)
    await stack.router.settle()
    (decision,) = stack.router.journal.decisions
    assert decision.state == "cancelled"
    assert not stack.router.journal.charges
    assert (stack.router.reserved, stack.router.spent) == (0, spent)


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"x-omnihub-strategy": "guess"}, "failover"),
        ({"x-omnihub-parallel": "maybe"}, "true"),
        ({"x-omnihub-hedge-after-ms": "soon"}, "whole number"),
        ({"x-omnihub-hedge-after-ms": "5"}, "hedge"),
        ({"x-omnihub-race-width": "9"}, "from 2 to 4"),
        ({"x-omnihub-cache": "always"}, "refresh"),
        ({"x-omnihub-cache-ttl": "0"}, "from 1"),
        ({"x-omnihub-session": "x" * 300}, "256"),
        ({"x-omnihub-parallel": "true", "x-omnihub-strategy": "hedge"}, "race"),
    ],
)
async def test_bad_headers_are_named(stack: Stack, headers: dict[str, str], word: str) -> None:
    got = await stack.http.post(FORMATS["openai"], json=body("openai-good"), headers=headers)
    assert got.status_code == 400
    assert word in got.json()["error"]["message"]


async def test_a_session_goes_one_way(stack: Stack, upstream: tuple[FaultServer, Upstreams]) -> None:
    server, _ = upstream
    headers = {"x-omnihub-strategy": "split", "x-omnihub-session": "somebody"}
    for _ in range(5):
        await stack.http.post(FORMATS["openai"], json=body("openai-good"), headers=headers)
    assert len(set(models(server))) == 1
    server.requests.clear()
    for _ in range(30):
        await stack.http.post(
            FORMATS["openai"], json=body("openai-good"), headers={"x-omnihub-strategy": "split"}
        )
    assert len(set(models(server))) == 3


async def test_a_comparison_whose_fast_one_does_not_wait(
    stack: Stack, upstream: tuple[FaultServer, Upstreams]
) -> None:
    _, upstreams = upstream
    for target in ("openai/waits", "anthropic/good", "openai/broken"):
        stack.router.billing.price(target, INPUT_NANO * 1000, OUTPUT_NANO * 1000)
    chat = ChatInput(messages=[Message(role="user", content="hi")], max_tokens=50)
    chat.models.extend(["openai/waits", "anthropic/good", "openai/broken"])
    texts = ["", "", ""]
    ended = []
    stream = stack.router.client.compare_chat(pb.CompareChatRequest(chat=chat), a_call())
    last = None
    async for message in stream:
        last = message
        if not message.HasField("candidate"):
            continue
        index, event = message.candidate.index, message.candidate.event
        texts[index] += event.part_delta.text
        if event.WhichOneof("event") in ("end", "error"):
            ended.append((index, event.WhichOneof("event")))
            if len(ended) == 2:
                upstreams.gate.set()
    assert texts == [TEXT, TEXT, ""]
    assert sorted(ended[:2]) == [(1, "end"), (2, "error")]
    assert ended[2:] == [(0, "end")]
    assert last is not None
    assert [each.state for each in last.end.outcomes] == ["complete", "complete", "upstream_error"]
    await stack.router.settle()
    assert sorted(each.amount_nano_credits for each in stack.router.journal.charges) == [
        cost_of("openai", True),
        COST,
    ]
    assert stack.router.reserved == 0


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("first", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("second", [False, True], ids=["whole", "stream"])
async def test_the_cache_on_both_surfaces(
    stack: Stack, upstream: tuple[FaultServer, Upstreams], form: str, first: bool, second: bool
) -> None:
    server, _ = upstream
    path, headers = FORMATS[form], {"x-omnihub-cache": "on"}
    text = f"cached {form} {first} {second}"
    miss = await stack.http.post(path, json=body(f"{form}-good", first, text), headers=headers)
    assert miss.headers["x-omnihub-cache"] == "miss", miss.text
    # The same request in another order, with another user.
    document = dict(reversed(list(body(f"{form}-good", second, text).items())))
    hit = await stack.http.post(path, content=json.dumps(document, indent=3), headers=headers)
    assert hit.headers["x-omnihub-cache"] == "hit", hit.text
    assert len(server.requests) == 1
    assert text_of(form, hit) == TEXT == text_of(form, miss)
    assert output_tokens(form, hit) == output_tokens(form, miss) == 9
    if first == second == False:  # noqa: E712
        assert hit.content == miss.content
    await stack.router.settle()
    paid, free = stack.router.journal.charges
    assert (paid.cached, free.cached, free.amount_nano_credits) == (False, True, 0)
    assert (free.usage.input_total, free.usage.output_total) == (20, 9)
    assert free.savings_cache_nano_credits == paid.amount_nano_credits == cost_of(form, first)
    other = await stack.http.post(path, json=body(f"{form}-good", second, text))
    assert other.headers["x-omnihub-cache"] == "off"
    if not second:
        assert hit.headers["x-omnihub-cost"] == "0"
        assert Decimal(hit.headers["x-omnihub-savings"]) == Decimal(COST) / 10**9


def output_tokens(form: str, got: Any) -> int:
    """Return what the caller is told about the usage."""
    if not got.headers["content-type"].startswith("text/event-stream"):
        return int(got.json()["usage"]["completion_tokens" if form == "openai" else "output_tokens"])
    lines = [line for line in got.text.splitlines() if line.startswith("data: {")]
    told = [json.loads(line.removeprefix("data: ")).get("omnihub") for line in lines]
    [facts] = filter(None, told)
    return int(facts["usage"]["output_tokens"])


def text_of(form: str, got: Any) -> str:
    if not got.headers["content-type"].startswith("text/event-stream"):
        document = got.json()
        if form == "openai":
            return str(document["choices"][0]["message"]["content"])
        return "".join(block["text"] for block in document["content"])
    text, kinds = "", []
    for line in got.text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        kinds.append(event.get("type"))
        if form == "anthropic":
            text += event.get("delta", {}).get("text", "")
        elif event["choices"]:
            text += event["choices"][0]["delta"].get("content") or ""
    assert got.text.rstrip().endswith("data: [DONE]") if form == "openai" else kinds[-1] == "message_stop"
    return text
