"""Thoughts that came with details: who takes them back, and who must not get them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats.details import SEALED, read_detail
from services.providers.adapters.anthropic import AnthropicAdapter
from services.providers.adapters.known import complete
from services.providers.adapters.openai import OpenAIAdapter
from services.providers.http import Upstream
from services.providers.settings import ProviderSettings

DETAIL = {"type": "reasoning.text", "text": "hm", "signature": "c2ln", "format": "anthropic-claude-v1"}


def attempt() -> pb.Attempt:
    """A conversation of a caller of `/v1/messages`, whose last answer was thought about elsewhere."""
    thought = read_detail(DETAIL).reasoning
    block = {"type": "thinking", "thinking": thought.text, "signature": thought.signature}
    said = {"role": "assistant", "content": [block, {"type": "text", "text": "Four."}]}
    messages = [{"role": "user", "content": "2+2?"}, said, {"role": "user", "content": "Sure?"}]
    body = {"model": "alias", "max_tokens": 50, "messages": messages, "own": 1.50}
    form = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
    return pb.Attempt(provider="p", model="m", raw_body=json.dumps(body).encode(), wire_format=form)


def prepared(adapter: Any, asked: pb.Attempt) -> tuple[dict[str, Any], dict[str, str]]:
    ready = adapter._prepare(asked, stream=False)
    return json.loads(ready.body), {entry.name: entry.outcome for entry in ready.receipt}


@pytest.mark.parametrize(("name", "takes"), [("openrouter", True), ("groq", False)])
def test_only_who_gave_them_takes_them_back(name: str, takes: bool) -> None:
    adapter = OpenAIAdapter(name, complete(name, ProviderSettings()), Upstream())
    sent, told = prepared(adapter, attempt())
    assert sent["messages"][1].get("reasoning_details") == ([DETAIL] if takes else None)
    assert (told.get("messages[1].parts[0]") == "dropped") != takes


def test_an_own_body_of_another_vendor_goes_without_them() -> None:
    adapter = AnthropicAdapter("anthropic", complete("anthropic", ProviderSettings()), Upstream())
    asked = attempt()
    assert SEALED in asked.raw_body
    sent, told = prepared(adapter, asked)
    assert sent["messages"][1]["content"] == [{"type": "text", "text": "Four."}]
    assert (sent["model"], sent["max_tokens"], sent["own"]) == ("m", 50, 1.5)
    assert told["messages[1].content[0]"] == "dropped"


def test_a_turn_of_nothing_but_them_is_left_out() -> None:
    """The vendor refuses a turn without content."""
    adapter = AnthropicAdapter("anthropic", complete("anthropic", ProviderSettings()), Upstream())
    asked = attempt()
    body = json.loads(asked.raw_body)
    del body["messages"][1]["content"][1]
    asked.raw_body = json.dumps(body).encode()
    sent, told = prepared(adapter, asked)
    assert [message["content"] for message in sent["messages"]] == ["2+2?", "Sure?"]
    assert told["messages[1].content[0]"] == "dropped"


async def test_they_are_not_counted_either(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = AnthropicAdapter("anthropic", complete("anthropic", ProviderSettings()), Upstream())
    sent = []

    async def ask(url: Any, body: bytes, *_: Any) -> tuple[bytes, dict[str, str]]:
        sent.append(json.loads(body))
        return b'{"input_tokens": 3}', {}

    monkeypatch.setattr(adapter, "ask", ask)
    assert (await adapter.count_tokens(attempt())).input_tokens == 3
    [counted] = sent
    assert counted["messages"][1]["content"] == [{"type": "text", "text": "Four."}]
    assert (counted["model"], counted["own"], "max_tokens" in counted) == ("m", 1.5, False)
