"""Fixtures of every kind of test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from services.common import db
from tests.support import databases, left_open, matrix, postgresql

# The same examples in every run, so that a red run is a change's fault. To look further:
# HYPOTHESIS_PROFILE=explore.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

_LEFT_OPEN = pytest.StashKey[left_open.LeftOpen]()
_MIGRATIONS = pytest.StashKey[databases.Migrations]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the reports tell which cells of the adapter test matrix a test fills."""
    matrix.note_cells(items)


def pytest_configure(config: pytest.Config) -> None:
    """See who leaves something open; migrate each schema once."""
    watching = left_open.watching()
    config.stash[_LEFT_OPEN] = watching.__enter__()
    config.add_cleanup(lambda: watching.__exit__(None, None, None))
    migrations = config.stash[_MIGRATIONS] = databases.Migrations()
    config.add_cleanup(migrations.close)
    patch = pytest.MonkeyPatch()
    patch.setattr(db, "migrations", migrations)
    config.add_cleanup(patch.undo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Tell under whose name things are opened, and whether it is about migrations."""
    item.config.stash[_LEFT_OPEN].test = item.nodeid
    item.config.stash[_MIGRATIONS].shortcut = not item.get_closest_marker("new_database")
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test that leaves something open, not the one during which the garbage is collected."""
    result = yield
    if left := item.config.stash[_LEFT_OPEN].at_end_of_test():
        pytest.fail("\n".join(left), pytrace=False)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests together that share a running suite; see tests/support/scheduling.py."""
    from tests.support.scheduling import TogetherScheduling

    return TogetherScheduling(config, log)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL for this pytest process. Without one the test fails: it is never skipped."""
    try:
        with postgresql.running_server() as server:
            yield server
    except postgresql.PostgresqlError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgresql_databases(
    postgresql_server: postgresql.Server, pytestconfig: pytest.Config
) -> Iterator[databases.Databases]:
    """Its databases that are used again."""
    used_again = databases.Databases(postgresql_server, pytestconfig.stash[_MIGRATIONS])
    yield used_again
    used_again.close()


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL database without rows; with the mark `new_database`, without anything."""
    if request.node.get_closest_marker("new_database"):
        server: postgresql.Server = request.getfixturevalue("postgresql_server")
        source = server.database()
    else:
        used_again: databases.Databases = request.getfixturevalue("postgresql_databases")
        source = used_again.without_rows()
    with source as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without rows; the test runs once for each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url
