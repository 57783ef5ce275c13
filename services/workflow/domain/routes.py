"""Where an attempt goes: a queue, and a provider that may run only so many at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omnihub.router.v1.media_router_service_pb2 import MediaTarget

from services.workflow.domain.kinds import queue_of


@dataclass(frozen=True, slots=True)
class Route:
    """The way of an attempt at one target."""

    queue: str
    provider: str
    concurrency: int = 0
    """Jobs that the provider runs at the same time; 0 when there is no limit."""


def routes_of(targets: Iterable[MediaTarget], priority: str) -> list[Route]:
    """Return the way to each target of a plan."""
    return [
        Route(queue_of(target.immediate, priority), target.provider, target.concurrency) for target in targets
    ]
