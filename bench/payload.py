"""What is asked and what the static upstream answers: one `Kind` each, with the check of what comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

CONTENT = (
    "A gateway stands between programs and the models they call: it checks who asks, "
    "chooses where the question goes, and writes down what the answer cost. This one "
    "is always the same, so that whatever differs between two rows of the table was "
    "added on the way."
)
WORDS = " ".join(f"{CONTENT} ({number})" for number in range(1, 13))
"""The answer of the long stream."""
USAGE = {"prompt_tokens": 42, "completion_tokens": 57, "total_tokens": 99}
DIMENSIONS = 1536
PROMPT_BYTES = 100_000
VARIANT = "@VARIANT@"
"""Where a request differs from the one before it, six digits."""


@dataclass(frozen=True)
class Target:
    """One URL with everything a load generator needs to POST to it.

    `body` is the request as sent; `headers` are all headers but Host and Content-Length. With `variants`,
    requests carry these numbers in turn in place of VARIANT.
    """

    url: str
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    variants: tuple[int, ...] = ()

    def variant(self, number: int) -> Target:
        """Return the request with one number in its place."""
        digits = f"{number:06d}"
        headers = {name: value.replace(VARIANT, digits) for name, value in self.headers.items()}
        return Target(self.url, self.body.replace(VARIANT, digits), headers)


@dataclass(frozen=True)
class Kind:
    """A request, the path it is sent to, the static answer, and how to see that it came back whole.

    `check` raises an exception for an answer that is not the known one.
    """

    name: str
    ask: Callable[[], Json]
    answer: Callable[[], str]
    check: Callable[[str], None]
    path: str = "/chat/completions"
    upstream_path: str = ""
    """Below /v1 at the upstream, where it is not the caller's."""
    content_type: str = "application/json"

    def body(self, model: str) -> str:
        """Return the request for a model."""
        return json.dumps({"model": model} | self.ask())

    @property
    def streamed(self) -> bool:
        """Tell whether the answer is a stream."""
        return self.content_type == "text/event-stream"


def chat() -> Json:
    """Return a small chat completion request without its model."""
    question = (
        "Explain in a few sentences what a gateway between programs and models is for, and what it adds."
    )
    return {
        "messages": [
            {"role": "system", "content": "You answer briefly, in plain words and without lists."},
            {"role": "user", "content": question},
        ],
        "max_tokens": 256,
        "temperature": 0.2,
    }


def large_chat() -> Json:
    """Return a chat completion request whose prompt has 100 kB of text."""
    request = chat()
    text = "\n".join(f"{number}. {CONTENT}" for number in range(PROMPT_BYTES // len(CONTENT)))
    request["messages"][1]["content"] = f"{text}\nPut this in one sentence."
    return request


def stream() -> Json:
    """Return a small chat completion request that asks for a stream with usage."""
    return chat() | {"stream": True, "stream_options": {"include_usage": True}}


def embeddings() -> Json:
    """Return an embedding request."""
    return {"input": CONTENT, "encoding_format": "float"}


def tools() -> Json:
    """Return a chat completion request with eight tools, about 4 kB."""
    place = {"type": "string", "description": "City and country, as a person would write them."}
    unit = {"type": "string", "enum": ["metric", "imperial"], "description": "Which units to answer in."}
    fields = {"place": place, "unit": unit, "days": {"type": "integer", "minimum": 1, "maximum": 14}}
    parameters = {"type": "object", "properties": fields, "required": ["place"]}
    subjects = ("weather", "tide", "traffic", "air_quality", "pollen", "sunrise", "events", "prices")
    functions = [
        {
            "name": f"get_{subject}",
            "description": f"Returns the {subject} of a place.",
            "parameters": parameters,
        }
        for subject in subjects
    ]
    listed = [{"type": "function", "function": function} for function in functions]
    return chat() | {"tools": listed, "tool_choice": "auto"}


CALLS: list[Json] = [
    {
        "id": f"call_bench_{number}",
        "type": "function",
        "function": {"name": name, "arguments": '{"place":"Oslo, Norway","unit":"metric"}'},
    }
    for number, name in enumerate(("get_weather", "get_tide"))
]


def completion(message: Json, finish_reason: str = "stop") -> str:
    """Return a static chat completion."""
    return json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-bench",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": USAGE,
            "service_tier": "default",
            "system_fingerprint": "fp_bench",
        }
    )


def text_completion() -> str:
    """Return the answer in words, about 630 bytes of JSON."""
    return completion({"role": "assistant", "content": CONTENT, "refusal": None})


