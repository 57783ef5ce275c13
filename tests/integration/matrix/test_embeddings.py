"""Row 51: vectors in order, of the size asked for, packed, and in batches."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support.fault_server import FaultServer, Recorded, Step, answer
from tests.support.matrix import cells
from tests.support.providers import KEY

pytestmark = pytest.mark.asyncio(loop_scope="module")
SHAPED = ("openai", "openrouter", "self_hosted")
ALL = (*SHAPED, "huggingface", "gemini", "titan", "ollama")
MODELS = {"titan": "amazon.titan-embed-text-v2:0", "huggingface": "some/e"}
# Its models have one size each.
SIZED = tuple(adapter for adapter in ALL if adapter != "huggingface")
# Who tells no usage of embeddings.
UNTOLD = ("huggingface",)
TEXTS = [f"text {number}" for number in range(250)]


def vector(text: str) -> list[float]:
    return [float(text.split()[1]), 0.5]


def inputs(document: dict[str, Any]) -> list[str]:
    """Return what a body asks for, whichever vendor's it is."""
    if "requests" in document:
        return [each["content"]["parts"][0]["text"] for each in document["requests"]]
    given = document.get("input", document.get("inputText", document.get("inputs")))
    return [given] if isinstance(given, str) else given


def respond(request: Recorded) -> Sequence[Step]:
    """Answer as the vendor whose path it is. OpenAI-shaped ones mix up the order and pack half of it."""
    document = request.json()
    texts = inputs(document)
    if "requests" in document:
        assert len(texts) <= 100
        usage = {"promptTokenCount": len(texts)}
        return answer({"embeddings": [{"values": vector(each)} for each in texts], "usageMetadata": usage})
    if "inputText" in document:
        return answer({"embedding": vector(texts[0]), "inputTextTokenCount": 1})
    if "inputs" in document:
        return answer([vector(each) for each in texts])
    if request.path == "/api/embed":
        vectors = [vector(each) for each in texts]
        return answer({"model": "e", "embeddings": vectors, "prompt_eval_count": len(texts)})
    data = [
        {"object": "embedding", "index": index, "embedding": packed(text) if index % 2 else vector(text)}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return answer({"object": "list", "model": "e", "data": data[::-1], "usage": usage})


def packed(text: str) -> str:
    return base64.b64encode(struct.pack("<2f", *vector(text))).decode()


def request_of(adapter: str, **fields: Any) -> pb.EmbedRequest:
    name = {"titan": "bedrock"}.get(adapter, adapter)
    return pb.EmbedRequest(provider=name, model=MODELS.get(adapter, "e"), **fields)


@pytest.mark.parametrize("adapter", cells(51, *ALL))
async def test_many_vectors_in_order(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.choose = respond
    sized: dict[str, Any] = {"dimensions": 256} if adapter in SIZED else {}
    response = await client.embed(request_of(adapter, inputs=TEXTS, **sized), Call.internal(20))
    assert [list(each.values) for each in response.embeddings] == [vector(text) for text in TEXTS]
    assert response.usage.estimated == (adapter in UNTOLD)
    assert response.usage.estimated or response.usage.input_total == len(TEXTS)
    assert {json.loads(each.body).get("model", "") for each in server.requests} <= {"e", ""}
    assert all((b"256" in each.body) == bool(sized) for each in server.requests)
    assert sum(len(inputs(each.json())) for each in server.requests) == len(TEXTS)


@pytest.mark.parametrize("adapter", cells(51, *SHAPED))
async def test_a_body_of_the_vendors_own_goes_as_it_is(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    server.choose = respond
    body = b'{"model": "alias", "input": ["text 1"], "encoding_format": "base64", "odd": 1.50}'
    response = await client.embed(request_of(adapter, raw_body=body), Call.internal(5))
    sent = b'{"model":"e","input":["text 1"],"encoding_format":"base64","odd":1.50}'
    assert server.requests[0].body == sent
    read = openai.types.CreateEmbeddingResponse.model_validate_json(response.raw_body)
    assert read.data[0].embedding == vector("text 1")


@pytest.mark.parametrize("adapter", cells(51, *ALL))
async def test_too_few_or_wrong_vectors_are_no_answer(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    short = {"data": [], "embeddings": [], "model": "e"}
    wrong: list[Any] = [short, {"embedding": ["x"], "data": [{"embedding": "*"}], "embeddings": [5]}, {}]
    for body in [*wrong, [], [[1.0]], [[[1.0]], [[1.0]]], [[], []]]:
        server.script = answer(body)
        with pytest.raises(RpcError) as caught:
            await client.embed(request_of(adapter, inputs=["text 1", "text 2"]), Call.internal(5))
        assert caught.value.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) >= 3


@pytest.mark.parametrize("adapter", cells(51, *ALL))
async def test_a_count_that_is_none_is_estimated(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    for count in (-5, 2**40, None):
        counts = {"inputTextTokenCount": count, "prompt_eval_count": count}
        counts |= {"usage": {"prompt_tokens": count}, "usageMetadata": {"promptTokenCount": count}}
        vectors = {"data": [{"embedding": [1.0]}], "embedding": [1.0]}
        vectors["embeddings"] = [{"values": [1.0]}] if adapter == "gemini" else [[1.0]]  # type: ignore[assignment]
        server.script = answer([[1.0]] if adapter == "huggingface" else {**vectors, **counts})
        response = await client.embed(request_of(adapter, inputs=["text 1"]), Call.internal(5))
        assert response.usage.estimated
        assert 0 < response.usage.input_total < 100


@pytest.mark.parametrize("adapter", cells(51, "huggingface"))
async def test_the_task_of_a_model(server: FaultServer, client: ProviderService, adapter: str) -> None:
    """As the vendor's own client asks (its path and body, read in its source)."""
    server.choose = respond
    body = b'{"model": "alias", "input": "text 7", "user": "u"}'
    response = await client.embed(request_of(adapter, raw_body=body), Call.internal(5))
    assert [list(each.values) for each in response.embeddings] == [vector("text 7")]
    [asked] = server.requests
    assert asked.path == "/hf-inference/models/some/e/pipeline/feature-extraction"
    assert asked.json() == {"inputs": ["text 7"]}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("adapter", cells(51, "huggingface"))
async def test_what_the_task_does_not_have(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wrong = [({"dimensions": 8}, "PARAMETER_UNSUPPORTED"), ({"model": "../../whoami"}, "MODEL_NOT_FOUND")]
    for fields, reason in wrong:
        request = request_of(adapter, inputs=["a"])
        request.MergeFrom(pb.EmbedRequest(**fields))
        with pytest.raises(RpcError) as caught:
            await client.embed(request, Call.internal(5))
        assert caught.value.reason == reason
    assert server.requests == []
    for status, error, reason in (
        (503, {"error": "Model some/e is currently loading", "estimated_time": 20.0}, "PROVIDER_OVERLOADED"),
        (402, {"error": "You have exceeded your monthly included credits"}, "PROVIDER_BILLING"),
        (404, {"error": "Model some/e does not exist"}, "MODEL_NOT_FOUND"),
    ):
        server.script = answer(error, status)
        with pytest.raises(RpcError) as caught:
            await client.embed(request_of(adapter, inputs=["a"]), Call.internal(5))
        assert caught.value.reason == reason
    assert len(server.requests) == 3


async def test_who_has_no_embeddings_says_so(server: FaultServer, client: ProviderService) -> None:
    for name, model in (("anthropic", "e"), ("bedrock", "anthropic.claude-x")):
        with pytest.raises(RpcError) as caught:
            await client.embed(pb.EmbedRequest(provider=name, model=model, inputs=["a"]), Call.internal(5))
        assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert server.requests == []
