"""The limits and plans of all organisations in memory, followed as they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from omnihub.billing.v1 import billing_service_pb2
from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_pb2 import OrganisationBudget
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.common.v1.change_pb2 import Change

from services.common.change_feed import Follower
from services.common.rpc import Call
from services.router.domain.limits import OrganisationRules, Rule, rules_of

TOPIC = "budget"
EVERYONE = "*"
TIMEOUT_S = 10.0
# What the contract allows in one question.
BATCH = 1000


class BudgetRules:
    """What applies to whom. An organisation without anything costs one look into a dictionary."""

    def __init__(
        self, billing: BillingService, budgets: BudgetService, on_change: Callable[[str], None]
    ) -> None:
        self._budgets = budgets
        self._on_change = on_change
        self._known: dict[str, OrganisationRules] = {}
        self._default: OrganisationRules | None = None
        self._template = OrganisationBudget()
        self._reading = asyncio.Lock()
        self._follower = Follower(
            billing.watch_changes, billing_service_pb2.WatchChangesRequest, self._changed
        )

    def start(self) -> None:
        """Begin to follow changes. Call `load` afterwards."""
        self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    def of(self, organisation_id: str) -> OrganisationRules | None:
        """Return what applies to an organisation; None when nothing does."""
        known = self._known.get(organisation_id, self._default)
        if known is None and self._template.rules and organisation_id:
            # Only on a default plan with limits: their counters are each organisation's own.
            known = self._known[organisation_id] = _from_template(self._template, organisation_id)
        return known

    async def load(self) -> None:
        """Read everything. Raises RpcError."""
        known: dict[str, OrganisationRules] = {}
        request = pb.SyncBudgetsRequest()
        # One at a time, so that an older answer never replaces a newer one.
        async with self._reading:
            while True:
                answer = await self._budgets.sync_budgets(request, Call.internal(TIMEOUT_S))
                known.update((each.organisation_id, _rules(each)) for each in answer.budgets)
                request.page_token = answer.next_page_token
                if not request.page_token:
                    break
            self._take_default(answer.default_budget)
            self._known = known
        self._on_change(EVERYONE)

    def _take_default(self, budget: OrganisationBudget) -> None:
        self._template = budget
        self._default = _rules(budget) if budget.plan and not budget.rules else None

    async def reload(self, organisation_ids: Sequence[str]) -> None:
        """Read what applies to these organisations now. Raises RpcError."""
        for first in range(0, len(organisation_ids), BATCH):
            named = organisation_ids[first : first + BATCH]
            request = pb.SyncBudgetsRequest(organisation_ids=named)
            async with self._reading:
                answer = await self._budgets.sync_budgets(request, Call.internal(TIMEOUT_S))
                for each in answer.budgets:
                    self._known[each.organisation_id] = _rules(each)
            for organisation_id in named:
                self._on_change(organisation_id)

    async def _changed(self, changes: Sequence[Change]) -> None:
        keys = {change.key for change in changes if change.topic == TOPIC}
        if EVERYONE in keys:
            await self.load()
        elif keys:
            await self.reload(sorted(keys))


def _rules(budget: OrganisationBudget) -> OrganisationRules:
    rules = [
        Rule(each.limit_id, each.scope, each.scope_id, each.measure, each.window, each.amount)
        for each in budget.rules
    ]
    return rules_of(budget.plan, budget.allowed_models, rules)


def _from_template(budget: OrganisationBudget, organisation_id: str) -> OrganisationRules:
    rules = [
        Rule(
            each.limit_id + organisation_id,
            each.scope,
            organisation_id,
            each.measure,
            each.window,
            each.amount,
        )
        for each in budget.rules
    ]
    return rules_of(budget.plan, budget.allowed_models, rules)
