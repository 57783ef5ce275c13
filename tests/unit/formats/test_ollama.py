"""What becomes of conversations on their way to Ollama, and of its answers on their way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from omnihub.common.v1.chat_pb2 import ChatInput, Message, Part

from services.formats import anthropic_messages, ollama, openai_chat
from services.formats.errors import FormatError
from tests.support import ollama_wire as wire
from tests.support.matrix import cells
from tests.unit.formats.test_round_trip import QUICK, anthropic_request, openai_request
from tests.unit.formats.test_translation import FULL_OPENAI, PIXEL

PREFIX = f"call_{7:032x}"
# A text document instead of a PDF, and bytes instead of a URL.
TEXT_FILE = {
    "type": "file",
    "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,R3LDvMOfZQ=="},
}
PICTURE = {"type": "image_url", "image_url": {"url": PIXEL}}
MESSAGES = [*FULL_OPENAI["messages"]]
MESSAGES[2] = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE, TEXT_FILE]}
FULL = {**FULL_OPENAI, "messages": MESSAGES}


def translate(
    body: dict[str, Any], model: str = "llama-x", **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    chat = openai_chat.read_request(json.dumps({**body, **changes}).encode())
    written, receipt = ollama.write_request(chat, model, False)
    return json.loads(written), {entry.name: entry.outcome for entry in receipt}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content)}]}


HI = {"type": "text", "text": "hi"}


@pytest.mark.parametrize("adapter", cells(12, "ollama"))
def test_full_request(adapter: str) -> None:
    extra = {
        "seed": 5,
        "top_k": 4,
        "frequency_penalty": 0.5,
        "keep_alive": "5m",
        "options": {"num_ctx": 8192},
    }
    body, receipt = translate(FULL, **extra)
    assert body.keys() == {"model", "messages", "stream", "tools", "options", "format", "keep_alive"}
    assert body["options"] == {
        "temperature": 1.5,
        "top_p": 0.5,
        "top_k": 4,
        "seed": 5,
        "frequency_penalty": 0.5,
        "stop": ["END"],
        "num_predict": 3000,
        "num_ctx": 8192,
    }
    assert body["stream"] is False
    assert body["tools"][1]["function"] == {
        "name": "wait",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
    dropped = {name for name, outcome in receipt.items() if outcome == "dropped"}
    assert dropped == {"tool_choice", "parallel_tool_calls", "user"}


@pytest.mark.parametrize("adapter", cells(10, "ollama"))
def test_instructions_stay_in_place(adapter: str) -> None:
    body, receipt = translate(FULL)
    assert body["messages"][:2] == [
        {"role": "system", "content": "Be kind."},
        {"role": "system", "content": "Be short."},
    ]
    assert receipt["messages[1].role"] == "translated"


@pytest.mark.parametrize("adapter", cells(9, "ollama"))
def test_media(adapter: str) -> None:
    body, _ = translate(FULL)
    assert body["messages"][2] == {
        "role": "user",
        "content": "What is this?\nGrüße",
        "images": ["iVBORw0KGgo="],
    }
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    linked = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    paper = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg=="}}
    broken = {"type": "file", "file": {"file_data": "data:text/plain;base64,//8="}}
    for part in (sound, linked, paper, broken):
        with pytest.raises(FormatError) as caught:
            translate(user(HI, part))
        assert (caught.value.reason, caught.value.field) == (
            "PARAMETER_UNSUPPORTED",
            "messages[0].content[1]",
        )


@pytest.mark.parametrize("adapter", cells(7, "ollama"))
def test_calls_and_results(adapter: str) -> None:
    body, _ = translate(FULL)
    assert body["messages"][3:] == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"function": {"name": "look", "arguments": {"at": 1.0}}},
                {"function": {"name": "look", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_name": "look", "content": "a cat"},
        {"role": "tool", "tool_name": "look", "content": "a dog"},
        {"role": "user", "content": "And now?"},
    ]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": [image]}
    anthropic = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [result, HI]}]}
    chat = anthropic_messages.read_request(json.dumps(anthropic).encode())
    written, receipt = ollama.write_request(chat, "m", True)
    assert json.loads(written)["messages"] == [
        {"role": "tool", "content": "", "images": ["iVBORw0KGgo="]},
        {"role": "user", "content": "hi"},
    ]
    assert ("messages[0].is_error", "translated") in [(entry.name, entry.outcome) for entry in receipt]


@pytest.mark.parametrize("adapter", cells(11, "ollama"))
def test_structured_output(adapter: str) -> None:
    body, _ = translate(FULL)
    assert body["format"] == {"type": "object"}
    body, receipt = translate(user(HI), response_format={"type": "json_object"})
    assert body["format"] == "json"
    assert receipt["response_format"] == "translated"


@pytest.mark.parametrize(
    ("model", "effort", "think"),
    [("qwen3", "none", False), ("qwen3", "high", True), ("gpt-oss:20b", "minimal", "low")],
)
def test_reasoning_effort(model: str, effort: str, think: object) -> None:
    body, receipt = translate(user(HI), model, reasoning_effort=effort)
    assert body["think"] == think
    assert receipt["reasoning_effort"] == "translated"


def test_no_tools_when_none_may_be_called() -> None:
    body, receipt = translate(FULL, tool_choice="none")
    assert "tools" not in body
    assert receipt["tool_choice"] == "translated"


def test_the_platforms_limit_and_the_callers() -> None:
    chat = ChatInput(messages=[Message(role="user", content="x")])
    assert json.loads(ollama.write_request(chat, "m", True, output_cap=7)[0])["options"] == {"num_predict": 7}
    chat.max_tokens = 3
    assert json.loads(ollama.write_request(chat, "m", True, output_cap=7)[0])["options"] == {"num_predict": 3}


@pytest.mark.parametrize("adapter", cells(36, "ollama"))
def test_arguments_that_are_no_object_are_flagged(adapter: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[broken"}}
    body, receipt = translate(FULL, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert body["messages"][0]["tool_calls"][0]["function"]["arguments"] == {"arguments": "[broken"}
    assert receipt["messages[0].content[0].arguments"] == "translated"


def test_thoughts_of_others_are_dropped() -> None:
    thought = Part()
    thought.reasoning.text = "hm"
    chat = ChatInput(messages=[Message(role="assistant", parts=[thought])])
    _, receipt = ollama.write_request(chat, "m", False)
    assert ("messages[0].content[0]", "dropped") in [(entry.name, entry.outcome) for entry in receipt]


def account(chat_format: Any, body: dict, aliases: dict[str, str], apart: set[str]) -> None:
    """Check that whatever was sent is written, or named as dropped, or refused with the place named."""
    chat = chat_format.read_request(json.dumps({"model": "m", **body}).encode())
    try:
        written, receipt = ollama.write_request(chat, "m", False)
    except FormatError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.reason == "PARAMETER_UNSUPPORTED"
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
    aliases = {"stop_sequences": "stop", "metadata": "user", "thinking": "reasoning_effort"}
    aliases["output_config"] = "response_format"
    account(anthropic_messages, body, aliases, {"messages", "system"})


# Answers.


def reading(*documents: dict[str, Any]) -> tuple[ollama.StreamReader, list[Any]]:
    reader = ollama.StreamReader(PREFIX)
    events = [event for document in documents for event in reader.read(b"", json.dumps(document).encode())]
    return reader, events + reader.finish()


@pytest.mark.parametrize("adapter", cells(5, "ollama"))
def test_calls_get_ids_and_their_own_finish(adapter: str) -> None:
    answer = ollama.read_response(json.dumps(wire.TOOL_ANSWER).encode(), PREFIX)
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    assert [(call.id, call.name, call.arguments_json) for call in calls] == [
        (f"{PREFIX}_0", "look", '{"at": 1.0}'),
        (f"{PREFIX}_1", "look", '{"at": 2}'),
        (f"{PREFIX}_2", "wait", "{}"),
    ]
    assert (answer.finish.reason, answer.finish.raw) == ("tool_calls", "stop")
    reader, events = reading(*wire.TOOL_LINES)
    assert reader.progress.finish == answer.finish
    started = [
        event.part.tool_call
        for event in events
        if hasattr(event, "part") and event.part.HasField("tool_call")
    ]
    assert [(call.id, call.name) for call in started] == [(call.id, call.name) for call in calls]
    named = ollama.read_response(
        json.dumps(wire.line(wire.DONE, tool_calls=[{"id": "own", **wire.call("f", {})}])).encode(), PREFIX
    )
    assert named.message.parts[0].tool_call.id == "own"


@pytest.mark.parametrize("adapter", cells(16, "ollama"))
def test_every_finish_reason(adapter: str) -> None:
    expected = {"stop": "stop", "length": "length", "load": "unknown", "unload": "unknown", "new": "unknown"}
    for word, reason in expected.items():
        document = wire.line({**wire.DONE, "done_reason": word}, "a")
        unary = ollama.read_response(json.dumps(document).encode(), PREFIX).finish
        assert unary == reading(document)[0].progress.finish
        assert (unary.reason, unary.raw) == (reason, word)
    silent = {name: value for name, value in wire.line(wire.DONE, "a").items() if name != "done_reason"}
    assert ollama.read_response(json.dumps(silent).encode(), PREFIX).finish.reason == "unknown"


@pytest.mark.parametrize("missing", ["prompt_eval_count", "eval_count"])
def test_half_a_usage_is_none(missing: str) -> None:
    document = {name: value for name, value in wire.ANSWER.items() if name != missing}
    assert ollama.read_response(json.dumps(document).encode(), PREFIX).usage is None
    assert reading(document)[0].progress.usage is None


@pytest.mark.parametrize("body", [b"{}", b'{"message":{}}', b'{"message":5,"done":true}'])
def test_an_answer_that_is_none(body: bytes) -> None:
    with pytest.raises(FormatError):
        ollama.read_response(body, PREFIX)
