"""What the servers of fal, Replicate, ComfyUI and Automatic1111, or a proxy before them, may do wrong.

Each test shows that the fault happened.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from omnihub.provider.v1.media_provider_service_api import MediaProviderService

from services.common.rpc import RpcError
from services.providers.media import http_adapter
from tests.integration.jobs.test_engine import begin, seen
from tests.support import fake_comfyui
from tests.support.fake_automatic1111 import picture
from tests.support.fake_vendor import Refuse
from tests.support.fault_server import Endless, FaultServer, Head, Send, running_fault_server
from tests.support.matrix import cells
from tests.support.media import Maker, running_media

KEY = "user:key-0123456789"
SECRET = KEY.partition(":")[2]
LIMITS = {"connect_s": 1, "idle_s": 0.3, "total_s": 0.6}
MIB = 2**20


@dataclass(frozen=True)
class Vendor:
    """Where an adapter begins a generation and asks how far it is, and what it hears when all is well."""

    model: str
    begun: object
    path: str
    """Of the question."""
    state: str
    """As it is told."""
    asked: object


VENDORS = {
    "fal": Vendor(
        "fal-ai/flux",
        {"request_id": "job-1", "queue_position": 3},
        "/fal-ai/flux/requests/job-1/status",
        "queued",
        {"status": "IN_QUEUE", "queue_position": 3},
    ),
    "replicate": Vendor(
        "owner/name",
        {"id": "job-1", "status": "starting"},
        "/predictions/job-1",
        "running",
        {"id": "job-1", "status": "processing"},
    ),
    "comfyui": Vendor(
        "sdxl",
        {"prompt_id": "job-1", "number": 1, "node_errors": {}},
        "/queue",
        "running",
        {"queue_running": [[1, "job-1", {}, {}]], "queue_pending": []},
    ),
    "automatic1111": Vendor(
        "default",
        {"images": [picture()], "info": "{}"},
        "/internal/progress",
        "queued",
        {"active": False, "queued": True},
    ),
}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer, tmp_path: Path) -> AsyncIterator[MediaProviderService]:
    settings = {
        name: {"adapter": name, "base_url": server.url, "api_key": KEY, "timeouts": LIMITS}
        for name in VENDORS
    }
    settings["comfyui"]["workflows"] = fake_comfyui.graphs(tmp_path)
    async with running_media(**settings) as client:
        yield client


def maker(client: MediaProviderService, adapter: str) -> Maker:
    return Maker(client, adapter, VENDORS[adapter].model)


def expect(server: FaultServer, *script: object) -> None:
    """Answer to everything that an adapter asks on the way with an empty object, and to all else so."""
    server.script = script
    server.scripts = {path: [Head(), Send(b"{}")] for path in ("/ws", "/history/job-1")}


async def failure(client: MediaProviderService, adapter: str, *, polled: bool = False) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await (maker(client, adapter).poll("job-1") if polled else maker(client, adapter).submit())
    return caught.value


@pytest.mark.parametrize("adapter", cells(29, *VENDORS))
async def test_a_slow_answer_meets_the_total_limit(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    expect(server, Head(), Endless(b" ", 0.05))
    for polled in (False, True):
        server.hung_up.clear()
        error = await failure(client, adapter, polled=polled)
        assert (error.reason, "within 0.6 s" in error.message) == ("PROVIDER_TIMEOUT", True)
        # A generation may have begun; a question costs nothing.
        assert error.metadata.get("accepted") == (None if polled else "unknown")
        await server.hung_up.wait()
    assert server.injected["endless"] >= 2


@pytest.mark.parametrize("adapter", cells(38, *VENDORS))
@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_without_end_is_cut_off(
    server: FaultServer,
    client: MediaProviderService,
    adapter: str,
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_adapter.HttpMediaAdapter.read, "__defaults__", (4 * MIB,))
    if packed:
        bomb = gzip.compress(b"{" + b" " * (8 * MIB), compresslevel=1)
        expect(server, Head(headers={"Content-Encoding": "gzip"}), Send(bomb, fault="bomb"))
    else:
        expect(server, Head(), Endless(b"[" * MIB))
    for polled in (False, True):
        error = await failure(client, adapter, polled=polled)
        assert (error.reason, "exceeds" in error.message) == ("PROVIDER_PROTOCOL", True)
        assert error.metadata.get("accepted") == (None if polled else "unknown")
    assert server.injected["bomb" if packed else "endless"] >= 2


@pytest.mark.parametrize("adapter", cells(39, *VENDORS))
async def test_a_packed_answer_is_unpacked(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    vendor = VENDORS[adapter]
    unpacked = {"Content-Encoding": "gzip"}
    for document, path in ((vendor.begun, ""), (vendor.asked, vendor.path)):
        packed = [Head(headers=unpacked), Send(gzip.compress(json.dumps(document).encode()), fault="gzip")]
        if path:
            server.scripts[path] = packed
        else:
            expect(server, *packed)
    begun = await maker(client, adapter).submit()
    assert begun.provider_job_id == ("" if adapter == "automatic1111" else "job-1")
    assert begun.progress.state == ("succeeded" if adapter == "automatic1111" else "queued")
    assert (await maker(client, adapter).poll("job-1")).state == vendor.state
    assert server.injected["gzip"] == 2


@pytest.mark.parametrize("adapter", cells(39, *VENDORS))
async def test_what_only_says_that_it_is_packed_is_no_answer(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    expect(server, Head(headers={"Content-Encoding": "gzip"}), Send(b"not packed", fault="not_gzip"))
    for polled in (False, True):
        assert (await failure(client, adapter, polled=polled)).reason == "PROVIDER_PROTOCOL"
    assert server.injected["not_gzip"] >= 2


@pytest.mark.parametrize("adapter", cells(39, *VENDORS))
async def test_a_page_is_no_answer(
    server: FaultServer, client: MediaProviderService, adapter: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy's page, with our key in it: classed by its status, cut, and the key is nowhere."""
    caplog.set_level(logging.DEBUG)
    page = f"<html><body>{KEY} {SECRET} {'x' * 100_000}</body></html>".encode()
    for status, reason in (
        (200, "PROVIDER_PROTOCOL"),
        (403, "PROVIDER_CREDENTIAL_REFUSED"),
        (502, "PROVIDER_FAILED"),
    ):
        expect(server, Head(status, content_type="text/html"), Send(page, fault=f"page_{status}"))
        for polled in (False, True):
            error = await failure(client, adapter, polled=polled)
            assert error.reason == reason
            assert len(error.message) < 1000
            assert SECRET not in f"{error} {error.metadata} {caplog.text}"
            if status == 200:
                assert "text/html" in error.message
        assert server.injected[f"page_{status}"] >= 2


