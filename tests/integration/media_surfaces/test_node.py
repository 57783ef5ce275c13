"""Every kind of media through the official client for Node."""

from __future__ import annotations

import base64

from tests.support.media_facade import KEY, TEXT, VIDEO, MediaFacade, a_picture, a_recording
from tests.support.node import run_client


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_every_kind(facade: MediaFacade) -> None:
    body = {"model": "fake0/m", "picture": encoded(a_picture()), "recording": encoded(a_recording())}
    [seen] = await run_client("openai", facade.url, KEY, [{"surface": "media", "body": body}])
    assert seen == {
        "made": encoded(a_picture(32, 16)),
        "edited": 1,
        "speech": encoded(a_recording()),
        "written": TEXT,
        "video": encoded(VIDEO),
        "deleted": True,
    }
    images = facade.maker.attempts[1].input.image_edit.images
    assert [image.data for image in images] == [a_picture()] * 2
