"""A server that answers as ComfyUI does by its source. No independent client exists to judge it."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from aiohttp import web

from tests.support.fake_vendor import FakeVendor

PNG = b"\x89PNG\r\n\x1a\n-not-really-a-picture"


class FakeComfy(FakeVendor):
    """One prompt runs at a time, and only when a test says so with `start` and `finish`."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[list[Any]] = []
        self.pending: list[list[Any]] = []
        self.history: dict[str, Any] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.connected = asyncio.Event()
        self.number = 0
        self.interrupted: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.files = {"out_00001_.png": PNG}
        # The prefix that newer servers have, too; here it has no WebSocket.
        for prefix in ("", "/api"):
            self.route("POST", prefix + "/prompt", self.prompt)
            self.route("GET", prefix + "/queue", self.get_queue)
            self.route("POST", prefix + "/queue", self.post_queue)
            self.route("GET", prefix + "/history", self.get_history)
            self.route("GET", prefix + "/history/{id}", self.get_history_of)
            self.route("POST", prefix + "/interrupt", self.interrupt)
            self.route("GET", prefix + "/view", self.view)
            self.application.router.add_post(prefix + "/upload/image", self.upload)
        self.application.router.add_get("/ws", self.websocket)

    async def prompt(self, request: web.Request) -> web.Response:
        document = await request.json()
        graph = document["prompt"]
        wrong = [name for name, node in graph.items() if node["class_type"] == "Unknown"]
        if wrong:
            error = {"type": "invalid_prompt", "message": "Cannot execute", "details": "", "extra_info": {}}
            nodes = {wrong[0]: {"errors": [{"message": "Value not in list", "details": "ckpt_name"}]}}
            return web.json_response({"error": error, "node_errors": nodes}, status=400)
        self.number += 1
        identifier = str(uuid.uuid4())
        extra = {**document.get("extra_data", {}), "client_id": document["client_id"]}
        self.pending.append([self.number, identifier, graph, extra, ["9"]])
        return web.json_response({"prompt_id": identifier, "number": self.number, "node_errors": {}})

    async def get_queue(self, request: web.Request) -> web.Response:
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def post_queue(self, request: web.Request) -> web.Response:
        gone = (await request.json())["delete"]
        self.pending = [row for row in self.pending if row[1] not in gone]
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        return web.json_response(self.history)

    async def get_history_of(self, request: web.Request) -> web.Response:
        identifier = request.match_info["id"]
        return web.json_response({key: value for key, value in self.history.items() if key == identifier})

    async def interrupt(self, request: web.Request) -> web.Response:
        # As older servers do: whatever runs.
        for row in list(self.running):
            self.interrupted.append(row[1])
            await self.finish(row[1], messages=[["execution_interrupted", {"prompt_id": row[1]}]])
        return web.Response()

    async def view(self, request: web.Request) -> web.Response:
        data = self.files.get(request.query["filename"])
        if data is None:
            return web.Response(status=404)
        return web.Response(body=data, content_type="image/png")

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        picture = form["image"]
        assert isinstance(picture, web.FileField)
        self.uploads[picture.filename] = picture.file.read()
        return web.json_response({"name": picture.filename, "subfolder": "", "type": form["type"]})

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.sockets[client] = socket
        await socket.send_json({"type": "status", "data": {"sid": client, "status": {}}})
        self.connected.set()
        async for _ in socket:
            pass
        return socket

    async def say(self, kind: str, **data: Any) -> None:
        """Tell every client."""
        for socket in self.sockets.values():
            await socket.send_bytes(b"\x00\x00\x00\x01\x00\x00\x00\x02" + PNG)
            await socket.send_json({"type": kind, "data": data})

    async def lose_sockets(self) -> None:
        """Break every WebSocket."""
        self.connected.clear()
        for socket in list(self.sockets.values()):
            self.injected["socket_lost"] += 1
            await socket.close(code=1011)
        self.sockets.clear()

    async def start(self, identifier: str) -> None:
        """Let a prompt run."""
        row = next(each for each in self.pending if each[1] == identifier)
        self.pending.remove(row)
        self.running.append(row)
        await self.say("execution_start", prompt_id=identifier)

    async def finish(
        self, identifier: str, messages: list[Any] | None = None, outputs: Any = None, status: str = "success"
    ) -> None:
        """Let a prompt end."""
        row = next(each for each in (*self.running, *self.pending) if each[1] == identifier)
        self.running = [each for each in self.running if each is not row]
        self.pending = [each for each in self.pending if each is not row]
        if outputs is None:
            saved = {"filename": "out_00001_.png", "subfolder": "sub/day", "type": "output"}
            preview = {"filename": "preview.png", "subfolder": "", "type": "temp"}
            outputs = {"9": {"images": [saved]}, "8": {"images": [preview]}}
        times = [["execution_start", {"timestamp": 1000}], ["execution_success", {"timestamp": 3500}]]
        self.history[identifier] = {
            "prompt": row,
            "outputs": outputs,
            "status": {
                "status_str": status,
                "completed": status == "success",
                "messages": times if messages is None else messages,
            },
        }


GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": "{{seed}}", "steps": "{{steps=20}}", "cfg": "{{guidance=7.5}}", "model": ["4", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{prompt}}, masterpiece", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "omnihub/{{job}}", "images": ["3", 0]}},
}
EDIT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "{{images}}"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "{{prompt=none}}"}},
}
BROKEN = {"1": {"class_type": "Unknown", "inputs": {"text": "{{prompt}}"}}}


def graphs(folder: Any) -> dict[str, dict[str, str]]:
    """Write the graphs into a folder and return the setting that names them."""
    written = {}
    for name, graph, kind in (
        ("sdxl", GRAPH, "image"),
        ("edit", EDIT, "image_edit"),
        ("broken", BROKEN, "image"),
    ):
        (folder / f"{name}.json").write_text(json.dumps(graph))
        written[name] = {"file": str(folder / f"{name}.json"), "kind": kind}
    return written
