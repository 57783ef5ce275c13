"""Default < omnihub.toml < environment, and errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from services.settings import Settings, SettingsError, load

Load = Callable[..., Settings]


@pytest.fixture
def load_with(tmp_path: Path) -> Load:
    def run(config: str = "", **environment: str) -> Settings:
        file = tmp_path / "omnihub.toml"
        file.write_text(config)
        return load({"OMNIHUB_CONFIG": str(file), **environment})

    return run


def test_defaults(load_with: Load) -> None:
    settings = load_with()
    assert settings.port == 8080
    assert settings.data_dir == Path(".omnihub")
    assert settings.bootstrap_credits == 100
    assert list(settings.providers) == ["local"]


def test_the_file_wins_over_defaults_and_the_environment_over_the_file(load_with: Load) -> None:
    config = "port = 1111\n[router]\nsettle_interval_s = 2\nlease_minimum = '0.5'\n"
    settings = load_with(config, OMNIHUB_ROUTER__SETTLE_INTERVAL_S="3")
    assert (settings.port, settings.router.settle_interval_s) == (1111, 3)
    assert settings.router.lease_minimum == "0.5", "neighbours in the file stay"
    assert load_with(config, OMNIHUB_PORT="3333").port == 3333


def test_port_is_the_usual_variable(load_with: Load) -> None:
    assert load_with("port = 1111", PORT="2222").port == 2222
    assert load_with("", PORT="2222", OMNIHUB_PORT="3333").port == 3333


def test_without_a_named_file_there_need_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}).port == 8080
    (tmp_path / "omnihub.toml").write_text("port = 4444")
    assert load({}).port == 4444


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nowhere.toml"):
        load({"OMNIHUB_CONFIG": str(tmp_path / "nowhere.toml")})


def test_vendors_usual_variables_make_providers(load_with: Load) -> None:
    settings = load_with("", OPENAI_API_KEY="sk-1", ANTHROPIC_API_KEY="sk-2", OPENAI_BASE_URL="http://x/v1")
    assert set(settings.providers) == {"local", "openai", "anthropic"}
    openai = settings.providers["openai"]
    assert openai.api_key is not None
    assert (openai.api_key.get_secret_value(), openai.base_url) == ("sk-1", "http://x/v1")


def test_what_is_written_wins_over_vendors_variables(load_with: Load) -> None:
    config = "[providers.openai]\nbase_url = 'http://file/v1'\n"
    settings = load_with(config, OPENAI_API_KEY="sk-1", OMNIHUB_PROVIDERS__OPENAI__API_KEY="sk-2")
    openai = settings.providers["openai"]
    assert openai.api_key is not None
    assert (openai.api_key.get_secret_value(), openai.base_url) == ("sk-2", "http://file/v1")


def test_secrets_come_from_the_environment_or_a_file(
    load_with: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALL_KEY", "from the environment")
    (tmp_path / "secret").write_text("from a file\n")
    config = f"bootstrap_api_key = 'env:WALL_KEY'\nmaster_key = 'file:{tmp_path / 'secret'}'\n"
    settings = load_with(config)
    assert settings.bootstrap_api_key is not None
    assert settings.bootstrap_api_key.get_secret_value() == "from the environment"
    assert settings.master_key is not None
    assert settings.master_key.get_secret_value() == "from a file"
    assert "from" not in settings.model_dump_json(include={"bootstrap_api_key", "master_key"})


@pytest.mark.parametrize("secret", ["env:NOWHERE_TO_BE_FOUND", "file:/nowhere/to/be/found"])
def test_a_secret_that_is_not_there_is_named(load_with: Load, secret: str) -> None:
    with pytest.raises(SettingsError, match=rf"master_key: .*{secret.partition(':')[2]}"):
        load_with(f"master_key = '{secret}'")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("prot = 1", "prot"),
        ("[router]\nbasline_model = 'x/y'", "router.basline_model"),
        ("[providers.wall]\nbase_ulr = 'http://x'", "providers.wall.base_ulr"),
        ("[models.m]\nroute = ['local/echo']\ntimeouts = { idle = 1 }", "models.m.timeouts.idle"),
        ("[routers]\nretries = 1", "routers"),
    ],
)
def test_unknown_keys_are_errors_that_name_them(load_with: Load, config: str, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: unknown setting$"):
        load_with(config)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("OMNIHUB_PROT", "prot"),
        ("OMNIHUB_ROUTER__BASLINE_MODEL", "router.basline_model"),
        ("OMNIHUB_PEERS__BILING", "peers.biling"),
    ],
)
def test_unknown_variables_are_errors_that_name_them(load_with: Load, variable: str, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: unknown setting$"):
        load_with("", **{variable: "1"})


def test_all_errors_are_told_at_once(load_with: Load) -> None:
    with pytest.raises(SettingsError) as raised:
        load_with("port = 'eighty'\n[edge]\nconcurrency = -1\ncolour = 'red'\n")
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "port",
        "edge.concurrency",
        "edge.colour",
    ]


def test_lists_in_the_environment_are_separated_by_commas(load_with: Load) -> None:
    settings = load_with(
        "",
        OMNIHUB_CORS_ORIGINS="https://a.example, https://b.example",
        OMNIHUB_BILLING__FREE_PROVIDERS="local",
    )
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.billing.free_providers == ("local",)


def test_variables_find_names_with_dashes_and_capitals(load_with: Load) -> None:
    config = """
