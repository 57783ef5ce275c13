"""Converse bodies are legal by the vendor's own model of requests, and say what they were made of."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import ChatInput, Message, OpaquePart, Part
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from services.formats import anthropic_messages, bedrock_converse, openai_chat, titan_text
from services.formats.errors import FormatError
from tests.support.bedrock import CLAUDE, cell
from tests.support.botocore_judge import check_request
from tests.unit.formats.test_translation import FULL_OPENAI

MISTRAL = "mistral.mistral-large-2402-v1:0"
PIXEL = "iVBORw0KGgo="
TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
WITHOUT_URL = [
    {**message, "content": [part for part in message["content"] if "https:" not in str(part)]}
    if isinstance(message.get("content"), list)
    else message
    for message in FULL_OPENAI["messages"]
]
FULL = {**FULL_OPENAI, "messages": WITHOUT_URL}


def translate(
    body: dict[str, Any], model: str = CLAUDE, cap: int = 0, **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    chat = openai_chat.read_request(json.dumps({**body, **changes}).encode())
    return write(chat, model, cap)


def from_anthropic(
    body: dict[str, Any], model: str = CLAUDE, **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    whole = {"model": "m", "max_tokens": 5000, **body, **changes}
    return write(anthropic_messages.read_request(json.dumps(whole).encode()), model)


def write(chat: ChatInput, model: str = CLAUDE, cap: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    written, receipt = bedrock_converse.write_request(chat, model, output_cap=cap)
    outcomes: dict[str, str] = {}
    for entry in receipt:
        outcomes[entry.name] = entry.outcome
    return check_request(written), outcomes


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@cell(7, 9, 10, 11, 12)
def test_a_full_body() -> None:
    body, outcomes = translate(FULL)
    assert body["system"] == [{"text": "Be kind."}, {"text": "Be short."}]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    question, calls, results = (message["content"] for message in body["messages"])
    assert [next(iter(block)) for block in question] == ["text", "image", "document"]
    assert question[1]["image"] == {"format": "png", "source": {"bytes": PIXEL}}
    assert question[2]["document"] == {"format": "pdf", "name": "a", "source": {"bytes": "JVBERg=="}}
    assert calls[1]["toolUse"] == {"toolUseId": "c1", "name": "look", "input": {"at": 1.0}}
    assert results == [
        {"toolResult": {"toolUseId": "c1", "content": [{"text": "a cat"}]}},
        {"toolResult": {"toolUseId": "c2", "content": [{"text": "a dog"}]}},
        {"text": "And now?"},
    ]
    assert body["inferenceConfig"] == {
        "maxTokens": 3000,
        "temperature": 1.0,
        "topP": 0.5,
        "stopSequences": ["END"],
    }
    assert body["toolConfig"]["toolChoice"] == {"any": {}}
    first, second = (tool["toolSpec"] for tool in body["toolConfig"]["tools"])
    assert first == {"name": "look", "description": "Looks", "inputSchema": {"json": {"type": "object"}}}
    assert second["inputSchema"]["json"] == {"type": "object", "properties": {}}
    structure = {"jsonSchema": {"name": "n", "schema": '{"type": "object"}'}}
    assert body["outputConfig"]["textFormat"] == {"type": "json_schema", "structure": structure}
    assert body["requestMetadata"] == {"user": "u-1"}
    assert body["additionalModelResponseFieldPaths"] == ["/stop_sequence"]
    assert outcomes["temperature"] == "clamped"
    assert outcomes["messages[1].role"] == "translated"
    dropped = {name for name, outcome in outcomes.items() if outcome == "dropped"}
    assert dropped == {"parallel_tool_calls"}


@cell(7)
@pytest.mark.parametrize("is_error", [True, False])
def test_results_of_tools(is_error: bool) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "see"}, image]}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {"x": 1.0}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{**result, "is_error": is_error}]},
    ]
    body, outcomes = from_anthropic({"messages": messages})
    written = body["messages"][2]["content"][0]["toolResult"]
    assert written["content"] == [{"text": "see"}, {"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}}]
    assert written.get("status") == ("error" if is_error else None)
    # The provider refuses calls without tools.
    assert body["toolConfig"] == {
        "tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object"}}}}]
    }
    assert outcomes["tools"] == "added"


@cell(9)
@pytest.mark.parametrize(
    ("part", "block"),
    [
        (Part(image={"data": b"\xff\xd8x"}), {"image": {"format": "jpeg"}}),
        (Part(image={"data": b"GIF8"}), {"image": {"format": "gif"}}),
        (Part(image={"data": b"RIFF"}), {"image": {"format": "webp"}}),
        (Part(image={"data": b"?"}), {"image": {"format": "png"}}),
        (Part(document={"data": b"a,b", "mime": "text/csv; charset=utf-8"}), {"document": {"format": "csv"}}),
        (Part(document={"data": b"#", "mime": "text/markdown"}), {"document": {"format": "md"}}),
        (Part(audio={"data": b"x", "mime": "audio/wav"}), {"audio": {"format": "wav"}}),
        (Part(video={"url": "s3://bucket/a.mp4", "mime": "video/mp4"}), {"video": {"format": "mp4"}}),
        (Part(refusal={"text": "no"}), {"text": "no"}),
        (Part(opaque=OpaquePart(provider="bedrock", raw_json='{"text": "as it is"}')), {"text": "as it is"}),
    ],
)
def test_media(part: Part, block: dict[str, Any]) -> None:
    body, _ = write(ChatInput(messages=[Message(role="user", parts=[part])]))
    written = body["messages"][0]["content"][0]
    (kind, expected), *_ = block.items()
    assert written[kind] == expected or written[kind]["format"] == expected["format"]


@cell(9)
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(image={"url": "https://example.com/a.png", "mime": "image/png"}), "send the bytes"),
        (Part(image={"file_id": "f", "mime": "image/png"}), "send the bytes"),
        (Part(image={"data": b"x", "mime": "image/tiff"}), "no image of type image/tiff; send gif, jpeg"),
        (Part(document={"data": b"x"}), "no document of type unknown"),
        (Part(audio={"data": b"x", "mime": "audio/midi"}), "no audio of type audio/midi"),
        (Part(tool_result={"call_id": "c", "parts": [Part(audio={"data": b"x"})]}), "from a tool"),
    ],
)
def test_media_that_cannot_be_sent(part: Part, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        write(ChatInput(messages=[Message(role="user", parts=[part])]))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert caught.value.field.startswith("messages[0].content[0]")


@cell(9)
def test_documents_say_whether_to_cite_them() -> None:
    """What an Anthropic-shaped caller says of a document is said in this vendor's words."""
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}
    cited = {"type": "document", "source": source, "citations": {"enabled": True}, "context": "a report"}
    odd = {"type": "document", "source": source, "citations": {"odd": 1}, "vendor_x": 1}
    body, outcomes = from_anthropic({"messages": [{"role": "user", "content": [cited, odd]}]})
    first, second = (block["document"] for block in body["messages"][0]["content"])
    assert (first["citations"], first["context"]) == ({"enabled": True}, "a report")
    assert second.keys() == {"format", "name", "source"}
    dropped = {name for name, outcome in outcomes.items() if outcome == "dropped"}
    assert dropped == {"messages[0].content[1].citations", "messages[0].content[1].vendor_x"}


