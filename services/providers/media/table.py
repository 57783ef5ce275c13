"""Which adapter of media speaks to which vendor: `adapter = "..."` in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.providers.http import Upstream
from services.providers.media.adapter import MediaAdapter
from services.providers.media.elevenlabs.adapter import ElevenLabsAdapter
from services.providers.media.local import LocalMediaAdapter
from services.providers.media.openai.adapter import OpenAIMediaAdapter
from services.providers.settings import ProviderSettings

Make = Callable[[str, ProviderSettings, Upstream], MediaAdapter]

MEDIA_ADAPTERS: Mapping[str, Make] = {
    "elevenlabs": ElevenLabsAdapter,
    "local": LocalMediaAdapter,
    "openai": OpenAIMediaAdapter,
}