@pytest.mark.parametrize("adapter", cells(39, *VENDORS))
async def test_json_of_another_type_is_read(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    """What counts is the body: a proxy may call it text."""
    said = json.dumps(VENDORS[adapter].begun).encode()
    expect(server, Head(content_type="text/plain"), Send(said, fault="type"))
    assert (await maker(client, adapter).submit()).progress.state in ("queued", "succeeded")
    assert server.injected["type"] == 1


@pytest.mark.parametrize("vendor", cells(21, "automatic1111"))
@pytest.mark.parametrize(
    ("headers", "early_s", "late_s"), [({"Retry-After": "40"}, 39, 41), ({}, 0.5, 2.5)], ids=["wait", "none"]
)
async def test_a_proxy_that_is_asked_too_often_is_waited_for(
    engine, vendors, vendor, headers, early_s, late_s
):
    """The server itself has no such limit; its source has no 429."""
    fake, maker = vendors[vendor]
    maker.serve(engine.router, immediate=True)
    fake.faults["txt2img"].append(Refuse(429, "<html>slow down</html>", headers))
    job = await begin(engine)
    await engine.work_off()
    engine.later_s = early_s
    await engine.work_off()
    assert (fake.injected, fake.count("txt2img")) == ({"txt2img_429": 1}, 1)
    assert (await seen(engine, job.job_id)).state == "queued"
    engine.later_s = late_s
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, ended.attempts, fake.count("txt2img")) == ("succeeded", 2, 2)
    assert len(engine.billing.charges) == 1
