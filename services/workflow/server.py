"""Serves the workflow contracts: honestly, by saying that they are not built yet."""

from __future__ import annotations

from omnihub.workflow.v1alpha1 import job_service_pb2, workflow_service_pb2

from services.common.rpc import Call, RpcError

MESSAGE = "workflows and jobs are not part of this version"


class JobServer:
    """See the contract in omnihub/workflow/v1alpha1/job_service.proto."""

    async def create_job(
        self, request: job_service_pb2.CreateJobRequest, call: Call
    ) -> job_service_pb2.CreateJobResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)

    async def get_job(
        self, request: job_service_pb2.GetJobRequest, call: Call
    ) -> job_service_pb2.GetJobResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)


class WorkflowServer:
    """See the contract in omnihub/workflow/v1alpha1/workflow_service.proto."""

    async def start_run(
        self, request: workflow_service_pb2.StartRunRequest, call: Call
    ) -> workflow_service_pb2.StartRunResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)

    async def get_run(
        self, request: workflow_service_pb2.GetRunRequest, call: Call
    ) -> workflow_service_pb2.GetRunResponse:
        raise RpcError("NOT_IMPLEMENTED", MESSAGE)
