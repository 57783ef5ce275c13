"""How providers are configured: `[providers.<name>]`, or `OMNIHUB_PROVIDERS__<NAME>__...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import Secret, Section


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


class WorkflowSettings(Section):
    """A graph of ComfyUI that serves as a model."""

    file: Path
    """The graph as exported in API format; inputs hold placeholders: `{{prompt}}`, `{{steps=20}}`."""
    kind: Literal["image", "image_edit", "upscale", "video"] = "image"
    """What it makes."""


class ProviderSettings(Section):
    """One provider. For the names the suite knows, a key is enough."""

    adapter: str = ""
    """The adapter that speaks to it; empty for the one its name suggests, else the OpenAI-shaped one."""
    base_url: str = ""
    """Where it is, with the version path its own SDK uses; empty for the known address."""
    api_key: Secret | None = None
    """Its credential: literally, `env:NAME` or `file:/path`. Self-hosted ones may need none."""
    region: str = Field(default="", pattern=r"^[a-z0-9-]*$")
    """Where a regional provider is asked, such as us-east-1."""
    access_key_id: Secret | None = None
    """For a provider whose requests are signed: the key's id. Without it, the machine's own credential."""
    secret_access_key: Secret | None = None
    """For a provider whose requests are signed: the key."""
    session_token: Secret | None = None
    """For a provider whose requests are signed: the token of a temporary key."""
    headers: dict[str, Secret] = {}
    """Headers to send with every request; treated as secrets."""
    address: str = ""
    """Of a plugin: `host:port` where its ProviderService listens."""
    remote_provider: str = ""
    """Of a plugin: which of its providers this is; empty when it serves only one, or one of this name."""
    tls: bool = False
    """Of a plugin: speak TLS."""
    ca_file: Path | None = None
    """Of a plugin: PEM certificates of the authority that signed its own; else those of the machine."""
    vendor: str = ""
    """Whose price list applies; empty for the known one."""
    output_limit_parameter: str = ""
    """What an OpenAI-shaped server calls the limit of output tokens, when the caller's body does not tell."""
    responses: bool | Literal["only"] | None = None
    """An OpenAI-shaped server has `/responses`, too, or `only` that; others are asked for a chat. Unset: as
    known."""
    usage_field: str = ""
    """The object in a chunk in which an OpenAI-shaped server reports usage, when it is not at the top."""
    reasoning_details: bool | None = None
    """An OpenAI-shaped server takes back thoughts in the `reasoning_details` it sent. Unset: as known."""
    key_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._/-]+)?$")
    """Where a server that lists its models for anybody tells about the credential, such as /key: its health
    is asked there. Empty for what is known of the provider, else the listing."""
    prefill: Literal["", "no", "last_message", "continue_final_message"] = ""
    """How an OpenAI-shaped server goes on with an answer: it continues a last message of the assistant, wants
    vLLM's parameter for that, or cannot. Empty for what is known of the provider."""
    workflows: dict[str, WorkflowSettings] = {}
    """Of ComfyUI: its models, by name."""
    webhook_keys_url: str = ""
    """Of fal: where the keys that sign its notifications are; empty for the known address."""
    webhook_secrets: list[Secret] = []
    """Of ElevenLabs: what its notifications are signed with; two while one replaces the other."""
    wait_s: int = Field(default=5, ge=0, le=60)
    """Of Replicate: seconds to wait for a result within the call that asks for it; 0 for not at all."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """Limits of an attempt."""
