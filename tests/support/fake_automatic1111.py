"""A server that answers as Automatic1111 does by its source. No independent client exists to judge it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from PIL import Image

from tests.support.fake_vendor import FakeVendor

LOGIN = "user:pass-0123456789"


def picture(width: int = 8, height: int = 8) -> str:
    """Return a picture as base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class FakeAutomatic1111(FakeVendor):
    """Works on one task at a time, as the real queue lock does, as long as `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.lock = asyncio.Lock()
        self.current = ""
        self.waiting: list[str] = []
        self.completed: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.changed = asyncio.Condition()
        self.fraction = 0.25
        self.interrupts = 0
        self.answer: dict[str, Any] = {}
        """Replaces fields of the answer."""
        add = self.route
        add("POST", "/sdapi/v1/txt2img", self.txt2img)
        add("POST", "/sdapi/v1/img2img", self.img2img)
        add("POST", "/sdapi/v1/extra-single-image", self.upscale)
        add("POST", "/sdapi/v1/interrupt", self.interrupt)
        add("POST", "/internal/progress", self.progress)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Basic {base64.b64encode(LOGIN.encode()).decode()}":
            return None
        return web.json_response({"detail": "Incorrect username or password"}, status=401)

    async def txt2img(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        document = await request.json()
        await self._work(document.get("force_task_id", ""))
        count = document.get("n_iter", 1)
        images = [picture(document.get("width", 8), document.get("height", 8)) for _ in range(count)]
        if count > 1:
            images.insert(0, picture(16, 16))
        seed = document.get("seed", 41)
        info = {
            "seed": seed,
            "all_seeds": [seed + index for index in range(count)],
            "index_of_first_image": int(count > 1),
        }
        answer = {"images": images, "parameters": document, "info": json.dumps(info), **self.answer}
        return web.json_response(answer)

    async def img2img(self, request: web.Request) -> web.Response:
        return await self.txt2img(request)

    async def upscale(self, request: web.Request) -> web.Response:
        document = await request.json()
        await self._work("")
        with Image.open(io.BytesIO(base64.b64decode(document["image"]))) as given:
            factor = document["upscaling_resize"]
            answer = {
                "html_info": "",
                "image": picture(int(given.width * factor), int(given.height * factor)),
            }
        return web.json_response(answer)

    async def _work(self, task: str) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.waiting.append(task)
        await self._tell()
        try:
            async with self.lock:
                self.waiting.remove(task)
                self.current = task
                await self._tell()
                await self.gate.wait()
                self.current = ""
                self.completed.append(task)
        finally:
            self.at_once -= 1

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a task has come, or begun, so that the condition holds."""
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def interrupt(self, request: web.Request) -> web.Response:
        self.interrupts += 1
        self.gate.set()
        return web.json_response({})

    async def progress(self, request: web.Request) -> web.Response:
        task = (await request.json())["id_task"]
        active = bool(task) and task == self.current
        return web.json_response(
            {
                "active": active,
                "queued": task in self.waiting,
                "completed": task in self.completed,
                "progress": self.fraction if active else None,
                "eta": 3.0 if active else None,
                "live_preview": None,
                "id_live_preview": -1,
                "textinfo": None,
            }
        )
