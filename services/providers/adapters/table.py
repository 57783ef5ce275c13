"""The adapters by the name they have in the configuration."""

from collections.abc import Callable, Mapping

from services.providers.adapter import Adapter
from services.providers.adapters.anthropic import AnthropicAdapter
from services.providers.adapters.gemini import GeminiAdapter
from services.providers.adapters.local import LocalAdapter
from services.providers.adapters.ollama import OllamaAdapter
from services.providers.adapters.openai import OpenAIAdapter
from services.providers.http import Upstream
from services.providers.settings import ProviderSettings

ADAPTERS: Mapping[str, Callable[[str, ProviderSettings, Upstream], Adapter]] = {
    "anthropic": AnthropicAdapter,
    "gemini": GeminiAdapter,
    "local": LocalAdapter,
    "ollama": OllamaAdapter,
    "openai": OpenAIAdapter,
}