def tool_completion() -> str:
    """Return the answer that calls two tools."""
    return completion({"role": "assistant", "content": None, "tool_calls": CALLS}, "tool_calls")


def vector() -> list[float]:
    """Return the embedding, numbers as long as real ones."""
    return [round(((index * 7919) % 2000 - 1000) / 13.7e3, 9) for index in range(DIMENSIONS)]


def embedding() -> str:
    """Return the static embedding answer, about 20 kB."""
    data = [{"object": "embedding", "index": 0, "embedding": vector()}]
    usage = {"prompt_tokens": 42, "total_tokens": 42}
    return json.dumps({"object": "list", "data": data, "model": "embedding-bench", "usage": usage})


def message() -> str:
    """Return the answer in words as Anthropic writes it."""
    return json.dumps(
        {
            "id": "msg_bench",
            "type": "message",
            "role": "assistant",
            "model": "claude-bench",
            "content": [{"type": "text", "text": CONTENT}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 42, "output_tokens": 57},
        }
    )


def pieces(text: str, count: int) -> list[str]:
    """Return the text cut into so many pieces."""
    cuts = [round(index * len(text) / count) for index in range(count + 1)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def event_stream(text: str, count: int) -> str:
    """Return the static SSE body: one chunk per piece, a finish chunk, a usage chunk and [DONE]."""
    head = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-bench",
    }
    deltas: list[Json] = [{"content": piece} for piece in pieces(text, count)]
    deltas[0] = {"role": "assistant"} | deltas[0]
    choices: list[list[Json]] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    events: list[Json] = [{**head, "choices": choice, "usage": None} for choice in choices]
    events.append({**head, "choices": [], "usage": USAGE})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def require(condition: bool, what: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(what)


def check_text(body: str) -> None:
    """Require the answer in words."""
    answer = json.loads(body)
    require(answer["choices"][0]["message"]["content"] == CONTENT, "the text differs")
    require(answer["usage"]["total_tokens"] == 99, "the usage differs")


def check_tools(body: str) -> None:
    """Require both tool calls."""
    calls = json.loads(body)["choices"][0]["message"]["tool_calls"]
    found = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
    sent = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in CALLS]
    require(found == sent, "the tool calls differ")


def check_embedding(body: str) -> None:
    """Require every number."""
    require(json.loads(body)["data"][0]["embedding"] == vector(), "the embedding differs")


def check_stream(text: str) -> Callable[[str], None]:
    """Return the check of a whole stream of that text."""

    def check(body: str) -> None:
        lines = [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]
        require(bool(lines) and lines[-1] == "[DONE]", "the stream does not end in [DONE]")
        events = [json.loads(line) for line in lines[:-1]]
        deltas = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
        require("".join(deltas) == text, "the streamed text differs")
        usage = [event["usage"]["total_tokens"] for event in events if event.get("usage")]
        require(usage == [99], f"the usage was sent {len(usage)} times")

    return check


def check_event(body: str) -> None:
    """Require the content of the endless streams; `body` is their beginning."""
    require('"content":' in body, "there is no content")


SSE = "text/event-stream"
FIRST_PIECE = pieces(CONTENT, 50)[0]
"""What the first token of a stream of 50 is recognised by."""

KINDS = {
    kind.name: kind
    for kind in (
        Kind("chat", chat, text_completion, check_text),
        Kind("large", large_chat, text_completion, check_text),
        Kind("stream50", stream, lambda: event_stream(CONTENT, 50), check_stream(CONTENT), content_type=SSE),
        Kind("stream500", stream, lambda: event_stream(WORDS, 500), check_stream(WORDS), content_type=SSE),
        Kind("embeddings", embeddings, embedding, check_embedding, path="/embeddings"),
        Kind("tools", tools, tool_completion, check_tools),
        Kind("translated", chat, message, check_text, upstream_path="/messages"),
        Kind("cached", chat, text_completion, check_text),
        # Answered by bench/paced.py, a chunk each so many milliseconds, without end.
        Kind("paced50", stream, str, check_event, content_type=SSE),
        Kind("paced2000", stream, str, check_event, content_type=SSE),
    )
}
PACED = {"paced50": 50, "paced2000": 2000}
"""Milliseconds between the chunks of the endless streams."""
STATIC = [kind for kind in KINDS.values() if kind.name not in PACED]


def models(kind: str) -> str:
    """Return the list of models of an upstream that answers one kind."""
    return json.dumps({"object": "list", "data": [{"id": f"bench-{kind}", "object": "model"}]})
