"""Every vendor through the gateway: what the callers' official clients read, and what nobody may read."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.router.settings import RouteSettings
from tests.support.chat_stack import KEY as CALLERS_KEY
from tests.support.chat_stack import Stack, running_stack
from tests.support.fault_server import FaultServer, Head, Recorded, Send, SharedFaultServer, Step, answer
from tests.support.providers import KEY
from tests.support.router import until
from tests.support.spans import recorded_spans
from tests.support.vendors import TEXT, VENDORS, Ask
from tests.support.vendors.refusals import PAGE
from tests.support.vendors.table import PROMPT, asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
NO_CALLS = ("titan",)
TOOL = {"type": "object", "properties": {}}
ASKED = [{"role": "user", "content": PROMPT}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    listener: SharedFaultServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    providers = {name: vendor.settings(listener.url) for name, vendor in VENDORS.items()}
    breaker: Any = {"failures": 1000, "credential_pause_s": 0.001}
    routes = {
        name: RouteSettings(route=[f"{name}/{vendor.model}"], retries=0, rescue="off")
        for name, vendor in VENDORS.items()
    }
    routes["twice"] = RouteSettings(route=["openai/m", "groq/m"], retries=0)
    folder = tmp_path_factory.mktemp("callers")
    async with running_stack(folder, providers, routes, breaker=breaker) as running:
        yield running


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Traces as they would be sent away."""
    with recorded_spans() as exporter:
        yield exporter


def gpt(stack: Stack) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=CALLERS_KEY, max_retries=0)


def claude(stack: Stack) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=stack.url, api_key=CALLERS_KEY, max_retries=0)


