"""A vendor of media over HTTP, in its own thread: OpenAI's pictures, sound, videos; ElevenLabs' voices.

It makes real pictures, sounds and films, reads forms as the vendors do, knows only the ids it has given out
itself, and keeps what it was asked in `asked`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

WORDS = "A boat sails."
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 4096
POLLS = 2
WAIT_S = 15.0


@dataclass
class Asked:
    """What came in: a path, its fields, and the files of a form by the name of their field."""

    path: str
    key: str
    fields: dict[str, Any]
    files: list[tuple[str, bytes]] = field(default_factory=list)


def a_picture(width: int, height: int, colour: str = "red") -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def a_sound(seconds: float = 0.5) -> bytes:
    """Return a WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(round(16_000 * seconds)))
    return buffer.getvalue()


class Studio:
    """The running server. Its attributes may be read from any thread."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.videos: dict[str, dict[str, Any]] = {}
        self.voices: dict[str, str] = {}
        self._polls: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._stopping = asyncio.Event()

    def last(self, path: str) -> Asked:
        """Return the last request to a path. Raises StopIteration."""
        return next(each for each in reversed(self.asked) if each.path == path)

    async def _read(self, request: web.Request) -> Asked:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        asked = Asked(request.path, key or request.headers.get("xi-api-key", ""), {})
        if request.content_type.startswith("multipart/"):
            async for part in await request.multipart():
                data = bytes(await part.read())
                if part.filename:
                    asked.files.append((part.name, data))
                else:
                    asked.fields[part.name] = data.decode()
        elif request.can_read_body:
            asked.fields = await request.json()
        self.asked.append(asked)
        return asked

    async def images(self, request: web.Request) -> web.Response:
        """Make pictures."""
        asked = await self._read(request)
        width, _, height = str(asked.fields.get("size", "64x64")).partition("x")
        made = base64.b64encode(a_picture(int(width), int(height))).decode()
        count = int(asked.fields.get("n", 1))
        usage = {
            "input_tokens": 10 + 100 * len(asked.files),
            "output_tokens": 1000 * count,
            "total_tokens": 0,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 100 * len(asked.files)},
        }
        return web.json_response({"created": 1, "data": [{"b64_json": made}] * count, "usage": usage})

    async def speech(self, request: web.Request) -> web.Response:
        """Speak."""
        await self._read(request)
        return web.Response(body=a_sound(), content_type="audio/wav")

    async def transcription(self, request: web.Request) -> web.Response:
        """Write down; a form without a recording is refused."""
        asked = await self._read(request)
        if [name for name, _ in asked.files] != ["file"]:
            error = {"message": "file is missing", "type": "invalid_request_error", "param": "file"}
            return web.json_response({"error": error}, status=400)
        if asked.fields.get("response_format") in ("srt", "vtt", "text"):
            return web.Response(text=WORDS)
        return web.json_response({"text": WORDS, "usage": {"type": "duration", "seconds": 2}})

    async def video(self, request: web.Request) -> web.Response:
        """Begin a video, also one from another: of those made here."""
        asked = await self._read(request)
        origin = request.match_info.get("id")
        if origin is not None and origin not in self.videos:
            return web.json_response({"error": {"message": f"no video {origin}", "param": None}}, status=404)
        video_id = f"video_{len(self.videos) + 1}"
        self.videos[video_id] = {
            "id": video_id,
            "object": "video",
            "created_at": 1,
            "model": asked.fields.get("model", "sora-2"),
            "status": "queued",
            "progress": 0,
            "seconds": str(asked.fields.get("seconds", "4")),
            "size": asked.fields.get("size", "1280x720"),
            "remixed_from_video_id": origin,
        }
        return web.json_response(self.videos[video_id])

    async def poll(self, request: web.Request) -> web.Response:
        """Tell how far a video is."""
        video = self.videos[request.match_info["id"]]
        self._polls[video["id"]] = polls = self._polls.get(video["id"], 0) + 1
        video["status"] = "completed" if polls >= POLLS else "in_progress"
        video["progress"] = min(100, 100 * polls // POLLS)
        return web.json_response(video)

    async def film(self, request: web.Request) -> web.Response:
        """Send a video's content."""
        assert request.match_info["id"] in self.videos
        return web.Response(body=VIDEO, content_type="video/mp4")

    async def clone(self, request: web.Request) -> web.Response:
        """Clone a voice."""
        asked = await self._read(request)
        voice = f"vx{len(self.asked)}"
        self.voices[voice] = asked.fields["name"]
        return web.json_response({"voice_id": voice, "requires_verification": False})

    async def speak_as(self, request: web.Request) -> web.Response:
        """Speak with a voice that is known here."""
        await self._read(request)
        if request.match_info["voice"] not in self.voices:
            detail = {"status": "voice_not_found", "message": "A voice with that id was not found."}
            return web.json_response({"detail": detail}, status=404)
        return web.Response(body=b"ID3\x04\0\0\0\0\0\0" + bytes(4000), content_type="audio/mpeg")

    async def forget(self, request: web.Request) -> web.Response:
        """Forget a voice."""
        del self.voices[request.match_info["voice"]]
        return web.json_response({"status": "ok"})

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        application = web.Application(client_max_size=2**27)
        application.add_routes(
            [
                web.post("/v1/images/generations", self.images),
                web.post("/v1/images/edits", self.images),
                web.post("/v1/audio/speech", self.speech),
                web.post("/v1/audio/transcriptions", self.transcription),
                web.post("/v1/videos", self.video),
                web.post("/v1/videos/{id}/remix", self.video),
                web.get("/v1/videos/{id}", self.poll),
                web.get("/v1/videos/{id}/content", self.film),
                web.post("/v1/voices/add", self.clone),
                web.post("/v1/text-to-speech/{voice}", self.speak_as),
                web.post("/v1/text-to-speech/{voice}/stream", self.speak_as),
                web.delete("/v1/voices/{voice}", self.forget),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listening.set()
        await self._stopping.wait()
        await runner.cleanup()

    def start(self) -> None:
        """Listen on a free port."""
        self._thread = threading.Thread(target=self._run, name="studio", daemon=True)
        self._thread.start()
        assert self._listening.wait(WAIT_S)

    def stop(self) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(WAIT_S)


@contextmanager
def running_studio() -> Iterator[Studio]:
    """Run a studio on a free port of 127.0.0.1."""
    studio = Studio()
    studio.start()
    try:
        yield studio
    finally:
        studio.stop()
