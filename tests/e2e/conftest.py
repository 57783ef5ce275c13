"""The whole suite, once in one process and once in many, and what its users call it with."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.deployment import SHAPES, running_suite
from tests.support.suite import Suite
from tests.support.upstream import Upstream, running_upstream

# One worker of pytest-xdist owns a shape, so that each is started once.
BOTH_SHAPES = [pytest.param(shape, marks=pytest.mark.xdist_group(f"e2e-{shape}")) for shape in SHAPES]


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The provider behind every model."""
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="session", params=BOTH_SHAPES)
def suite(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Suite]:
    """A running OmniHub; each test runs against one process and against many."""
    folder = tmp_path_factory.mktemp(f"suite-{request.param}")
    with running_suite(folder, upstream, request.param) as running:
        yield running


@pytest.fixture
def client(suite: Suite) -> Iterator[openai.OpenAI]:
    """The official client, with the first key and no retries of its own."""
    with openai.OpenAI(base_url=suite.openai_url, api_key=suite.key, max_retries=0, timeout=20) as running:
        yield running


@pytest.fixture
def rest(suite: Suite) -> Iterator[httpx.Client]:
    """A plain HTTP client that sends the first key."""
    headers = {"authorization": f"Bearer {suite.key}"}
    with httpx.Client(base_url=suite.url, headers=headers, timeout=20) as running:
        yield running
