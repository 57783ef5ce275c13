"""What the WebSocket of ComfyUI tells: how much of a prompt is done. Nothing depends on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import Upstream

_CONNECT_S = 5.0
_MOST_PROMPTS = 1000

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Prompt:
    nodes: int
    done: set[str] = field(default_factory=set)
    running: str = ""
    part: float = 0.0
    """Of the node that runs."""


class ComfyProgress:
    """One socket per adapter, opened when there is something to watch, and again when it was lost."""

    def __init__(self, upstream: Upstream, url: URL, headers: Mapping[str, str], failures: Failures) -> None:
        self._upstream = upstream
        self._url = url
        self._headers = headers
        self._failures = failures
        self._prompts: dict[str, _Prompt] = {}
        self._current = ""
        self._open = False
        self.lost = 0
        """How often the socket broke."""
        self.heard = asyncio.Condition()
        """Notified with each message and each loss."""

    def expect(self, prompt_id: str, nodes: int) -> None:
        """Watch a prompt of so many nodes."""
        self._prompts.setdefault(prompt_id, _Prompt(nodes)).nodes = nodes
        if len(self._prompts) > _MOST_PROMPTS:
            self.forget(next(iter(self._prompts)))

    def forget(self, prompt_id: str) -> None:
        """Watch a prompt no more."""
        self._prompts.pop(prompt_id, None)

    def fraction(self, prompt_id: str) -> float | None:
        """Return how much of a prompt is done, 0 to 1; None when nothing was heard of it."""
        prompt = self._prompts.get(prompt_id)
        if prompt is None or not prompt.nodes or not (prompt.done or prompt.part):
            return None
        return min(1.0, (len(prompt.done) + prompt.part) / prompt.nodes)

    async def listen(self) -> None:
        """Open the socket unless it is open. That it cannot be opened is no error."""
        if self._open:
            return
        self._open = True
        try:
            socket = await self._upstream.open_socket(self._url, self._headers, _CONNECT_S, self._failures)
        except ProviderError as error:
            self._open = False
            _logger.info("comfyui_socket_failed %s", error.message)
            return
        self._upstream.run(self._read(socket))

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            async for message in socket:
                # Binary messages are previews.
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._take(message.data)
                await self._tell()
        finally:
            self._open = False
            self.lost += 1
            await socket.close()
        await self._tell()

    async def _tell(self) -> None:
        async with self.heard:
            self.heard.notify_all()

    def _take(self, text: str) -> None:
        try:
            message = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return
        data = message.get("data") if isinstance(message, dict) else None
        if not isinstance(data, dict):
            return
        # Older servers name the prompt only when it starts.
        self._current = str(data.get("prompt_id") or self._current)
        prompt = self._prompts.get(self._current)
        if prompt is not None:
            _apply(prompt, message.get("type"), data)


def _apply(prompt: _Prompt, kind: object, data: Mapping[str, Any]) -> None:
    value, most = data.get("value"), data.get("max")
    if kind == "execution_cached" and isinstance(data.get("nodes"), list):
        prompt.done |= {str(node) for node in data["nodes"]}
    elif kind == "executing":
        # Only nodes that show something are reported as executed: the next one tells that the last is done.
        if prompt.running:
            prompt.done.add(prompt.running)
        prompt.running, prompt.part = str(data.get("node") or ""), 0.0
    elif kind == "progress" and isinstance(value, int | float) and isinstance(most, int | float) and most > 0:
        prompt.part = min(1.0, max(0.0, value / most))
