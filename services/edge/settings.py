"""Settings of the edge, under `edge` in omnihub.toml and `OMNIHUB_EDGE__*` in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from services.common.settings import Section

MIB = 1024 * 1024


class EdgeSettings(Section):
    """How the public port behaves. The port itself and the CORS origins are settings of the suite."""

    listen_host: str = "0.0.0.0"
    """Address the public port is bound to."""
    certificate_file: Path | None = None
    """PEM chain of the public port; with key_file it serves TLS instead of plain text."""
    key_file: Path | None = None
    """PEM private key that belongs to certificate_file."""
    concurrency: int = Field(default=0, ge=0, le=256)
    """Threads; 0: one for each process beside it that answers chat; alone, one for each core, at most two."""
    body_limit_bytes: int = Field(default=100 * MIB, ge=1024)
    """Largest body of the HTTP facade, sized for images and audio."""
    json_body_limit_bytes: int = Field(default=32 * MIB, ge=1024, le=64 * MIB)
    """Largest body of a transcoded REST call, which is held in memory."""
    json_response_limit_bytes: int = Field(default=64 * MIB, ge=1024)
    """Largest answer of a transcoded REST call that is not a stream."""
    max_connections: int = Field(default=10_000, ge=1)
    """Client connections at once; further ones are closed at once."""
    requests_per_second: int = Field(default=0, ge=0)
    """Requests the whole edge accepts in a second, 0 for no limit; further ones get 429."""
    access_log: bool = False
    """One JSON line for each request on standard output, beside the events that the services write."""
    trust_request_id: bool = False
    """Keep the caller's `x-request-id` instead of making one: only behind a proxy that sets it."""
    trusted_proxies: int = Field(default=0, ge=0, le=10)
    """Proxies in front of the edge whose `x-forwarded-for` is believed: without their number, all who call
    through them seem to come from one address, and share its limit of failed logins."""
    connect_timeout_s: float = Field(default=1.0, gt=0)
    """Limit for connecting to a service."""
    request_headers_timeout_s: float = Field(default=10.0, gt=0)
    """Limit for receiving the headers of a request."""
    request_timeout_s: float = Field(default=600.0, ge=0)
    """Limit for receiving a whole request, 0 for none. Answers are not limited by it."""
    stream_idle_timeout_s: float = Field(default=3600.0, ge=0)
    """A request or answer in which nothing moves for this long is ended, 0 for never."""
    facade_idle_s: float = Field(default=60.0, gt=0)
    """Idle connections to the HTTP facade are closed after this; the facade must keep them for longer."""
    health_check_interval_s: float = Field(default=0.0, ge=0)
    """Interval of gRPC health checks of services on other machines, 0 for none."""
    upstream_ca_file: Path | None = None
    """PEM authorities that sign the services' certificates; set, the services are called with TLS."""
    upstream_certificate_file: Path | None = None
    """PEM chain the edge shows to services that ask for one (mutual TLS)."""
    upstream_key_file: Path | None = None
    """PEM private key that belongs to upstream_certificate_file."""
    start_timeout_s: float = Field(default=20.0, gt=0)
    """Limit for Envoy to accept connections after its start."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long requests under way may go on when the edge stops."""
    log_level: Literal["trace", "debug", "info", "warning", "error", "critical", "off"] = "warning"
    """Envoy's own log level."""
    binary: Path | None = None
    """Another Envoy binary than the one that is installed with the suite."""

    @model_validator(mode="after")
    def _certificates_come_with_keys(self) -> EdgeSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: set both or neither")
        if (self.upstream_certificate_file is None) != (self.upstream_key_file is None):
            raise ValueError(
                "upstream_certificate_file and upstream_key_file belong together: set both or neither"
            )
        if self.upstream_certificate_file is not None and self.upstream_ca_file is None:
            raise ValueError("upstream_certificate_file needs upstream_ca_file")
        return self
