"""Serves omnihub.billing.v1.LedgerService: message in, domain decision, message out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1 import ledger_pb2
from omnihub.billing.v1 import ledger_service_pb2 as pb

from services.billing.domain.correction import Request, amount_of
from services.billing.domain.difference import Difference
from services.billing.domain.errors import InvalidFieldError, MissingOrganisationError
from services.billing.domain.grant import check_note
from services.billing.domain.ledger import LATEST_SECOND, check_currency, check_id, check_name
from services.billing.domain.usage import microseconds, page_size
from services.billing.store import Store
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call
from services.credits.money import format_nano

# Of one check; all are kept.
LISTED = 1000


class LedgerServer:
    """Translates messages, nothing else."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = now

    async def grant_allowance(
        self, request: pb.GrantAllowanceRequest, call: Call
    ) -> pb.GrantAllowanceResponse:
        """See the contract."""
        now = self._now()
        if not 0 <= request.expires_at.seconds <= LATEST_SECOND:
            raise InvalidFieldError("expires_at", "must be between the years 1970 and 9999")
        expires_at = request.expires_at.ToMicroseconds()
        balance = await self._store.grant_allowance(
            request.organisation_id,
            request.period,
            request.amount_nano_credits,
            expires_at,
            now,
            _actor(call),
        )
        return pb.GrantAllowanceResponse(balance_nano_credits=balance.posted)

    async def list_grants(self, request: pb.ListGrantsRequest, call: Call) -> pb.ListGrantsResponse:
        """See the contract."""
        size, after = page_size(request.page_size), None
        if request.page_token:
            priority, expiry, created_at, grant_id = decode_page_token(request.page_token, 4)
            try:
                after = (int(priority), int(expiry), int(created_at), grant_id)
            except ValueError:
                raise InvalidFieldError("page_token", "is not one of this list") from None
        rows = await self._store.grants(_organisation_of(call), after, size + 1, spent=request.include_spent)
        token = ""
        if len(rows) > size:
            last = rows[size - 1]
            token = encode_page_token(str(last.priority), str(last.expiry), str(last.created_at), last.id)
        return pb.ListGrantsResponse(grants=[_grant(row) for row in rows[:size]], next_page_token=token)

    async def refund_charge(self, request: pb.RefundChargeRequest, call: Call) -> pb.RefundChargeResponse:
        """See the contract."""
        check_id("charge_id", request.charge_id)
        check_currency("currency", request.currency)
        asked = _request("refund", request.charge_id, request, call, amount_of("amount", request.amount))
        transaction_id, amount, balance = await self._store.refund_charge(asked, self._now())
        return pb.RefundChargeResponse(
            transaction_id=transaction_id, refunded=format_nano(amount), balance=format_nano(balance)
        )

    async def correct_charge(self, request: pb.CorrectChargeRequest, call: Call) -> pb.CorrectChargeResponse:
        """See the contract."""
        check_id("charge_id", request.charge_id)
        check_currency("currency", request.currency)
        cost = amount_of("cost", request.cost) if request.HasField("cost") else None
        amount = amount_of("amount", request.amount)
        asked = _request("correct", request.charge_id, request, call, amount, cost)
        transaction_id, _, balance = await self._store.correct_charge(asked, self._now())
        return pb.CorrectChargeResponse(
            reversal_transaction_id=asked.id, transaction_id=transaction_id, balance=format_nano(balance)
        )

    async def reverse_grant(self, request: pb.ReverseGrantRequest, call: Call) -> pb.ReverseGrantResponse:
        """See the contract."""
        check_name("grant_id", request.grant_id)
        asked = _request("reverse", request.grant_id, request, call)
        transaction_id, amount, balance = await self._store.reverse_grant(asked, self._now())
        return pb.ReverseGrantResponse(
            transaction_id=transaction_id, reversed=format_nano(amount), balance=format_nano(balance)
        )

    async def close_account(self, request: pb.CloseAccountRequest, call: Call) -> pb.CloseAccountResponse:
        """See the contract."""
        check_id("organisation_id", request.organisation_id)
        check_note(request.note)
        changed = await self._store.close_account(
            request.organisation_id, _actor(call), request.note, self._now()
        )
        return pb.CloseAccountResponse(changed=changed)

    async def reopen_account(self, request: pb.ReopenAccountRequest, call: Call) -> pb.ReopenAccountResponse:
        """See the contract."""
        check_id("organisation_id", request.organisation_id)
        check_note(request.note)
        changed = await self._store.reopen_account(
            request.organisation_id, _actor(call), request.note, self._now()
        )
        return pb.ReopenAccountResponse(changed=changed)

    async def check_ledger(self, request: pb.CheckLedgerRequest, call: Call) -> pb.CheckLedgerResponse:
        """See the contract."""
        now = self._now()
        report = await self._store.check(now)
        return pb.CheckLedgerResponse(
            ok=report.ok,
            discrepancies=_found(report.differences[:LISTED], now),
            transactions=report.transactions,
            entries=report.entries,
            usage_events=report.usage_events,
            blocks=report.blocks,
        )

    async def list_discrepancies(
        self, request: pb.ListDiscrepanciesRequest, call: Call
    ) -> pb.ListDiscrepanciesResponse:
        """See the contract."""
        size, after = page_size(request.page_size), None
        if request.page_token:
            (after,) = decode_page_token(request.page_token, 1)
        rows = await self._store.discrepancies(after, size + 1, resolved=request.include_resolved)
        return pb.ListDiscrepanciesResponse(
            discrepancies=[_discrepancy(row) for row in rows[:size]],
            next_page_token=encode_page_token(rows[size - 1].id) if len(rows) > size else "",
        )

    def _now(self) -> int:
        return microseconds(self._clock())


def _request(
    action: str, subject: str, request: Any, call: Call, amount: int = 0, cost: int | None = None
) -> Request:
    check_id("idempotency_key", request.idempotency_key)
    check_note(request.note)
    key = f"{action}:{request.idempotency_key}"
    return Request(key, subject, amount, cost, request.note, _actor(call))


def _actor(call: Call) -> str:
    return call.identity.user_id or call.identity.key_id


def _organisation_of(call: Call) -> str:
    if not call.identity.organisation_id:
        raise MissingOrganisationError("the call acts for no organisation; send a credential of one")
    return call.identity.organisation_id


def _timestamp(at: int | None) -> Timestamp | None:
    if at is None:
        return None
    timestamp = Timestamp()
    timestamp.FromMicroseconds(at)
    return timestamp


def _grant(row: Any) -> ledger_pb2.Grant:
    return ledger_pb2.Grant(
        grant_id=row.id,
        kind=row.kind,
        priority=row.priority,
        amount=format_nano(row.amount),
        remaining=format_nano(row.remaining),
        expires_at=_timestamp(row.expires_at),
        created_at=_timestamp(row.created_at),
        note=row.note,
    )


def _found(differences: Iterable[Difference], now: int) -> list[ledger_pb2.Discrepancy]:
    return [
        ledger_pb2.Discrepancy(
            rule=each.rule,
            subject=each.subject,
            expected=each.expected,
            found=each.found,
            last_seen_at=_timestamp(now),
        )
        for each in differences
    ]


def _discrepancy(row: Any) -> ledger_pb2.Discrepancy:
    return ledger_pb2.Discrepancy(
        discrepancy_id=row.id,
        rule=row.rule,
        subject=row.subject,
        expected=row.expected,
        found=row.found,
        first_seen_at=_timestamp(row.first_seen_at),
        last_seen_at=_timestamp(row.last_seen_at),
        resolved_at=_timestamp(row.resolved_at),
    )
