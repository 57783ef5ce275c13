"""The launcher's table is the call graph: nobody calls whom it does not need, and needs have no circle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.launcher import GROUPS, TARGETS, resolve_targets

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
    assert _CONNECT.findall((SERVICES / "router" / "app.py").read_text()) == [
        "providers",
        "billing",
        "providers",
    ]


def test_targets_start_in_the_order_of_their_needs() -> None:
    assert resolve_targets(["gateway", "chat", "auth"]) == ["auth", "providers", "router", "gateway"]
    assert resolve_targets(["all"]) == list(GROUPS["all"]) == list(TARGETS)
    with pytest.raises(ValueError, match=r"unknown target 'chats'; known: all, chat, auth"):
        resolve_targets(["chats"])
