"""Serves WebhookService: addresses of users' servers, their secrets, and what was delivered."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from omnihub.workflow.v1 import webhook_service_pb2 as pb

from services.common.foreign import ForeignClient
from services.common.ids import new_id
from services.common.outbox import SECOND
from services.common.page_token import encode_page_token
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.domain.deliveries import EVENTS, PENDING, TEST_EVENT
from services.workflow.files.server import read_page_token
from services.workflow.notifier import DELIVERY, Notifier, new_secret, shown
from services.workflow.store.secrets import Vault
from services.workflow.store.webhooks import Webhooks

DEFAULT_PAGE = 100
DEFAULT_OVERLAP_S = 86_400


class WebhookServer:
    """See the contract in omnihub/workflow/v1/webhook_service.proto."""

    def __init__(
        self,
        webhooks: Webhooks,
        notifier: Notifier,
        vault: Vault,
        foreign: ForeignClient,
        clock: Callable[[], datetime],
    ) -> None:
        self._webhooks = webhooks
        self._notifier = notifier
        self._vault = vault
        self._foreign = foreign
        self._clock = clock

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def create_webhook_endpoint(
        self, request: pb.CreateWebhookEndpointRequest, call: Call
    ) -> pb.CreateWebhookEndpointResponse:
        """Add an address."""
        if unknown := sorted(set(request.events) - set(EVENTS)):
            rule = f"{unknown[0][:80]!r} is none; expected some of {', '.join(EVENTS)}"
            raise RpcError("INVALID_ARGUMENT", f"events: {rule}", violations=[Violation("events", rule)])
        await self._foreign.verify(request.url)
        secret, endpoint_id = new_secret(), new_id("whe")
        row, created = await self._webhooks.create(
            {
                "id": endpoint_id,
                "organisation_id": call.identity.organisation_id,
                "url": request.url,
                "events": ",".join(sorted(set(request.events))),
                "enabled": True,
                "secret": self._notifier.seal(endpoint_id, secret),
                "former_secret": b"",
                "former_until": 0,
                "sealed": self._vault.seals,
                "idempotency_key": request.idempotency_key or call.idempotency_key,
                "created_at": self._now(),
            }
        )
        if not created and (row.url, row.events) != (request.url, ",".join(sorted(set(request.events)))):
            raise RpcError(
                "IDEMPOTENCY_KEY_REUSED", f"the key added another address, {row.id}; use a new one"
            )
        # Whoever repeats a request has not seen the answer: without its secret it would be of no use.
        stored = secret if created else self._vault.open(bytes(row.secret), row.sealed, row.id)
        return pb.CreateWebhookEndpointResponse(endpoint=_view(row), secret=shown(stored))

    async def list_webhook_endpoints(
        self, request: pb.ListWebhookEndpointsRequest, call: Call
    ) -> pb.ListWebhookEndpointsResponse:
        """Return a page of addresses."""
        size = request.page_size or DEFAULT_PAGE
        before = read_page_token(request.page_token)
        rows = await self._webhooks.page(call.identity.organisation_id, size + 1, before)
        response = pb.ListWebhookEndpointsResponse(endpoints=[_view(row) for row in rows[:size]])
        response.next_page_token = _next(rows, size)
        return response

    async def delete_webhook_endpoint(
        self, request: pb.DeleteWebhookEndpointRequest, call: Call
    ) -> pb.DeleteWebhookEndpointResponse:
        """Remove an address; one that is not there is none any more."""
        row = await self._webhooks.find(request.webhook_endpoint_id)
        if row is not None and row.organisation_id == call.identity.organisation_id:
            await self._webhooks.remove(row.id)
        return pb.DeleteWebhookEndpointResponse()

    async def rotate_webhook_secret(
        self, request: pb.RotateWebhookSecretRequest, call: Call
    ) -> pb.RotateWebhookSecretResponse:
        """Make a new secret; the former one signs beside it for a while."""
        row = await self.endpoint(request.webhook_endpoint_id, call)
        secret = new_secret()
        former = self._vault.open(bytes(row.secret), row.sealed, row.id)
        await self._webhooks.change(
            row.id,
            secret=self._notifier.seal(row.id, secret),
            former_secret=self._notifier.seal(row.id, former),
            former_until=self._now() + (request.overlap_s or DEFAULT_OVERLAP_S) * SECOND,
            sealed=self._vault.seals,
        )
        return pb.RotateWebhookSecretResponse(secret=shown(secret))

    async def test_webhook_endpoint(
        self, request: pb.TestWebhookEndpointRequest, call: Call
    ) -> pb.TestWebhookEndpointResponse:
        """Send a test event now."""
        row = await self.endpoint(request.webhook_endpoint_id, call)
        body = self._notifier.body_of(TEST_EVENT, {"webhookEndpointId": row.id})
        begun = time.monotonic()
        status, problem = await self._notifier.send(row, new_id(DELIVERY.rstrip("_")), body)
        latency_ms = round((time.monotonic() - begun) * 1000)
        return pb.TestWebhookEndpointResponse(http_status=status, problem=problem, latency_ms=latency_ms)

    async def list_webhook_deliveries(
        self, request: pb.ListWebhookDeliveriesRequest, call: Call
    ) -> pb.ListWebhookDeliveriesResponse:
        """Return a page of deliveries."""
        await self.endpoint(request.webhook_endpoint_id, call)
        size = request.page_size or DEFAULT_PAGE
        before = read_page_token(request.page_token)
        rows = await self._webhooks.deliveries(request.webhook_endpoint_id, size + 1, before)
        response = pb.ListWebhookDeliveriesResponse(deliveries=[_delivery(row) for row in rows[:size]])
        response.next_page_token = _next(rows, size)
        return response

    async def endpoint(self, endpoint_id: str, call: Call) -> Any:
        """Return an address of the caller's organisation. Raises RpcError NOT_FOUND."""
        row = await self._webhooks.find(endpoint_id)
        if row is None or row.organisation_id != call.identity.organisation_id:
            raise RpcError("NOT_FOUND", f"there is no webhook endpoint {endpoint_id}")
        return row


def _next(rows: Any, size: int) -> str:
    return encode_page_token(rows[size - 1].created_at, rows[size - 1].id) if len(rows) > size else ""


def _view(row: Any) -> pb.WebhookEndpoint:
    message = pb.WebhookEndpoint(
        webhook_endpoint_id=row.id,
        url=row.url,
        events=[event for event in row.events.split(",") if event],
        enabled=row.enabled,
    )
    message.created_at.FromMicroseconds(row.created_at)
    return message


def _delivery(row: Any) -> pb.WebhookDelivery:
    message = pb.WebhookDelivery(
        delivery_id=row.id,
        event=row.event,
        job_id=row.job_id,
        state=row.state,
        attempts=row.attempts,
        http_status=row.http_status,
        problem=row.problem,
    )
    if row.state == PENDING and row.next_attempt_at:
        message.next_attempt_at.FromMicroseconds(row.next_attempt_at)
    return message
