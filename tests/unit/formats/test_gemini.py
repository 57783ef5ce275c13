"""What becomes of conversations on their way to Gemini, and of its answers on their way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, OpaquePart, Part, ToolCall, WireFormat

from services.formats import anthropic_messages, gemini, openai_chat
from services.formats.answers import Event
from services.formats.errors import FormatError
from tests.support import gemini_wire as wire
from tests.support.matrix import cells
from tests.unit.formats.test_translation import FULL_OPENAI, PIXEL

PREFIX = f"call_{7:032x}"
CELL = "adapter"


def translate(
    body: dict[str, Any], model: str = "gemini-2.5-pro", **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    chat = openai_chat.read_request(json.dumps({**body, **changes}).encode())
    written, receipt = gemini.write_request(chat, model, own=False)
    return json.loads(written), {entry.name: entry.outcome for entry in receipt}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content)}]}


@pytest.mark.parametrize(CELL, cells(12, "gemini"))
def test_full_request(adapter: str) -> None:
    body, receipt = translate(FULL_OPENAI)
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user", "user"]
    assert body["generationConfig"] == {
        "temperature": 1.5,
        "topP": 0.5,
        "maxOutputTokens": 3000,
        "stopSequences": ["END"],
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
    }
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert receipt["parallel_tool_calls"] == receipt["user"] == "dropped"
    everything = {
        "seed": 5,
        "top_k": 4,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "reasoning_effort": "high",
        "logprobs": True,
        "n": 2,
        "safetySettings": [],
        "metadata": {"a": "b"},
    }
    body, receipt = translate(FULL_OPENAI, **everything)
    config = body["generationConfig"]
    assert (config["seed"], config["topK"], config["frequencyPenalty"]) == (5, 4, 0.5)
    assert {name for name, outcome in receipt.items() if outcome == "dropped"} == {
        "parallel_tool_calls",
        "user",
        "n",
        "metadata",
    }
    assert receipt["safetySettings"] == "forwarded"


@pytest.mark.parametrize(CELL, cells(10, "gemini"))
def test_instructions_stand_apart(adapter: str) -> None:
    body, receipt = translate(FULL_OPENAI)
    assert body["systemInstruction"] == {"parts": [{"text": "Be kind."}, {"text": "Be short."}]}
    assert receipt["messages[1].role"] == "translated"
    late = {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}
    body, receipt = translate({"model": "m", **late})
    assert body["systemInstruction"] == {"parts": [{"text": "b"}]}
    assert receipt["messages[1].role"] == "translated"


@pytest.mark.parametrize(CELL, cells(9, "gemini"))
def test_media(adapter: str) -> None:
    body, _ = translate(FULL_OPENAI)
    assert body["contents"][0]["parts"] == [
        {"text": "What is this?"},
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/a.png"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}},
    ]
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
    body, receipt = translate(user(sound, image))
    assert body["contents"][0]["parts"][0] == {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}}
    assert receipt["messages[0].content[1].detail"] == "dropped"
    with pytest.raises(FormatError) as caught:
        translate(user({"type": "file", "file": {"file_id": "file-1"}}))
    assert (caught.value.reason, caught.value.field) == ("PARAMETER_UNSUPPORTED", "messages[0].content[0]")


@pytest.mark.parametrize(CELL, cells(6, "gemini"))
def test_parallel_results_go_back_together_in_the_order_of_the_calls(adapter: str) -> None:
    messages = [*FULL_OPENAI["messages"]]
    messages[4], messages[5] = messages[5], messages[4]
    body, _ = translate(FULL_OPENAI, messages=messages)
    assert body["contents"][1]["parts"][1:] == [
        {"functionCall": {"id": "c1", "name": "look", "args": {"at": 1.0}}},
        {"functionCall": {"id": "c2", "name": "look", "args": {}}},
    ]
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"id": "c1", "name": "look", "response": {"output": "a cat"}}},
        {"functionResponse": {"id": "c2", "name": "look", "response": {"output": "a dog"}}},
    ]
    assert body["contents"][3]["parts"] == [{"text": "And now?"}]


def result(call_id: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


@pytest.mark.parametrize(CELL, cells(7, "gemini"))
def test_results_with_errors_and_images(adapter: str) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    calls = [{"type": "tool_use", "id": f"toolu_{i}", "name": "look", "input": {}} for i in range(3)]
    results = [
        result("toolu_2", '{"found": 1.0}'),
        result("toolu_0", "no such thing", is_error=True),
        result("toolu_1", [{"type": "text", "text": "see"}, image]),
        {"type": "text", "text": "Well?"},
    ]
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "assistant", "content": calls}, {"role": "user", "content": results}],
    }
    chat = anthropic_messages.read_request(json.dumps(body).encode())
    written, receipt = gemini.write_request(chat, "gemini-2.5-pro", own=False)
    contents = json.loads(written)["contents"]
    assert [part["functionResponse"]["response"] for part in contents[1]["parts"]] == [
        {"error": "no such thing"},
        {"output": "see"},
        {"found": 1.0},
    ]
    assert [*contents[2]["parts"][0], *contents[2]["parts"][1]] == ["inlineData", "text"]
    assert {entry.name: entry.outcome for entry in receipt}["messages[1].parts[2].content"] == "translated"
    orphan = {"role": "tool", "tool_call_id": "nobody", "content": "x"}
    with pytest.raises(FormatError) as caught:
        translate({"model": "m", "messages": [orphan]})
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", "messages[0].parts[0].call_id")


@pytest.mark.parametrize(CELL, cells(11, "gemini"))
def test_structured_output(adapter: str) -> None:
    body, receipt = translate(
        user(), messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}
    )
    assert body["generationConfig"] == {"responseMimeType": "application/json"}
    assert receipt["response_format"] == "translated"
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body, receipt = translate(user({"type": "text", "text": "x"}), response_format=asked)
    assert body["generationConfig"]["responseJsonSchema"]["properties"] == {"a": {"type": "string"}}
    assert receipt["response_format.schema"] == "dropped"


def test_only_the_schema_that_the_provider_takes_is_sent() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "pattern": {"type": ["string", "null"], "minLength": 1, "description": "a name, not a keyword"},
            "kind": {"const": "x"},
            "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "uniqueItems": True},
        },
        "$defs": {"item": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]}},
        "required": ["pattern"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    plain = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
    chat = openai_chat.read_request(
        json.dumps({**user({"type": "text", "text": "x"}), "tools": [tool, plain]}).encode()
    )
    written, receipt = gemini.write_request(chat, "m", own=False)
    declared = json.loads(written)["tools"][0]["functionDeclarations"]
    assert declared[0]["parametersJsonSchema"] == {
        "type": "object",
        "properties": {
            "pattern": {"type": ["string", "null"], "description": "a name, not a keyword"},
            "kind": {"enum": ["x"]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        },
        "$defs": {"item": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "required": ["pattern"],
        "additionalProperties": False,
    }
    assert declared[1]["parametersJsonSchema"] == {"type": "object"}
    notes = [(entry.name, entry.outcome, entry.detail) for entry in receipt if "[" in entry.name]
    assert notes == [
        ("tools[0].parameters", "translated", "without $schema, const"),
        (
            "tools[0].parameters",
            "dropped",
            "this provider's JSON Schema has no exclusiveMinimum, minLength, uniqueItems",
        ),
        ("tools[0].strict", "dropped", "this provider does not enforce the schema of a tool"),
    ]


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("gemini-2.5-flash", "high", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-3-pro-preview", "medium", {"thinkingLevel": "medium", "includeThoughts": True}),
        ("gemini-3-pro-preview", "none", {"thinkingLevel": "low"}),
        ("gemini-10-flash", "minimal", {"thinkingLevel": "low", "includeThoughts": True}),
    ],
)
def test_reasoning_effort(model: str, effort: str, config: dict[str, Any]) -> None:
    body, receipt = translate(user({"type": "text", "text": "x"}), model, reasoning_effort=effort)
    sent = body["generationConfig"]["thinkingConfig"]
    assert sent == config
    assert receipt["reasoning_effort"] == "translated"


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        (
            {"type": "function", "function": {"name": "look"}},
            {"mode": "ANY", "allowedFunctionNames": ["look"]},
        ),
    ],
)
def test_tool_choice(choice: Any, written: dict[str, Any]) -> None:
    body, _ = translate(FULL_OPENAI, tool_choice=choice)
    assert body["toolConfig"]["functionCallingConfig"] == written


def test_the_vendors_parameters_in_a_foreign_body_reach_it() -> None:
    config = {"responseModalities": ["TEXT"], "temperature": 0.1}
    body, _ = translate(FULL_OPENAI, generationConfig=config, cachedContent="cachedContents/1")
    assert body["generationConfig"]["responseModalities"] == ["TEXT"]
    assert body["generationConfig"]["maxOutputTokens"] == 3000
    assert body["cachedContent"] == "cachedContents/1"


@pytest.mark.parametrize(CELL, cells(36, "gemini"))
def test_arguments_that_are_no_object_are_flagged(adapter: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[broken"}}
    body, receipt = translate(FULL_OPENAI, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert body["contents"][0]["parts"][0]["functionCall"]["args"] == {"arguments": "[broken"}
    assert receipt["messages[0].content[0].args"] == "translated"


# Answers.


@pytest.mark.parametrize(CELL, cells(5, "gemini"))
def test_calls_get_ids_and_their_own_finish(adapter: str) -> None:
    answer = gemini.read_response(json.dumps(wire.TOOL_ANSWER).encode(), PREFIX)
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    assert [(call.id, call.name, call.arguments_json) for call in calls] == [
        (f"{PREFIX}_0", "look", '{"at": 1.0}'),
        (f"{PREFIX}_1", "look", '{"at": 2}'),
        (f"{PREFIX}_2", "wait", "{}"),
    ]
    assert all(call.id_synthesised for call in calls)
    assert (answer.finish.reason, answer.finish.raw) == ("tool_calls", "STOP")
    with_id = wire.chunk({"functionCall": {"id": "own", "name": "f"}}, finish="MAX_TOKENS")
    answer = gemini.read_response(json.dumps(with_id).encode(), PREFIX)
    assert answer.message.parts[0].tool_call.id == "own"
    assert answer.finish.reason == "length"


def reading(*documents: dict[str, Any]) -> tuple[gemini.StreamReader, list[Event]]:
    reader = gemini.StreamReader(PREFIX)
    events = [event for document in documents for event in reader.read(b"", json.dumps(document).encode())]
    return reader, events + reader.finish()


@pytest.mark.parametrize(CELL, cells(13, "gemini"))
@pytest.mark.parametrize("streamed", [False, True])
def test_usage(adapter: str, streamed: bool) -> None:
    if streamed:
        usage = reading(*wire.CHUNKS)[0].progress.usage
    else:
        usage = gemini.read_response(json.dumps(wire.ANSWER).encode(), PREFIX).usage
    assert usage is not None
    total = wire.USAGE["totalTokenCount"]
    assert usage.input_total + usage.output_total == total
    assert (usage.input_total, usage.output_total, usage.output_reasoning) == (23, 13, 4)
    assert (usage.cache_read, usage.input_image, usage.input_audio) == (5, 6, 2)


@pytest.mark.parametrize(CELL, cells(14, "gemini"))
def test_usage_is_repeated_not_added(adapter: str) -> None:
    counts = (
        {"promptTokenCount": 15, "candidatesTokenCount": 1},
        {"promptTokenCount": 13, "candidatesTokenCount": 2},
    )
    first, second = (wire.chunk({"text": "a"}, usageMetadata=usage) for usage in counts)
    last = wire.chunk(finish="STOP")
    del last["usageMetadata"]
    usage = reading(first, second, last)[0].progress.usage
    assert usage is not None
    assert (usage.input_total, usage.output_total) == (13, 2)


def test_no_usage_is_none() -> None:
    document = wire.chunk({"text": "a"}, finish="STOP", usageMetadata={})
    assert gemini.read_response(json.dumps(document).encode(), PREFIX).usage is None
    assert reading(document)[0].progress.usage is None


FINISHES = {
    "stop": {"STOP"},
    "length": {"MAX_TOKENS"},
    "content_filter": {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
        "ESCALATION",
    },
    "malformed": {"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"},
    "pause": {"CONTINUATION"},
    "error": {
        "LANGUAGE",
        "OTHER",
        "IMAGE_OTHER",
        "NO_IMAGE",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "PUP_LIMITED_DISABLED",
    },
    "unknown": {"FINISH_REASON_UNSPECIFIED", "INVENTED_TOMORROW"},
}


@pytest.mark.parametrize(CELL, cells(16, "gemini"))
def test_every_finish_reason(adapter: str) -> None:
    for reason, words in FINISHES.items():
        for word in words:
            document = wire.chunk({"text": "a"}, finish=word)
            unary = gemini.read_response(json.dumps(document).encode(), PREFIX).finish
            streamed = reading(document)[0].progress.finish
            assert unary == streamed
            assert (unary.reason, unary.raw) == (reason, word)


def test_a_finish_with_a_call_that_is_cut_is_not_a_call() -> None:
    document = wire.chunk(wire.call("f", {}), finish="MALFORMED_FUNCTION_CALL")
    assert gemini.read_response(json.dumps(document).encode(), PREFIX).finish.reason == "malformed"


@pytest.mark.parametrize(CELL, cells(8, "gemini"))
@pytest.mark.parametrize("streamed", [False, True])
def test_signatures_come_back_unchanged_through_a_client(adapter: str, streamed: bool) -> None:
    """Through the OpenAI-shaped surface, as a client that keeps what it was given."""
    if streamed:
        _, events = reading(*wire.TOOL_CHUNKS)
        started = [event for event in events if hasattr(event, "part") and event.part.HasField("tool_call")]
        writer = openai_chat.StreamWriter("m", "r", 1, False)
        chunks = [json.loads(writer.part_start(event)[6:]) for event in started]
        calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
        for call in calls:
            call.pop("index")
            call["function"]["arguments"] = "{}"
    else:
        answer = gemini.read_response(json.dumps(wire.TOOL_ANSWER).encode(), PREFIX)
        assert answer.usage is not None
        written = openai_chat.write_response(answer.message, answer.finish, answer.usage, "r", "m", 1)
        calls = json.loads(written)["choices"][0]["message"]["tool_calls"]
    messages: list[Any] = [{"role": "assistant", "content": None, "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in calls]
    body, receipt = translate({"model": "m", "messages": messages}, "gemini-3-pro")
    parts = body["contents"][0]["parts"]
    assert parts[0]["thoughtSignature"] == wire.SIGNATURE
    assert all("thoughtSignature" not in part for part in parts[1:])
    assert all("id" not in part["functionCall"] for part in parts)
    assert all("id" not in part["functionResponse"] for part in body["contents"][1]["parts"])
    assert "dropped" not in receipt.values()


def test_calls_of_other_models_are_marked_where_a_signature_is_wanted() -> None:
    body, _ = translate(FULL_OPENAI, "gemini-3-pro")
    text, first, second = body["contents"][1]["parts"]
    assert first["thoughtSignature"] == "skip_thought_signature_validator"
    assert "thoughtSignature" not in text
    assert "thoughtSignature" not in second
    body, _ = translate(FULL_OPENAI, "gemini-2.5-pro")
    assert "thoughtSignature" not in json.dumps(body)


@pytest.mark.parametrize(CELL, cells(8, "gemini"))
def test_signatures_of_text_and_of_others(adapter: str) -> None:
    signed = wire.chunk({"text": "a"}, {"text": "", "thoughtSignature": wire.SIGNATURE}, finish="STOP")
    answer = gemini.read_response(json.dumps(signed).encode(), PREFIX)
    thought = Part()
    thought.reasoning.text = "hm"
    thought.reasoning.signature = "of another vendor"
    foreign = Part(opaque=OpaquePart(provider="anthropic", raw_json="{}"))
    own = Part(opaque=OpaquePart(provider="google", raw_json='{"executableCode":{"code":"1"}}'))
    call = Part(tool_call=ToolCall(id=f"{PREFIX}_0", name="f", arguments_json="{}", signature="c2ln"))
    message = Message(role="assistant", parts=[*answer.message.parts, thought, foreign, own, call])
    written, receipt = gemini.write_request(ChatInput(messages=[message]), "gemini-3-pro", own=False)
    assert json.loads(written)["contents"][0]["parts"] == [
        {"text": "a"},
        {"text": "", "thoughtSignature": wire.SIGNATURE},
        {"executableCode": {"code": "1"}},
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "c2ln"},
    ]
    dropped = [entry.name for entry in receipt if entry.outcome == "dropped"]
    assert dropped == ["messages[0].content[2]", "messages[0].content[3]"]
    _, events = reading(signed)
    assert [event.index for event in events] == [0, 0, 0, 1, 1]
    assert events[3].part.extension_json["thoughtSignature"] == f'"{wire.SIGNATURE}"'  # type: ignore[union-attr]


def test_what_only_this_provider_answers_is_kept() -> None:
    document = wire.chunk(
        {"text": "a"},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        finish="STOP",
        modelStatus={"x": 1},
    )
    document["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["q"]}
    answer = gemini.read_response(json.dumps(document).encode(), PREFIX)
    kinds = [part.WhichOneof("kind") for part in answer.message.parts]
    assert kinds == ["text", "opaque", "image"]
    assert json.loads(answer.message.extension_json["@candidate"])["groundingMetadata"] == {
        "webSearchQueries": ["q"]
    }
    assert json.loads(answer.message.extension_json["@response"]) == {"modelStatus": {"x": 1}}
    _, events = reading(document)
    started = [event.part.WhichOneof("kind") for event in events if hasattr(event, "part")]
    assert started == kinds


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "contents"),
        (b'{"contents":[{"role":"wizard"}]}', "contents[0].role"),
        (b'{"contents":[{"parts":[5]}]}', "contents[0].parts[0]"),
        (b'{"contents":[{"parts":[{"text":5}]}]}', "contents[0].parts[0].text"),
        (b'{"contents":[{}],"generationConfig":{"topP":"x"}}', "generationConfig.topP"),
        (
            b'{"contents":[{}],"tools":[{"functionDeclarations":[{}]}]}',
            "tools[0].functionDeclarations[0].name",
        ),
    ],
)
def test_a_wrong_field_is_named(body: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        gemini.read_request(body)
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", field)


def test_a_request_of_this_format_reaches_others() -> None:
    """Ids are made for calls, and results find theirs by name and order."""
    contents = [
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [wire.call("look", {"at": 1}), wire.call("wait"), wire.call("look", {})]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": name, "response": {"output": str(index)}}}
                for index, name in enumerate(["look", "wait", "look"])
            ],
        },
    ]
    chat = gemini.read_request(json.dumps({"contents": contents}).encode())
    foreign = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
    written, _ = openai_chat.write_request(chat, "m", False, source=foreign)
    _, assistant, *results = json.loads(written)["messages"]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert len(set(ids)) == 3
    assert [message["tool_call_id"] for message in results] == [ids[0], ids[1], ids[2]]
    assert [json.loads(message["content"])["output"] for message in results] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"candidates":[]}',
        b'{"candidates":[{"index":0}]}',
        b'{"candidates":[1]}',
        b'{"candidates":5}',
    ],
)
def test_an_answer_that_is_none(body: bytes) -> None:
    with pytest.raises(FormatError):
        gemini.read_response(body, PREFIX)
