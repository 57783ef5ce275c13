"""What an answer rests on, from each vendor's format to each surface, judged by the official types."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message as ClaudeMessage
from omnihub.common.v1.chat_pb2 import Finish, Message, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import TypeAdapter

from services.formats import anthropic_messages, bedrock_converse, gemini, openai_chat, openai_responses
from services.formats.answers import Event

TEXT = "Grüße, Welt"
URL, TITLE = "https://example.com/a", "A"
FINISH, USAGE = Finish(reason="stop", raw="stop"), Usage(input_total=1, output_total=2)

GROUNDING = {
    "groundingChunks": [{"web": {"uri": URL, "title": TITLE}}],
    # Bytes: the first two letters beyond ASCII take two each.
    "groundingSupports": [
        {"segment": {"startIndex": 0, "endIndex": 7, "text": "Grüße"}, "groundingChunkIndices": [0]}
    ],
}
GEMINI = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": TEXT}]},
            "finishReason": "STOP",
            "groundingMetadata": GROUNDING,
        }
    ]
}
WEB = {
    "type": "web_search_result_location",
    "cited_text": "hello",
    "url": URL,
    "title": TITLE,
    "encrypted_index": "abc",
}
CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "c",
    "content": [{"type": "text", "text": TEXT[:5], "citations": [WEB]}, {"type": "text", "text": TEXT[5:]}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
BEDROCK_WEB = {"title": TITLE, "sourceContent": [{"text": "hello"}], "location": {"web": {"url": URL}}}
PAGE = {"title": TITLE, "location": {"documentPage": {"documentIndex": 1, "start": 3, "end": 4}}}
NOTE = {
    "type": "url_citation",
    "url_citation": {"url": URL, "title": TITLE, "start_index": 0, "end_index": 5},
}


def bedrock(*citations: Any) -> dict[str, Any]:
    cited = {"citationsContent": {"content": [{"text": TEXT[:5]}], "citations": list(citations)}}
    message = {"role": "assistant", "content": [cited, {"text": TEXT[5:]}]}
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
    return {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}


def chat_completion() -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": [NOTE]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


WHOLE: dict[str, Message] = {
    "gemini": gemini.read_response(json.dumps(GEMINI).encode(), "call").message,
    "anthropic": anthropic_messages.read_response(json.dumps(CLAUDE).encode()).message,
    "bedrock": bedrock_converse.read_response(json.dumps(bedrock(BEDROCK_WEB)).encode()).message,
    "openai": openai_chat.read_response(json.dumps(chat_completion()).encode()).message,
}


def events(source: str) -> list[Event]:
    """Return the stream of the same answer."""
    reader: Any
    if source == "gemini":
        reader = gemini.StreamReader("call")
        last = {"candidates": [{"finishReason": "STOP", "groundingMetadata": GROUNDING}]}
        first = {"candidates": [{"content": {"parts": [{"text": TEXT}]}}]}
        documents = [first, last, last]
    elif source == "openai":
        reader = openai_chat.StreamReader()
        deltas = [{"content": TEXT}, {"annotations": [NOTE]}]
        documents = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    else:
        reader = anthropic_messages.StreamReader()
        documents = []
        for index, block in enumerate(CLAUDE["content"]):  # type: ignore[arg-type]
            deltas = [{"type": "citations_delta", "citation": c} for c in block.get("citations", ())]
            deltas.append({"type": "text_delta", "text": block["text"]})
            start = {"type": "text", "text": ""}
            documents.append({"type": "content_block_start", "index": index, "content_block": start})
            documents += [{"type": "content_block_delta", "index": index, "delta": d} for d in deltas]
            documents.append({"type": "content_block_stop", "index": index})
    read = [
        event
        for document in documents
        for event in reader.read(str(document.get("type", "")).encode(), msgspec.json.encode(document))
    ]
    return [*read, *reader.finish()]


def written(writer: Any, source: str) -> list[dict[str, Any]]:
    """Return the documents that a surface writes of a stream."""
    data = writer.start()
    for event in events(source):
        if isinstance(event, PartStart):
            data += writer.part_start(event)
        elif isinstance(event, PartDelta):
            data += writer.part_delta(event)
        else:
            data += writer.part_stop(event)
    data += writer.finish(FINISH, USAGE)
    frames = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(each) for each in frames]


@pytest.mark.parametrize("source", ["gemini", "anthropic", "bedrock"])
def test_chat_completions_carry_them_as_annotations(source: str) -> None:
    body = openai_chat.write_response(WHOLE[source], FINISH, USAGE, "chatcmpl-1", "m", 1)
    message = ChatCompletion.model_validate_json(body).choices[0].message
    assert message.content == TEXT
    assert message.annotations is not None
    [annotation] = message.annotations
    cited = annotation.url_citation
    assert (cited.url, cited.title) == (URL, TITLE)
    assert TEXT[cited.start_index : cited.end_index] == "Grüße"


@pytest.mark.parametrize("source", ["gemini", "anthropic", "openai"])
def test_responses_carry_them_as_annotations(source: str) -> None:
    body = openai_responses.write_response(WHOLE[source], FINISH, USAGE, "resp_1", "m", 1)
    message = Response.model_validate_json(body).output[0].to_dict()
    [annotation] = message["content"][0]["annotations"]  # type: ignore[index]
    assert annotation == {
        "type": "url_citation",
        "url": URL,
        "title": TITLE,
        "start_index": 0,
        "end_index": 5,
    }


@pytest.mark.parametrize("source", ["gemini", "bedrock", "openai"])
def test_messages_carry_them_as_citations(source: str) -> None:
    body = anthropic_messages.write_response(WHOLE[source], FINISH, USAGE, "msg_1", "m", 1)
    message = TypeAdapter(ClaudeMessage).validate_json(body, strict=True)
    block = message.content[0]
    assert block.type == "text"
    assert block.citations is not None
    [citation] = block.citations
    assert citation.type == "web_search_result_location"
    assert (citation.url, citation.title) == (URL, TITLE)


def test_places_in_documents_keep_their_meaning() -> None:
    message = bedrock_converse.read_response(json.dumps(bedrock(PAGE)).encode()).message
    body = anthropic_messages.write_response(message, FINISH, USAGE, "msg_1", "m", 1)
    block = TypeAdapter(ClaudeMessage).validate_json(body, strict=True).content[0]
    assert block.type == "text"
    assert block.citations is not None
    [citation] = block.citations
    assert citation.type == "page_location"
    assert (citation.document_index, citation.start_page_number, citation.end_page_number) == (1, 3, 4)
    # What has no address has no word in OpenAI's formats.
    answer = ChatCompletion.model_validate_json(
        openai_chat.write_response(message, FINISH, USAGE, "c", "m", 1)
    )
    assert answer.choices[0].message.annotations is None


@pytest.mark.parametrize("source", ["openai", "anthropic"])
def test_the_own_format_keeps_every_byte(source: str) -> None:
    if source == "openai":
        again = json.loads(openai_chat.write_response(WHOLE[source], FINISH, USAGE, "c", "m", 1))
        assert again["choices"] == chat_completion()["choices"]
    else:
        body = anthropic_messages.write_response(WHOLE[source], FINISH, USAGE, "msg_1", "c", 1)
        assert json.loads(body)["content"][0]["citations"] == [WEB]


@pytest.mark.parametrize("source", ["gemini", "anthropic", "openai"])
def test_streams_carry_them(source: str) -> None:
    chunks = written(openai_chat.StreamWriter("m", "c", 1, False), source)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
    [annotation] = [note for delta in deltas for note in delta.get("annotations", ())]
    assert annotation == NOTE

    told = written(openai_responses.StreamWriter("m", "resp_1", 1, True), source)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    [added] = [event for event in told if event["type"] == "response.output_text.annotation.added"]
    final = Response.model_validate(told[-1]["response"]).output[0].to_dict()
    assert final["content"][0]["annotations"] == [added["annotation"]]  # type: ignore[index]
    assert added["annotation"]["end_index"] == 5

    blocks = written(anthropic_messages.StreamWriter("m", "msg_1", 1, True), source)
    deltas = [event["delta"] for event in blocks if event["type"] == "content_block_delta"]
    [citation] = [delta["citation"] for delta in deltas if delta["type"] == "citations_delta"]
    assert (citation["url"], citation["title"]) == (URL, TITLE)


def test_offsets_of_a_text_that_is_not_known_are_not_invented() -> None:
    writer = openai_chat.StreamWriter("m", "c", 1, False)
    writer.resume(1)
    [start, *rest] = events("anthropic")
    assert isinstance(start, PartStart)
    data = writer.part_start(start)
    for event in rest:
        if isinstance(event, PartDelta):
            data += writer.part_delta(event)
        elif not isinstance(event, PartStart):
            data += writer.part_stop(event)
    assert b"annotations" not in data


@pytest.mark.parametrize("raw", [b"1", b"[]", b'{"type": 5}', b'{"location": 7}', b'"x"'])
def test_what_is_malformed_is_kept_as_it_is(raw: bytes) -> None:
    for read in (anthropic_messages.citations.read_citation, bedrock_converse.citations.read_citation):
        assert read(msgspec.Raw(raw)).raw_json == raw.decode()
