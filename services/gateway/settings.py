"""Settings of the gateway."""

from pydantic import Field

from services.common.settings import Section


class GatewaySettings(Section):
    """Settings of the gateway."""

    body_limit_bytes: int = Field(100 * 1024 * 1024, ge=1024, le=120 * 1024 * 1024)
    """Largest request body; images and audio travel in bodies."""
    file_limit_bytes: int = Field(64 * 1024 * 1024, ge=1024, le=120 * 1024 * 1024)
    """Largest file in a form; larger ones are stored with `POST /api/files` first."""
