"""The table of fixed paths answers as Starlette's router alone would."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.routing import Route, Router

from services.listener.routing import Dispatcher


def handler(name: str) -> Any:
    class Handler:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})

    return Handler()


ROUTES = [
    Route("/videos/{video_id}", handler("one video"), methods=["GET"]),
    Route("/videos", handler("make a video"), methods=["POST"]),
    Route("/videos", handler("all videos"), methods=["GET"]),
    Route("/videos", handler("never"), methods=["GET"]),
    # Behind one with a parameter that takes its path too.
    Route("/videos/latest", handler("never"), methods=["GET"]),
    Route("/any", handler("any method")),
]


async def asked(app: Any, method: str, path: str) -> list[Any]:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    await app(scope, None, send)
    return sent


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/videos", "/videos/latest", "/videos/1", "/videos/", "/any", "/", "/none"])
async def test_both_answer_alike(method: str, path: str) -> None:
    alone = await asked(Router(ROUTES, redirect_slashes=False), method, path)
    assert await asked(Dispatcher(ROUTES), method, path) == alone


def test_fixed_paths_are_in_the_table() -> None:
    fixed = Dispatcher(ROUTES)._fixed
    assert set(fixed) == {("/videos", "GET"), ("/videos", "HEAD"), ("/videos", "POST")} | {
        key for key in fixed if key[0] == "/any"
    }
