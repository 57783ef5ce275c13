"""Tells users' servers how jobs ended, in the format of Standard Webhooks."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from standardwebhooks import Webhook

from services.common.foreign import ForeignClient
from services.common.outbox import SECOND
from services.common.rpc import RpcError
from services.workflow.domain.deliveries import DEAD, DELIVERED, GONE, accepted, pause_after
from services.workflow.job_view import Link, view
from services.workflow.store.jobs import Jobs
from services.workflow.store.secrets import Vault
from services.workflow.store.webhooks import Webhooks

SECRET_BYTES = 24
DELIVERY = "msg_"


class Notifier:
    """Works off the queue of notifications, and signs. Messages name a job, or a delivery to try again."""

    def __init__(
        self,
        webhooks: Webhooks,
        jobs: Jobs,
        vault: Vault,
        foreign: ForeignClient,
        link: Link,
        clock: Callable[[], datetime],
    ) -> None:
        self._webhooks = webhooks
        self._jobs = jobs
        self._vault = vault
        self._foreign = foreign
        self._link = link
        self._clock = clock

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    def seal(self, endpoint_id: str, secret: bytes) -> bytes:
        """Return a secret as it is stored."""
        return self._vault.close(secret, endpoint_id)

    async def notify(self, subject_id: str) -> None:
        """Work off one message: at least once, and again after a pause when the receiver fails."""
        if subject_id.startswith(DELIVERY):
            await self._deliver(subject_id)
            return
        job = await self._jobs.job_of(subject_id)
        endpoint = await self._webhooks.find(job.webhook_endpoint_id) if job is not None else None
        if job is None or endpoint is None or endpoint.organisation_id != job.organisation_id:
            return
        event = f"job.{job.state}"
        if endpoint.events and event not in endpoint.events.split(","):
            return
        body = self.body_of(event, MessageToDict(view(job, self._link)))
        await self._deliver(await self._webhooks.begin(endpoint.id, event, job.id, body, self._now()))

    def body_of(self, event: str, data: dict[str, Any]) -> bytes:
        """Return the body of a notification."""
        at = self._clock().isoformat().replace("+00:00", "Z")
        document = {"type": event, "timestamp": at, "data": data}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def _deliver(self, delivery_id: str) -> None:
        row = await self._webhooks.delivery(delivery_id)
        endpoint = await self._webhooks.find(row.endpoint_id) if row is not None else None
        if row is None or endpoint is None or row.state == DELIVERED:
            return
        status, problem = 0, "the address has been switched off"
        if endpoint.enabled:
            status, problem = await self.send(endpoint, row.id, bytes(row.body))
        if accepted(status):
            await self._webhooks.delivered(row, status)
            return
        if status == GONE:
            await self._webhooks.change(endpoint.id, enabled=False)
        # What was dead and has been sent again by hand gets one more attempt.
        final = status == GONE or not endpoint.enabled or row.state == DEAD
        pause = None if final else pause_after(row.attempts + 1)
        now = self._now()
        again_at = now + round(pause * SECOND) if pause is not None else 0
        await self._webhooks.failed(row, status, problem, again_at, now)

    async def send(self, endpoint: Any, message_id: str, body: bytes) -> tuple[int, str]:
        """Send a body, signed; return the status, 0 when none came, and what was wrong."""
        at = self._clock().astimezone(UTC)
        signatures = [Webhook(key).sign(message_id, at, body.decode()) for key in self._keys(endpoint)]
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        try:
            status = await self._foreign.post(endpoint.url, body, headers)
        except RpcError as error:
            return 0, f"{error.reason}: {error.message}"
        return status, "" if accepted(status) else f"the receiver answered {status}"

    def _keys(self, endpoint: Any) -> list[bytes]:
        """Return the keys to sign with: for a while after a rotation, the former one too."""
        keys = [self._vault.open(bytes(endpoint.secret), endpoint.sealed, endpoint.id)]
        if endpoint.former_until > self._now():
            keys.append(self._vault.open(bytes(endpoint.former_secret), endpoint.sealed, endpoint.id))
        return keys


def new_secret() -> bytes:
    """Return a key to sign with."""
    return secrets.token_bytes(SECRET_BYTES)


def shown(secret: bytes) -> str:
    """Return a key as its owner sees it, once."""
    return f"whsec_{base64.b64encode(secret).decode()}"
