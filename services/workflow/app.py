"""Wiring of the workflow service."""

from __future__ import annotations

from omnihub.workflow.v1alpha1.job_service_api import JobService
from omnihub.workflow.v1alpha1.workflow_service_api import WorkflowService

from services.common.service import Infrastructure, Service
from services.workflow.server import JobServer, WorkflowServer
from services.workflow.settings import WorkflowSettings


def build(settings: WorkflowSettings, infrastructure: Infrastructure) -> Service:
    """Build the workflow service."""
    return Service(
        name="workflow",
        interfaces=[(WorkflowService, WorkflowServer()), (JobService, JobServer())],
    )
