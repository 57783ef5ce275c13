"""Providers whose address is known, so that a key alone configures them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.providers.settings import ProviderSettings

LOCAL = "local"
PLUGIN = "plugin"
_HTTP_ONLY = (
    *("workflows", "webhook_keys_url"),
    *("base_url", "api_key", "region", "access_key_id", "secret_access_key", "session_token"),
    *("headers", "output_limit_parameter", "prefill", "responses", "reasoning_details", "key_path"),
)
_PLUGIN_ONLY = ("address", "remote_provider", "tls", "ca_file")
# What nearly every OpenAI-shaped server but the original calls the limit.
_COMMON_LIMIT = "max_tokens"


BEDROCK = "bedrock"


@dataclass(frozen=True, slots=True)
class Known:
    """What need not be configured for a provider of this name."""

    adapter: str
    base_url: str = ""
    """May hold `{region}`."""
    vendor: str = ""
    key_variable: str = ""
    url_variable: str = ""
    output_limit_parameter: str = _COMMON_LIMIT
    responses: bool = False
    """It has `/responses` with state, besides chat completions."""
    other_key_variables: tuple[str, ...] = ()
    """Read when the first is not set."""
    usage_field: str = ""
    key_path: str = ""
    reasoning_details: bool = False
    prefill: Literal["no", "last_message", "continue_final_message"] = "no"


KNOWN: Mapping[str, Known] = {
    "openai": Known(
        "openai",
        "https://api.openai.com/v1",
        "openai",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        output_limit_parameter="max_completion_tokens",
        responses=True,
    ),
    "anthropic": Known(
        "anthropic", "https://api.anthropic.com", "anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"
    ),
    "groq": Known(
        "openai",
        "https://api.groq.com/openai/v1",
        "groq",
        "GROQ_API_KEY",
        prefill="last_message",
        usage_field="x_groq",
    ),
    "openrouter": Known(
        "openai",
        "https://openrouter.ai/api/v1",
        "openrouter",
        "OPENROUTER_API_KEY",
        prefill="last_message",
        key_path="/key",
        reasoning_details=True,
    ),
    "huggingface": Known("huggingface", "https://router.huggingface.co/v1", "huggingface", "HF_TOKEN"),
    "gemini": Known(
        "gemini",
        "https://generativelanguage.googleapis.com",
        "google",
        "GEMINI_API_KEY",
        other_key_variables=("GOOGLE_API_KEY",),
    ),
    "ollama": Known("ollama", "http://127.0.0.1:11434", prefill="last_message"),
    "vllm": Known("openai", "http://127.0.0.1:8000/v1", prefill="continue_final_message"),
    "llamacpp": Known("openai", "http://127.0.0.1:8080/v1", prefill="last_message"),
    BEDROCK: Known(BEDROCK, "https://bedrock-runtime.{region}.amazonaws.com", "aws"),
    "elevenlabs": Known("elevenlabs", "https://api.elevenlabs.io", "elevenlabs", "ELEVENLABS_API_KEY"),
    "fal": Known("fal", "https://queue.fal.run", "fal", "FAL_KEY"),
    "replicate": Known("replicate", "https://api.replicate.com/v1", "replicate", "REPLICATE_API_TOKEN"),
    "comfyui": Known("comfyui", "http://127.0.0.1:8188"),
    "automatic1111": Known("automatic1111", "http://127.0.0.1:7860"),
    LOCAL: Known(LOCAL),
}
# Our setting, and the vendor's variables for it.
_BEDROCK_VARIABLES = {
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "api_key": ("AWS_BEARER_TOKEN_BEDROCK",),
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN",),
    "base_url": ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME",),
}


def providers_from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return raw provider settings from the vendors' usual variables, such as OPENAI_API_KEY.

    They are defaults: what omnihub.toml or OMNIHUB_PROVIDERS__... say is laid over them. `local` is
    always there.
    """
    found: dict[str, dict[str, str]] = {LOCAL: {}}
    for name, known in KNOWN.items():
        variables = (known.key_variable, *known.other_key_variables)
        key = next((environ[variable] for variable in variables if environ.get(variable)), "")
        if not key:
            continue
        found[name] = {"api_key": key}
        if known.url_variable and environ.get(known.url_variable):
            found[name]["base_url"] = environ[known.url_variable]
    bedrock = _bedrock_from_environment(environ)
    if bedrock:
        found[BEDROCK] = bedrock
    return found


def _bedrock_from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings, or none: keys without a region may be there for another service of the vendor."""
    found = {}
    for setting, variables in _BEDROCK_VARIABLES.items():
        value = next((environ[name] for name in variables if environ.get(name)), "")
        if value:
            found[setting] = value
    if "api_key" in found:  # It is for this service alone, and it wins over keys.
        return {name: found[name] for name in ("region", "api_key", "base_url") if name in found}
    return found if found.keys() >= {"region", "access_key_id", "secret_access_key"} else {}


def complete(name: str, settings: ProviderSettings) -> ProviderSettings:
    """Fill in what is known. Raises ValueError, for an operator, when something is still missing."""
    known = KNOWN.get(name) or Known(settings.adapter or "openai")
    adapter = settings.adapter or known.adapter
    if adapter == BEDROCK:  # It has one address in each region, whatever it is called here.
        known = KNOWN[BEDROCK]
        if not settings.region:
            raise ValueError(f"providers.{name}.region: say where, such as us-east-1 (or set AWS_REGION)")
    elif known.adapter == BEDROCK:
        known = Known(adapter)
    base_url = settings.base_url or known.base_url
    completed = settings.model_copy(
        update={
            "adapter": adapter,
            "base_url": base_url.replace("{region}", settings.region),
            "vendor": settings.vendor or known.vendor,
            "responses": known.responses if settings.responses is None else settings.responses,
            "reasoning_details": (
                known.reasoning_details if settings.reasoning_details is None else settings.reasoning_details
            ),
            "output_limit_parameter": settings.output_limit_parameter or known.output_limit_parameter,
            "usage_field": settings.usage_field or known.usage_field,
            "key_path": settings.key_path or known.key_path,
            "prefill": settings.prefill or known.prefill,
        }
    )
    _check_kind(name, settings, completed.adapter)
    if completed.adapter == PLUGIN:
        return completed
    if completed.adapter != LOCAL and not completed.base_url.startswith(("http://", "https://")):
        raise ValueError(f"providers.{name}.base_url: give the address, such as http://127.0.0.1:8000/v1")
    return completed


def own_vendor(settings: ProviderSettings) -> str:
    """Return the vendor whose own service a completed provider is; empty when it is another's or unknown."""
    known = KNOWN.get(settings.adapter)
    at_home = known is not None and bool(known.vendor) and settings.base_url == known.base_url
    return settings.vendor or (known.vendor if known is not None and at_home else "")


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
    for setting, only in (("workflows", "comfyui"), ("webhook_keys_url", "fal")):
        if getattr(settings, setting) and adapter != only:
            raise ValueError(f'providers.{name}.{setting}: only `adapter = "{only}"` has it')
    for setting in _PLUGIN_ONLY:
        if getattr(settings, setting):
            raise ValueError(f'providers.{name}.{setting}: only plugins have it; set `adapter = "plugin"`')
