"""A key is enough for a provider the suite knows; what is missing is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc import Connector, Registry
from services.common.service import Infrastructure, StartupError
from services.providers.adapters.known import complete, providers_from_environment
from services.providers.adapters.openai import OpenAIAdapter
from services.providers.adapters.openai_responses import openai_adapter
from services.providers.app import build
from services.providers.http import Timeouts, Upstream
from services.providers.settings import ProviderSettings
from services.router.execution.attempts import timeouts_of
from services.router.settings import RouteSettings


@pytest.mark.parametrize(
    ("name", "adapter", "base_url", "limit"),
    [
        ("openai", "openai", "https://api.openai.com/v1", "max_completion_tokens"),
        ("anthropic", "anthropic", "https://api.anthropic.com", "max_tokens"),
        ("groq", "openai", "https://api.groq.com/openai/v1", "max_tokens"),
        ("openrouter", "openai", "https://openrouter.ai/api/v1", "max_tokens"),
        ("huggingface", "huggingface", "https://router.huggingface.co/v1", "max_tokens"),
        ("gemini", "gemini", "https://generativelanguage.googleapis.com", "max_tokens"),
        ("ollama", "ollama", "http://127.0.0.1:11434", "max_tokens"),
        ("vllm", "openai", "http://127.0.0.1:8000/v1", "max_tokens"),
        ("llamacpp", "openai", "http://127.0.0.1:8080/v1", "max_tokens"),
    ],
)
def test_known_providers(name: str, adapter: str, base_url: str, limit: str) -> None:
    completed = complete(name, ProviderSettings(api_key="k"))
    assert (completed.adapter, completed.base_url, completed.output_limit_parameter) == (
        adapter,
        base_url,
        limit,
    )


def test_limits_that_nobody_named() -> None:
    """Of a provider, and of a route, which names them to its provider: connect, first token, idle, total."""
    adapter = OpenAIAdapter("openai", complete("openai", ProviderSettings()), Upstream())
    assert adapter.timeouts(pb.Timeouts()) == Timeouts(5, 15, 15, 600)
    named = timeouts_of(RouteSettings(route=["openai/m"]).timeouts)
    assert named == pb.Timeouts(connect_ms=5_000, first_token_ms=15_000, idle_ms=15_000, total_ms=600_000)
    assert adapter.timeouts(named) == Timeouts(5, 15, 15, 600)


def test_what_is_configured_wins() -> None:
    completed = complete("groq", ProviderSettings(base_url="http://127.0.0.1:1/v1", vendor="mine"))
    assert (completed.base_url, completed.vendor, completed.adapter) == (
        "http://127.0.0.1:1/v1",
        "mine",
        "openai",
    )


def test_responses_may_be_all_that_a_server_has() -> None:
    given = {"base_url": "http://127.0.0.1:1/v1"}
    kinds: dict[object, list[str]] = {}
    for responses in (False, True, "only"):
        settings = ProviderSettings.model_validate({**given, "responses": responses})
        adapter = openai_adapter("x", complete("x", settings), Upstream())
        kinds[responses] = [
            WireFormat.Name(each).removeprefix("WIRE_FORMAT_") for each in adapter.wire_formats
        ]
    both = ["OPENAI_CHAT", "OPENAI_RESPONSES"]
    assert kinds == {False: both[:1], True: both, "only": both[1:]}
    assert complete("openai", ProviderSettings()).responses is True
    with pytest.raises(ValueError, match="responses"):
        ProviderSettings.model_validate({"responses": "also"})


def test_vendors_own_variables() -> None:
    environ = {"OPENAI_API_KEY": "a", "OPENAI_BASE_URL": "http://x/v1", "GROQ_API_KEY": "b", "PATH": "/"}
    assert providers_from_environment(environ) == {
        "local": {},
        "openai": {"api_key": "a", "base_url": "http://x/v1"},
        "groq": {"api_key": "b"},
    }
    assert providers_from_environment({"GOOGLE_API_KEY": "c"})["gemini"] == {"api_key": "c"}
    both = providers_from_environment({"GOOGLE_API_KEY": "c", "GEMINI_API_KEY": "d", "HF_TOKEN": "e"})
    assert (both["gemini"], both["huggingface"]) == ({"api_key": "d"}, {"api_key": "e"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ProviderSettings(), "providers.wall.base_url"),
        (ProviderSettings(base_url="ftp://x"), "providers.wall.base_url"),
        (ProviderSettings(base_url="http://x", adapter="telepathy"), "providers.wall.adapter"),
    ],
)
def test_wrong_settings_are_named(settings: ProviderSettings, message: str) -> None:
    infrastructure = Infrastructure(connector=Connector(Registry(), {}), data_dir=Path())
    with pytest.raises(StartupError, match=message):
        build({"wall": settings}, infrastructure)


def test_secrets_stay_secret() -> None:
    settings = ProviderSettings(api_key="sk-hidden", headers={"x-key": "hidden-too"})
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"adapter": "plugin"}, "providers.acme.address: give where the plugin listens"),
        (
            {"adapter": "plugin", "address": "h:1", "base_url": "http://h"},
            "providers.acme.base_url: a plugin",
        ),
        (
            {"adapter": "plugin", "address": "h:1", "api_key": "k"},
            "providers.acme.api_key: a plugin holds its",
        ),
        (
            {"adapter": "plugin", "address": "h:1", "ca_file": "/x"},
            "providers.acme.ca_file: set `tls = true`",
        ),
        ({"base_url": "http://h", "address": "h:1"}, "providers.acme.address: only plugins have it"),
    ],
)
def test_settings_of_plugins_and_of_others_do_not_mix(values: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        complete("acme", ProviderSettings.model_validate(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"address": "nowhere"}, "providers.acme.address: 'nowhere' is not host:port"),
        ({"address": "h:1", "tls": True, "ca_file": "/no/such"}, "providers.acme.ca_file: cannot be read"),
    ],
)
def test_what_a_plugin_cannot_be_reached_with_is_named(values: dict[str, object], said: str) -> None:
    acme = ProviderSettings.model_validate({"adapter": "plugin", **values})
    with pytest.raises(StartupError, match=re.escape(said)):
        build({"acme": acme}, Infrastructure(connector=Connector(Registry(), {}), data_dir=Path()))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"adapter": "fal", "workflows": {"m": {"file": "x.json"}}}, "workflows"),
        ({"adapter": "replicate", "webhook_keys_url": "https://x.example"}, "webhook_keys_url"),
    ],
)
def test_settings_of_another_maker_of_media_are_refused(settings, field):
    given = ProviderSettings.model_validate({"base_url": "http://127.0.0.1:9", **settings})
    with pytest.raises(ValueError, match=f"providers.x.{field}: only"):
        complete("x", given)


def test_a_key_alone_configures_the_vendors_of_media():
    found = providers_from_environment({"FAL_KEY": "a", "REPLICATE_API_TOKEN": "b"})
    assert {name: given.get("api_key") for name, given in found.items()} == {
        "local": None,
        "fal": "a",
        "replicate": "b",
    }
    completed = complete("fal", ProviderSettings())
    assert (completed.adapter, completed.base_url) == ("fal", "https://queue.fal.run")
