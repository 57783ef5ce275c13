"""Wiring of the agents service."""

from __future__ import annotations

from omnihub.agents.v1alpha1.agent_service_api import AgentService

from services.agents.server import AgentServer
from services.agents.settings import AgentsSettings
from services.common.service import Infrastructure, Service


def build(settings: AgentsSettings, infrastructure: Infrastructure) -> Service:
    """Build the agents service."""
    return Service(name="agents", interfaces=[(AgentService, AgentServer())])
