"""Serves omnihub.router.v1.RoutingPolicyService."""

from __future__ import annotations

import json
import time

from omnihub.router.v1 import routing_policy_service_pb2 as pb

from services.common.ids import new_id
from services.common.rpc import Call
from services.router.domain.routing import RoutingPolicy
from services.router.planning.explain import read_policy
from services.router.planning.policies import Policies
from services.router.planning.policy_store import Change, PolicyStore


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
