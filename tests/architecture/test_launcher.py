"""The launcher's table is the call graph: nobody calls whom it does not need, and needs have no circle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from services.launcher import GROUPS, TARGETS, Process, edge_configuration, resolve_targets
from services.settings import PeerSettings, Settings

SERVICES = Path(__file__).parents[2] / "services"
_CONNECT = re.compile(r"\.connect\(\s*\w+,\s*\"(\w+)\"")


@pytest.mark.parametrize("name", TARGETS)
def test_needs_start_first(name: str) -> None:
    order = list(TARGETS)
    assert all(order.index(needed) < order.index(name) for needed in TARGETS[name].needs)


@pytest.mark.parametrize("name", TARGETS)
def test_a_service_calls_only_whom_it_needs(name: str) -> None:
    called = {peer for file in (SERVICES / name).rglob("*.py") for peer in _CONNECT.findall(file.read_text())}
    assert called <= set(TARGETS[name].needs)


def test_connections_are_found() -> None:
    found = _CONNECT.findall((SERVICES / "router" / "app.py").read_text())
    assert set(found) == {"providers", "billing"}


def test_targets_start_in_the_order_of_their_needs() -> None:
    assert resolve_targets(["gateway", "chat", "auth"]) == ["auth", "providers", "router", "gateway"]
    assert resolve_targets(["all"]) == list(GROUPS["all"]) == list(TARGETS)
    with pytest.raises(ValueError, match=r"unknown target 'chats'; known: all, chat, auth"):
        resolve_targets(["chats"])


def own_edge(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    """Return the configuration of the edge that a process builds for itself, by cluster."""
    given = Settings(data_dir=tmp_path, **settings)
    process = Process(given, resolve_targets(["all"]))
    process._build("auth")
    service = process._build("edge")
    envoy = service.start.__self__  # type: ignore[attr-defined]
    clusters = envoy._configuration["static_resources"]["clusters"]
    return {
        cluster["name"]: cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for cluster in clusters
    } | {"threads": envoy._settings.concurrency}


def test_the_edge_of_a_process_asks_it_at_a_unix_socket(tmp_path: Path) -> None:
    edge = own_edge(tmp_path)
    socket = {"pipe": {"path": str(tmp_path / "edge" / "http.sock")}}
    assert edge["facade"] == edge["files"] == edge["probes"] == socket
    assert edge["threads"] == 1


def test_an_edge_elsewhere_is_told_the_address(tmp_path: Path) -> None:
    configuration = json.loads(edge_configuration(Settings(data_dir=tmp_path, http_listen="127.0.0.1:9999")))
    assert "http.sock" not in json.dumps(configuration)
    assert '"port_value": 9999' in json.dumps(configuration)


def test_peers_that_are_named_are_asked_where_they_are(tmp_path: Path) -> None:
    edge = own_edge(tmp_path, peers=PeerSettings(facade="10.0.0.1:9091"))
    assert edge["facade"]["socket_address"]["address"] == "10.0.0.1"
    assert "pipe" in edge["files"]
    assert edge["threads"] == 0
