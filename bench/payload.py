"""What is asked and what the static upstream answers."""

import itertools
import json
from dataclasses import dataclass

CONTENT = (
    "A gateway stands between programs and the models they call: it checks who asks, "
    "chooses where the question goes, and writes down what the answer cost. This one "
    "is always the same, so that whatever differs between two rows of the table was "
    "added on the way."
)
STREAM_CHUNKS = 50
USAGE = {"prompt_tokens": 42, "completion_tokens": 57, "total_tokens": 99}


@dataclass(frozen=True)
class Target:
    """One URL with everything a load generator needs to POST to it.

    `body` is the request as sent; `headers` are all headers but Host and Content-Length.
    """

    url: str
    body: str
    headers: dict[str, str]


def target(url: str, key: str, model: str, *, stream: bool = False) -> Target:
    """Return a chat completion request at `url`, the same bytes for every subject but the model."""
    question = (
        "Explain in a few sentences what a gateway between programs and models is for, and what it adds."
    )
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You answer briefly, in plain words and without lists."},
            {"role": "user", "content": question},
        ],
        "max_tokens": 256,
        "temperature": 0.2,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return Target(url, json.dumps(body), headers)


def completion() -> str:
    """Return the static chat completion, about 630 bytes of JSON."""
    message = {"role": "assistant", "content": CONTENT, "refusal": None}
    return json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-bench",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": USAGE,
            "service_tier": "default",
            "system_fingerprint": "fp_bench",
        }
    )


def pieces() -> list[str]:
    """Return the answer cut into as many pieces as the stream has content chunks."""
    cuts = [round(index * len(CONTENT) / STREAM_CHUNKS) for index in range(STREAM_CHUNKS + 1)]
    return [CONTENT[start:end] for start, end in itertools.pairwise(cuts)]


def event_stream() -> str:
    """Return the static SSE body: one chunk per piece, a finish chunk, a usage chunk and [DONE]."""
    head = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-bench",
    }
    choices: list[list[dict[str, object]]] = [
        [{"index": 0, "delta": {"content": piece}, "finish_reason": None}] for piece in pieces()
    ]
    choices[0][0]["delta"] = {"role": "assistant", "content": pieces()[0]}
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    events = [{**head, "choices": choice, "usage": None} for choice in choices]
    events.append({**head, "choices": [], "usage": USAGE})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
