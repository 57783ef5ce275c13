"""The official clients accept the upstream of these tests: it is not a straw man."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.support.upstream import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, TOOL_ARGUMENTS, Upstream

MESSAGES: Any = [{"role": "user", "content": "What is the answer?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_openai(upstream: Upstream) -> None:
    with openai.OpenAI(base_url=f"{upstream.url}/v1", api_key="x", max_retries=0) as client:
        whole = client.chat.completions.create(model="gpt-x", messages=MESSAGES)
        assert whole.choices[0].message.content == ANSWER
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
        stream = client.chat.completions.create(
            model="gpt-x", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(words) == ANSWER
        assert chunks[-1].usage is not None
        with client.chat.completions.stream(model="gpt-x", messages=MESSAGES, tools=TOOLS) as events:
            calls = events.get_final_completion().choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].function.arguments == TOOL_ARGUMENTS
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="fail-500", messages=MESSAGES)


def test_anthropic(upstream: Upstream) -> None:
    with anthropic.Anthropic(base_url=upstream.url, api_key="x", max_retries=0) as client:
        whole = client.messages.create(model="claude-y", max_tokens=50, messages=MESSAGES)
        assert whole.content[0].type == "text"
        assert whole.content[0].text == ANSWER
        with client.messages.stream(model="claude-y", max_tokens=50, messages=MESSAGES) as stream:
            final = stream.get_final_message()
        assert final.content[0].type == "text"
        assert final.content[0].text == ANSWER
        assert (final.usage.input_tokens, final.usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
        tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
        called = client.messages.create(model="claude-y", max_tokens=50, messages=MESSAGES, tools=tools)
        assert called.content[0].type == "tool_use"
        assert called.content[0].input == json.loads(TOOL_ARGUMENTS)
        with pytest.raises(anthropic.InternalServerError):
            client.messages.create(model="fail-500", max_tokens=50, messages=MESSAGES)
