"""How providers are configured: `[providers.<name>]`, or `OMNIHUB_PROVIDERS__<NAME>__...`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from services.common.settings import Secret, Section
from services.providers.adapters.known import KNOWN, LOCAL, Known


class TimeoutSettings(Section):
    """Limits of an attempt where its route names none."""

    connect_s: float = Field(default=5, gt=0)
    """Seconds to connect."""
    first_token_s: float = Field(default=15, gt=0)
    """Seconds until a stream's first token."""
    idle_s: float = Field(default=15, gt=0)
    """Seconds of silence in a stream."""
    total_s: float = Field(default=600, gt=0)
    """Seconds for the whole answer."""


class ProviderSettings(Section):
    """One provider. For the names the suite knows, a key is enough."""

    adapter: str = ""
    """The adapter that speaks to it; empty for the one its name suggests, else the OpenAI-shaped one."""
    base_url: str = ""
    """Where it is, with the version path its own SDK uses; empty for the known address."""
    api_key: Secret | None = None
    """Its credential: literally, `env:NAME` or `file:/path`. Self-hosted ones may need none."""
    headers: dict[str, Secret] = {}
    """Headers to send with every request; treated as secrets."""
    vendor: str = ""
    """Whose price list applies; empty for the known one."""
    output_limit_parameter: str = ""
    """What an OpenAI-shaped server calls the limit of output tokens, when the caller's body does not tell."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """Limits of an attempt."""


def providers_from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return raw provider settings from the vendors' usual variables, such as OPENAI_API_KEY.

    They are defaults: what omnihub.toml or OMNIHUB_PROVIDERS__... say is laid over them. `local` is
    always there.
    """
    found: dict[str, dict[str, str]] = {LOCAL: {}}
    for name, known in KNOWN.items():
        key = environ.get(known.key_variable, "") if known.key_variable else ""
        if not key:
            continue
        found[name] = {"api_key": key}
        if known.url_variable and environ.get(known.url_variable):
            found[name]["base_url"] = environ[known.url_variable]
    return found


def complete(name: str, settings: ProviderSettings) -> ProviderSettings:
    """Fill in what is known. Raises ValueError, for an operator, when something is still missing."""
    known = KNOWN.get(name) or Known(settings.adapter or "openai")
    completed = settings.model_copy(
        update={
            "adapter": settings.adapter or known.adapter,
            "base_url": settings.base_url or known.base_url,
            "vendor": settings.vendor or known.vendor,
            "output_limit_parameter": settings.output_limit_parameter or known.output_limit_parameter,
        }
    )
    if completed.adapter != LOCAL and not completed.base_url.startswith(("http://", "https://")):
        raise ValueError(f"providers.{name}.base_url: give the address, such as http://127.0.0.1:8000/v1")
    return completed
