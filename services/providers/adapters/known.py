"""Providers whose address is known, so that a key alone configures them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOCAL = "local"
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