@cell(9)
def test_names_of_documents_are_legal_and_unique() -> None:
    names = ["a/b: c_d.pdf", "a b  c.d", "", "ä" * 300, "x" * 300, ".pdf"]
    parts = [Part(document={"data": b"x", "mime": "application/pdf", "name": name}) for name in names * 2]
    body, _ = write(ChatInput(messages=[Message(role="user", parts=parts)]))
    written = [block["document"]["name"] for block in body["messages"][0]["content"]]
    assert len(set(written)) == len(written) == 12
    assert all(re.fullmatch(r"[A-Za-z0-9()\[\]-]+( [A-Za-z0-9()\[\]-]+)*", name) for name in written)
    assert max(map(len, written)) <= 200


@cell(8)
def test_thoughts() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "thinking", "thinking": "of another", "signature": ""},
        {"type": "redacted_thinking", "data": base64.b64encode(b"x").decode()},
        {"type": "redacted_thinking", "data": "no base64!"},
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
        {"type": "text", "text": "ok"},
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}]
    body, outcomes = from_anthropic({"messages": messages})
    assert body["messages"][1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"reasoningContent": {"redactedContent": "eA=="}},
        {"text": "ok"},
    ]
    dropped = [name for name, outcome in outcomes.items() if outcome == "dropped"]
    assert dropped == [f"messages[1].content[{index}]" for index in (1, 3, 4)]


@cell(12)
def test_caching() -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    body, _ = from_anthropic(
        {
            "system": [{"type": "text", "text": "Long.", **hint}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
                    ],
                }
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}, **hint}],
        }
    )
    point = {"cachePoint": {"type": "default"}}
    assert body["system"] == [{"text": "Long."}, point]
    assert body["messages"][0]["content"][1] == {"cachePoint": {"type": "default", "ttl": "1h"}}
    assert body["toolConfig"]["tools"][1] == point
    part = Part(text={"text": "x"}, cache_hint_json="nonsense")
    with pytest.raises(FormatError, match="JSON"):
        write(ChatInput(messages=[Message(role="user", parts=[part])]))


