"""Gives each organisation its account: at the start, and when the auth service tells of a new one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from omnihub.auth.v1 import auth_service_pb2, organisation_pb2
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.common.v1 import change_pb2

from services.billing.domain.grant import Grant
from services.common.change_feed import OVERLAP, Follower
from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError
from services.common.service import StartupError

TOPIC = "organisation"
TIMEOUT_S = 10.0
RETRY_S = 0.5
# Accounts opened in one transaction.
BATCH = 500

_logger = logging.getLogger(__name__)


class Organisations:
    """Follows the auth service."""

    def __init__(
        self,
        auth: AuthService,
        first_grant: Callable[[organisation_pb2.Organisation], Grant],
        welcome: Callable[[Sequence[Grant]], Awaitable[None]],
    ) -> None:
        self._auth = auth
        self._first_grant = first_grant
        self._welcome = welcome
        self._seq = 0
        self._syncing = asyncio.Lock()
        self._follower = Follower(auth.watch_changes, auth_service_pb2.WatchChangesRequest, self._on_changes)
        self.news = asyncio.Event()
        """Set when there may be a new organisation."""

    async def start(self, wait_s: float) -> None:
        """Open all accounts, waiting up to `wait_s` for auth; then follow. Raises StartupError."""
        try:
            async with asyncio.timeout(wait_s):
                await self._sync_once_reachable()
        except TimeoutError:
            raise StartupError(
                f"the auth service did not answer for {wait_s} s; check that it runs and OMNIHUB_PEERS__AUTH"
            ) from None
        self._follower.start()

    async def _sync_once_reachable(self) -> None:
        while True:
            try:
                return await self.sync()
            except RpcError as error:
                _logger.warning("organisations_not_synchronised %s", error)
                await asyncio.sleep(RETRY_S)

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    async def sync(self) -> None:
        """Open the accounts of organisations that are new. Raises RpcError."""
        async with self._syncing:
            # Numbers become visible out of order: go back far enough to miss none.
            after = max(0, self._seq - OVERLAP)
            request = auth_service_pb2.SyncOrganisationsRequest(after_seq=after)
            answer = await self._auth.sync_organisations(request, Call.internal(TIMEOUT_S))
            grants = [self._first_grant(organisation) for organisation in answer.organisations]
            for first in range(0, len(grants), BATCH):
                await self._welcome(grants[first : first + BATCH])
            self._seq = max(self._seq, answer.seq)

    async def _on_changes(self, changes: Sequence[change_pb2.Change]) -> None:
        if any(change.topic == TOPIC for change in changes):
            self.news.set()
