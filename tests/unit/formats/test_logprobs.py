"""How likely tokens were: between OpenAI's chat format and those of other vendors, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from google.genai import types
from ollama import ChatResponse
from omnihub.common.v1.chat_pb2 import Finish, Message, Part, TokenLogprob, Usage, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText, ResponseStreamEvent
from pydantic import TypeAdapter

from services.formats import gemini, ollama, openai_chat, openai_responses
from tests.support import ollama_wire

FINISH, USAGE = Finish(reason="stop", raw="stop"), Usage(input_total=1, output_total=2)
RESULT = {
    "chosenCandidates": [
        {"token": "Grü", "tokenId": 1, "logProbability": -0.5},
        {"token": "ße", "tokenId": 2, "logProbability": -0.25},
    ],
    "topCandidates": [
        {"candidates": [{"token": "Grü", "logProbability": -0.5}, {"token": "Hi", "logProbability": -2.0}]},
    ],
}


def candidate(**more: Any) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": "Grüße"}]}
    return {"candidates": [{"content": content, "logprobsResult": RESULT, **more}]}


def test_gemini_answers_have_them_in_chat_completions() -> None:
    types.GenerateContentResponse.model_validate(candidate(finishReason="STOP"))
    read = gemini.read_response(json.dumps(candidate(finishReason="STOP")).encode(), "call")
    body = openai_chat.write_response(read.message, FINISH, USAGE, "c", "m", 1)
    choice = ChatCompletion.model_validate_json(body).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    first, second = choice.logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Grü", -0.5, list("Grü".encode()))
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("Grü", -0.5), ("Hi", -2.0)]
    assert (second.token, second.top_logprobs) == ("ße", [])


def test_gemini_streams_have_them_in_chunks() -> None:
    reader = gemini.StreamReader("call")
    writer = openai_chat.StreamWriter("m", "c", 1, True)
    first, *rest = reader.read(b"", msgspec.json.encode(candidate()))
    data = writer.part_start(first) + b"".join(map(writer.part_delta, rest))  # type: ignore[arg-type]
    chunks = [ChatCompletionChunk.model_validate_json(line[6:]) for line in data.split(b"\n") if line]
    tokens = [
        token.token
        for chunk in chunks
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or ()
    ]
    assert tokens == ["Grü", "ße"]


OLLAMA = [
    {"token": "Hm", "logprob": -3.0, "bytes": [72, 109]},
    {"token": "Grü", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -2.0}]},
    {"token": "ße", "logprob": -0.25},
]


def test_ollama_answers_have_them_in_chat_completions() -> None:
    """Tokens of a thought are in the same list, and are none of the text's."""
    said = ollama_wire.line(ollama_wire.DONE, "Grüße", thinking="Hm") | {"logprobs": OLLAMA}
    ChatResponse.model_validate(said)
    read = ollama.read_response(json.dumps(said).encode(), "call")
    body = openai_chat.write_response(read.message, FINISH, USAGE, "c", "m", 1)
    choice = ChatCompletion.model_validate_json(body).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    first, second = choice.logprobs.content
    assert (first.token, first.logprob, first.top_logprobs[0].token) == ("Grü", -0.5, "Hi")
    assert (second.token, second.top_logprobs) == ("ße", [])


def test_ollama_streams_have_them() -> None:
    reader = ollama.StreamReader("call")
    lines = [
        ollama_wire.line(thinking="Hm") | {"logprobs": OLLAMA[:1]},
        ollama_wire.line(content="Grü") | {"logprobs": OLLAMA[1:2]},
        ollama_wire.line(content="ße") | {"logprobs": OLLAMA[2:]},
    ]
    events = [event for line in lines for event in reader.read(b"", json.dumps(line).encode())]
    found = [event for event in events if isinstance(event, PartDelta) and event.HasField("logprobs")]
    assert [(event.index, event.logprobs.tokens[0].token) for event in found] == [(1, "Grü"), (1, "ße")]


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [({"logprobs": True, "top_logprobs": 3}, "forwarded"), ({"logprobs": {"odd": 1}}, "dropped")],
)
def test_ollama_is_asked_for_them(asked: dict[str, Any], outcome: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **asked}
    chat = openai_chat.read_request(json.dumps(body).encode())
    written, receipt = ollama.write_request(chat, "llama", True)
    sent = {name: value for name, value in json.loads(written).items() if name in asked}
    assert sent == (asked if outcome == "forwarded" else {})
    assert {entry.outcome for entry in receipt if entry.name in asked} == {outcome}


