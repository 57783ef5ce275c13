"""Serves omnihub.billing.v1.BudgetService: message in, domain decision, message out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1 import budget_pb2, plan_pb2
from omnihub.billing.v1 import budget_service_pb2 as pb

from services.billing.domain.errors import (
    InvalidFieldError,
    MissingOrganisationError,
    PermissionDeniedError,
    PreconditionFailedError,
)
from services.billing.domain.ledger import check_id
from services.billing.domain.limit import ORGANISATION, PLAN, PLATFORM, Limit, format_amount, read_limit
from services.billing.domain.plan import ADMINISTRATOR, Plan, read_plan
from services.billing.domain.usage import microseconds, page_size
from services.billing.store.budgets import BudgetStore
from services.billing.store.limits import Usage
from services.billing.store.plans import Assignment, Budget
from services.billing.store.slices import Wanted
from services.common.ids import new_id
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call
from services.credits.windows import SECOND, window_end

PLATFORM_SCOPE = "platform"
# Organisations that one page of a synchronisation holds.
SYNCED = 500
LONGEST_NOTE = 500


class BudgetServer:
    """Translates messages, nothing else."""

    def __init__(self, store: BudgetStore, lease_ttl_s: int, now: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = now
        self._ttl = lease_ttl_s * SECOND

    async def set_limit(self, request: pb.SetLimitRequest, call: Call) -> pb.SetLimitResponse:
        """See the contract."""
        now = self._now()
        managed_by = PLATFORM if request.organisation_id else ORGANISATION
        organisation_id = _acting_for(request.organisation_id, call)
        limit = read_limit(request.terms, new_id("limit"), organisation_id, managed_by, now)
        stored = await self._store.set_limit(limit, _actor(call), now)
        return pb.SetLimitResponse(limit=_limit(stored, await self._store.usage(stored, now), now))

    async def list_limits(self, request: pb.ListLimitsRequest, call: Call) -> pb.ListLimitsResponse:
        """See the contract."""
        organisation_id, size = _acting_for(request.organisation_id, call), page_size(request.page_size)
        now = self._now()
        found = await self._store.limits(organisation_id, _start(request.page_token), size + 1, now)
        token = encode_page_token(found[size - 1][0].id) if len(found) > size else ""
        limits = [_limit(limit, usage, now) for limit, usage in found[:size]]
        return pb.ListLimitsResponse(limits=limits, next_page_token=token)

    async def delete_limit(self, request: pb.DeleteLimitRequest, call: Call) -> pb.DeleteLimitResponse:
        """See the contract."""
        if request.limit_id.startswith(PLAN):
            raise PreconditionFailedError("the limit belongs to a plan; change the plan, or assign another")
        check_id("limit_id", request.limit_id)
        limit = await self._store.limit(request.limit_id)
        platform = call.identity.holds(PLATFORM_SCOPE)
        if limit is None or (limit.organisation_id != call.identity.organisation_id and not platform):
            return pb.DeleteLimitResponse()
        if limit.managed_by == PLATFORM and not platform:
            raise PermissionDeniedError("the limit was set by the platform; ask them", scope=PLATFORM_SCOPE)
        await self._store.delete_limit(limit, _actor(call), self._now())
        return pb.DeleteLimitResponse()

    async def list_limit_alerts(
        self, request: pb.ListLimitAlertsRequest, call: Call
    ) -> pb.ListLimitAlertsResponse:
        """See the contract."""
        organisation_id, size = _acting_for(request.organisation_id, call), page_size(request.page_size)
        found = await self._store.alerts(organisation_id, _start(request.page_token), size + 1)
        alerts = [
            budget_pb2.LimitAlert(
                limit_id=alert.limit.id,
                terms=_terms(alert.limit),
                percent=alert.percent,
                spent=format_amount(alert.limit.measure, alert.spent),
                window_started_at=_timestamp(alert.window_start),
                raised_at=_timestamp(alert.at),
            )
            for alert in found[:size]
        ]
        token = encode_page_token(found[size - 1].id) if len(found) > size else ""
        return pb.ListLimitAlertsResponse(alerts=alerts, next_page_token=token)

    async def list_plans(self, request: pb.ListPlansRequest, call: Call) -> pb.ListPlansResponse:
        """See the contract."""
        plans = await self._store.all_plans()
        return pb.ListPlansResponse(
            plans=[_plan(plans[name]) for name in sorted(plans)], default_plan=self._store.plan_book.default
        )

    async def set_plan(self, request: pb.SetPlanRequest, call: Call) -> pb.SetPlanResponse:
        """See the contract."""
        wanted = request.plan
        plan = read_plan(
            wanted.name,
            wanted.display_name,
            wanted.monthly_credits,
            wanted.allowed_models,
            wanted.limits,
            ADMINISTRATOR,
        )
        return pb.SetPlanResponse(plan=_plan(await self._store.set_plan(plan, _actor(call), self._now())))

    async def delete_plan(self, request: pb.DeletePlanRequest, call: Call) -> pb.DeletePlanResponse:
        """See the contract."""
        check_id("name", request.name)
        await self._store.delete_plan(request.name, _actor(call), self._now())
        return pb.DeletePlanResponse()

    async def assign_plan(self, request: pb.AssignPlanRequest, call: Call) -> pb.AssignPlanResponse:
        """See the contract."""
        check_id("organisation_id", request.organisation_id)
        if len(request.note) > LONGEST_NOTE or "\0" in request.note + request.plan:
            raise InvalidFieldError("note", f"must have at most {LONGEST_NOTE} characters, none of them NUL")
        made = await self._store.assign(
            request.organisation_id, request.plan, _actor(call), request.note, self._now()
        )
        return pb.AssignPlanResponse(assignment=_assignment(made))

    async def list_plan_assignments(
        self, request: pb.ListPlanAssignmentsRequest, call: Call
    ) -> pb.ListPlanAssignmentsResponse:
        """See the contract."""
        check_id("organisation_id", request.organisation_id)
        size = page_size(request.page_size)
        found = await self._store.assignments(request.organisation_id, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1].id) if len(found) > size else ""
        assignments = [_assignment(made) for made in found[:size]]
        return pb.ListPlanAssignmentsResponse(assignments=assignments, next_page_token=token)

    async def get_plan(self, request: pb.GetPlanRequest, call: Call) -> pb.GetPlanResponse:
        """See the contract."""
        plan = await self._store.plan_of(_own(call))
        return pb.GetPlanResponse(plan=None if plan is None else _plan(plan))

    async def sync_budgets(self, request: pb.SyncBudgetsRequest, call: Call) -> pb.SyncBudgetsResponse:
        """See the contract."""
        after = _start(request.page_token)
        budgets, last = await self._store.budgets(request.organisation_ids, after, SYNCED)
        return pb.SyncBudgetsResponse(
            budgets=[_budget(budget) for budget in budgets],
            default_budget=_budget(await self._store.default_budget()),
            next_page_token=encode_page_token(last) if last else "",
        )

    async def acquire_slices(self, request: pb.AcquireSlicesRequest, call: Call) -> pb.AcquireSlicesResponse:
        """See the contract."""
        check_id("holder", request.holder)
        for index, each in enumerate(request.slices):
            check_id(f"slices[{index}].slice_id", each.slice_id)
        wanted = [
            Wanted(each.slice_id, each.limit_id, each.need, each.minimum_total, each.spent_total)
            for each in request.slices
        ]
        granted = await self._store.acquire(
            request.organisation_id,
            request.holder,
            wanted,
            request.at.ToMicroseconds(),
            self._now() + self._ttl,
        )
        slices = [
            pb.Slice(slice_id=each.id, granted_total=each.total, available=each.available) for each in granted
        ]
        return pb.AcquireSlicesResponse(slices=slices, expires_in_s=self._ttl // SECOND)

    async def renew_slices(self, request: pb.RenewSlicesRequest, call: Call) -> pb.RenewSlicesResponse:
        """See the contract."""
        renewed = await self._store.renew(request.slice_ids, self._now() + self._ttl)
        return pb.RenewSlicesResponse(renewed_slice_ids=renewed, expires_in_s=self._ttl // SECOND)

    async def return_slices(self, request: pb.ReturnSlicesRequest, call: Call) -> pb.ReturnSlicesResponse:
        """See the contract."""
        await self._store.lower({each.slice_id: each.granted_total for each in request.slices})
        return pb.ReturnSlicesResponse()

    async def list_expired_slices(
        self, request: pb.ListExpiredSlicesRequest, call: Call
    ) -> pb.ListExpiredSlicesResponse:
        """See the contract."""
        return pb.ListExpiredSlicesResponse(slice_ids=await self._store.expired(self._now()))

    async def close_slices(self, request: pb.CloseSlicesRequest, call: Call) -> pb.CloseSlicesResponse:
        """See the contract."""
        await self._store.close(request.slice_ids, self._now())
        return pb.CloseSlicesResponse()

    def _now(self) -> int:
        return microseconds(self._clock())


def _own(call: Call) -> str:
    if not call.identity.organisation_id:
        raise MissingOrganisationError("the call acts for no organisation; send a credential of one")
    return call.identity.organisation_id


def _acting_for(organisation_id: str, call: Call) -> str:
    """Return the organisation a call is about. Raises PermissionDeniedError."""
    if not organisation_id:
        return _own(call)
    check_id("organisation_id", organisation_id)
    if not call.identity.holds(PLATFORM_SCOPE):
        raise PermissionDeniedError(
            "acting for a named organisation needs the scope `platform`; leave organisation_id out",
            scope=PLATFORM_SCOPE,
        )
    return organisation_id


def _actor(call: Call) -> str:
    return call.identity.user_id or call.identity.key_id


def _start(page_token: str) -> str:
    return decode_page_token(page_token, 1)[0] if page_token else ""


def _timestamp(at: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(at)
    return timestamp


def _terms(limit: Limit) -> budget_pb2.LimitTerms:
    return budget_pb2.LimitTerms(
        scope=limit.scope,
        scope_id=limit.scope_id,
        measure=limit.measure,
        window=limit.window,
        amount=format_amount(limit.measure, limit.amount),
        enforcement="hard" if limit.hard else "soft",
        alert_at_percent=limit.thresholds,
    )


def _limit(limit: Limit, usage: Usage, now: int) -> budget_pb2.Limit:
    end = window_end(limit.window, now)
    return budget_pb2.Limit(
        limit_id=limit.id,
        organisation_id=limit.organisation_id,
        terms=_terms(limit),
        managed_by=limit.managed_by,
        spent=format_amount(limit.measure, usage.spent),
        leased=format_amount(limit.measure, usage.leased),
        resets_at=None if end is None else _timestamp(end),
    )


def _plan(plan: Plan) -> plan_pb2.Plan:
    limits = [
        budget_pb2.LimitTerms(
            measure=terms.measure,
            window=terms.window,
            amount=terms.amount,
            enforcement=terms.enforcement,
            alert_at_percent=terms.alert_at_percent,
        )
        for terms in plan.limits
    ]
    return plan_pb2.Plan(
        name=plan.name,
        display_name=plan.display_name,
        monthly_credits=plan.monthly_credits,
        allowed_models=plan.allowed_models,
        limits=limits,
        managed_by=plan.managed_by,
    )


def _assignment(made: Assignment) -> plan_pb2.PlanAssignment:
    return plan_pb2.PlanAssignment(
        organisation_id=made.organisation_id,
        plan=made.plan,
        actor=made.actor,
        note=made.note,
        assigned_at=_timestamp(made.at),
    )


def _budget(budget: Budget) -> budget_pb2.OrganisationBudget:
    rules = [
        budget_pb2.LimitRule(
            limit_id=limit.id,
            scope=limit.scope,
            scope_id=limit.scope_id,
            measure=limit.measure,
            window=limit.window,
            amount=limit.amount,
        )
        for limit in budget.limits
    ]
    return budget_pb2.OrganisationBudget(
        organisation_id=budget.organisation_id,
        plan="" if budget.plan is None else budget.plan.name,
        allowed_models=() if budget.plan is None else budget.plan.allowed_models,
        rules=rules,
    )
