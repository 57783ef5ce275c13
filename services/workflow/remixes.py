"""Videos that are changed into others: the caller's own, at the provider that made them.

Callers name a job. Providers know it by an id of their own, which no caller can name: it would let everybody
change everybody's videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnihub.common.v1.media_pb2 import MediaInput

from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.workflow.admission import owner_of
from services.workflow.domain.errors import JobNotFoundError
from services.workflow.domain.states import SUCCEEDED
from services.workflow.store.jobs import Jobs

FIELD = "input.video.remix_of_job_id"


@dataclass(frozen=True, slots=True)
class Remixes:
    """Finds what a remix is made of."""

    jobs: Jobs

    async def check(self, given: MediaInput, call: Call) -> None:
        """Raise RpcError INVALID_ARGUMENT unless a remix is of a finished video of the caller."""
        job_id = given.video.remix_of_job_id
        if not job_id:
            return
        try:
            source = await self.jobs.find(owner_of(call), job_id)
        except JobNotFoundError as error:
            raise _refused(error.message) from None
        if source.kind != "video" or source.state != SUCCEEDED:
            raise _refused(f"{job_id} is no finished video, but {source.kind}, {source.state}")
        await self.origin(given)

    async def origin(self, given: MediaInput) -> Any:
        """Return the attempt that made the video a remix is of, None for anything else.

        Raises RpcError INVALID_ARGUMENT when the video is gone, or its provider has no id for it.
        """
        job_id = given.video.remix_of_job_id
        if not job_id:
            return None
        made = await self.jobs.made_by(job_id)
        if made is None or not made.provider_job_id:
            raise _refused(f"the provider of {job_id} keeps nothing that can be changed")
        return made


def _refused(rule: str) -> RpcError:
    return RpcError("INVALID_ARGUMENT", f"{FIELD}: {rule}", violations=[Violation(FIELD, rule)])
