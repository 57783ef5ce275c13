"""Row 32: answers in which anything may stand are read, or said to be wrong; never anything else."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import RpcError
from tests.support.fault_server import FaultServer, answer, sse
from tests.support.providers import chat
from tests.support.vendors import Ask, Said, Vendor
from tests.support.vendors.outcomes import read
from tests.support.vendors.table import SSE, asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
NUMBERS = (0, -1, 2**31, 2**32, 2**63, 2**64, 1e308, -0.5)
TEXTS = ("", "x", "auto", "text", "\0", "😀", "a" * 300, "data:image/png;base64,****")
NESTED: tuple[Any, ...] = ([], {}, [[]], [{}], [None], {"type": None}, {"type": "text"}, {"text": None})
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *NESTED)
ROUNDS = 80
TOKEN = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
ANNOTATION = {"url": "https://x", "title": "t", "start_index": 0, "end_index": 2}
CITED = {
    "type": "char_location",
    "cited_text": "c",
    "document_index": 0,
    "document_title": "t",
    "start_char_index": 0,
    "end_char_index": 3,
}
CITED_BY_CONVERSE = {
    "title": "t",
    "sourceContent": [{"text": "x"}],
    "location": {"documentChar": {"documentIndex": 0, "start": 0, "end": 2}},
}
GROUNDED = {
    "groundingChunks": [{"web": {"uri": "https://x", "title": "t"}}],
    "groundingSupports": [
        {"segment": {"partIndex": 0, "startIndex": 0, "endIndex": 3}, "groundingChunkIndices": [0]}
    ],
}


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*at, key)
        yield from _places(each, (*at, key))


def _changed(document: Any, rng: random.Random) -> Any:
    """Return a document of which one to three values are others, or missing."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            break
        *way, last = rng.choice(places)
        parent = document
        for key in way:
            parent = parent[key]
        if rng.random() < 0.15:
            del parent[last]
        else:
            number = type(parent[last]) in (int, float)
            parent[last] = copy.deepcopy(rng.choice(NUMBERS if number else VALUES))
    return document


def _enriched(value: Any) -> Any:
    """Add sources and probabilities where an answer may have them."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple):
        name, payload = value
        return name, _enriched(payload)
    if isinstance(value, list):
        return [_enriched(each) for each in value]
    if not isinstance(value, dict):
        return value
    rich = {name: _enriched(each) for name, each in value.items()}
    if "finish_reason" in rich:
        rich["logprobs"] = {"content": [TOKEN], "refusal": None}
        said = rich.get("message") or rich.get("delta")
        if isinstance(said, dict):
            said["annotations"] = [{"type": "url_citation", "url_citation": ANNOTATION}]
    if rich.get("type") == "text" and "text" in rich:
        rich["citations"] = [CITED]
    if rich.get("type") == "text_delta":
        rich = {"type": "citations_delta", "citation": CITED}
    if rich.get("type") == "output_text":
        rich |= {"annotations": [{"type": "url_citation", **ANNOTATION}], "logprobs": [TOKEN]}
    if "finishReason" in rich:
        rich |= {"groundingMetadata": GROUNDED, "citationMetadata": {"citationSources": [ANNOTATION]}}
    if "contentBlockIndex" in rich and "text" in rich.get("delta", {}):
        rich["delta"] = {"citation": CITED_BY_CONVERSE}
    return rich


def _bytes_of(vendor: Vendor, frames: list[Any]) -> bytes:
    # The name of an event is in its data, too, if that is any.
    return sse(*frames) if vendor.content_type == SSE else vendor.encode(*frames)


def _changed_frames(said: Said, rng: random.Random) -> list[Any]:
    frames = list(said.frames)
    at = rng.randrange(len(frames))
    if isinstance(frames[at], tuple):
        frames[at] = (frames[at][0], _changed(frames[at][1], rng))
    elif not isinstance(frames[at], bytes):
        frames[at] = _changed(frames[at], rng)
    return frames


@asks(32)
async def test_anything_may_stand_in_an_answer(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    vendor, rng = ask.vendor, random.Random(ask.vendor.name)
    plain = [said for said in (vendor.text, vendor.call) if said is not None]
    rich = [Said(_enriched(said.whole), _enriched(list(said.frames))) for said in plain]
    outcomes: Counter[str] = Counter()
    for number in range(ROUNDS):
        said, in_stream = (plain + rich)[number % (2 * len(plain))], rng.random() < 0.7
        server.script = (
            vendor.script(_bytes_of(vendor, _changed_frames(said, rng)))
            if in_stream
            else answer(_changed(said.whole, rng))
        )
        try:
            await (read if in_stream else chat)(client, ask.attempt())
        except RpcError as error:
            outcomes[error.reason] += 1
        else:
            outcomes["OK"] += 1
    assert outcomes["OK"] > 0
    assert outcomes["PROVIDER_PROTOCOL"] > 0
    known = {"OK", "PROVIDER_PROTOCOL", "STREAM_TRUNCATED", "PROVIDER_FAILED", "CONTENT_FILTERED"}
    assert set(outcomes) <= known, outcomes
