"""Which adapter of media speaks to which vendor: `adapter = "..."` in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.providers.http import Upstream
from services.providers.media.adapter import MediaAdapter
from services.providers.media.automatic1111 import Automatic1111Adapter
from services.providers.media.comfyui import ComfyAdapter
from services.providers.media.elevenlabs.adapter import ElevenLabsAdapter
from services.providers.media.fal import FalAdapter
from services.providers.media.local import LocalMediaAdapter
from services.providers.media.openai.adapter import OpenAIMediaAdapter
from services.providers.media.replicate import ReplicateAdapter
from services.providers.settings import ProviderSettings

Make = Callable[[str, ProviderSettings, Upstream], MediaAdapter]

MEDIA_ADAPTERS: Mapping[str, Make] = {
    "automatic1111": Automatic1111Adapter,
    "comfyui": ComfyAdapter,
    "elevenlabs": ElevenLabsAdapter,
    "fal": FalAdapter,
    "local": LocalMediaAdapter,
    "openai": OpenAIMediaAdapter,
    "replicate": ReplicateAdapter,
}
