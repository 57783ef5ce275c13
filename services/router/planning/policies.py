"""Routing policies in memory. A change is in force everywhere within 5 s."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.router.domain.routing import DEFAULT_POLICY, RoutingPolicy
from services.router.planning.policy_store import PolicyStore
from services.router.repeating import repeat

REFRESH_S = 2.0


class Policies:
    """The policies in force. No request waits for the database."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store
        self._known: Mapping[str, RoutingPolicy] = {}
        self._task: asyncio.Task[None] | None = None

    def of(self, organisation_id: str) -> RoutingPolicy:
        """Return the policy of an organisation."""
        return self._known.get(organisation_id, DEFAULT_POLICY)

    async def start(self) -> None:
        """Read all policies, then again and again."""
        await self.refresh()
        self._task = asyncio.create_task(repeat(self.refresh, REFRESH_S))

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Read all policies."""
        self._known = await self._store.all()
