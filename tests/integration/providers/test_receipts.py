"""Every parameter of the schemas is accounted for: in the receipt and in what the provider got."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, get_type_hints

import pytest
import pytest_asyncio
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import ChatInput, Message, ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from services.common.rpc import RpcError
from services.providers.settings import ProviderSettings
from tests.support import gemini_wire, ollama_wire, wire, wire_bedrock
from tests.support.fault_server import FaultServer, Recorded, Step, answer, running_fault_server
from tests.support.providers import chat, running_providers
from tests.support.providers import settings as configured

OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
OPENAI_FIELDS = sorted(
    {*get_type_hints(CompletionCreateParamsNonStreaming), *get_type_hints(CompletionCreateParamsStreaming)}
)
ANTHROPIC_FIELDS = sorted(get_type_hints(MessageCreateParamsStreaming))
ADAPTERS = ("openai", "anthropic", "local", "gemini", "bedrock", "ollama")
# Their bodies are of another shape altogether: where a value went, the receipt itself says.
NESTED = ("gemini", "bedrock", "ollama")
_PLACE = re.compile(r"[A-Za-z_]+(\.[A-Za-z_]+)+")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
# A value for each field whose type is checked; the others are passed on unread.
OPENAI_VALUES: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "frequency_penalty": 0.5,
    "max_completion_tokens": 50,
    "max_tokens": 60,
    "n": 2,
    "parallel_tool_calls": True,
    "presence_penalty": 0.5,
    "reasoning_effort": "low",
    "response_format": SCHEMA,
    "seed": 7,
    "stop": ["x"],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 0.5,
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_p": 0.5,
    "user": "u",
}
ANTHROPIC_VALUES: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 2000,
    "metadata": {"user_id": "u"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["x"],
    "stream": False,
    "system": "be brief",
    "temperature": 0.5,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "auto"},
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "top_k": 3,
    "top_p": 0.5,
}
# Names under which a value may go on in another format.
GOES_ON_AS = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_completion_tokens",
    "metadata": "user",
    "output_config": "response_format",
    "parallel_tool_calls": "tool_choice",
    "reasoning_effort": "thinking",
    "response_format": "output_config",
    "safety_identifier": "metadata",
    "stop": "stop_sequences",
    "stop_sequences": "stop",
    "system": "messages",
    "thinking": "reasoning_effort",
    "user": "metadata",
}
pytestmark = pytest.mark.asyncio(loop_scope="module")


def respond(request: Recorded) -> list[Step]:
    if request.path.endswith("/messages"):
        return answer(wire.ANTHROPIC_ANSWER)
    if "generateContent" in request.path:
        return answer(gemini_wire.ANSWER)
    if request.path.endswith("/converse"):
        return answer(wire_bedrock.ANSWER)
    return answer(ollama_wire.ANSWER if request.path.endswith("/api/chat") else wire.OPENAI_ANSWER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[FaultServer]:
    def configure(server: FaultServer) -> None:
        server.choose = respond

    async with running_fault_server(configure) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: FaultServer) -> AsyncIterator[Any]:
    providers: dict[str, ProviderSettings] = {
        name: configured(name, server.url) for name in ADAPTERS if name != "local"
    }
    async with running_providers(**providers) as running:
        yield running


def attempt(adapter: str, form: WireFormat.ValueType, body: dict[str, Any], **more: Any) -> pb.Attempt:
    model = {"local": "echo", "bedrock": "anthropic.claude-x", "gemini": "gemini-3-pro"}.get(adapter, "m-1")
    raw_body = json.dumps(body).encode()
    return pb.Attempt(provider=adapter, model=model, raw_body=raw_body, wire_format=form, **more)


def check(body: dict[str, Any], receipt: dict[str, str], sent: dict[str, Any] | None) -> None:
    """Each field has an entry, and the entry is true."""
    for name in body:
        parts = [outcome for told, outcome in receipt.items() if told.partition("[")[0] == name]
        assert parts, f"nobody says what became of {name}"
        # Where another field goes on under this one's name, the body does not tell.
        if sent is None or other_in(body, name):
            continue
        if parts == ["forwarded"]:
            assert name in sent, name
        elif parts == ["translated"] and name != "stream_options":
            assert {name, GOES_ON_AS.get(name)} & {*sent, "stream", "parallel_tool_calls"}, name
        elif parts == ["dropped"]:
            assert name not in sent, name


def check_nested(body: dict[str, Any], entries: Sequence[ParameterReceipt], sent: dict[str, Any]) -> None:
    """Each field has an entry, and what an entry calls by its place stands there."""
    told = {entry.name.partition("[")[0].partition(".")[0] for entry in entries}
    assert set(body) <= told, f"nobody says what became of {sorted(set(body) - told)}"
    for entry in entries:
        if entry.name != "model" and entry.outcome == "translated" and (place := _PLACE.match(entry.detail)):
            value: Any = sent
            for step in place.group().split("."):
                assert step in value, (entry.name, entry.detail, sent)
                value = value[step]
        if entry.outcome == "forwarded":
            assert entry.name in _names_in(sent), (entry.name, sent)
        elif entry.outcome == "dropped" and entry.name in body:
            assert entry.name not in sent, entry.name


def _names_in(value: Any) -> set[str]:
    """Return the names of all fields, at any depth."""
    if isinstance(value, list):
        return set().union(*map(_names_in, value))
    if not isinstance(value, dict):
        return set()
    return {*value, *set().union(*map(_names_in, value.values()))}


def other_in(body: dict[str, Any], name: str) -> bool:
    return {"max_tokens": "max_completion_tokens", "metadata": "user"}.get(name) in body


def bodies(fields: list[str], values: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    required = [
        name for name in ("model", "messages", "max_tokens") if name == "max_tokens" or name in fields
    ]
    chosen = st.sets(st.sampled_from(fields))
    return chosen.map(
        lambda names: {
            name: values.get(name, {"any": "thing"}) for name in sorted({*names, *required}) if name in fields
        }
    )


BODIES = st.one_of(
    bodies(OPENAI_FIELDS, OPENAI_VALUES).map(lambda body: (OPENAI, body)),
    bodies(ANTHROPIC_FIELDS, ANTHROPIC_VALUES).map(lambda body: (ANTHROPIC, body)),
)


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(asked=BODIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_field_is_accounted_for(
    client: Any, server: FaultServer, adapter: str, asked: tuple[Any, dict[str, Any]]
) -> None:
    form, body = asked
    response = await chat(client, attempt(adapter, form, body))
    if adapter in NESTED:
        check_nested(body, response.receipt, server.requests[-1].json())
        return
    receipt = {entry.name: entry.outcome for entry in response.receipt}
    sent = None if adapter == "local" else server.requests[-1].json()
    check(body, receipt, sent)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("form", "fields", "values"),
    [(OPENAI, OPENAI_FIELDS, OPENAI_VALUES), (ANTHROPIC, ANTHROPIC_FIELDS, ANTHROPIC_VALUES)],
    ids=["openai", "anthropic"],
)
async def test_strict_refuses_before_anything_is_sent(
    client: Any, server: FaultServer, adapter: str, form: Any, fields: list[str], values: dict[str, Any]
) -> None:
    base = {name: values[name] for name in ("model", "messages", "max_tokens")}
    refused = set()
    for name in fields:
        body = {**base, name: values.get(name, {"any": "thing"})}
        loose = await chat(client, attempt(adapter, form, body))
        dropped = [entry.name for entry in loose.receipt if entry.outcome == "dropped"]
        server.requests.clear()
        if not dropped:
            await chat(client, attempt(adapter, form, body, strict=True))
            continue
        refused.add(name)
        with pytest.raises(RpcError) as caught:
            await chat(client, attempt(adapter, form, body, strict=True))
        assert caught.value.reason == "PARAMETER_UNSUPPORTED"
        assert caught.value.violations[0].field in dropped
        assert server.requests == []
    own = {"openai": OPENAI, "anthropic": ANTHROPIC}.get(adapter) == form
    assert bool(refused - {"stream_options"}) != own


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_what_means_the_same_as_none_is_no_drop(client: Any, adapter: str) -> None:
    body = {name: OPENAI_VALUES[name] for name in ("model", "messages", "max_tokens")}
    for choices in (1, 2):
        asked = attempt(adapter, OPENAI, {**body, "n": choices, "logprobs": False})
        told = {entry.name: entry.outcome for entry in (await chat(client, asked)).receipt}
        lost = choices == 2 and adapter != "openai"
        assert (told["n"] == "dropped") == lost
        assert told["logprobs"] != "dropped"


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_typed_callers_get_a_receipt_too(client: Any, adapter: str) -> None:
    chat_input = ChatInput(
        messages=[Message(role="user", content="hi")],
        temperature=1.5,
        top_k=3,
        seed=1,
        stop=["x"],
        max_tokens=9,
        user="u",
        priority="cheap",
        extension_json={"odd": "1", "empty": "null"},
    )
    model = {"local": "echo", "bedrock": "anthropic.claude-x"}.get(adapter, "m")
    response = await chat(client, pb.Attempt(provider=adapter, model=model, chat=chat_input))
    told = {entry.name for entry in response.receipt}
    assert {"messages", "temperature", "top_k", "seed", "stop", "max_tokens", "user", "odd", "empty"} <= told
    assert "priority" not in told


async def test_invented_names_do_not_fill_the_record(client: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    many = {**body, **{f"x{number}{'y' * 100}": 1 for number in range(5000)}}
    for adapter in ADAPTERS:
        response = await chat(client, attempt(adapter, OPENAI, many))
        assert len(response.receipt) <= 200
