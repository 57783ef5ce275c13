"""Lets the items of batches follow one another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from services.workflow.admission import RACERS
from services.workflow.domain.routes import Route, routes_of
from services.workflow.engine.worker import targets_of
from services.workflow.store.batches import Batches
from services.workflow.store.records import SECOND


class Advancer:
    """Begins the next items of batches in which one has ended."""

    def __init__(self, batches: Batches, clock: Callable[[], datetime]) -> None:
        self._batches = batches
        self._clock = clock

    async def advance_many(self, batch_ids: Sequence[str]) -> Collection[str]:
        """Look at batches, and return them: what changes later brings them back."""
        for batch_id in batch_ids:
            await self._batches.advance(batch_id, first_routes, round(self._clock().timestamp() * SECOND))
        return batch_ids


def first_routes(item: Any) -> Sequence[Route]:
    """Return the ways at which an item's attempts begin: one, or those of a race."""
    targets = targets_of(item)
    return routes_of(targets[:RACERS] if item.parallel else targets[:1], item.priority)
