"""The short form of `tests/chaos/test_storm.py`: 32 workers, any operation, two databases."""

from __future__ import annotations

from tests.support.budgets import open_world
from tests.support.storm import KINDS, Storm, deadlocks, settle_down, verify


async def test_anything_at_once_keeps_the_books(database_url: str) -> None:
    async with open_world(database_url) as world:
        storm = Storm(world, seconds=3)
        await storm.run()
        await verify(storm)
        await settle_down(storm)
        await verify(storm)
        assert await deadlocks(storm) == 0
        assert len(storm.done) >= KINDS, storm.done
