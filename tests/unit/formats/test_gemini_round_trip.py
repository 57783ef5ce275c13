"""A generateContent body read and written again keeps every field, unknown ones too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.formats import anthropic_messages, gemini, openai_chat
from services.formats.errors import FormatError
from tests.unit.formats.test_round_trip import (
    QUICK,
    anthropic_request,
    data,
    filled,
    json_value,
    just,
    openai_request,
    record,
    schema,
    text,
)

signature = {"thoughtSignature": filled}
inline = record(
    {
        "mimeType": st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf", "text/plain"]),
        "data": data,
    },
    {"displayName": filled},
)
part = st.one_of(
    record({"text": text}, {"thought": st.booleans(), **signature}),
    record({"inlineData": inline | record({"data": just("no base64!")})}, {"mediaResolution": json_value}),
    record(
        {
            "fileData": record({"fileUri": text}, {"mimeType": just("video/mp4")})
            | record({"mimeType": filled})
        },
        {"videoMetadata": json_value},
    ),
    record(
        {"functionCall": record({"name": text}, {"id": text, "args": st.dictionaries(text, json_value)})},
        signature,
    ),
    record(
        {
            "functionResponse": record(
                {"name": filled, "response": st.dictionaries(text, json_value)},
                {
                    "id": filled,
                    "willContinue": st.booleans(),
                    "parts": st.lists(record({"inlineData": inline}), max_size=2),
                },
            )
        }
    ),
    record({"executableCode": json_value}),
    record({}),
)
content = record(
    {"parts": st.lists(part, max_size=4)}, {"role": st.sampled_from(["user", "model", "function"])}
)
function = record(
    {"name": filled},
    {
        "description": text,
        "parameters": schema,
        "parametersJsonSchema": schema,
        "response": schema,
        "behavior": filled,
    },
)
tool = st.one_of(
    record({"functionDeclarations": st.lists(function, max_size=2)}),
    st.fixed_dictionaries({"functionDeclarations": st.lists(function, min_size=1, max_size=2)}),
    st.fixed_dictionaries({"googleSearch": json_value}),
)
whole = st.integers(-(2**31), 2**33)
config = record(
    {},
    {
        "temperature": st.none() | st.floats(0, 2),
        "topP": st.floats(0, 1),
        "topK": whole | st.floats(0, 99),
        "seed": whole,
        "maxOutputTokens": whole,
        "stopSequences": st.lists(text, max_size=2),
        "candidateCount": whole,
        "responseMimeType": filled,
        "responseJsonSchema": schema,
        "responseSchema": schema,
        "thinkingConfig": st.sampled_from(
            [{"thinkingBudget": 4096}, {"thinkingLevel": "HIGH"}, {"thinkingBudget": -1}, {}]
        ),
        "speechConfig": json_value,
    },
)
calling = record(
    {"mode": st.sampled_from(["AUTO", "ANY", "NONE", "VALIDATED"])},
    {"allowedFunctionNames": st.lists(filled, max_size=2)},
)
gemini_request = record(
    {"contents": st.lists(content, min_size=1, max_size=4)},
    {
        "systemInstruction": record({"parts": st.lists(part, max_size=2)}, {"role": filled}),
        "generationConfig": config,
        "tools": st.lists(tool, max_size=3),
        "toolConfig": record({}, {"functionCallingConfig": calling, "retrievalConfig": json_value}),
        "safetySettings": json_value,
        "cachedContent": filled,
        "labels": json_value,
    },
)


@pytest.mark.matrix(row=12, adapter="gemini")
@QUICK
@given(gemini_request)
def test_requests(body: dict) -> None:
    chat = gemini.read_request(json.dumps(body).encode())
    written, receipt = gemini.write_request(chat, "m")
    assert json.loads(written) == body
    assert not [entry.name for entry in receipt if entry.outcome == "dropped"]


def account(chat_format: object, body: dict, aliases: dict[str, str], apart: set[str]) -> None:
    """Check that whatever was sent is written, or named as dropped, or refused with the place named."""
    chat = chat_format.read_request(json.dumps({"model": "m", **body}).encode())  # type: ignore[attr-defined]
    try:
        written, receipt = gemini.write_request(chat, "gemini-3-pro", own=False)
    except FormatError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.reason in {"PARAMETER_UNSUPPORTED", "INVALID_ARGUMENT"}
        assert refused.field.startswith("messages[")
        return
    json.loads(written)
    named = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    for name, value in body.items():
        if value not in (None, "", [], {}, {"user_id": None}) and name not in apart:
            assert {name, aliases.get(name, name)} & named, name


@QUICK
@given(openai_request)
def test_openai_requests_are_accounted_for(body: dict) -> None:
    account(openai_chat, body, {"max_completion_tokens": "max_tokens"}, {"messages"})


@QUICK
@given(anthropic_request)
def test_anthropic_requests_are_accounted_for(body: dict) -> None:
    aliases = {
        "stop_sequences": "stop",
        "metadata": "user",
        "thinking": "reasoning_effort",
        "output_config": "response_format",
    }
    account(anthropic_messages, body, aliases, {"messages", "system"})
