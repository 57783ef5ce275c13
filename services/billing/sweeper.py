"""Ends what nobody ended: holds and grants past their expiry, leases abandoned long ago."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from services.billing.domain.usage import microseconds
from services.billing.store import Store
from services.billing.store.grants import SWEEP as GRANTS_SWEEP
from services.billing.store.reservations import SWEEP

_logger = logging.getLogger(__name__)


class Sweeper:
    """Idempotent; any number of replicas may sweep at the same time."""

    def __init__(self, store: Store, abandoned_after: int, now: Callable[[], datetime]) -> None:
        self._store = store
        self._abandoned_after = abandoned_after
        self._clock = now

    async def sweep(self) -> None:
        """Expire what is due, batch by batch."""
        now = microseconds(self._clock())
        while await self._store.expire_holds(now) == SWEEP:
            pass
        while await self._store.expire_grants(now) == GRANTS_SWEEP:
            pass
        for lease_id in await self._store.close_abandoned_leases(now - self._abandoned_after):
            # Its charges, should they still arrive, are booked as late.
            _logger.warning("lease_abandoned %s", lease_id)
