"""`omnihub generate` and `omnihub jobs watch` against a real HTTP server."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from services import jobs_command
from services.settings import Settings

QUEUED: Any = {"jobId": "job_1", "kind": "image", "state": "queued", "queuePosition": 2}
HALF: Any = {"jobId": "job_1", "kind": "image", "state": "running", "progress": 0.5}
DONE: Any = {**HALF, "state": "succeeded", "cost": "0.01"}


class Hub:
    """Serves one job; the first watch breaks off when it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Any] = []
        self.watches = 0
        self.breaks = False
        self.links: list[str | None] = []

    async def generate(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        return web.json_response({"job": QUEUED})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        self.watches += 1
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        outputs = [{"url": f"{self.url}/files/file_{number}"} for number in range(2)]
        events: list[Any] = [{"job": QUEUED}, {"job": HALF}]
        if not self.breaks or self.watches > 1:
            events.append({"end": {**DONE, "outputs": outputs}})
        for event in events:
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        return answer

    async def file(self, request: web.Request) -> web.Response:
        self.links.append(request.headers.get("authorization"))
        return web.Response(body=request.match_info["file_id"].encode())


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    application = web.Application()
    application.add_routes(
        [
            web.post("/api/generate", hub.generate),
            web.get("/api/generations/{job_id}:watch", hub.watch),
            web.get("/files/{file_id}", hub.file),
        ]
    )
    server = TestServer(application)
    await server.start_server()
    hub.url = str(server.make_url("")).rstrip("/")
    yield hub
    await server.close()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    jobs_command.add_commands(parser.add_subparsers(required=True))
    return parser.parse_args(words)


async def ran(hub: Hub, *words: str) -> int:
    options = parsed(*words)
    async with jobs_command._platform(Settings(url=hub.url, api_key="k")) as platform:
        status: int = await options.work(platform, options)
        return status


async def test_a_picture_is_made_followed_and_saved(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "boat.png"
    assert await ran(hub, "generate", "image", "a boat", "--size", "64x32", "--out", str(place)) == 0
    assert hub.asked == [{"model": "", "input": {"image": {"prompt": "a boat", "width": 64, "height": 32}}}]
    assert (place.read_bytes(), (tmp_path / "boat-2.png").read_bytes()) == (b"file_0", b"file_1")
    assert capsys.readouterr().out.splitlines() == [
        "job_1 queued, behind 2 others",
        "job_1 running 50%",
        "job_1 succeeded, 0.01 credits",
        str(place),
        str(tmp_path / "boat-2.png"),
    ]
    assert not any(hub.links), "a link is its own credential"


async def test_a_watch_that_breaks_off_is_begun_again(hub: Hub) -> None:
    hub.breaks = True
    assert await ran(hub, "generate", "speech", "Hello") == 0
    assert hub.watches == 2
    assert hub.asked[0]["input"] == {"speech": {"text": "Hello"}}


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


def test_the_bar_moves_on_a_terminal() -> None:
    terminal = Terminal()
    display = jobs_command.Display(terminal)
    for job in (QUEUED, HALF, HALF, DONE):
        display.show(job)
    display.close()
    frames = terminal.getvalue().rstrip("\n").split("\r")[1:]
    assert len(frames) == 3
    assert [frame.count("#") for frame in frames] == [0, 15, 30]
    assert "50% running" in frames[1]
    assert terminal.getvalue().endswith("\n")
