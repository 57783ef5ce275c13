"""Every command finds the platform and its key in the same places."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from services.__main__ import main
from services.access import CommandError, platform_key, platform_url
from services.edge.settings import EdgeSettings
from services.settings import Settings

NOBODY = "http://127.0.0.1:9"


def test_the_address_that_is_named_wins() -> None:
    assert platform_url(Settings(port=81)) == "http://127.0.0.1:81"
    tls = EdgeSettings(certificate_file=Path("c.pem"), key_file=Path("k.pem"))
    assert platform_url(Settings(port=81, edge=tls)) == "https://127.0.0.1:81"
    assert platform_url(Settings(url="https://hub.example.com/")) == "https://hub.example.com"
    assert platform_url(Settings(url="https://hub.example.com"), "http://other/") == "http://other"


def test_the_key_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=r"no key in .*/bootstrap-key \(No such .*; set OMNIHUB_API_KEY"):
        platform_key(Settings(data_dir=tmp_path))
    (tmp_path / "bootstrap-key").write_text("omni_sk_file\n")
    assert platform_key(Settings(data_dir=tmp_path)) == "omni_sk_file"
    assert platform_key(Settings(data_dir=tmp_path, bootstrap_api_key="omni_sk_first")) == "omni_sk_first"
    given = Settings(data_dir=tmp_path, bootstrap_api_key="omni_sk_first", api_key="omni_sk_given")
    assert platform_key(given) == "omni_sk_given"
    (tmp_path / "named").write_text("omni_sk_named\n")
    assert platform_key(given, str(tmp_path / "named")) == "omni_sk_named"
    monkeypatch.setattr("sys.stdin", io.StringIO("omni_sk_typed\n"))
    assert platform_key(given, "-") == "omni_sk_typed"


@pytest.mark.parametrize(
    "command",
    ["jobs list", "generate image boat", "usage export", "billing rerate", "router evaluate"],
)
def test_commands_ask_the_platform_of_the_environment(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIHUB_URL", NOBODY)
    monkeypatch.setenv("OMNIHUB_API_KEY", "omni_sk_x")
    assert main(command.split()) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["usage export", "billing rerate", "router evaluate"])
def test_a_key_file_that_cannot_be_read_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--key-file", "/nowhere"]) == 2
    assert "no key in /nowhere" in capsys.readouterr().err
