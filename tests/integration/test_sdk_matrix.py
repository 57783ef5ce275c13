"""Every surface over every provider shape, judged by the vendors' own clients in Python and Node.

Through the public port: the whole suite with its real Envoy, started once for all cells. The providers are a
fake that others wrote; what the clients see must not tell which of them answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.support.aimock import running_aimock
from tests.support.node import run_client
from tests.support.suite import Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREETING = "Hello! How can I help you today?"
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "input_tokens": 7, "output_tokens": 9}
FIXTURES = [
    {"match": {"userMessage": "hello"}, "response": {"content": GREETING, "usage": USAGE}},
    {"match": {"userMessage": "and now"}, "response": {"content": "It is 20 degrees.", "usage": USAGE}},
    {
        "match": {"userMessage": "weather"},
        "response": {
            "toolCalls": [
                {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                {"name": "get_time", "arguments": "{}"},
            ],
            "usage": USAGE,
        },
    },
    {
        "match": {"userMessage": "too fast"},
        "response": {
            "error": {"message": "slow down", "type": "rate_limit_error"},
            "status": 429,
            "retryAfter": 3,
        },
    },
]
CALLS = [["get_weather", '{"city":"Paris"}'], ["get_time", "{}"]]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
# An OpenAI-shaped server with responses, one without, and each of the other shapes.
PROVIDERS = ("openai", "plain", "anthropic", "gemini", "bedrock", "ollama")
SURFACES = ("chat", "responses", "messages")
CASES = ("text", "image", "tools", "results", "limited", "unknown")
# The fake ends Gemini's calls with a word that the vendor does not have: they are in the matrix of adapters.
LEFT_OUT = {("gemini", "tools")}
# Whose usage the fake does not tell.
UNTOLD = ("ollama",)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NAMES = ("get_weather", "get_time")


CONFIG = """
[providers.openai]
adapter = "openai"
base_url = "{url}/v1"
api_key = "sk-matrix"
responses = true

[providers.plain]
adapter = "openai"
base_url = "{url}/v1"
api_key = "sk-matrix"
responses = false

[providers.anthropic]
adapter = "anthropic"
base_url = "{url}"
api_key = "sk-matrix"

[providers.gemini]
base_url = "{url}"
api_key = "sk-matrix"

[providers.bedrock]
base_url = "{url}"
region = "us-east-1"
access_key_id = "AKIAMATRIX"
secret_access_key = "sk-matrix"

[providers.ollama]
base_url = "{url}"