@pytest.mark.parametrize(
    ("choice", "called", "expected", "outcome"),
    [
        ("auto", False, {"auto": {}}, "translated"),
        ("required", False, {"any": {}}, "translated"),
        ({"type": "function", "function": {"name": "look"}}, False, {"tool": {"name": "look"}}, "translated"),
        ("none", False, None, "translated"),
        ("none", True, {}, "dropped"),
    ],
)
@cell(12)
def test_tool_choice(choice: Any, called: bool, expected: dict[str, Any] | None, outcome: str) -> None:
    messages = FULL["messages"] if called else HI["messages"]
    body, outcomes = translate(FULL, messages=messages, tool_choice=choice)
    if expected is None:
        assert "toolConfig" not in body
    else:
        assert body["toolConfig"].get("toolChoice", {}) == expected
    assert outcomes["tool_choice"] == outcome


def test_without_tools() -> None:
    _, outcomes = translate(HI, tool_choice="required", parallel_tool_calls=True)
    assert (outcomes["tool_choice"], outcomes["parallel_tool_calls"]) == ("dropped", "dropped")
    body, outcomes = from_anthropic(HI, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert "toolConfig" not in body
    assert outcomes["tools[0]"] == "dropped"


EFFORTS = [
    (CLAUDE, {"reasoning_effort": "low", "max_tokens": 5000}, {"thinking": 2048}, "translated"),
    (CLAUDE, {"reasoning_effort": "high", "max_tokens": 5000}, {"thinking": 4999}, "translated"),
    (CLAUDE, {"reasoning_effort": "low"}, {"thinking": 2048}, "translated"),
    (CLAUDE, {"reasoning_effort": "low", "max_tokens": 100}, {}, "dropped"),
    (CLAUDE, {"reasoning_effort": "none"}, {}, "translated"),
    (CLAUDE, {**FULL, "reasoning_effort": "low", "tool_choice": "auto"}, {}, "dropped"),
    (CLAUDE, {**FULL, "messages": HI["messages"], "reasoning_effort": "low"}, {}, "dropped"),
    (MISTRAL, {"reasoning_effort": "low"}, {}, "dropped"),
    ("openai.gpt-oss-120b-1:0", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}, "translated"),
]


@pytest.mark.parametrize(("model", "changes", "extra", "outcome"), EFFORTS)
def test_effort(model: str, changes: dict[str, Any], extra: dict[str, Any], outcome: str) -> None:
    body, outcomes = translate({**HI, **changes}, model)
    if "thinking" in extra:
        extra = {"thinking": {"type": "enabled", "budget_tokens": extra["thinking"]}}
    assert body.get("additionalModelRequestFields", {}) == extra
    assert outcomes["reasoning_effort"] == outcome


def test_no_sampling_while_thinking() -> None:
    given = {"reasoning_effort": "low", "temperature": 0.5, "top_p": 0.5, "top_k": 5}
    body, outcomes = translate(HI, **given)
    assert body["inferenceConfig"] == {"maxTokens": 4096}
    assert body["additionalModelRequestFields"].keys() == {"thinking"}
    assert [outcomes[name] for name in ("temperature", "top_p", "top_k")] == ["dropped"] * 3


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        (CLAUDE, {"top_k": 5}),
        (MISTRAL, {"top_k": 5}),
        ("arn:aws:bedrock:eu-west-1::foundation-model/mistral.x", {"top_k": 5}),
        ("us.amazon.nova-pro-v1:0", {"inferenceConfig": {"topK": 5}}),
        ("cohere.command-r-v1:0", {"k": 5}),
        ("meta.llama3-1-8b-instruct-v1:0", {}),
        ("arn:aws:bedrock:eu-west-1:1:application-inference-profile/abc", {}),
    ],
)
def test_top_k_goes_where_the_model_wants_it(model: str, extra: dict[str, Any]) -> None:
    body, outcomes = translate(HI, model, top_k=5)
    assert body.get("additionalModelRequestFields", {}) == extra
    assert outcomes["top_k"] == ("translated" if extra else "dropped")


