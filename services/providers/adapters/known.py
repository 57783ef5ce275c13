"""Providers whose address is known, so that a key alone configures them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.providers.settings import ProviderSettings

LOCAL = "local"
PLUGIN = "plugin"
_HTTP_ONLY = ("base_url", "api_key", "headers", "output_limit_parameter")
_PLUGIN_ONLY = ("address", "remote_provider", "tls", "ca_file")
# What nearly every OpenAI-shaped server but the original calls the limit.
_COMMON_LIMIT = "max_tokens"


@dataclass(frozen=True, slots=True)
class Known:
    """What need not be configured for a provider of this name."""

    adapter: str
    base_url: str = ""
    vendor: str = ""
    key_variable: str = ""
    url_variable: str = ""
    output_limit_parameter: str = _COMMON_LIMIT


KNOWN: Mapping[str, Known] = {
    "openai": Known(
        "openai",
        "https://api.openai.com/v1",
        "openai",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        output_limit_parameter="max_completion_tokens",
    ),
    "anthropic": Known(
        "anthropic", "https://api.anthropic.com", "anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"
    ),
    "groq": Known("openai", "https://api.groq.com/openai/v1", "groq", "GROQ_API_KEY"),
    "openrouter": Known("openai", "https://openrouter.ai/api/v1", "openrouter", "OPENROUTER_API_KEY"),
    "ollama": Known("openai", "http://127.0.0.1:11434/v1"),
    "vllm": Known("openai", "http://127.0.0.1:8000/v1"),
    "llamacpp": Known("openai", "http://127.0.0.1:8080/v1"),
    LOCAL: Known(LOCAL),
}


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
    _check_kind(name, settings, completed.adapter)
    if completed.adapter == PLUGIN:
        return completed
    if completed.adapter != LOCAL and not completed.base_url.startswith(("http://", "https://")):
        raise ValueError(f"providers.{name}.base_url: give the address, such as http://127.0.0.1:8000/v1")
    return completed


def _check_kind(name: str, settings: ProviderSettings, adapter: str) -> None:
    """Refuse settings that this adapter would ignore."""
    if adapter == PLUGIN:
        for setting in _HTTP_ONLY:
            if getattr(settings, setting):
                raise ValueError(
                    f"providers.{name}.{setting}: a plugin holds its own; give only its `address`"
                )
        if not settings.address:
            raise ValueError(
                f"providers.{name}.address: give where the plugin listens, such as 127.0.0.1:7001"
            )
        if settings.ca_file is not None and not settings.tls:
            raise ValueError(f"providers.{name}.ca_file: set `tls = true` as well")
        return
    for setting in _PLUGIN_ONLY:
        if getattr(settings, setting):
            raise ValueError(f'providers.{name}.{setting}: only plugins have it; set `adapter = "plugin"`')
