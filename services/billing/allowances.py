"""Credits that plans give each month, granted once for each period whatever crashes in between."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from services.billing.domain.errors import BillingError
from services.billing.domain.usage import microseconds
from services.billing.store.budgets import BudgetStore

GrantAllowance = Callable[[str, str, int, int], Awaitable[object]]
"""Books (organisation, period, nano-credits, expiry in microseconds), once for an organisation's period."""

_logger = logging.getLogger(__name__)


class MonthlyAllowances:
    """Idempotent; any number of replicas may do it at the same time."""

    def __init__(self, store: BudgetStore, grant: GrantAllowance, now: Callable[[], datetime]) -> None:
        self._store = store
        self._grant = grant
        self._clock = now

    async def grant_due(self) -> None:
        """Grant what is due this month. What has been decided stays, whatever happens to the plan."""
        for due in await self._store.due(microseconds(self._clock())):
            try:
                await self._grant(due.organisation_id, due.period, due.amount, due.expires_at)
            except BillingError as error:
                # Such as a closed account: it must not keep the others from theirs.
                _logger.warning(
                    "allowance_not_granted %s %s %s", due.organisation_id, due.period, error.message
                )
                continue
            await self._store.granted(due)
            _logger.info("allowance_granted %s %s %s", due.organisation_id, due.period, due.amount)
