"""Who serves does not wait, or pay memory, for what only other commands and rare settings need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys
import services.__main__
others = ("services.tools", "services.commands", "services.billing.store",
    "services.router.planning.evaluating")
print([name for name in others if name in sys.modules])
# What asks a running platform is not what runs.
services.__main__._parser(["usage", "export"]).parse_args(["usage", "export"])
assert "services.tools" in sys.modules
runs = ("services.launcher", "services.common.db", "sqlalchemy", "grpc", "aiohttp", "structlog")
print([name for name in runs if name in sys.modules])
"""
# Builds every service, as `serve` does, and starts none.
SERVE = """
import asyncio, json, sys
import services.__main__
from services.launcher import Process, resolve_targets
from services.settings import load
environment = json.loads(sys.argv[1])
asyncio.run(Process(load(environment), resolve_targets(["all"])).verify())
print(json.dumps(sorted(sys.modules)))
"""
# What each of these is for, and what it costs (CPU, memory) when it is loaded for nothing.
FORBIDDEN = {
    "alembic": "a database that is not at the newest revision; 110 ms",
    "mako": "Alembic",
    "aio_pika": "OMNIHUB_AMQP_URL; 33 ms, 2 MiB",
    "jsonschema": "models with options of their own; 37 ms, 2 MiB",
    "PIL.Image": "pictures; 21 ms, 3 MiB",
    "botocore": "Bedrock; 100 ms",
    "opentelemetry.exporter.otlp": "OMNIHUB_TELEMETRY__OTLP_ENDPOINT; 100 ms",
    "services.providers.conformance": "the command provider",
    "services.tools": "other commands",
    "pytest": "tests",
}
# Modules, the standard library's and ours included: a tenth above what there was when this was written.
MOST_MODULES = 1800


def loaded(program: str, *arguments: str) -> str:
    """Return what a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a process has loaded that is about to serve everything with default settings."""
    folder = tmp_path_factory.mktemp("start")
    config = folder / "omnihub.toml"
    config.write_text("")
    environment = {"OMNIHUB_DATA_DIR": str(folder), "OMNIHUB_CONFIG": str(config)}
    return set(json.loads(loaded(SERVE, json.dumps(environment)).splitlines()[-1]))


def test_commands_are_loaded_only_when_they_are_named_and_without_what_serves() -> None:
    assert loaded(COMMAND).split() == ["[]", "[]"]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_serving_does_not_load(name: str, modules: set[str]) -> None:
    found = {module for module in modules if module == name or module.startswith(f"{name}.")}
    assert not found, (
        f"{name} is for: {FORBIDDEN[name]}. Import it where it is used, with services.common.late"
    )


def test_forbidden_modules_are_named_as_they_are() -> None:
    """A name that exists nowhere would forbid nothing."""
    program = (
        "import importlib.util, sys; print([n for n in sys.argv[1:] if not importlib.util.find_spec(n)])"
    )
    assert loaded(program, *FORBIDDEN).strip() == "[]"


def test_serving_loads_no_more_than_it_did(modules: set[str]) -> None:
    assert len(modules) <= MOST_MODULES, "found another library that serving loads? Is it needed by everyone?"


def test_what_serving_needs_is_seen(modules: set[str]) -> None:
    assert {"sqlalchemy", "grpc", "services.edge.app", "services.workflow.app"} <= modules


def test_the_newest_script_of_each_service_is_the_head_of_its_history() -> None:
    """Database.migrate looks only at the newest one to see that there is nothing to do."""
    from alembic.script import ScriptDirectory

    from services.common.db import newest_revision

    folders = sorted((Path(__file__).parents[2] / "services").glob("*/migrations"))
    assert len(folders) >= 5
    for folder in folders:
        script = ScriptDirectory(str(folder), version_locations=[str(folder)])
        assert script.get_heads() == [newest_revision(folder)], folder
