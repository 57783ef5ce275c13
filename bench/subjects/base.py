"""What every system under test looks like: what it is, what it cannot do, how it is started and addressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.payload import VARIANT, Kind, Target
from bench.processes import Ports, Server
from bench.upstream import Upstream

UPSTREAM_KEY = "sk-upstream-bench"
READY_LIMIT_S = 180
ACTIVE_KEYS = 1000


@dataclass(frozen=True)
class Setup:
    """How a subject is configured beyond the models of each kind of request.

    `keys`: so many keys exist; requests come from at most ACTIVE_KEYS of them, from all over the range, or
    from all of them with `all_keys`. `models`: so many models exist, and requests ask for each of them.
    """

    keys: int = 0
    all_keys: bool = False
    models: int = 0
    cache: bool = False


@dataclass(frozen=True)
class Place:
    """What a subject is started with: its folder, its log file, its ports, the upstream behind it."""

    directory: Path
    log: Path
    ports: Ports
    upstream: Upstream
    setup: Setup = Setup()


@dataclass(frozen=True)
class Running:
    """A started subject: the process tree to be charged and what to send to it for each kind of request."""

    server: Server
    target: Callable[[Kind], Target]


@dataclass(frozen=True)
class Features:
    """What a row does for each request beside passing it on."""

    authentication: str = "none"
    credits: str = "none"
    routing: str = "none"
    usage: str = "none"
    record: str = "none"


@dataclass(frozen=True)
class Subject:
    """A system under test. `unable` has the reason by the name of each scenario it cannot do."""

    name: str
    what: str
    start: Callable[[Place], AbstractAsyncContextManager[Running]]
    version: Callable[[], str]
    features: Features = Features()
    unable: Mapping[str, str] = field(default_factory=dict)


def by_path(kind: Kind, base: str) -> Target:
    """Return a request to something that does not look into bodies."""
    headers = {"Authorization": f"Bearer {UPSTREAM_KEY}", "Content-Type": "application/json"}
    return Target(f"{base}/{kind.name}/v1{kind.path}", kind.body("gpt-bench"), headers)


def by_model(kind: Kind, url: str, key: str, setup: Setup) -> Target:
    """Return a request to a gateway that tells the kinds apart by model, and callers by key."""
    model = f"bench-model-{VARIANT}" if setup.models else f"bench-{kind.name}"
    key = f"{key}{VARIANT}" if setup.keys else key
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return Target(f"{url}/v1{kind.path}", kind.body(model), headers, variants(setup))


def variants(setup: Setup) -> tuple[int, ...]:
    """Return the numbers of the keys or models that requests use."""
    count = setup.models or setup.keys
    step = 1 if setup.all_keys or setup.models else max(1, count // ACTIVE_KEYS)
    return tuple(range(0, count, step))
