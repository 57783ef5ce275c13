"""Settings of the workflow service: `[workflow]`, `OMNIHUB_WORKFLOW__...`."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import Section


class WorkflowSettings(Section):
    """How jobs are worked off."""

    late_concurrency: int = Field(default=16, ge=1, le=1000)
    """Jobs that a worker makes at the same time where it waits for the result in the call."""
    submit_concurrency: int = Field(default=64, ge=1, le=1000)
    """Jobs that a worker hands to slow providers at the same time."""
    lease_s: float = Field(default=20, ge=0.5, le=600)
    """A worker that has been silent for so long loses the jobs it works on to others."""
    sweep_interval_s: float = Field(default=5, ge=0.1, le=600)
    """How often is looked for what was lost, is too late, or needs its credits held longer."""
    largest_upload_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**30)
    """Files larger than this are refused."""
    allow_private_urls: bool = False
    """Fetch from and send to addresses that are not public, and without TLS. For installations without a way
    out and for tests: whoever may create jobs can then reach what this machine can reach."""
    crash_at: str = ""
    """For tests: a named place, such as `after_claim:2`, at which the process ends as in a power cut."""
