"""Settings of the workflow service: `[workflow]`, `OMNIHUB_WORKFLOW__...`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from services.common.settings import Section


class WorkflowSettings(Section):
    """How jobs are worked off."""

    late_concurrency: int = Field(default=16, ge=1, le=1000)
    """Jobs that a worker makes at the same time where it waits for the result in the call."""
    submit_concurrency: int = Field(default=64, ge=1, le=1000)
    """Jobs that a worker hands to slow providers at the same time."""
    lease_s: float = Field(default=6, ge=0.5, le=600)
    """A worker that has been silent for so long loses the jobs it works on to others."""
    sweep_interval_s: float = Field(default=2, ge=0.1, le=600)
    """How often is looked for what was lost, is too late, or needs its credits held longer."""
    late_result_s: int = Field(default=86_400, ge=60, le=2_592_000)
    """So long after a job has expired, been cancelled or won by another provider is waited for what its
    provider may still make, which is then paid. After that it is given up, and costs its caller nothing."""
    largest_upload_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**30)
    """Files larger than this are refused."""
    largest_input_bytes: int = Field(default=112 * 2**20, ge=1024, le=120 * 2**20)
    """The files of one job together: they go to its provider's service in one message, of at most 128 MiB."""
    upload_days: int = Field(default=30, ge=0, le=36_500)
    """Uploads are removed after this; 0 for never. Evidence of consents stays."""
    output_days: int = Field(default=90, ge=0, le=36_500)
    """What jobs have made is removed after this; 0 for never."""
    link_ttl_s: int = Field(default=3600, ge=60, le=604_800)
    """How long a signed link to a file opens it."""
    provenance: bool = True
    """Write signed provenance (C2PA) into images, videos and sounds that jobs have made."""
    provenance_certificate_file: Path | None = None
    """PEM chain that provenance is signed with, the signer's first; not set: one made at the first start."""
    provenance_key_file: Path | None = None
    """PEM private key that belongs to provenance_certificate_file."""
    private_hosts: tuple[str, ...] = ()
    """`host:port` of private servers that may be fetched from and sent to, over http too."""
    allow_private_urls: bool = False
    """Fetch from and send to addresses that are not public, and without TLS. For installations without a way
    out and for tests: whoever may create jobs can then reach what this machine can reach."""
    crash_at: str = ""
    """For tests: a named place, such as `after_claim:2`, at which the process ends as in a power cut."""

    @model_validator(mode="after")
    def _certificate_comes_with_key(self) -> WorkflowSettings:
        if (self.provenance_certificate_file is None) != (self.provenance_key_file is None):
            raise ValueError(
                "provenance_certificate_file and provenance_key_file belong together: set both or neither"
            )
        return self
