"""What only some surfaces have, and what all do when a provider fails, as the vendors' clients see it."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from services.router.settings import RouteSettings
from tests.support import wire
from tests.support.fault_server import FaultServer, answer, running_fault_server, sse, stream
from tests.support.node import run_client
from tests.support.providers import settings
from tests.support.stack import Stack, running_stack

PROVIDERS = ("openai", "plain", "anthropic")
PATHS = {"/v1/responses": "openai", "/v1/chat/completions": "plain", "/v1/messages": "anthropic"}
# Everything but the end.
CUT = {
    "/v1/responses": sse(*wire.RESPONSES_EVENTS[:8], event=True),
    "/v1/chat/completions": sse(*wire.OPENAI_TEXT[:3]),
    "/v1/messages": sse(*wire.ANTHROPIC_EVENTS[:9], event=True),
}
SAID: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def stack(server: FaultServer, tmp_path: Path) -> AsyncIterator[Stack]:
    plain = settings("openai", server.url)
    configured = {
        "openai": plain.model_copy(update={"responses": True}),
        "plain": plain,
        "anthropic": settings("anthropic", server.url),
    }
    routes = {f"by-{name}": RouteSettings(route=[f"{name}/m"], retries=0) for name in PROVIDERS}
    routes["rescued"] = RouteSettings(route=["plain/m", "anthropic/m"], retries=0)
    routes["stateful"] = RouteSettings(route=["anthropic/m", "openai/m"], retries=0)
    async with running_stack(tmp_path, configured, [f"{name}/m" for name in PROVIDERS], **routes) as running:
        yield running


@pytest.fixture
async def gpt(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=stack.key, max_retries=0) as client:
        yield client


async def read_events(stream: Any) -> list[Any]:
    return [event async for event in stream]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_python_clients_never_take_a_cut_stream_for_an_answer(
    server: FaultServer,
    stack: Stack,
    gpt: openai.AsyncOpenAI,
    claude: anthropic.AsyncAnthropic,
    provider: str,
) -> None:
    server.scripts = {path: stream(frames) for path, frames in CUT.items()}
    model = f"by-{provider}"
    chunks = await gpt.chat.completions.create(model=model, messages=SAID, stream=True)
    with pytest.raises(openai.APIError, match="before the answer was complete"):
        await read_events(chunks)
    events = await gpt.responses.create(model=model, input="hi", stream=True)
    with pytest.raises(openai.APIError, match="before the answer was complete") as caught:
        await read_events(events)
    assert caught.value.code == "stream_truncated"
    async with claude.messages.stream(model=model, max_tokens=9, messages=SAID) as message:
        with pytest.raises(anthropic.APIStatusError, match="before the answer was complete"):
            await message.get_final_message()
    assert len(server.requests) == 3, "each met the cut"


async def test_node_clients_never_take_a_cut_stream_for_an_answer(server: FaultServer, stack: Stack) -> None:
    server.scripts = {path: stream(frames) for path, frames in CUT.items()}
    bodies = [{"model": f"by-{provider}", "stream": True} for provider in PROVIDERS]
    jobs = [{"surface": "chat", "body": {**body, "messages": SAID}} for body in bodies]
    jobs += [{"surface": "responses", "body": {**body, "input": "hi"}} for body in bodies]
    more = [{"surface": "messages", "body": {**body, "messages": SAID, "max_tokens": 9}} for body in bodies]
    seen = await run_client("openai", stack.url, stack.key, jobs)
    seen += await run_client("anthropic", stack.url, stack.key, more)
    for each in seen:
        assert "before the answer was complete" in each["error"]["message"]
    assert len(server.requests) == len(seen) == 9, "each met the cut"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_cut_response_on_the_wire(server: FaultServer, stack: Stack, provider: str) -> None:
    server.scripts = {path: stream(frames) for path, frames in CUT.items()}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {stack.key}"}) as http:
        body = {"model": f"by-{provider}", "input": "hi", "stream": True}
        response = await http.post(f"{stack.url}/v1/responses", json=body)
    assert "response.completed" not in response.text
    assert "[DONE]" not in response.text
    *_, last, _ = response.text.split("\n\n")
    name, data = last.split("\n")
    document = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (document["type"], document["code"]) == ("error", "stream_truncated")
    assert document["omnihub"]["state"] == "truncated"
    usage = document["omnihub"]["usage"]
    assert (usage["estimated"], usage["input_tokens"] > 0, usage["output_tokens"] > 0) == (True, True, True)
    numbers = [
        json.loads(line[6:]).get("sequence_number")
        for line in response.text.split("\n")
        if line[:6] == "data: "
    ]
    if provider != "openai":
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_response_says_what_was_asked(
    server: FaultServer, gpt: openai.AsyncOpenAI, provider: str
) -> None:
    repeated = {"instructions": "Be brief.", "tools": [], "metadata": {"k": "v"}, "temperature": 0.5}
    server.scripts = {
        "/v1/responses": answer(wire.openai_response(**repeated)),
        "/v1/chat/completions": answer(wire.OPENAI_ANSWER),
        "/v1/messages": answer(wire.ANTHROPIC_ANSWER),
    }
    asked: Any = {"instructions": "Be brief.", "metadata": {"k": "v"}, "temperature": 0.5}
    answered = await gpt.responses.create(model=f"by-{provider}", input="hi", **asked)
    assert answered.output_text == "Grüße, Welt 🌍"
    assert (answered.object, answered.status, answered.temperature) == ("response", "completed", 0.5)
    assert (answered.instructions, answered.metadata) == ("Be brief.", {"k": "v"})
    assert answered.id.startswith("resp_")


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_answer_that_is_too_long_is_incomplete(
    server: FaultServer, gpt: openai.AsyncOpenAI, provider: str
) -> None:
    why = {"reason": "max_output_tokens"}
    short = wire.openai_response("incomplete", incomplete_details=why, usage=wire.RESPONSES_USAGE)
    last = {"type": "response.incomplete", "response": short, "sequence_number": 8}
    openai_end = [wire.openai_chunk({}, "length"), wire.openai_chunk(usage=wire.OPENAI_USAGE)]
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    anthropic_end = [
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    server.scripts = {
        "/v1/responses": stream(CUT["/v1/responses"] + sse(last, event=True)),
        "/v1/chat/completions": stream(CUT["/v1/chat/completions"] + sse(*openai_end, done=True)),
        "/v1/messages": stream(CUT["/v1/messages"] + sse(*anthropic_end, event=True)),
    }
    stream_of = await gpt.responses.create(model=f"by-{provider}", input="hi", stream=True)
    *_, end = await read_events(stream_of)
    assert end.type == "response.incomplete"
    assert end.response.status == "incomplete"
    assert end.response.incomplete_details.reason == "max_output_tokens"
    assert end.response.model_extra["omnihub"]["state"] == "complete"


async def test_a_response_goes_on_with_another_provider(server: FaultServer, gpt: openai.AsyncOpenAI) -> None:
    more = [wire.ANTHROPIC_EVENTS[0], *wire.ANTHROPIC_EVENTS[6:7], *wire.ANTHROPIC_EVENTS[8:10]]
    end = [*wire.ANTHROPIC_EVENTS[-2:]]
    server.scripts = {
        "/v1/chat/completions": stream(sse(*wire.OPENAI_TEXT[:2])),
        "/v1/messages": stream(sse(*more, *end, event=True)),
    }
    async with gpt.responses.stream(model="rescued", input="hi") as events:
        types = [event.type async for event in events]
        final = await events.get_final_response()
    assert final.output_text == "Grüße, Welt 🌍"
    assert types.count("response.output_item.added") == types.count("response.output_item.done") == 1
    assert [request.path for request in server.requests] == ["/v1/chat/completions", "/v1/messages"]


@pytest.mark.parametrize("provider", ["plain", "anthropic"])
async def test_state_is_refused_by_name(gpt: openai.AsyncOpenAI, provider: str) -> None:
    with pytest.raises(openai.BadRequestError, match="keeps no state") as caught:
        await gpt.responses.create(model=f"by-{provider}", input="hi", previous_response_id="resp_0")
    assert caught.value.param == "previous_response_id"


async def test_state_goes_to_who_has_it(server: FaultServer, stack: Stack, gpt: openai.AsyncOpenAI) -> None:
    """The route's first provider keeps no state, so the one that does is asked."""
    server.scripts = {"/v1/responses": answer(wire.openai_response())}
    answered = await gpt.responses.with_raw_response.create(
        model="stateful", input="hi", previous_response_id="resp_0"
    )
    assert answered.headers["x-omnihub-provider"] == "openai"
    [sent] = server.requests
    assert sent.json()["previous_response_id"] == "resp_0"