[billing.prices]
"""


def config_for(url: str) -> str:
    """Return the configuration: each provider behind a route of its own, refusals told as they come."""
    price = '{ input_per_million = "1.00", output_per_million = "2.00" }'
    prices = (f'"{name}/*" = {price}\n' for name in PROVIDERS)
    routes = (f'\n[models."by-{name}"]\nroute = ["{name}/m"]\nretries = 0\n' for name in PROVIDERS)
    return CONFIG.format(url=url) + "".join([*prices, *routes])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running_aimock(FIXTURES, tmp_path_factory.mktemp("aimock")) as url:
        suite = Suite(tmp_path_factory.mktemp("suite"), config_for(url))
        try:
            await asyncio.to_thread(suite.start)
            yield suite
        finally:
            statuses = await asyncio.to_thread(suite.stop)
        assert statuses == {"all": 0}


def asked(surface: str, case: str, provider: str, stream: bool) -> dict[str, Any]:
    """Return a request as a user of the surface writes it."""
    text = {"limited": "too fast", "tools": "weather", "results": "and now", "unknown": "hello"}.get(
        case, "hello"
    )
    model = "nobody/knows" if case == "unknown" else f"by-{provider}"
    body = {"chat": _chat, "responses": _responses, "messages": _messages}[surface](case, text)
    return {"model": model, **body, **({"stream": True} if stream else {})}


def _chat(case: str, text: str) -> dict[str, Any]:
    content: Any = text
    if case == "image":
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
    messages: list[Any] = [{"role": "user", "content": content}]
    if case == "results":
        calls = [
            {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in CALLS
        ]
        results = [{"role": "tool", "tool_call_id": f"call_{name}", "content": "20"} for name in NAMES]
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "weather"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            *results,
            *messages,
        ]
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES]
    return {"messages": messages, **({"tools": tools} if case in ("tools", "results") else {})}


def _responses(case: str, text: str) -> dict[str, Any]:
    given: Any = text
    if case == "image":
        image = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PIXEL}"}
        given = [{"role": "user", "content": [{"type": "input_text", "text": text}, image]}]
    if case == "results":
        given = [
            {"role": "user", "content": "weather"},
            *(
                {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": arguments}
                for name, arguments in CALLS
            ),
            *({"type": "function_call_output", "call_id": f"call_{name}", "output": "20"} for name in NAMES),
            {"role": "user", "content": text},
        ]
    tools = [{"type": "function", "name": name, "parameters": SCHEMA, "strict": False} for name in NAMES]
    more: dict[str, Any] = {"tools": tools} if case in ("tools", "results") else {}
    return {"instructions": "Be brief.", "input": given, **more}


def _messages(case: str, text: str) -> dict[str, Any]:
    content: Any = text
    if case == "image":
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
    messages: list[Any] = [{"role": "user", "content": content}]
    if case == "results":
        calls = [
            {"type": "tool_use", "id": f"call_{name}", "name": name, "input": json.loads(arguments)}
            for name, arguments in CALLS
        ]
        results = [{"type": "tool_result", "tool_use_id": f"call_{name}", "content": "20"} for name in NAMES]
        messages = [
            {"role": "user", "content": "weather"},
            {"role": "assistant", "content": calls},
            {"role": "user", "content": [*results, {"type": "text", "text": text}]},
        ]
    tools = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    more: dict[str, Any] = {"tools": tools} if case in ("tools", "results") else {}
    return {"system": "Be brief.", "max_tokens": 50, "messages": messages, **more}


FINISHES = {
    "chat": {"tools": "tool_calls", "": "stop"},
    "responses": {"": "completed"},
    "messages": {"tools": "tool_use", "": "end_turn"},
}


def check(surface: str, case: str, provider: str, seen: dict[str, Any], stream: bool) -> None:
    """Fail unless a client saw what `case` is about."""
    if case in ("limited", "unknown"):
        kinds = {"limited": ("RateLimitError", 429), "unknown": ("NotFoundError", 404)}
        assert (seen["error"]["kind"], seen["error"]["status"]) == kinds[case], seen
        return
    assert "error" not in seen, seen
    text = {"tools": "", "results": "It is 20 degrees."}.get(case, GREETING)
    assert seen["text"] == text
    assert [[name, json.loads(args)] for name, args in seen["calls"]] == (
        [[name, json.loads(args)] for name, args in CALLS] if case == "tools" else []
    )
    assert seen["finish"] == FINISHES[surface].get(case, FINISHES[surface][""])
    used_in, used_out = seen["usage"]
    if provider in UNTOLD:
        assert used_in > 7
        assert 5 <= used_out <= 10, "estimated from what was written"
    else:
        assert (used_in, used_out) in {(7, 9), (0, 9)}
    if stream and surface != "messages":
        assert float(seen["cost"]) > 0
    if stream and surface == "responses":
        check_events(seen["types"], case)


def check_events(types: list[str], case: str) -> None:
    """Fail unless the events of a response stand in the order of the real one."""
    assert types[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert types[-1] == "response.completed"
    assert types.count("response.output_item.added") == types.count("response.output_item.done")
    assert types.count("response.content_part.added") == types.count("response.content_part.done")
    delta = "function_call_arguments" if case == "tools" else "output_text"
    assert f"response.{delta}.delta" in types
    assert f"response.{delta}.done" in types


async def ask_chat(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("stream"):
        answer = await client.chat.completions.create(**body)
        [choice] = answer.choices
        calls = [[c.function.name, c.function.arguments] for c in choice.message.tool_calls or ()]  # type: ignore[union-attr]
        usage = answer.usage
        assert usage is not None
        return {
            "text": choice.message.content or "",
            "calls": calls,
            "finish": choice.finish_reason,
            "usage": (usage.prompt_tokens, usage.completion_tokens),
        }
    seen: dict[str, Any] = {"text": "", "finish": None}
    calls = []
    stream = await client.chat.completions.create(**body, stream_options={"include_usage": True})
    async for chunk in stream:
        if chunk.usage:
            seen["usage"] = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            seen["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    calls.append(["", ""])
                calls[call.index][0] += call.function.name or ""
                calls[call.index][1] += call.function.arguments or ""
            if choice.finish_reason:
                seen["finish"] = choice.finish_reason
                seen["cost"] = (chunk.model_extra or {})["omnihub"]["cost"]
    return {**seen, "calls": calls}


def read_response(answer: Any) -> dict[str, Any]:
    calls = [[item.name, item.arguments] for item in answer.output if item.type == "function_call"]
    return {
        "text": answer.output_text,
        "calls": calls,
        "finish": answer.status,
        "usage": (answer.usage.input_tokens, answer.usage.output_tokens),
    }


async def ask_responses(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("stream"):
        return read_response(await client.responses.create(**body))
    wanted = {name: value for name, value in body.items() if name != "stream"}
    types, text = [], ""
    async with client.responses.stream(**wanted) as stream:
        async for event in stream:
            types.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    facts = (final.model_extra or {})["omnihub"]
    return {**read_response(final), "text": text, "types": types, "cost": facts["cost"]}


async def ask_messages(client: anthropic.AsyncAnthropic, body: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: value for name, value in body.items() if name != "stream"}
    text = None
    if body.get("stream"):
        async with client.messages.stream(**wanted) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            answer: Any = await stream.get_final_message()
    else:
        answer = await client.messages.create(**wanted)
    whole = "".join(block.text for block in answer.content if block.type == "text")
    return {
        "text": whole if text is None else text,
        "calls": [[b.name, json.dumps(b.input)] for b in answer.content if b.type == "tool_use"],
        "finish": answer.stop_reason,
        "usage": (answer.usage.input_tokens, answer.usage.output_tokens),
    }


async def ask(client: Any, surface: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask with a client for Python and return what it saw, as the programs for Node do."""
    try:
        return await {"chat": ask_chat, "responses": ask_responses, "messages": ask_messages}[surface](
            client, body
        )
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return {"error": {"kind": type(error).__name__, "status": error.status_code, "message": str(error)}}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_python_clients(stack: Suite, provider: str) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=stack.url, api_key=stack.key, max_retries=0) as claude,
    ):
        cells = [
            (surface, case, stream)
            for surface, case, stream in product(SURFACES, CASES, (False, True))
            if (provider, case) not in LEFT_OUT
        ]
        seen = await asyncio.gather(
            *(
                ask(
                    claude if surface == "messages" else gpt,
                    surface,
                    asked(surface, case, provider, stream),
                )
                for surface, case, stream in cells
            )
        )
    for (surface, case, stream), each in zip(cells, seen, strict=True):
        check(surface, case, provider, each, stream)


@pytest.mark.parametrize(("program", "surfaces"), [("openai", SURFACES[:2]), ("anthropic", SURFACES[2:])])
async def test_node_clients(stack: Suite, program: str, surfaces: tuple[str, ...]) -> None:
    cells = [
        cell
        for cell in product(surfaces, CASES, PROVIDERS, (False, True))
        if (cell[2], cell[1]) not in LEFT_OUT
    ]
    jobs = [
        {"surface": surface, "body": asked(surface, case, provider, stream)}
        for surface, case, provider, stream in cells
    ]
    seen = await run_client(program, stack.url, stack.key, jobs)
    for (surface, case, provider, stream), each in zip(cells, seen, strict=True):
        check(surface, case, provider, each, stream)
