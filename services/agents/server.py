"""Serves the agents contract: honestly, by saying that it is not built yet."""

from __future__ import annotations

from omnihub.agents.v1alpha1 import agent_service_pb2 as pb

from services.common.rpc import Call, RpcError

MESSAGE = "agents are not part of this version"


class AgentServer:
    """See the contract in omnihub/agents/v1alpha1/agent_service.proto."""

    async def start_agent_run(self, request: pb.StartAgentRunRequest, call: Call) -> pb.StartAgentRunResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)

    async def get_agent_run(self, request: pb.GetAgentRunRequest, call: Call) -> pb.GetAgentRunResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)
