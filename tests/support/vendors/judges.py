"""The vendors' own types as judges of what we send: unknown keys are errors, and nested blocks are read.

Amazon publishes no type for Titan's bodies: theirs are compared with the keys of its documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import ollama as ollama_client
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from google.genai import types
from ollama._types import ChatRequest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import BaseModel, TypeAdapter

from tests.support.botocore_judge import check_request

Json = dict[str, Any]
# Kept alive: blocks are checked by them when they are iterated.
_OPENAI: Any = TypeAdapter(CompletionCreateParamsStreaming)
_RESPONSES: Any = TypeAdapter(ResponseCreateParamsStreaming)
_ANTHROPIC: Any = TypeAdapter(MessageCreateParamsStreaming)
# The client's newest types leave out what only models before them take.
_OLDER = {"temperature", "top_k", "top_p"}
_TITAN = {"maxTokenCount", "temperature", "topP", "stopSequences"}


def _known(body: Json, hints: type) -> Json:
    unknown = body.keys() - get_type_hints(hints).keys()
    assert not unknown, unknown
    return body


def openai(body: bytes) -> Json:
    """Check a chat completion."""
    document = _known(json.loads(body), CompletionCreateParamsStreaming)
    read = _OPENAI.validate_python({"stream": True, **document})
    for message in read["messages"]:
        if message.get("content") is not None and not isinstance(message["content"], str):
            list(message["content"])
        list(message.get("tool_calls") or ())
    list(read.get("tools", ()))
    return document


def responses(body: bytes) -> Json:
    """Check a response."""
    document = _known(json.loads(body), ResponseCreateParamsStreaming)
    read = _RESPONSES.validate_python({"stream": True, **document})
    if not isinstance(read.get("input", ""), str):
        list(read["input"])
    list(read.get("tools", ()))
    return document


def anthropic(body: bytes) -> Json:
    """Check a message."""
    document: Json = json.loads(body)
    named = {name: value for name, value in document.items() if name not in _OLDER}
    read = _ANTHROPIC.validate_python({"stream": True, **_known(named, MessageCreateParamsStreaming)})
    for message in read["messages"]:
        if not isinstance(message["content"], str):
            list(message["content"])
    if not isinstance(read.get("system", ""), str):
        list(read["system"])
    list(read.get("tools", ()))
    return document


def gemini(body: bytes) -> Json:
    """Check a generateContent body."""
    document: Json = json.loads(body)
    for content in [*document["contents"], *filter(None, [document.get("systemInstruction")])]:
        types.Content.model_validate(content)
    for tool in document.get("tools", ()):
        types.Tool.model_validate(tool)
    types.GenerationConfig.model_validate(document.get("generationConfig", {}))
    types.ToolConfig.model_validate(document.get("toolConfig", {}))
    assert document.keys() <= {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig"}
    return document


def titan(body: bytes) -> Json:
    """Check a body of InvokeModel for Titan's text models."""
    document: Json = json.loads(body)
    assert document.keys() <= {"inputText", "textGenerationConfig"}
    assert document.get("textGenerationConfig", {}).keys() <= _TITAN
    return document


def ollama(body: bytes) -> Json:
    """Check a chat of Ollama's own API."""
    document: Json = json.loads(body)
    _strict(ChatRequest, document)
    _strict(ollama_client.Options, document.get("options", {}))
    for message in document["messages"]:
        images = [{"value": image} for image in message.get("images", ())]
        _strict(ollama_client.Message, {**message, "images": images})
    for tool in document.get("tools", ()):
        _strict(ollama_client.Tool, tool)
    return document


def _strict(model: type[BaseModel], value: Json) -> None:
    model.model_validate(value)
    assert not value.keys() - set(model.model_fields)


JUDGES: Mapping[str, Callable[[bytes], Json]] = {
    "openai": openai,
    "openai_responses": responses,
    "groq": openai,
    "openrouter": openai,
    "huggingface": openai,
    "self_hosted": openai,
    "anthropic": anthropic,
    "gemini": gemini,
    "bedrock": check_request,
    "titan": titan,
    "ollama": ollama,
}
