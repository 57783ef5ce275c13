"""Seals what was booked and checks that the books add up, in whichever replica comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from services.billing.domain.usage import microseconds
from services.billing.store import Store
from services.billing.store.chain import BLOCK

_logger = logging.getLogger(__name__)


class Auditor:
    """Idempotent; any number of replicas may do it at the same time."""

    def __init__(self, store: Store, check_every: int, now: Callable[[], datetime]) -> None:
        self._store = store
        self._check_every = check_every
        self._clock = now

    async def seal(self) -> None:
        """Seal everything that waits, block by block."""
        while await self._store.seal(microseconds(self._clock())) == BLOCK:
            pass

    async def check(self) -> None:
        """Check the ledger if no replica has done it within the interval."""
        now = microseconds(self._clock())
        if not await self._store.elect("check", self._check_every, now):
            return
        report = await self._store.check(now)
        for each in report.differences:
            # An operator must see it: the books are wrong.
            _logger.error(
                "ledger_discrepancy %s %s expected=%s found=%s",
                each.rule,
                each.subject,
                each.expected,
                each.found,
            )
        _logger.info("ledger_checked entries=%d differences=%d", report.entries, len(report.differences))
