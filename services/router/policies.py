"""Routing policies in memory, and the rpcs that set them. A change is in force everywhere within 5 s."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping

import sqlalchemy as sa
from omnihub.router.v1 import routing_policy_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc import Call
from services.router.domain.routing import DEFAULT_POLICY, RoutingPolicy
from services.router.explain import read_policy
from services.router.policy_store import Change, PolicyStore

REFRESH_S = 2.0

_logger = logging.getLogger(__name__)


class Policies:
    """The policies in force. No request waits for the database."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store
        self._known: Mapping[str, RoutingPolicy] = {}
        self._task: asyncio.Task[None] | None = None

    def of(self, organisation_id: str) -> RoutingPolicy:
        """Return the policy of an organisation."""
        return self._known.get(organisation_id, DEFAULT_POLICY)

    async def start(self) -> None:
        """Read all policies, then again and again."""
        await self.refresh()
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Read all policies."""
        self._known = await self._store.all()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except (sa.exc.SQLAlchemyError, OSError) as error:
                _logger.warning("routing_policies_not_refreshed %s", error)


class RoutingPolicyServer:
    """See the contract in omnihub/router/v1/routing_policy_service.proto."""

    def __init__(self, store: PolicyStore, policies: Policies) -> None:
        self._store = store
        self._policies = policies

    async def get_routing_policy(
        self, request: pb.GetRoutingPolicyRequest, call: Call
    ) -> pb.GetRoutingPolicyResponse:
        await self._policies.refresh()
        policy = self._policies.of(call.identity.organisation_id)
        return pb.GetRoutingPolicyResponse(policy_json=_written(policy), version=policy.version)

    async def set_routing_policy(
        self, request: pb.SetRoutingPolicyRequest, call: Call
    ) -> pb.SetRoutingPolicyResponse:
        policy = read_policy(request.policy_json, new_id("pol"))
        identity = call.identity
        by = identity.user_id or identity.key_id
        change = Change(identity.organisation_id, policy.version, by, int(time.time() * 1000))
        await self._store.put(change, policy.to_document(), request.expected_version)
        await self._policies.refresh()
        return pb.SetRoutingPolicyResponse(policy_json=_written(policy), version=policy.version)

    async def delete_routing_policy(
        self, request: pb.DeleteRoutingPolicyRequest, call: Call
    ) -> pb.DeleteRoutingPolicyResponse:
        await self._store.delete(call.identity.organisation_id)
        await self._policies.refresh()
        return pb.DeleteRoutingPolicyResponse()


def _written(policy: RoutingPolicy) -> str:
    return json.dumps(policy.to_document())