# The responses column is asked by the client for responses, below: chats go to its chat completions.
@asks(1, 2, one_way=True, without=("openai_responses",))
async def test_both_clients_read_its_text(server: FaultServer, stack: Stack, ask: Ask) -> None:
    name = ask.vendor.name
    async with gpt(stack) as chats, claude(stack) as messages:
        server.script = ask.vendor.good(False)
        chat: Any = await chats.chat.completions.create(model=name, messages=ASKED, max_tokens=50)  # type: ignore[arg-type]
        message: Any = await messages.messages.create(model=name, messages=ASKED, max_tokens=50)  # type: ignore[arg-type]
        response: Any = await chats.responses.create(model=name, input=PROMPT, max_output_tokens=50)
        server.script = ask.vendor.good(True)
        async with messages.messages.stream(model=name, messages=ASKED, max_tokens=50) as stream:  # type: ignore[arg-type]
            streamed = await stream.get_final_message()
        chunks: Any = await chats.chat.completions.create(
            model=name,
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        pieces = [chunk async for chunk in chunks]
    assert chat.choices[0].message.content == response.output_text == TEXT
    assert [block.text for block in message.content if block.type == "text"] == [TEXT]
    assert [block.text for block in streamed.content if block.type == "text"] == [TEXT]
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said == TEXT
    assert chat.choices[0].finish_reason == "stop"
    assert message.stop_reason == streamed.stop_reason == "end_turn"
    used = (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert used == ask.vendor.usage
    # Cached tokens are no part of Anthropic's input_tokens.
    cached = (streamed.usage.cache_read_input_tokens or 0) + (streamed.usage.cache_creation_input_tokens or 0)
    assert streamed.usage.input_tokens + cached == ask.vendor.usage[0]
    assert streamed.usage.output_tokens == ask.vendor.usage[1]


@asks(5, 6, one_way=True, without=(*NO_CALLS, "openai_responses"))
async def test_both_clients_read_its_calls(server: FaultServer, stack: Stack, ask: Ask) -> None:
    name, said = ask.vendor.name, ask.vendor.calls
    assert said is not None
    expected = [(call.name, json.loads(call.arguments)) for call in said.calls]
    server.script = ask.vendor.good(True, said)
    tool = {"type": "function", "function": {"name": "f", "parameters": TOOL}}
    async with gpt(stack) as chats, claude(stack) as messages:
        calls: dict[int, list[str]] = {}
        chunks: Any = await chats.chat.completions.create(
            model=name,
            messages=ASKED,
            tools=[tool],
            stream=True,  # type: ignore[arg-type, list-item]
        )
        async for chunk in chunks:
            for choice in chunk.choices:
                for piece in choice.delta.tool_calls or ():
                    call = calls.setdefault(piece.index, ["", ""])
                    call[0] += piece.function.name or ""
                    call[1] += piece.function.arguments or ""
        offered: Any = [{"name": "f", "input_schema": TOOL}]
        async with messages.messages.stream(
            model=name,
            messages=ASKED,
            tools=offered,
            max_tokens=50,  # type: ignore[arg-type]
        ) as stream:
            message = await stream.get_final_message()
    assert [(called, json.loads(arguments)) for called, arguments in calls.values()] == expected
    used = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert used == expected
    assert message.stop_reason == "tool_use"


@asks(1, 2, only=("openai_responses",))
async def test_the_responses_client_reads_its_text(server: FaultServer, stack: Stack, ask: Ask) -> None:
    async with gpt(stack) as chats:
        server.script = ask.vendor.good(False)
        response = await chats.responses.create(model=ask.vendor.name, input=PROMPT)
        server.script = ask.vendor.good(True)
        async with chats.responses.stream(model=ask.vendor.name, input=PROMPT) as stream:
            streamed = await stream.get_final_response()
    assert response.output_text == streamed.output_text == TEXT


def untold(value: Any) -> Any:
    """Return a frame of a vendor that tells no usage."""
    if isinstance(value, dict):
        return {name: untold(inner) for name, inner in value.items() if name != "usage"}
    return [untold(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["openai", "openai_responses", "anthropic"])
async def test_clients_read_a_usage_that_nobody_told(server: FaultServer, stack: Stack, name: str) -> None:
    """Also of a stream that is passed on as it is: who asked for the usage gets it, estimated."""
    vendor = VENDORS[name]
    frames = [untold(frame) for frame in vendor.text.frames]
    if name == "openai":
        frames = [frame for frame in frames if isinstance(frame, bytes) or frame.get("choices")]
    if name == "anthropic":  # Its client needs one at the start, if only of zeros.
        frames[0]["message"]["usage"] = {"input_tokens": 0, "output_tokens": 0}
    server.script = vendor.script(vendor.encode(*frames))
    async with gpt(stack) as chats, claude(stack) as messages:
        if name == "openai":
            chunks: Any = await chats.chat.completions.create(
                model=name,
                messages=ASKED,
                stream=True,
                stream_options={"include_usage": True},  # type: ignore[arg-type]
            )
            *_, last = [chunk async for chunk in chunks]
            assert last.choices == []
            used = (last.usage.prompt_tokens, last.usage.completion_tokens)
        elif name == "openai_responses":
            async with chats.responses.stream(model=name, input=PROMPT) as stream:
                response: Any = await stream.get_final_response()
            used = (response.usage.input_tokens, response.usage.output_tokens)
        else:
            async with messages.messages.stream(model=name, messages=ASKED, max_tokens=50) as events:  # type: ignore[arg-type]
                message = await events.get_final_message()
            used = (message.usage.input_tokens, message.usage.output_tokens)
    assert used[0] > 0
    assert used[1] in (4, 5), "a token is about four characters, or bytes"
    assert stack.router.journal.charges[-1].usage.estimated


PATHS = {"openai": "chat/completions", "openai_responses": "responses", "anthropic": "messages"}


@pytest.mark.parametrize(
    ("surface", "provider"),
    [
        *((surface, provider) for surface in PATHS for provider in ("openai", "anthropic")),
        ("openai_responses", "openai_responses"),
    ],
)
async def test_every_surface_says_that_a_usage_is_estimated(
    server: FaultServer, stack: Stack, surface: str, provider: str
) -> None:
    """A whole answer in a header: the body may be the provider's own bytes. A stream in its last event."""
    vendor = VENDORS[provider]
    prompt = {"input": PROMPT} if surface == "openai_responses" else {"messages": ASKED}
    body = {"model": provider, "max_tokens": 50, **prompt}
    if surface == "openai_responses":
        body["max_output_tokens"] = body.pop("max_tokens")
    for streamed in (False, True):
        server.script = vendor.good(streamed)
        told = await _marks(stack, surface, body | {"stream": streamed})
        frames = [untold(frame) for frame in vendor.text.frames]
        whole = answer(untold(vendor.text.whole))
        server.script = vendor.script(vendor.encode(*frames)) if streamed else whole
        assert (told, await _marks(stack, surface, body | {"stream": streamed})) == ([False], [True])
        assert stack.router.journal.charges[-1].usage.estimated


async def _marks(stack: Stack, surface: str, body: dict[str, Any]) -> list[bool]:
    """Return what an answer says about its usage, each time that it says so."""
    answered = await stack.http.post(f"/v1/{PATHS[surface]}", json=body)
    assert answered.status_code == 200, answered.text
    if not body["stream"]:
        return [answered.headers.get("x-omnihub-estimated") == "true"]
    lines = [line.removeprefix("data: ") for line in answered.text.split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    facts = [event.get("omnihub") or event.get("response", {}).get("omnihub") for event in events]
    return [each["usage"]["estimated"] for each in facts if each]


def faults(ask: Ask) -> list[tuple[str, list[Step]]]:
    """Return fault paths whose answers repeat our key."""
    vendor = ask.vendor
    malformed = b'{"odd": "%b", ' % KEY.encode()
    return [
        *((f"status {each.status}", list(each.script())) for each in vendor.refusals.auth),
        ("page", [Head(502, content_type="text/html"), Send(PAGE)]),
        ("page with status 200", [Head(content_type="text/html"), Send(PAGE)]),
        ("body", [Head(), Send(malformed)]),
        *(
            ("frame", [Head(content_type=vendor.content_type), Send(each)])
            for _, each in vendor.refusals.broken
        ),
        ("wrong frame", [*vendor.script(vendor.begun()), Send(vendor.bad_frame)]),
    ]


def spans_with(spans: InMemorySpanExporter, attribute: str) -> int:
    return sum(attribute in (span.attributes or {}) for span in spans.get_finished_spans())


@asks(19, 32, 33, 39, one_way=True)
async def test_no_key_and_no_prompt_in_logs_errors_or_traces(
    server: FaultServer,
    stack: Stack,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    ask: Ask,
) -> None:
    caplog.set_level(logging.DEBUG)
    path, body = "/v1/chat/completions", {"model": ask.vendor.name, "messages": ASKED, "max_tokens": 50}
    if ask.raw:
        path, body = "/v1/responses", {"model": ask.vendor.name, "input": PROMPT, "max_output_tokens": 50}
    told, kept = "", len(stack.router.journal.decisions)
    for what, script in faults(ask):
        for stream in (False, True):
            server.requests.clear()
            server.script = script
            answered = await stack.http.post(path, json={**body, "stream": stream})
            told += answered.text + str(answered.headers)
            failed = answered.status_code != 200 or '"error"' in answered.text
            assert failed, (what, answered.text)
            assert len(server.requests) == 1, what
    decisions = str(stack.router.journal.decisions[kept:])
    # What a vendor quotes of the prompt goes back to who wrote it, and nowhere else.
    quoted = f"this is wrong: {PROMPT}"
    server.script = answer({"message": quoted, "error": {"message": quoted}}, 400)
    for stream in (False, True):
        answered = await stack.http.post(path, json={**body, "stream": stream})
        assert answered.status_code == 400, answered.text
    assert server.injected["status_400"] >= 2
    asked = 2 * (len(faults(ask)) + 1)
    # Of what was asked of us, and of what that asked of a model.
    await until(lambda: spans_with(spans, "omnihub.outcome") >= asked)
    await until(lambda: spans_with(spans, "gen_ai.operation.name") >= asked)
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for secret in (KEY, PROMPT, CALLERS_KEY):
        for place, text in (("errors", told), ("logs", logged), ("traces", traced), ("records", decisions)):
            assert secret not in text, place


async def test_headers_of_a_failed_attempt_stay_behind(server: FaultServer, stack: Stack) -> None:
    def respond(request: Recorded) -> list[Step]:
        if len(server.requests) == 1:
            marked = {"x-request-id": "of-the-first", "x-vendor": "of-the-first", "retry-after": "0"}
            return list(VENDORS["openai"].refusals.passing[0].script(**marked))
        return list(VENDORS["groq"].good(streamed=False))

    server.choose = respond
    answered = await stack.http.post("/v1/chat/completions", json={"model": "twice", "messages": ASKED})
    assert answered.status_code == 200
    assert len(server.requests) == 2
    assert server.injected["status_500"] == 1
    assert "of-the-first" not in str(answered.headers) + answered.text
    assert answered.headers["x-omnihub-model"] == "groq/m"
    assert "retry-after" not in answered.headers
