"""The official Anthropic client, in front of both kinds of provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.support.suite import Suite
from tests.support.tenant import PROMPT
from tests.support.upstream import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, TOOL_ARGUMENTS

MESSAGES: Any = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def claude(suite: Suite) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=suite.url, api_key=suite.key, max_retries=0, timeout=20) as running:
        yield running


@pytest.mark.parametrize("model", ["claude-chat", "support-chat"])
def test_an_answer(claude: anthropic.Anthropic, model: str) -> None:
    answer = claude.messages.create(model=model, max_tokens=50, messages=MESSAGES, system="Be brief.")
    assert [block.text for block in answer.content if block.type == "text"] == [ANSWER]
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize("model", ["claude-chat", "support-chat"])
def test_a_stream(claude: anthropic.Anthropic, model: str) -> None:
    with claude.messages.stream(model=model, max_tokens=50, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == ANSWER
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == OUTPUT_TOKENS


@pytest.mark.parametrize("model", ["claude-chat", "support-chat"])
def test_tools(claude: anthropic.Anthropic, model: str) -> None:
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
    answer = claude.messages.create(model=model, max_tokens=50, messages=MESSAGES, tools=tools)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("weather", json.loads(TOOL_ARGUMENTS))
    assert answer.stop_reason == "tool_use"


def test_models(claude: anthropic.Anthropic) -> None:
    assert "claude-chat" in {model.id for model in claude.models.list()}


def test_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="omni_sk_wrong").messages.create(
            model="claude-chat", max_tokens=50, messages=MESSAGES
        )
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="claude-chatt", max_tokens=50, messages=MESSAGES)
    body: Any = unknown.value.body
    assert body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="claude-chat", max_tokens="many", messages=MESSAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["claude/cut", "wall/cut"])
def test_a_cut_stream_is_an_error(claude: anthropic.Anthropic, model: str) -> None:
    texts: list[str] = []
    # Else the answer would be continued, where the provider can do that.
    headers = {"x-omnihub-rescue": "off"}
    with claude.messages.stream(
        model=model, max_tokens=50, messages=MESSAGES, extra_headers=headers
    ) as stream:
        pieces = iter(stream.text_stream)
        while len(texts) < 3:
            texts.append(next(pieces))
        with pytest.raises(anthropic.APIStatusError) as raised:
            next(pieces)
    assert "".join(texts) == "Forty-two is the"
    body: Any = raised.value.body
    assert body["error"]["type"] == "api_error"
