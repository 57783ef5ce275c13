"""Removes cloned voices at their providers, once the consent for them has been revoked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.common.outbox import SECOND
from services.common.rpc import Call, RpcError
from services.workflow.domain.voices import LEFT, REMOVING, pause_before_next
from services.workflow.store.consents import Consents

LIMIT_S = 60.0

_logger = logging.getLogger(__name__)


class VoiceRemover:
    """Works off the queue of voices to remove. Asking twice is harmless: what is gone stays gone."""

    def __init__(
        self, consents: Consents, router_service: MediaRouterService, clock: Callable[[], datetime]
    ) -> None:
        self._consents = consents
        self._router = router_service
        self._clock = clock

    async def remove(self, voice_id: str) -> None:
        """Ask a voice's provider once; what it does not do now it is asked for again."""
        row = await self._consents.voice(voice_id)
        if row is None or row.state not in (REMOVING, LEFT):
            return
        request = router.DeleteVoiceRequest(provider=row.provider, voice=row.provider_voice)
        try:
            await self._router.delete_voice(request, Call.internal(LIMIT_S))
        except RpcError as error:
            pause = pause_before_next(error.reason, row.attempts + 1, row.state)
            now = round(self._clock().timestamp() * SECOND)
            problem = f"{error.reason}: {error.message}"
            _logger.warning("voice_not_removed %s %s", row.id, error.reason)
            again_at = 0 if pause is None else now + round(pause * SECOND)
            await self._consents.not_removed(row, REMOVING if again_at else LEFT, problem, again_at, now)
            return
        await self._consents.removed(row, round(self._clock().timestamp() * SECOND))
