"""`omnihub models`, on its own and beside a router that runs."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from omnihub.router.v1 import registry_service_pb2 as pb

from services.__main__ import main
from tests.support.registry import admin, running
from tests.support.router import bounded

VISIBLE_WITHIN_S = 5


class Command:
    """The command line, with settings of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, status: int = 0) -> str:
        assert main(["models", *arguments]) == status
        captured = self._capsys.readouterr()
        return captured.err if status else captured.out


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str
) -> Command:
    config = tmp_path / "omnihub.toml"
    config.write_text('[models."from-file"]\nroute = ["local/echo"]\nstrengths = ["chat"]\naliases = ["e"]\n')
    monkeypatch.setenv("OMNIHUB_CONFIG", str(config))
    monkeypatch.setenv("OMNIHUB_DATA_DIR", str(tmp_path))
    if database_url.startswith("postgresql"):
        monkeypatch.setenv("OMNIHUB_DATABASE_URL", database_url)
    return Command(capsys)


def a_file(folder: Path, **models: Any) -> str:
    file = folder / "models.json"
    file.write_text(json.dumps({"models": models}))
    return str(file)


def test_import_list_show_export(command: Command, tmp_path: Path) -> None:
    file = a_file(tmp_path, m={"route": ["a/x"], "aliases": ["fast"], "context_length": 10})
    assert command("import", file, "--dry-run").splitlines() == [
        "added     m",
        "1 added, 0 updated, 0 unchanged, 0 kept; nothing was written",
    ]
    assert command("import", file).splitlines()[-1] == "1 added, 0 updated, 0 unchanged, 0 kept"
    assert command("import", file) == "0 added, 0 updated, 1 unchanged, 0 kept\n"
    newer = a_file(tmp_path, m={"route": ["a/x"], "aliases": ["fast"], "context_length": 20})
    assert command("import", newer).splitlines() == [
        "updated   m",
        "            context_length: 10 -> 20",
        "0 added, 1 updated, 0 unchanged, 0 kept",
    ]
    lines = [line.split() for line in command("list").splitlines()]
    assert lines[1:] == [
        ["from-file", "file", "-", "-", "local/echo", "e"],
        ["m", "registry", "2", "20", "a/x", "fast"],
    ]
    shown = json.loads(command("show", "fast"))
    assert (shown["name"], shown["revision"], shown["edited"]) == ("m", 2, False)
    assert json.loads(command("show", "from-file"))["managed_by"] == "file"
    assert "there is no model 'x'" in command("show", "x", status=2)
    exported = tmp_path / "export.json"
    command("export", str(exported))
    assert json.loads(exported.read_text()) == json.loads(command("export"))
    assert command("import", str(exported)) == "0 added, 0 updated, 1 unchanged, 0 kept\n"


def test_the_shipped_catalogue_and_the_list_prices(command: Command) -> None:
    assert command("import").splitlines()[-1].endswith("added, 0 updated, 0 unchanged, 0 kept")
    assert command("import").startswith("0 added, 0 updated")
    listed = command("import", "--from-genai-prices", "--vendor", "openai").splitlines()[-1]
    assert not listed.startswith("0 added")
    assert " 0 updated," in listed
    assert command("import", "--from-genai-prices", "--vendor", "openai").startswith("0 added, 0 updated")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("import", "missing.json"), "cannot read missing.json"),
        (("import", "--vendor", "openai"), "--vendor goes with --from-genai-prices"),
        (("import", "x.json", "--from-genai-prices"), "not both"),
        (("import", "--from-genai-prices", "--vendor", "nobody"), "no vendor 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said(command: Command, arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in command(*arguments, status=2)


async def test_a_running_router_sees_an_import_within_5_s(
    command: Command, database_url: str, tmp_path: Path
) -> None:
    url = database_url if database_url.startswith("postgresql") else f"sqlite:///{tmp_path / 'router.db'}"
    file = a_file(tmp_path, m={"route": ["a/x"], "quality": 0.5})
    async with bounded(30), running(url, tmp_path) as process:
        await asyncio.to_thread(command, "import", file)
        deadline = time.monotonic() + VISIBLE_WITHIN_S
        while not await _knows(process, "m"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        update = pb.DisableModelRequest(name="m")
        await process.registry.disable_model(update, admin())
        assert (await process.get("m"))["edited"]
        newer = a_file(tmp_path, m={"route": ["a/x"], "quality": 0.7})
        assert "updated   m" in await asyncio.to_thread(command, "import", newer)
        shown = json.loads(await asyncio.to_thread(command, "show", "m"))
        assert (shown["quality"], shown["enabled"]) == (0.7, False)


async def _knows(process: Any, name: str) -> bool:
    listed = await process.registry.list_registered_models(
        pb.ListRegisteredModelsRequest(query=name), admin()
    )
    return any(each.model.name == name for each in listed.models)
