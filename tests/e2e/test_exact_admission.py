"""The short form of `tests/chaos/test_exact_admission.py`: three replicas, each behind its own Envoy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import postgresql
from tests.support.fleet import Fleet, running_fleet
from tests.support.thousand import admit_exactly_fifty
from tests.support.upstream import Upstream

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def fleet(
    upstream: Upstream,
    postgresql_server: postgresql.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    with postgresql_server.database() as url:
        folder = tmp_path_factory.mktemp("fleet")
        with running_fleet(folder, upstream, {"OMNIHUB_DATABASE_URL": url}, 3) as running:
            yield running
            assert "the books add up" in running.command("billing", "check")


@pytest.mark.parametrize(
    ("what", "stream", "replicas"),
    [("credits", True, 3), ("budget", False, 3), ("credits", False, 1)],
    ids=lambda value: str(value),
)
def test_a_thousand_at_once(fleet: Fleet, upstream: Upstream, what: str, stream: bool, replicas: int) -> None:
    admit_exactly_fifty(fleet, upstream, what, stream, replicas)
