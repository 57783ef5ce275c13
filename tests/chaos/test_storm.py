"""32 workers do anything to one PostgreSQL for a minute; every invariant holds."""

from __future__ import annotations

import pytest

from tests.support.budgets import open_world
from tests.support.storm import Storm, deadlocks, settle_down, verify

pytestmark = [pytest.mark.chaos, pytest.mark.postgresql, pytest.mark.timeout(1800)]
SECONDS = 60


async def test_a_minute_of_anything_at_once(postgresql_url: str) -> None:
    async with open_world(postgresql_url) as world:
        storm = Storm(world, SECONDS)
        await storm.run()
        await verify(storm)
        await settle_down(storm)
        await verify(storm)
        assert await deadlocks(storm) == 0
        print(f"{storm.done.total()} operations {dict(storm.done)}, {storm.refused.total()} refusals")
