"""Who may call whom: the launcher's table is the design's graph, without cycles, and complete."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

from services.launcher import GROUPS, TARGETS, resolve_targets

SERVICES = Path(__file__).resolve().parents[2] / "services"
# Packages that are libraries, not services.
LIBRARIES = {"common", "credits", "formats", "listener"}
# Every service may call auth, a leaf.
DESIGN = {
    "gateway": {"router", "billing", "workflow", "agents"},
    "workflow": {"agents", "router", "billing"},
    "worker": {"router", "billing"},
    "agents": {"router", "billing"},
    "router": {"providers", "billing"},
    "billing": set(),
    "providers": set(),
    "auth": set(),
    "edge": set(),
}


def test_the_graph_is_the_designs() -> None:
    assert {name: set(target.needs) - {"auth"} for name, target in TARGETS.items()} == DESIGN
    assert not TARGETS["auth"].needs


def test_the_graph_has_no_cycle_and_the_table_is_in_its_order() -> None:
    order = list(TARGETS)
    assert set(
        TopologicalSorter({name: target.needs for name, target in TARGETS.items()}).static_order()
    ) == set(order)
    for name, target in TARGETS.items():
        assert all(order.index(need) < order.index(name) for need in target.needs), name


def test_every_service_is_a_target() -> None:
    packages = {file.parent.name for file in SERVICES.glob("*/__init__.py")} - LIBRARIES
    assert packages == {target.module.split(".")[1] for target in TARGETS.values()}
    for name, target in TARGETS.items():
        # Of the workflow service, a second target works off what the first takes in.
        assert target.module == f"services.{'workflow' if name == 'worker' else name}.app"


def test_groups_are_made_of_targets() -> None:
    assert resolve_targets(["all"]) == list(TARGETS)
    for group, members in GROUPS.items():
        assert resolve_targets([group]) == [name for name in TARGETS if name in members]
    assert resolve_targets(["edge", "auth"]) == ["auth", "edge"]
