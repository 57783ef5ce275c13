"""The adapters by the name they have in the configuration."""

from collections.abc import Callable, Mapping

from services.providers.adapter import Adapter
from services.providers.adapters.anthropic import AnthropicAdapter
from services.providers.adapters.local import LocalAdapter
from services.providers.adapters.openai_responses import openai_adapter
from services.providers.http import Upstream
from services.providers.settings import ProviderSettings

ADAPTERS: Mapping[str, Callable[[str, ProviderSettings, Upstream], Adapter]] = {
    "anthropic": AnthropicAdapter,
    "local": LocalAdapter,
    "openai": openai_adapter,
}
