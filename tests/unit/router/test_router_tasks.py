"""Task detection: the shipped model, what is read of a conversation, and what a conversation is known by."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from omnihub.common.v1.chat_pb2 import ChatInput, MediaPart, Message, Part, TextPart, Tool, ToolResult

from services.formats.turns import Turns, needed_capabilities, read_turns
from services.router.domain.routing import TASKS
from services.router.domain.tasks import HEAD, TAIL, Classifier, tokens_of
from services.router.domain.wording import typed_capabilities, typed_turns
from services.router.planning.detection import classifier
from services.router.planning.sticky import CONVERSATIONS, Sticky
from tools.train_tasks import HELD_OUT, TRAIN, load, measure, read, train


def test_the_shipped_model_knows_prompts_it_never_saw() -> None:
    held_out, seen = read(HELD_OUT), read(TRAIN)
    assert not {prompt.text for prompt in held_out} & {prompt.text for prompt in seen}
    accuracy, _ = measure(load(), held_out)
    assert accuracy >= 0.88
    for language in ("en", "de", "fr", "es", "zh"):
        own = [prompt for prompt in held_out if prompt.language == language]
        assert len(own) >= 20
        assert measure(load(), own)[0] >= 0.8, language


def test_training_makes_the_shipped_model_again() -> None:
    made, shipped = train(read(TRAIN)), load()
    assert dict(made.weights) == {bucket: list(row) for bucket, row in shipped.weights.items()}
    assert tuple(made.bias) == tuple(shipped.bias)


@given(st.text(max_size=3000))
def test_any_text_has_a_task_and_the_work_is_bounded(text: str) -> None:
    found = classifier().probabilities(text)
    assert set(found) == set(TASKS)
    assert sum(found.values()) == pytest.approx(1)
    assert len(tokens_of(text)) <= HEAD + TAIL + 1


def test_a_prompt_of_a_megabyte_costs_no_more_than_its_ends() -> None:
    middle = "Write a Python function. " * 40_000
    assert tokens_of(f"Translate this: {middle} thanks")[:2] == ["translate", "this"]
    assert len(tokens_of(middle)) < HEAD + TAIL


@pytest.mark.parametrize(
    "prompt", ["Refactor this function, please.", "Write about apples and pears. " * 4000]
)
def test_it_takes_less_than_a_millisecond(prompt: str) -> None:
    detect = classifier().detect
    fastest = 1.0
    for _ in range(50):
        # Of this thread's own time: others on the machine are no fault of the classifier's.
        began = time.thread_time()
        detect("You are helpful.", prompt)
        fastest = min(fastest, time.thread_time() - began)
    assert fastest < 0.001


def test_instructions_count_where_the_last_words_are_few() -> None:
    detect = classifier().detect
    assert detect(
        "You are a translator. Translate what the user says into French.", "The shop is closed"
    ).task == ("translation")
    assert detect("", "   ").task == "chat"
    assert detect("", "   ").source == ""


def test_what_is_no_model() -> None:
    with pytest.raises(LookupError):
        Classifier.from_document({"tasks": []})


USER = {"role": "user", "content": "Sort this list"}
SYSTEM = {"role": "system", "content": "Be brief"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3 files"}
CALL = {"role": "assistant", "tool_calls": [{"id": "c1"}]}


def turns(*messages: Any) -> Turns:
    return read_turns(Raw(json.dumps(list(messages)).encode()))


@pytest.mark.parametrize(
    ("messages", "instructions", "latest", "returns"),
    [
        ([USER], "", "Sort this list", False),
        ([SYSTEM, USER], "Be brief", "Sort this list", False),
        ([SYSTEM, USER, CALL, RESULT], "Be brief", "Sort this list", True),
        (
            [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image_url"}]}],
            "",
            "one",
            False,
        ),
        (
            [USER, {"role": "user", "content": [{"type": "tool_result", "content": "x"}]}],
            "",
            "Sort this list",
            True,
        ),
        ([USER, {"type": "function_call_output", "output": "x"}], "", "Sort this list", True),
        ([{"role": 5}, "nonsense", None], "", "", False),
    ],
)
def test_reading_a_foreign_conversation(
    messages: list[Any], instructions: str, latest: str, returns: bool
) -> None:
    found = turns(*messages)
    assert (found.instructions, found.latest, found.returns_results) == (instructions, latest, returns)


def test_the_beginning_stays_the_same_as_a_conversation_grows() -> None:
    assert turns(SYSTEM, USER).beginning == turns(SYSTEM, USER, CALL, RESULT, USER).beginning
    assert turns(SYSTEM, USER).beginning != turns(USER).beginning
    assert read_turns(Raw(b'"a text"')) == Turns(b'"a text"', "", "a text", False)
    assert read_turns(Raw(b"5")) == Turns(b"", "", "", False)
    short = ChatInput(messages=[Message(role="user", content="hi")])
    longer = ChatInput(messages=[*short.messages, Message(role="assistant", content="yes?")])
    assert typed_turns(short).beginning == typed_turns(longer).beginning


def test_reading_a_typed_conversation() -> None:
    chat = ChatInput(
        messages=[
            Message(role="system", content="Be brief"),
            Message(role="user", parts=[Part(text=TextPart(text="Look")), Part(image=MediaPart(data=b"x"))]),
            Message(role="tool", parts=[Part(tool_result=ToolResult(call_id="c"))]),
        ],
        tools=[Tool(name="t")],
        reasoning_effort="low",
    )
    found = typed_turns(chat)
    assert (found.instructions, found.latest, found.returns_results) == ("Be brief", "Look", True)
    assert typed_capabilities(chat, json=True) == {"vision", "tools", "json_schema", "reasoning"}
    assert typed_turns(ChatInput()) == Turns(b"", "", "", False)


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ({"messages": [USER]}, set()),
        ({"content": [{"type": "image_url"}]}, {"vision"}),
        ({"content": [{"type": "input_audio"}]}, {"audio"}),
        ({"content": [{"type": "document"}]}, {"documents"}),
        ({"reasoning_effort": "high"}, {"reasoning"}),
        ({"reasoning_effort": "none"}, set()),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, {"reasoning"}),
        ({"thinking": {"type": "disabled"}}, set()),
        ({"content": json.dumps({"type": "image_url", "reasoning_effort": "high"})}, set()),
    ],
)
def test_what_a_foreign_body_needs(body: Any, needed: set[str]) -> None:
    assert needed_capabilities(json.dumps(body).encode(), tools=False, json=False) == needed


def test_conversations_are_remembered_within_bounds() -> None:
    now = 0.0
    sticky = Sticky(60, lambda: now)
    mine, theirs = sticky.key("org_1", "", b"hello"), sticky.key("org_2", "", b"hello")
    assert mine != theirs
    assert mine != sticky.key("org_1", "cheap", b"hello")
    assert sticky.key("org_1", "", b"") == b""
    assert Sticky(0).key("org_1", "", b"hello") == b""
    sticky.keep(b"", "a/x")
    sticky.keep(mine, "a/x")
    assert (sticky.find(mine), sticky.find(theirs), len(sticky)) == ("a/x", "", 1)
    now = 61.0
    assert (sticky.find(mine), len(sticky)) == ("", 0)
    for number in range(CONVERSATIONS + 10):
        sticky.keep(sticky.key("org_1", "", str(number).encode()), "a/x")
    assert len(sticky) == CONVERSATIONS
    assert sticky.find(sticky.key("org_1", "", b"0")) == ""
