"""The adapters by the name they have in the configuration."""

import importlib
from collections.abc import Callable, Mapping

from services.providers.adapter import Adapter
from services.providers.adapters.anthropic import AnthropicAdapter
from services.providers.adapters.gemini import GeminiAdapter
from services.providers.adapters.huggingface import HuggingFaceAdapter
from services.providers.adapters.local import LocalAdapter
from services.providers.adapters.ollama import OllamaAdapter
from services.providers.adapters.openai_responses import openai_adapter
from services.providers.http import Upstream
from services.providers.settings import ProviderSettings


def _bedrock(name: str, settings: ProviderSettings, upstream: Upstream) -> Adapter:
    # Its library takes a tenth of a second to import: only those who configure it wait for that.
    module = importlib.import_module("services.providers.adapters.bedrock")
    adapter: Adapter = module.BedrockAdapter(name, settings, upstream)
    return adapter


ADAPTERS: Mapping[str, Callable[[str, ProviderSettings, Upstream], Adapter]] = {
    "anthropic": AnthropicAdapter,
    "bedrock": _bedrock,
    "gemini": GeminiAdapter,
    "huggingface": HuggingFaceAdapter,
    "local": LocalAdapter,
    "ollama": OllamaAdapter,
    "openai": openai_adapter,
}
