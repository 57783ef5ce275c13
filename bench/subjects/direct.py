"""No gateway: what everything else is compared to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import first_line, require_programs
from bench.subjects.base import Place, Running, Subject, by_path

NO_MODELS = "looks into no body: keys and models make no difference"
NOT_TRANSLATED = "passes bytes on and translates nothing"
NO_CACHE = "keeps no answers"
PASSES_BYTES = {
    "translated": NOT_TRANSLATED,
    "cache-hit": NO_CACHE,
    "growth-keys": NO_MODELS,
    "new-keys": NO_MODELS,
    "growth-models": NO_MODELS,
}


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Use the upstream itself."""
    upstream = place.upstream
    yield Running(
        upstream.server, lambda kind: by_path(kind, upstream.base(kind).removesuffix(f"/{kind.name}"))
    )


SUBJECT = Subject(
    "direct",
    "no gateway: the load generator talks to nginx; CPU and memory are nginx's own",
    start,
    lambda: f"nginx {first_line([require_programs()['nginx'], '-v']).partition('/')[2]}",
    unable=PASSES_BYTES
    | {
        "chunks": "the upstream itself",
        "idle-streams": "the upstream itself",
        "cold-start": "the upstream itself",
        "growth-connections": "the upstream itself",
    },
)
