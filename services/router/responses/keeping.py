"""Answers that their providers keep: bound to the organisation with the record, paid when they end."""

from __future__ import annotations

from dataclasses import replace

from services.common.rpc import Call
from services.credits.money import parse_nano
from services.router.admission import Admission
from services.router.asked import Asked
from services.router.request import Request
from services.router.responses.stored_responses import StoredResponses


class Keeping:
    """Admits and concludes requests, with regard to what providers keep. Without `responses`: plainly."""

    def __init__(self, admission: Admission, responses: StoredResponses | None) -> None:
        self._admission = admission
        self._responses = responses

    async def admit(self, asked: Asked, call: Call) -> Request:
        """Admit a chat; one that goes on from a stored answer only where that is kept."""
        if asked.previous and self._responses is not None:
            asked = replace(asked, pinned=await self._responses.provider_of(asked.previous, call))
        return await self._admission.admit(asked, call)

    async def pend(self, request: Request) -> None:
        """Record an answer that is made in the background. Raises JournalError."""
        await self._admission.pend(request)
        self._remember(request)

    async def conclude(self, request: Request) -> None:
        """Record an answer, or charge one whose record was made when it began in the background."""
        stored = request.stored(request.attempts[-1].attempt_id) if request.pending else None
        if stored is None or self._responses is None:
            await self._admission.conclude(request)
            self._remember(request)
            return
        cost = await self._responses.settle(stored, "completed", request.finish, request.usage)
        request.cost = parse_nano(cost)

    def _remember(self, request: Request) -> None:
        if self._responses is not None and request.response_id and request.attempts:
            stored = request.stored(request.attempts[-1].attempt_id)
            if stored is not None:
                self._responses.remember(stored)
