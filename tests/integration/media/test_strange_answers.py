"""Answers of any shape: an error of the contract or a state, never a crash, never our key."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

import pytest
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.common.rpc import RpcError
from tests.support import fake_automatic1111, fake_fal, fake_replicate
from tests.support.fake_vendor import Refuse
from tests.support.fault_server import Endless, Head, running_fault_server
from tests.support.media import Maker, running_media

STRANGE = [
    None,
    [],
    "text",
    3,
    {},
    {"status": 3, "logs": 3, "queue_position": "x", "request_id": 3},
    {"status": "COMPLETED", "error": {"a": 1}, "error_type": [1], "logs": [3, {"message": 3}], "metrics": 3},
    {"status": "succeeded", "output": {"a": {"b": {"c": {"d": "e"}}}}, "metrics": {"predict_time": "x"}},
    {"status": "failed", "error": {"a": 1}, "logs": ["x"], "metrics": {"predict_time": -1}},
    {"status": "processing", "logs": "999%|####", "created_at": 3, "urls": 3},
    {"queue_running": [[3], 3, ["a", "b"]], "queue_pending": [["x", "y"], [1, 2], {}]},
    {"detail": [{"loc": 3, "msg": 3}, 3, {"loc": {"a": 1}}], "error": 3, "errors": 3},
    {"detail": {"a": 1}, "error_type": 3, "node_errors": {"1": {"errors": 3}}},
    {"node_errors": [3], "error": {"message": 3, "type": 3}},
    {"images": [3, {"url": 3}, {"url": "http://[", "width": "x"}], "seed": "x", "has_nsfw_concepts": 3},
    {"images": [{"url": "https://x.example/a", "width": -1, "height": 1e30, "duration": "x"}], "seed": -3},
    {"image": 3, "info": 3, "images": 3},
    {"results": [3, {"input": 3, "created_at": "x"}], "next": "http://[", "key": 3, "keys": 3},
    {"outputs": {"9": {"images": [{"filename": 3}]}}, "status": {"messages": 3}},
]
OPERATIONS = {
    "replicate": ("create", "get", "listing", "cancel", "webhook_secret"),
    "fal": ("submit", "status", "response", "cancel", "jwks"),
    "comfyui": ("prompt", "get_queue", "get_history_of", "get_history"),
    "automatic1111": ("txt2img", "progress"),
}
STATES = {"queued", "running", "succeeded", "failed", "cancelled"}
ERRORS = ("PROVIDER_", "NOT_FOUND", "NOT_IMPLEMENTED", "INVALID_", "MODEL_NOT_FOUND", "CONTENT_FILTERED")


class Reason(str):
    """Why something failed."""

    __slots__ = ()


async def outcome(question: Awaitable[Any]) -> Any:
    """Return the answer, or the reason of the error."""
    try:
        return await question
    except RpcError as error:
        return Reason(error.reason)


async def everything(fake, maker: Maker) -> None:
    """Ask for everything there is to ask, each question by itself."""
    headers, body = {}, b""
    if isinstance(fake, fake_fal.FakeFal):
        headers, body = fake.notification("job-1")
        fake.requests["job-1"] = {"step": 5, "owner": "fal-ai/flux", "input": {}}
    if isinstance(fake, fake_replicate.FakeReplicate):
        headers = {"webhook-id": "m", "webhook-timestamp": "1", "webhook-signature": "v1,xx"}
    questions = (
        maker.submit(effect_key="job-1"),
        maker.poll("job-1"),
        maker.cancel("job-1"),
        maker.find("job-1"),
        maker.read(headers, body),
    )
    answers = [await outcome(question) for question in questions]
    states = {answer.state for answer in answers if isinstance(answer, pb.MediaProgress)}
    reasons = {answer for answer in answers if isinstance(answer, Reason)}
    assert states <= STATES
    assert all(reason.startswith(ERRORS) for reason in reasons), reasons


@pytest.mark.parametrize("status", [200, 422])
@pytest.mark.parametrize("vendor", sorted(OPERATIONS))
async def test_no_shape_of_an_answer_is_too_much(vendors, vendor, status):
    fake, maker = vendors[vendor]
    for document in STRANGE:
        for operation in OPERATIONS[vendor]:
            fake.faults[operation] = [Refuse(status, document)]
        await everything(fake, maker)
    for operation in OPERATIONS[vendor]:
        if operation not in ("get_history", "webhook_secret", "jwks", "response"):
            assert fake.injected[f"{operation}_{status}"] >= len(STRANGE) - 1, operation


async def test_a_history_of_any_shape_is_read(comfy, on_comfy):
    for document in STRANGE:
        comfy.faults["get_history_of"] = [Refuse(200, {"job-1": document})]
        answer = await outcome(on_comfy.poll("job-1"))
        told = answer if isinstance(answer, Reason) else answer.state
        assert told in STATES | {"NOT_FOUND", "PROVIDER_PROTOCOL"}
    assert comfy.injected["get_history_of_200"] == len(STRANGE)


async def test_a_begin_whose_answer_is_no_object_is_in_doubt(vendors):
    for name, operation in (
        ("replicate", "create"),
        ("fal", "submit"),
        ("comfyui", "prompt"),
        ("automatic1111", "txt2img"),
    ):
        fake, maker = vendors[name]
        for document in ([], {}, "<html>"):
            fake.faults[operation] = [Refuse(200, document)]
            with pytest.raises(RpcError) as caught:
                await maker.submit()
            assert fake.injected.pop(f"{operation}_200") == 1
            assert caught.value.reason == "PROVIDER_PROTOCOL"
            if document != {} or name != "automatic1111":
                assert caught.value.metadata["accepted"] == "unknown", (name, document)


@pytest.mark.parametrize(
    ("adapter", "model"),
    [
        pytest.param(adapter, model, marks=pytest.mark.matrix(row=38, adapter=adapter))
        for adapter, model in (("replicate", "a/b"), ("fal", "a/b"), ("automatic1111", "m"))
    ],
)
async def test_an_answer_without_end_is_cut_off(adapter, model):
    settings = {"adapter": adapter, "api_key": "key-0123456789"}
    async with running_fault_server() as host:
        host.script = [Head(), Endless(b"[" * 2**20)]
        async with running_media(x={**settings, "base_url": host.url}) as client:
            with pytest.raises(RpcError, match="exceeds") as caught:
                await Maker(client, "x", model).submit()
        assert host.injected["endless"] >= 1
    assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_no_log_holds_a_key(vendors, caplog):
    caplog.set_level(logging.DEBUG)
    secrets = (fake_replicate.KEY, fake_fal.KEY, fake_automatic1111.LOGIN.partition(":")[2])
    for name, operations in OPERATIONS.items():
        fake, maker = vendors[name]
        for operation in operations:
            fake.faults[operation] = [Refuse(500, {"detail": " ".join(secrets)})]
        await everything(fake, maker)
        assert fake.injected
    assert not any(secret in caplog.text for secret in secrets)