def test_openai_answers_have_them_typed_and_keep_every_byte() -> None:
    entry = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
    logprobs = {"content": [entry], "refusal": None}
    message = {"role": "assistant", "content": "Hi", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    read = openai_chat.read_response(json.dumps(document).encode())
    [part] = read.message.parts
    assert [(token.token, token.logprob) for token in part.text.logprobs] == [("Hi", -0.1)]
    again = json.loads(openai_chat.write_response(read.message, FINISH, USAGE, "c", "m", 1))
    assert again["choices"] == [choice]
    reader = openai_chat.StreamReader()
    delta = {"index": 0, "delta": {"content": "Hi"}, "logprobs": logprobs}
    events = reader.read(b"", json.dumps({"choices": [delta]}).encode())
    assert events[-1].logprobs.tokens[0].token == "Hi"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("asked", "config", "outcome"),
    [
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}, "translated"),
        ({"logprobs": False}, {"responseLogprobs": False}, "translated"),
        ({"logprobs": {"odd": 1}}, {}, "dropped"),
    ],
)
def test_they_are_asked_for(asked: dict[str, Any], config: dict[str, Any], outcome: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **asked}
    chat = openai_chat.read_request(json.dumps(body).encode())
    written, receipt = gemini.write_request(chat, "gemini-x", own=False)
    sent = json.loads(written).get("generationConfig", {})
    assert sent == config
    types.GenerationConfig.model_validate(sent)
    assert {entry.outcome for entry in receipt if entry.name in asked} == {outcome}


TOKENS = [
    TokenLogprob(token="Grü", logprob=-0.5, top=[TokenLogprob(token="Hi", logprob=-2.0)]),
    TokenLogprob(token="ße", logprob=-0.25),
]


def test_responses_have_them() -> None:
    message = Message(role="assistant", parts=[Part(text={"text": "Grüße", "logprobs": TOKENS})])
    body = openai_responses.write_response(message, FINISH, USAGE, "r", "m", 1)
    [item] = Response.model_validate_json(body).output
    assert isinstance(item, ResponseOutputMessage)
    piece = item.content[0]
    assert isinstance(piece, ResponseOutputText)
    first, second = piece.logprobs or ()
    assert (first.token, first.logprob, first.top_logprobs[0].token) == ("Grü", -0.5, "Hi")
    assert (second.token, second.bytes, second.top_logprobs) == ("ße", list("ße".encode()), [])


def test_streams_of_responses_have_them() -> None:
    writer = openai_responses.StreamWriter("m", "r", 1, False)
    data = writer.part_start(PartStart(index=0, part=Part(text={})))
    for text, token in zip(("Grü", "ße"), TOKENS, strict=True):
        data += writer.part_delta(PartDelta(index=0, text=text))
        data += writer.part_delta(PartDelta(index=0, logprobs={"tokens": [token]}))
    data += writer.part_stop(PartStop(index=0))
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    events = [TypeAdapter(ResponseStreamEvent).validate_json(line) for line in lines]
    told = [token.token for each in events if each.type.endswith("text.delta") for token in each.logprobs]
    assert told == ["Grü", "ße"]
    assert "".join(each.delta for each in events if each.type.endswith("text.delta")) == "Grüße"
    [done] = [each for each in events if each.type == "response.output_text.done"]
    assert [token.token for token in done.logprobs] == ["Grü", "ße"]
    [part] = [each.part for each in events if each.type == "response.content_part.done"]
    assert [token.token for token in part.logprobs] == ["Grü", "ße"]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"include": ["reasoning.encrypted_content"], "top_logprobs": 0}, {}),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ],
)
def test_callers_of_responses_ask_for_them(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "input": "hi", **asked}).encode()
    source = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
    written, receipt = openai_chat.write_request(
        openai_responses.read_portable(body), "m", False, source=source
    )
    assert {name: value for name, value in json.loads(written).items() if "logprobs" in name} == sent
    assert {entry.name for entry in receipt if entry.outcome == "forwarded"} == set(sent)
    told = {entry.name for entry in (*receipt, *openai_responses.default_receipts(body))}
    assert set(asked) <= told


@pytest.mark.parametrize("raw", [b"1", b"null", b'{"content": 5}', b'{"chosenCandidates": [1]}', b'"x"'])
def test_what_is_malformed_is_left_out(raw: bytes) -> None:
    assert gemini.logprobs.read_logprobs(msgspec.Raw(raw)) == []
    assert openai_chat.logprobs.read_logprobs(msgspec.Raw(raw)) == []
    assert ollama.logprobs.read_logprobs(msgspec.Raw(raw)) == []
