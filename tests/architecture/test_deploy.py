"""The files of deploy/ start every target, and tell each process where those it calls are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from services.launcher import TARGETS, resolve_targets
from services.settings import PeerSettings, load

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = DEPLOY / "k8s"
# Listeners of HTTP that the edge leads to, and the targets that have them.
HTTP_PEERS = {"facade": "gateway", "files": "workflow"}
# They keep contents of files, the one for the other.
FILE_TARGETS = {"workflow", "worker"}


@dataclass(frozen=True)
class Started:
    """One process of a deployment."""

    host: str
    """What the others call it."""
    targets: tuple[str, ...]
    environment: dict[str, str]
    files: str
    """Where the contents of its files lie; empty: on a disk of its own."""


def _targets(command: list[str]) -> tuple[str, ...]:
    serve, target = command
    assert serve == "serve"
    return tuple(resolve_targets(target.removeprefix("--target=").split(",")))


def _given(environment: dict[str, str | None]) -> dict[str, str]:
    """Return the variables as they are set once those of the caller are filled in."""
    caller = {"OMNIHUB_PUBLIC_URL": "https://omnihub.example.com"}
    set_here = {
        name: caller.get(name, "sk-1") if value is None else value for name, value in environment.items()
    }
    return {name: re.sub(r"\$\{\w+:\?set it\}", "x" * 32, value) for name, value in set_here.items()}


def _compose(file: Path) -> list[Started]:
    services: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return [
        Started(
            name,
            _targets(service["command"]),
            _given(service["environment"]),
            "".join(mount for mount in service.get("volumes", []) if mount.endswith(":/data")),
        )
        for name, service in services.items()
        if name != "postgresql"
    ]


def _kubernetes() -> list[Started]:
    documents = [
        document
        for file in sorted(KUBERNETES.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
    ]
    secrets = {each["metadata"]["name"]: each["stringData"] for each in documents if each["kind"] == "Secret"}
    hosts = {each["metadata"]["name"] for each in documents if each["kind"] == "Service"}
    found = []
    for each in documents:
        if each["kind"] != "Deployment":
            continue
        (container,) = each["spec"]["template"]["spec"]["containers"]
        environment = {pair["name"]: pair["value"] for pair in container.get("env", [])}
        for source in container["envFrom"]:
            environment |= secrets[source["secretRef"]["name"]]
        name = each["metadata"]["name"]
        files = environment.get("OMNIHUB_STORAGE_URL", "")
        found.append(Started(name if name in hosts else "", _targets(container["args"]), environment, files))
    return found


DEPLOYMENTS = {
    "compose": _compose(COMPOSE),
    "compose, one process": _compose(COMPOSE.with_name("compose.all.yaml")),
    "kubernetes": _kubernetes(),
}
PROCESSES = [
    pytest.param(started, every, id=f"{name}: {started.targets[0]}")
    for name, every in DEPLOYMENTS.items()
    for started in every
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_target_is_started_once(deployment: str) -> None:
    started = [target for each in DEPLOYMENTS[deployment] for target in each.targets]
    assert sorted(started) == sorted(TARGETS)


@pytest.mark.parametrize(("process", "every"), PROCESSES)
def test_the_settings_are_valid_and_lead_to_the_peers(process: Started, every: list[Started]) -> None:
    peers = load(process.environment).peers.model_dump()
    needed = {need for target in process.targets for need in TARGETS[target].needs}
    if "edge" in process.targets:
        needed |= set(PeerSettings.model_fields)
    hosts = {target: each.host for each in every for target in each.targets}
    for need in sorted(needed):
        serving = HTTP_PEERS.get(need, need)
        port = 9091 if need in HTTP_PEERS else 9090
        here = serving in process.targets
        assert peers[need] == ("local" if here else f"{hosts[serving]}:{port}"), need


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_what_a_worker_makes_is_where_it_is_given_out(deployment: str) -> None:
    keeping = [each for each in DEPLOYMENTS[deployment] if FILE_TARGETS & set(each.targets)]
    assert len({each.files for each in keeping}) == 1
    assert keeping[0].files


def test_the_kubernetes_readme_applies_every_file() -> None:
    text = (KUBERNETES / "README.md").read_text()
    listed = re.search(r"printf -- '-f deploy/k8s/%s\.yaml ' \\\n([\w ]+)\)", text)
    assert listed is not None
    files = {file.stem for file in KUBERNETES.glob("*.yaml")} - {"network", "secret.example"}
    assert set(listed[1].split()) == files
