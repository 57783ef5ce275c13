"""Images through the official client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from services.common.rpc import RpcError
from tests.support.media_facade import COST, FILE_LIMIT, KEY, MediaFacade, a_picture, running_media_facade


async def test_an_image_and_what_it_cost(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    raw = await client.images.with_raw_response.generate(
        model="fake0/m", prompt="a boat", n=2, size="32x16", quality="high", extra_body={"lens": "wide"}
    )
    answer = raw.parse()
    pictures = [base64.b64decode(each.b64_json) for each in answer.data]
    assert pictures == [a_picture(32, 16)] * 2
    assert answer.size == "32x16"
    assert answer.output_format == "png"
    assert answer.quality == "high"
    assert answer.data[0].revised_prompt == "a red boat"
    assert raw.headers["x-omnihub-cost"] == COST
    assert raw.headers["x-omnihub-model"] == "fake0/m"
    assert raw.headers["x-omnihub-provider"] == "fake0"
    assert raw.headers["x-omnihub-job-id"].startswith("job_")
    assert raw.headers["x-omnihub-request-id"]
    assert json.loads(raw.headers["x-omnihub-receipt"])[0]["name"] == "lens"
    asked = facade.maker.attempts[0].input
    assert (asked.image.prompt, asked.image.quality) == ("a boat", "high")
    assert json.loads(asked.extension_json) == {"lens": "wide"}


async def test_a_picture_with_provenance_shows_the_same(tmp_path: Path) -> None:
    async with (
        running_media_facade(tmp_path, provenance=True) as facade,
        openai.AsyncOpenAI(base_url=f"{facade.url}/v1", api_key=KEY, max_retries=0, timeout=20) as client,
    ):
        answer = await client.images.generate(model="fake0/m", prompt="a boat", size="32x16")
    signed = base64.b64decode(answer.data[0].b64_json)
    assert b"c2pa" in signed
    assert Image.open(io.BytesIO(signed)).tobytes() == Image.open(io.BytesIO(a_picture(32, 16))).tobytes()


async def test_a_link_in_place_of_the_bytes(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(model="fake0/m", prompt="a boat", response_format="url")
    assert answer.data[0].url.startswith("http://hub.test/files/file_")
    assert answer.data[0].b64_json is None


async def test_a_stream_of_pictures(client: openai.AsyncOpenAI) -> None:
    stream = await client.images.generate(
        model="fake0/m", prompt="a boat", n=2, stream=True, partial_images=1
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert base64.b64decode(events[0].b64_json) == a_picture()


async def test_an_edit_with_several_pictures_and_a_mask(
    client: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    sources = [("one.png", a_picture()), ("two.png", a_picture(color="blue"))]
    answer = await client.images.edit(
        model="fake0/m",
        image=sources,
        mask=("mask.png", a_picture()),
        prompt="blue",
        n=1,
        input_fidelity="high",
    )
    assert base64.b64decode(answer.data[0].b64_json) == a_picture()
    asked = facade.maker.attempts[0].input
    assert [(each.name, each.mime) for each in asked.image_edit.images] == [
        ("one.png", "image/png"),
        ("two.png", "image/png"),
    ]
    assert asked.image_edit.mask.data == a_picture()
    assert json.loads(asked.extension_json) == {"input_fidelity": "high"}


async def test_an_edit_of_one_picture_and_in_json(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, facade: MediaFacade
) -> None:
    await client.images.edit(model="fake0/m", image=a_picture(), prompt="blue")
    data_url = "data:image/png;base64," + base64.b64encode(a_picture()).decode()
    body = {"model": "fake0/m", "prompt": "blue", "images": [{"image_url": data_url}]}
    answer = await http.post("/v1/images/edits", json=body)
    assert answer.status_code == 200, answer.text
    assert [each.input.image_edit.images[0].data for each in facade.maker.attempts] == [a_picture()] * 2


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"size": "huge"}, "size", "WIDTHxHEIGHT"),
        ({"size": "0x8"}, "size", "WIDTHxHEIGHT"),
        ({"n": 11}, "n", "from 1 to 10"),
        ({"n": 1.5}, "n", "whole number"),
        ({"n": True}, "n", "from 1 to 10"),
        ({"prompt": ""}, "prompt", "is missing"),
        ({"prompt": 7}, "prompt", "expected a text"),
        ({"output_format": "gif"}, "output_format", "png, jpeg, webp"),
        ({"response_format": "path"}, "response_format", "url, b64_json"),
        ({"stream": "perhaps"}, "stream", "true or false"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"model": "m" * 257}, "model", "256"),
    ],
)
async def test_bad_input_costs_nothing(
    http: httpx.AsyncClient, facade: MediaFacade, wrong: dict[str, object], param: str, words: str
) -> None:
    answer = await http.post("/v1/images/generations", json={"model": "m", "prompt": "a boat", **wrong})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert not facade.maker.plans
    assert not facade.till.holds


async def test_what_a_provider_refuses_is_named_as_the_caller_wrote_it(
    client: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    facade.maker.failures = [RpcError("INVALID_ARGUMENT", "input.image.count: expected at most 4")]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.images.generate(model="fake0/m", prompt="a boat", n=5)
    assert refused.value.param == "n"
    assert refused.value.body["message"] == "n: expected at most 4"
    assert refused.value.response.headers["x-omnihub-job-id"]
    assert not facade.till.charges
    assert facade.till.released


async def test_a_model_that_is_not_there(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.refusal = RpcError("MODEL_NOT_FOUND", "no model 'nope'")
    with pytest.raises(openai.NotFoundError) as refused:
        await client.images.generate(model="nope", prompt="a boat")
    assert refused.value.code == "model_not_found"
    assert not facade.till.holds


async def test_strict_refuses_what_the_facade_would_drop(
    client: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    with pytest.raises(openai.BadRequestError, match="partial_images"):
        await client.images.generate(
            model="m", prompt="x", stream=True, partial_images=1, extra_headers={"x-omnihub-strict": "true"}
        )
    assert not facade.till.holds
    await client.images.generate(model="m", prompt="x", extra_headers={"x-omnihub-strict": "true"})
    assert facade.maker.attempts[0].strict


async def test_one_key_makes_one_picture(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    headers = {"Idempotency-Key": "boat-1"}
    answers = [
        await client.images.with_raw_response.generate(model="m", prompt="a boat", extra_headers=headers)
        for _ in range(2)
    ]
    assert len({answer.headers["x-omnihub-job-id"] for answer in answers}) == 1
    assert len(facade.maker.attempts) == 1
    assert len(facade.till.charges) == 1
    with pytest.raises(openai.APIStatusError) as refused:
        await client.images.generate(model="m", prompt="another", extra_headers=headers)
    assert refused.value.status_code == 409
    with pytest.raises(openai.BadRequestError, match="128"):
        await client.images.generate(model="m", prompt="x", extra_headers={"Idempotency-Key": "k" * 129})


async def test_a_caller_who_leaves_takes_the_job_along(http: httpx.AsyncClient, facade: MediaFacade) -> None:
    facade.maker.immediate, facade.maker.polls = False, 1000
    body = {"model": "m", "prompt": "a boat"}
    asking = asyncio.create_task(http.post("/v1/images/generations", json=body))
    await facade.maker.entered.wait()
    asking.cancel()
    async with asyncio.timeout(60):
        await facade.till.release.wait()
    assert facade.maker.cancelled
    assert not facade.till.charges


async def test_a_caller_who_leaves_with_a_key_finds_the_picture(
    http: httpx.AsyncClient, facade: MediaFacade
) -> None:
    facade.maker.gate.clear()
    body, headers = {"model": "m", "prompt": "a boat"}, {"Idempotency-Key": "boat-2"}
    asking = asyncio.create_task(http.post("/v1/images/generations", json=body, headers=headers))
    await facade.maker.entered.wait()
    asking.cancel()
    await asyncio.wait([asking])
    facade.maker.gate.set()
    answer = await http.post("/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 200
    assert len(facade.maker.attempts) == 1


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", b"", "boundary"),
        ("multipart/form-data; boundary=b", b"no form at all", "form"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx',
            "last boundary",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
            "no name",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=p\r\n\r\nx\r\n" * 200 + b"--b--\r\n",
            "128 parts",
        ),
        ("application/json", b"{", "JSON"),
        ("application/json", b"[" * 100_000, "nested"),
        ("application/json", b"[1]", "object"),
    ],
)
async def test_a_body_that_cannot_be_read(
    http: httpx.AsyncClient, facade: MediaFacade, content_type: str, body: bytes, words: str
) -> None:
    answer = await http.post("/v1/images/edits", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
    assert not facade.till.holds


async def test_too_large_a_file_too_many_and_none(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, facade: MediaFacade
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.images.edit(model="m", image=bytes(FILE_LIMIT + 1), prompt="x")
    assert refused.value.status_code == 413
    assert refused.value.param == "image"
    with pytest.raises(openai.APIStatusError) as refused:
        await client.images.edit(model="m", image=[bytes(FILE_LIMIT)] * 5, prompt="x")
    assert refused.value.status_code == 413
    for files in ([], [("image", ("a.png", a_picture()))] * 17):
        answer = await http.post(
            "/v1/images/edits", data={"prompt": "x"}, files=files or [("n", (None, "1"))]
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image"), answer.text
    answer = await http.post(
        "/v1/images/edits", data={"prompt": "x"}, files=[("image", a_picture()), ("virus", a_picture())]
    )
    assert answer.json()["error"]["param"] == "virus"
    assert not facade.till.holds