async def test_what_the_vendor_remembers_is_paid_for_in_advance(
    server: FaultServer, stack: Stack, gpt: openai.AsyncOpenAI
) -> None:
    """The conversation behind an id may be as long as the model takes: credits for that must be there."""
    server.scripts = {"/v1/responses": answer(wire.openai_response())}
    stack.router.billing.available = 10**6
    assert (await gpt.responses.create(model="by-openai", input="hi", max_output_tokens=9)).status
    with pytest.raises(openai.APIStatusError) as caught:
        await gpt.responses.create(
            model="by-openai", input="hi", max_output_tokens=9, previous_response_id="resp_0"
        )
    assert caught.value.code in ("insufficient_credits", "in_flight_budget_exhausted")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": "hi"}, "model"),
    ({"model": "by-plain"}, "input"),
    ({"model": "by-plain", "input": []}, "input"),
    ({"model": "by-plain", "input": 5}, "input"),
    ({"model": "by-plain", "input": "hi", "max_output_tokens": 0}, "max_output_tokens"),
    ({"model": "by-plain", "input": "hi", "stream": "yes"}, "stream"),
    ({"model": "by-plain", "input": [{"content": "hi"}]}, "input[0].type"),
    ({"model": "by-plain", "input": [{"role": "tool", "content": "hi"}]}, "input[0].role"),
    ({"model": "by-plain", "input": [{"role": "user"}]}, "input[0].content"),
    (
        {"model": "by-plain", "input": [{"role": "user", "content": [{"text": "x"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"model": "by-plain", "input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
    ),
    (
        {"model": "by-plain", "input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0]",
    ),
    ({"model": "by-plain", "input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
    ({"model": "by-plain", "input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"model": "by-plain", "input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ({"model": "by-plain", "input": "hi", "tools": [{"type": "function"}]}, "tools[0].name"),
    ({"model": "by-plain", "input": "hi", "tools": [{"name": "f"}]}, "tools[0].type"),
    ({"model": "by-plain", "input": "hi", "tool_choice": "maybe"}, "tool_choice"),
    ({"model": "by-plain", "input": "hi", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
]


async def test_bad_bodies_are_refused_by_name(server: FaultServer, stack: Stack) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {stack.key}"}) as http:
        for body, field in BAD:
            response = await http.post(f"{stack.url}/v1/responses", json=body)
            assert response.status_code == 400, body
            assert response.json()["error"]["param"] == field, body
    assert server.requests == []


@pytest.mark.parametrize("model", ["by-anthropic", "by-plain"])
async def test_tokens_are_counted_for_nothing(
    server: FaultServer, stack: Stack, claude: anthropic.AsyncAnthropic, model: str
) -> None:
    server.scripts = {"/v1/messages/count_tokens": answer({"input_tokens": 42})}
    response = await claude.messages.with_raw_response.count_tokens(
        model=model, messages=SAID, tools=[{"name": "f", "input_schema": {"type": "object"}}]
    )
    counted = (await response.parse()).input_tokens
    estimated = model == "by-plain"
    assert (counted == 42) != estimated
    assert 0 < counted < 100
    assert response.headers.get("x-omnihub-estimated") == ("true" if estimated else None)
    assert response.headers["x-omnihub-model"] == f"{model.removeprefix('by-')}/m"
    assert stack.router.billing.leases == {}
    assert stack.router.journal.records == []


async def test_counting_goes_on_to_the_next_provider(
    server: FaultServer, claude: anthropic.AsyncAnthropic
) -> None:
    server.script = answer(
        {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, status=529
    )
    counted = await claude.messages.with_raw_response.count_tokens(model="stateful", messages=SAID)
    await counted.parse()
    assert counted.headers["x-omnihub-provider"] == "openai"
    assert server.injected["status_529"] == 1
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.count_tokens(model="by-anthropic", messages=SAID)
    assert caught.value.status_code >= 500


async def test_bad_counts_are_refused_by_name(stack: Stack, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.count_tokens(model="nobody/knows", messages=SAID)
    async with httpx.AsyncClient(headers={"x-api-key": stack.key}) as http:
        for body, field in (({"messages": SAID}, "model"), ({"model": "by-plain"}, "messages")):
            response = await http.post(f"{stack.url}/v1/messages/count_tokens", json=body)
            assert response.status_code == 400
            assert field in response.json()["error"]["message"]
        response = await http.post(f"{stack.url}/v1/messages/count_tokens", content=b"{")
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_models_are_listed_for_both_clients(
    stack: Stack, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    names = {"by-openai", "by-plain", "by-anthropic", "rescued", "stateful"}
    assert {model.id async for model in gpt.models.list()} == names
    assert {model.id async for model in claude.models.list()} == names
    found = await claude.models.retrieve("by-plain")
    assert (found.type, found.display_name) == ("model", "by-plain")


async def test_node_clients_count_list_and_embed(server: FaultServer, stack: Stack) -> None:
    packed = [base64.b64encode(struct.pack("<2f", number, 0.5)).decode() for number in (0, 1)]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(packed)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    server.scripts = {
        "/v1/messages/count_tokens": answer({"input_tokens": 42}),
        "/v1/embeddings": answer({"object": "list", "model": "m", "data": data, "usage": usage}),
    }
    listing: dict[str, Any] = {"surface": "models", "body": {}}
    embedding = {"surface": "embeddings", "body": {"model": "by-plain", "input": ["a", "b"]}}
    counting = {"surface": "count", "body": {"model": "by-anthropic", "messages": SAID}}
    listed, made = await run_client("openai", stack.url, stack.key, [listing, embedding])
    listed_too, counted = await run_client("anthropic", stack.url, stack.key, [listing, counting])
    names = {"by-openai", "by-plain", "by-anthropic", "rescued", "stateful"}
    assert set(listed["models"]) == set(listed_too["models"]) == names
    assert made == {"vectors": [[0, 0.5], [1, 0.5]], "used": 7}
    assert counted == {"count": 42}
    assert {request.path for request in server.requests} == server.scripts.keys()
