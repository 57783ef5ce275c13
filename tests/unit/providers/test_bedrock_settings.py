"""Credentials and addresses of Bedrock, and what it costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.common.rpc import Connector, Registry
from services.common.service import Infrastructure, StartupError
from services.providers.adapters.bedrock.credentials import (
    ConfiguredKey,
    Key,
    MachineKey,
    NoCredentialError,
    key_source,
)
from services.providers.adapters.known import complete, providers_from_environment
from services.providers.app import build
from services.providers.settings import ProviderSettings

ROOT = Path(__file__).parents[3]


def test_the_region_makes_the_address() -> None:
    for name, adapter in (("bedrock", ""), ("wall", "bedrock")):
        completed = complete(name, ProviderSettings(adapter=adapter, region="eu-west-1"))
        assert completed.base_url == "https://bedrock-runtime.eu-west-1.amazonaws.com"
        assert (completed.adapter, completed.vendor) == ("bedrock", "aws")
    other = ProviderSettings(adapter="openai", base_url="http://127.0.0.1:1/v1")
    assert complete("bedrock", other).vendor == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "providers.bedrock.region: say where"),
        ({"region": "r", "access_key_id": "a"}, "providers.bedrock.secret_access_key: it is missing"),
        ({"region": "r", "secret_access_key": "s"}, "providers.bedrock.access_key_id: it is missing"),
        ({"region": "r", "base_url": "ftp://x"}, "providers.bedrock.base_url"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], message: str) -> None:
    infrastructure = Infrastructure(connector=Connector(Registry(), {}), data_dir=Path())
    with pytest.raises(StartupError, match=message):
        build({"bedrock": ProviderSettings.model_validate(settings)}, infrastructure)


def test_a_region_cannot_name_a_host() -> None:
    with pytest.raises(ValueError, match="region"):
        ProviderSettings(region="x.evil.example/")


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        (KEYS, None),  # Perhaps for another service of the vendor.
        ({"AWS_REGION": "r"}, None),
        (
            {**KEYS, "AWS_DEFAULT_REGION": "r"},
            {"region": "r", "access_key_id": "a", "secret_access_key": "b"},
        ),
        (
            {**KEYS, "AWS_REGION": "r", "AWS_SESSION_TOKEN": "t"},
            {"region": "r", "access_key_id": "a", "secret_access_key": "b", "session_token": "t"},
        ),
        ({**KEYS, "AWS_REGION": "r", "AWS_BEARER_TOKEN_BEDROCK": "k"}, {"region": "r", "api_key": "k"}),
        ({"AWS_BEARER_TOKEN_BEDROCK": "k"}, {"api_key": "k"}),
    ],
)
def test_the_vendors_own_variables(environ: dict[str, str], found: dict[str, str] | None) -> None:
    assert providers_from_environment(environ).get("bedrock") == found


def test_secrets_stay_secret() -> None:
    settings = ProviderSettings(access_key_id="hidden", secret_access_key="hidden", session_token="hidden")
    assert "hidden" not in repr(settings)


async def test_where_the_key_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configured = key_source(
        "x", ProviderSettings(access_key_id="a", secret_access_key="b", session_token="t")
    )
    assert isinstance(configured, ConfiguredKey)
    assert await configured.key() == Key("a", "b", "t")
    # The machine's own: nothing is looked for before it is needed, and never in the network here.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    shared = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    machine = key_source("x", ProviderSettings())
    assert isinstance(machine, MachineKey)
    with pytest.raises(NoCredentialError, match="set api_key, or access_key_id"):
        await machine.key()
    shared.write_text("[default]\naws_access_key_id = c\naws_secret_access_key = d\n")
    assert await machine.key() == Key("c", "d", None)
    (tmp_path / "config").write_text(f"[profile p]\ncredential_process = {sys.executable} -c 'exit(3)'\n")
    monkeypatch.setenv("AWS_PROFILE", "p")
    with pytest.raises(NoCredentialError, match="cannot be fetched"):
        await MachineKey().key()


def test_only_those_who_configure_it_import_its_library() -> None:
    program = (
        "import sys; from services.providers.app import build; "
        "assert 'botocore' not in sys.modules; "
        "from services.providers.adapters.table import ADAPTERS; "
        "assert 'bedrock' in ADAPTERS and 'botocore' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": ".:gen"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