[providers.My-Wall]
base_url = "http://file/v1"
[models."support-chat"]
route = ["My-Wall/x"]
"""
    settings = load_with(
        config,
        OMNIHUB_PROVIDERS__MY_WALL__BASE_URL="http://environment/v1",
        OMNIHUB_MODELS__SUPPORT_CHAT__ROUTE="My-Wall/y,local/echo",
        OMNIHUB_MODELS__SUPPORT_CHAT__PRICE__INPUT_PER_MILLION="1.5",
        OMNIHUB_MODELS__SUPPORT_CHAT__PRICE__OUTPUT_PER_MILLION="2",
    )
    assert settings.providers["My-Wall"].base_url == "http://environment/v1"
    model = settings.models["support-chat"]
    assert model.route == ["My-Wall/y", "local/echo"]
    assert model.price is not None
    assert model.price.input_per_million == Decimal("1.5")


def test_a_route_must_name_configured_providers(load_with: Load) -> None:
    with pytest.raises(SettingsError, match=r'models\."m"\.route: .*needs \[providers\.wall\].*local'):
        load_with("[models.m]\nroute = ['wall/x']")
    with pytest.raises(SettingsError, match=r"needs \[providers\.wall\]"):
        load_with("[models.m.versions.v1]\nroute = ['wall/x']\nweight = 1")


def test_a_model_can_say_what_it_is(load_with: Load) -> None:
    config = """
[models.voice]
capabilities = ["speech"]
strengths = { chat = 0.5 }
context_length = 100
regions = ["eu"]
tiers = ["pro"]
versions.voice_v1 = { route = ["local/echo"], weight = 9 }
versions.avatar_pro = { route = ["local/other"], weight = 1, endpoints."local/other".region = "eu" }
options_schema = { type = "object" }
"""
    model = load_with(config, OMNIHUB_MODELS__VOICE__ALIASES="say,speak").models["voice"]
    assert model.aliases == ["say", "speak"]
    assert {name: version.weight for name, version in model.versions.items()} == {
        "voice_v1": 9,
        "avatar_pro": 1,
    }
    assert model.strengths == {"chat": 0.5}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("capabilities = ['fly']", r"models\.m\.capabilities\.0: .*unknown capability 'fly'"),
        ("strengths = ['cooking']", "unknown task 'cooking'"),
        ("aliases = ['a b']", r"models\.m\.aliases\.0"),
        ("quality = 2", r"models\.m\.quality"),
        ("route = []", "name at least one"),
    ],
)
def test_what_a_model_says_is_checked(load_with: Load, line: str, complaint: str) -> None:
    route = "" if line.startswith("route") else "route = ['local/echo']\n"
    with pytest.raises(SettingsError, match=complaint):
        load_with(f"[models.m]\n{route}{line}")


def test_a_section_given_as_text_is_an_error_not_a_crash(load_with: Load) -> None:
    with pytest.raises(SettingsError, match="router"):
        load_with("", OMNIHUB_ROUTER="fast")
    with pytest.raises(SettingsError, match="router"):
        load_with("router = 'fast'", OMNIHUB_ROUTER__LEASE_MINIMUM="1")


def test_both_a_section_and_a_text_for_it_is_an_error_not_a_crash(load_with: Load) -> None:
    for first in ("OMNIHUB_ROUTER", "OMNIHUB_ROUTER__LEASE_MINIMUM"):
        second = "OMNIHUB_ROUTER__LEASE_MINIMUM" if first == "OMNIHUB_ROUTER" else "OMNIHUB_ROUTER"
        with pytest.raises(SettingsError, match="router"):
            load_with("", **{first: "1", second: "1"})


def test_providers_given_as_text_are_an_error_not_a_crash(load_with: Load) -> None:
    with pytest.raises(SettingsError, match="providers"):
        load_with("providers = 'wall'")
    with pytest.raises(SettingsError, match="providers"):
        load_with("[[providers]]\nname = 'wall'")
