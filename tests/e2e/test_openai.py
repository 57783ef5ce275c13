"""The official OpenAI client, pointed at the suite."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import openai
import pytest
import pytest_asyncio

from tests.support.deployment import WALL_KEY
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant, a_tenant
from tests.support.upstream import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, TOOL_ARGUMENTS, Upstream

MESSAGES: Any = [{"role": "user", "content": PROMPT}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Says the weather", "parameters": {"type": "object"}},
    }
]


@pytest_asyncio.fixture
async def async_client(suite: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=suite.openai_url, api_key=suite.key, max_retries=0, timeout=20
    ) as running:
        yield running


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("model", ["support-chat", "claude-chat", "wall/gpt-x"])
def test_an_answer(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize("model", ["support-chat", "claude-chat"])
def test_a_stream(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.create(model=model, messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert text_of(chunks) == ANSWER
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    facts = last.model_extra["omnihub"]
    assert facts["state"] == "complete"
    assert facts["model"] == ("claude/claude-y" if model == "claude-chat" else "wall/gpt-x")


@pytest.mark.parametrize("model", ["support-chat", "claude-chat"])
def test_a_stream_with_usage(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert text_of(chunks) == ANSWER
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == OUTPUT_TOKENS


async def test_the_asynchronous_client(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model="support-chat", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    async with await async_client.chat.completions.create(
        model="support-chat", messages=MESSAGES, stream=True
    ) as stream:
        chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == ANSWER


@pytest.mark.parametrize("model", ["support-chat", "claude-chat"])
def test_tools(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, tools=TOOLS)
    calls = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert calls is not None
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments) == json.loads(TOOL_ARGUMENTS)
    if model == "support-chat":
        assert calls[0].function.arguments == TOOL_ARGUMENTS, "not parsed and written again"


def test_tools_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="support-chat", messages=MESSAGES, tools=TOOLS) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == TOOL_ARGUMENTS


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"support-chat", "claude-chat", "failover", "local/echo"} <= set(models)
    facts = models["support-chat"].model_extra["omnihub"]
    assert facts["cost"] == {"input_per_million": "1", "output_per_million": "2"}
    assert facts["route"] == ["wall/gpt-x", "claude/claude-y"]
    assert {"latency_ms", "strengths", "capabilities"} <= set(facts)
    assert client.models.retrieve("support-chat").owned_by == "wall"


def test_embeddings(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="local/hash", input=["one text", "another text", "one text"])
    first, second, third = (each.embedding for each in made.data)
    assert first == third != second
    assert len(first) == 256
    assert made.usage.prompt_tokens > 0


def test_the_local_provider_needs_nothing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="local/echo", messages=[{"role": "user", "content": "Hello"}]
    )
    assert "Hello" in (answer.choices[0].message.content or "")


def test_every_field_reaches_the_provider_byte_for_byte(suite: Suite, upstream: Upstream) -> None:
    marker = uuid4().hex
    messages = f'[ {{"content":"{marker} \\u00e9 é",  "role":"user"}}]'
    unknown = '{"b":1.10, "a":[ 12345678901234567890, null ]}'
    body = (
        f'{{ "model":"support-chat",  "max_tokens": 50, "messages":{messages}, "x_new":{unknown},"seed":  7}}'
    ).encode()
    answer = httpx.post(
        f"{suite.openai_url}/chat/completions",
        content=body,
        headers={"x-api-key": suite.key, "content-type": "application/json"},
        timeout=20,
    )
    assert answer.status_code == 200
    (seen,) = upstream.seen(marker)
    fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
    sent = {**fields.decode(body), "model": msgspec.Raw(b'"gpt-x"')}
    assert list(fields.decode(seen.body).items()) == list(sent.items()), "in the same order too"


def test_unknown_fields_reach_the_provider_and_our_key_does_not(
    client: openai.OpenAI, suite: Suite, upstream: Upstream
) -> None:
    marker = uuid4().hex
    client.chat.completions.create(
        model="support-chat",
        messages=MESSAGES,
        extra_body={"x_marker": marker, "x_nested": {"deep": [1, 2.5, None]}},
    )
    (seen,) = upstream.seen(marker)
    assert seen.document["x_nested"] == {"deep": [1, 2.5, None]}
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert headers["authorization"] == f"Bearer {WALL_KEY}"
    assert suite.key not in json.dumps(headers)
    assert not [name for name in headers if name.startswith("x-omnihub-identity")]


def test_the_headers_of_an_answer(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="support-chat", messages=MESSAGES)
    headers = raw.headers
    assert headers["x-omnihub-model"] == "wall/gpt-x"
    assert headers["x-omnihub-provider"] == "wall"
    assert headers["x-omnihub-cost"] == "0.000025"
    assert headers["x-omnihub-decision-id"].startswith("dec_")
    assert headers["x-omnihub-request-id"].startswith("req_")


class TestErrors:
    """Each with the class, the words and the field that a user of the client looks at; nothing is asked."""

    @pytest.fixture
    def marker(self, upstream: Upstream) -> Any:
        marker = uuid4().hex
        yield marker
        assert not upstream.seen(marker), "a refused request reached the provider"

    def messages(self, marker: str) -> Any:
        return [{"role": "user", "content": marker}]

    def test_a_bad_key(self, client: openai.OpenAI, marker: str) -> None:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.with_options(api_key="omni_sk_wrong").chat.completions.create(
                model="support-chat", messages=self.messages(marker)
            )
        assert raised.value.code == "invalid_api_key"

    def test_no_key(self, suite: Suite, marker: str) -> None:
        body = {"model": "support-chat", "messages": self.messages(marker)}
        answer = httpx.post(f"{suite.openai_url}/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "X-API-Key" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_unknown_model(self, client: openai.OpenAI, marker: str, stream: bool) -> None:
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="suport-chat", messages=self.messages(marker), stream=stream)
        assert raised.value.code == "model_not_found"
        assert "did you mean support-chat" in raised.value.message

    def test_no_credits(self, suite: Suite, client: openai.OpenAI, marker: str) -> None:
        poor = a_tenant(suite, "0")
        with pytest.raises(openai.APIStatusError) as raised:
            client.with_options(api_key=poor.key).chat.completions.create(
                model="support-chat", messages=self.messages(marker)
            )
        assert raised.value.status_code == 402
        assert (raised.value.type, raised.value.code) == ("insufficient_quota", "insufficient_credits")
        assert poor.usage()["total"]["requests"] == 0
        # What is free needs no credits.
        free = client.with_options(api_key=poor.key).chat.completions.create(
            model="local/echo", messages=MESSAGES
        )
        assert free.choices[0].message.content

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            (b'{"model": "support-chat", "messages": [', None),
            (b"", None),
            (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
            (b'{"model": 7, "messages": []}', "model"),
            (b'{"model": "support-chat"}', "messages"),
            (b'{"model": "support-chat", "messages": []}', "messages"),
            (b'{"model": "support-chat", "messages": "hello"}', "messages"),
            (b'{"model": "support-chat", "messages": [{"role": "user", "content": "x"}], "n": "two"}', "n"),
            (
                b'{"model": "support-chat", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
                "stream",
            ),
            (
                b'{"model":"claude-chat","messages":[{"role":"user","content":"x"}],"temperature":"hot"}',
                "temperature",
            ),
        ],
    )
    def test_malformed_bodies_name_the_field(self, suite: Suite, body: bytes, param: str | None) -> None:
        headers = {"authorization": f"Bearer {suite.key}", "content-type": "application/json"}
        answer = httpx.post(f"{suite.openai_url}/chat/completions", content=body, headers=headers)
        error = answer.json()["error"]
        assert answer.status_code == 400, answer.text
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"]

    @pytest.mark.parametrize("size", [950_000, 1_200_000], ids=["over the facade's limit", "over the edge's"])
    def test_an_oversized_body(self, client: openai.OpenAI, marker: str, size: int) -> None:
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(
                model="support-chat", messages=self.messages(marker), user="x" * size
            )
        assert raised.value.status_code == 413
        assert raised.value.code == "body_too_large"

    def test_a_model_the_key_may_not_use(self, tenant: Tenant, client: openai.OpenAI, marker: str) -> None:
        made = tenant.request("POST", "/api/keys", json={"name": "narrow", "allowedModels": ["claude-chat"]})
        narrow = client.with_options(api_key=made.raise_for_status().json()["secret"])
        assert [model.id for model in narrow.models.list()] == ["claude-chat"]
        with pytest.raises(openai.PermissionDeniedError) as raised:
            narrow.chat.completions.create(model="support-chat", messages=self.messages(marker))
        assert raised.value.code == "model_not_allowed"

    def test_a_key_without_the_scope(self, tenant: Tenant, client: openai.OpenAI, marker: str) -> None:
        made = tenant.request("POST", "/api/keys", json={"name": "reader", "scopes": ["usage"]})
        reader = client.with_options(api_key=made.raise_for_status().json()["secret"])
        with pytest.raises(openai.PermissionDeniedError, match="chat"):
            reader.chat.completions.create(model="support-chat", messages=self.messages(marker))

    def test_a_provider_that_always_fails(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="dead/anything", messages=MESSAGES)
        assert raised.value.status_code in (502, 503)


@pytest.mark.parametrize("megabytes", [2, 30])
@pytest.mark.parametrize("key", ["", "omni_sk_wrong"])
async def test_who_still_sends_gets_the_refusal(
    async_client: openai.AsyncOpenAI, upstream: Upstream, key: str, megabytes: int
) -> None:
    """Asynchronous clients lose an answer that comes while they send: what is refused is read first."""
    client = async_client.with_options(api_key=key) if key else async_client
    messages: Any = [{"role": "user", "content": "x" * megabytes * 10**6}]
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(model="support-chat", messages=messages)
    assert refused.value.status_code == (401 if key else 413)
    assert refused.value.code == ("invalid_api_key" if key else "body_too_large")
