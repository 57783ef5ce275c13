"""1,000 callers at once against 5.00, through Envoy: holds and leases, one replica and three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import postgresql
from tests.support.fleet import Fleet, running_fleet
from tests.support.thousand import admit_exactly_fifty
from tests.support.upstream import Upstream, running_upstream

pytestmark = [pytest.mark.chaos, pytest.mark.postgresql, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="module", params=["leases", "holds"])
def fleet(
    request: pytest.FixtureRequest,
    upstream: Upstream,
    postgresql_server: postgresql.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    with postgresql_server.database() as url:
        environment = {
            "OMNIHUB_DATABASE_URL": url,
            "OMNIHUB_ROUTER__LEASES": "true" if request.param == "leases" else "false",
        }
        folder = tmp_path_factory.mktemp(f"fleet-{request.param}")
        with running_fleet(folder, upstream, environment, 3) as running:
            yield running
            assert "the books add up" in running.command("billing", "check")


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("what", ["credits", "budget"])
def test_a_thousand_at_once(fleet: Fleet, upstream: Upstream, what: str, stream: bool, replicas: int) -> None:
    seen = admit_exactly_fifty(fleet, upstream, what, stream, replicas)
    print(f"{what} stream={stream} replicas={replicas}: 50 of 1000 admitted, refused {dict(seen.refused)}")
