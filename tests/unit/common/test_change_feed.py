"""Whoever follows changes goes on following, whatever goes wrong with one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.common.v1.change_pb2 import Change

from services.common import change_feed
from services.common.change_feed import Follower
from services.router.registry import registry
from services.router.registry.registry import ModelRegistry

CHANGE = Change(seq=1, topic="price", key="a/x")


@pytest.mark.parametrize("error", [KeyError("unforeseen"), OSError("the database is away")])
async def test_a_follower_survives_a_change_it_fails_at(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(change_feed, "POLL_S", 0.0)
    failures, asked, taken = [error], [], asyncio.Event()

    async def watch(request: pb.WatchChangesRequest, call: Any) -> AsyncIterator[pb.WatchChangesResponse]:
        asked.append(request.after_seq)
        yield pb.WatchChangesResponse(changes=[CHANGE], seq=1)
        await asyncio.Future()

    async def on_change(changes: Sequence[Change]) -> None:
        if failures:
            raise failures.pop()
        taken.set()

    follower = Follower(watch, pb.WatchChangesRequest, on_change)
    follower.start()
    async with asyncio.timeout(10):
        await taken.wait()
        await follower.wait_until_heard(5)
    await follower.stop()
    # The change it failed at came again.
    assert asked == [0, 0]
    assert "change_feed_interrupted" in caplog.text
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("error", [KeyError("unforeseen"), OSError("the database is away")])
async def test_the_registry_follows_on_after_any_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "POLL_S", 0.0)
    failures, read = [error], asyncio.Event()

    class Feed:
        async def position(self) -> int:
            return 0

        async def watch(self, seq: int) -> AsyncIterator[tuple[Sequence[Change], int]]:
            yield [CHANGE], 1
            await asyncio.Future()

    class Store:
        async def read(self, names: Any) -> list[Any]:
            if names is not None:
                if failures:
                    raise failures.pop()
                read.set()
            return []

    store, feed = Store(), Feed()
    followed = ModelRegistry({}, store, feed, lambda catalogue: None)  # type: ignore[arg-type]
    await followed.start()
    async with asyncio.timeout(10):
        await read.wait()
    await followed.stop()