def test_parameters_of_the_vendor_reach_it() -> None:
    given = {
        "guardrailConfig": {"guardrailIdentifier": "g", "guardrailVersion": "1"},
        "additionalModelRequestFields": {"own": [1]},
        "requestMetadata": {"team": "a"},
        "performanceConfig": {"latency": "optimized"},
        "service_tier": "flex",
    }
    body, outcomes = translate(HI, top_k=5, user="u", **given)
    assert body["additionalModelRequestFields"] == {"top_k": 5, "own": [1]}
    assert body["requestMetadata"] == {"user": "u", "team": "a"}
    assert body["serviceTier"] == {"type": "flex"}
    assert body["guardrailConfig"] == given["guardrailConfig"]
    assert {outcomes[name] for name in given if name != "service_tier"} == {"forwarded"}
    assert translate(HI, service_tier="auto")[1]["service_tier"] == "translated"
    assert translate(HI, service_tier="gold")[1]["service_tier"] == "dropped"
    assert translate(HI, service_tier=5)[1]["service_tier"] == "dropped"
    assert translate(HI, user="ü")[1]["user"] == "dropped"


def test_what_anthropic_callers_say() -> None:
    body, outcomes = from_anthropic(
        HI,
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
    )
    assert body["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 2000
    assert body["outputConfig"]["textFormat"]["structure"]["jsonSchema"] == {"schema": '{"type": "object"}'}
    assert outcomes["output_config"] == "translated"
    body, outcomes = from_anthropic(HI, MISTRAL, thinking={"type": "adaptive"})
    assert outcomes["thinking"] == "dropped"


@pytest.mark.parametrize(("signature", "thinks"), [("s", True), ("", False)])
def test_thoughts_of_another_are_none_beside_a_call(signature: str, thinks: bool) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": signature}
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    messages = [*HI["messages"], {"role": "assistant", "content": [thought, call]}]
    budget = {"type": "enabled", "budget_tokens": 2000}
    body, outcomes = from_anthropic({"messages": messages}, thinking=budget)
    assert body.get("additionalModelRequestFields", {}).get("thinking") == (budget if thinks else None)
    assert outcomes["thinking" if thinks else "reasoning_effort"] == ("translated" if thinks else "dropped")


def test_turns_take_turns() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": " "},
        {"role": "user", "content": "c", "name": "n"},
        {"role": "assistant", "content": "d"},
        {"role": "system", "content": "late"},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "e"}]},
    ]
    body, outcomes = translate(HI, messages=messages)
    assert [(m["role"], [b["text"] for b in m["content"]]) for m in body["messages"]] == [
        ("user", ["a", "b", "c"]),
        ("assistant", ["d"]),
        ("user", ["e"]),
    ]
    assert body["system"] == [{"text": "late"}]
    assert (outcomes["messages[5].role"], outcomes["messages[3].name"]) == ("translated", "dropped")


def test_odd_ids_of_tools_match_each_other() -> None:
    odd = "call with spaces/" + "x" * 80
    call = {"id": odd, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *HI["messages"],
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": odd, "content": "ok"},
    ]
    body, outcomes = translate(HI, messages=messages)
    written = body["messages"][1]["content"][0]["toolUse"]["toolUseId"]
    assert TOOL_ID.fullmatch(written)
    assert body["messages"][2]["content"][0]["toolResult"]["toolUseId"] == written
    assert outcomes["messages[1].content[0].id"] == "translated"


VALUES = st.one_of(st.integers(1, 9), st.just("x"), st.just({"a": 1}), st.just(["a"]))
# Read into fields of their own, with rules for what they may hold.
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(0, 9),
    "max_tokens": st.integers(1, 9000),
    "max_completion_tokens": st.integers(1, 9000),
    "parallel_tool_calls": st.booleans(),
    "reasoning_effort": st.sampled_from(["minimal", "low", "medium", "high"]),
    "user": st.just("u"),
    "stop": st.lists(st.just("END"), min_size=1, max_size=2),
    "tools": st.just(FULL["tools"]),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "response_format": st.sampled_from([FULL["response_format"], {"type": "json_object"}]),
    "stream_options": st.just({"include_obfuscation": True}),
}
ALL = sorted(CompletionCreateParamsBase.__annotations__.keys() - {"messages", "model"})


@cell(12)
@given(
    st.sets(st.sampled_from(ALL)).flatmap(
        lambda names: st.fixed_dictionaries({name: TYPED.get(name, VALUES) for name in sorted(names)})
    ),
    st.sampled_from([CLAUDE, MISTRAL, "amazon.titan-text-lite-v1"]),
)
@settings(max_examples=200, deadline=None)
def test_every_parameter_is_accounted_for(parameters: dict[str, Any], model: str) -> None:
    chat = openai_chat.read_request(json.dumps({**HI, **parameters}).encode())
    module = titan_text if "titan" in model else bedrock_converse
    written, receipt = module.write_request(chat, model, output_cap=0)
    if module is bedrock_converse:
        check_request(written)
    told = {entry.name.partition("[")[0] for entry in receipt}
    asked = {"max_tokens" if name == "max_completion_tokens" else name for name in parameters}
    assert asked <= told
