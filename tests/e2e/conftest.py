"""The whole suite, once in one process and once in many, and what its users call it with."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import httpx
import openai
import pytest

from tests.support.deployment import CLAUDE_KEY, SHAPES, WALL_KEY, running_suite
from tests.support.stubs import generated_stubs
from tests.support.suite import KEY, Suite
from tests.support.tenant import PASSWORD, PROMPT, Tenant, a_tenant
from tests.support.upstream import ANSWER, Upstream, running_upstream

# Small enough for a test to exceed them.
LIMITS = {
    "OMNIHUB_EDGE__BODY_LIMIT_BYTES": "1000000",
    "OMNIHUB_EDGE__JSON_BODY_LIMIT_BYTES": "500000",
    "OMNIHUB_GATEWAY__BODY_LIMIT_BYTES": "900000",
    # A plugin that is registered while running has no price list.
    "OMNIHUB_BILLING__FREE_PROVIDERS": "local,acme",
}


@pytest.fixture(scope="package")
def upstream() -> Iterator[Upstream]:
    """The provider behind every model."""
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="package", params=SHAPES)
def suite(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Suite]:
    """A running OmniHub; each test runs against one process and against many."""
    folder = tmp_path_factory.mktemp(f"suite-{request.param}")
    with running_suite(folder, upstream, request.param, LIMITS, fresh=True) as running:
        yield running
        statuses = running.stop()
        assert not any(statuses.values()), statuses
        assert_clean(running.logs())


def assert_clean(logs: str) -> None:
    """After all these tests: no secret, no prompt, no answer and no unexpected failure in any log."""
    for secret in (KEY, WALL_KEY, CLAUDE_KEY, PASSWORD, PROMPT, ANSWER, "omni_sk_"):
        assert secret not in logs, f"the logs contain {secret!r}"
    for line in logs.splitlines():
        assert "Traceback" not in line, line
        assert '"level":"error"' not in line, line


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


@pytest.fixture
def tenant(suite: Suite) -> Tenant:
    """An organisation of its own with 10 credits."""
    return a_tenant(suite)


@pytest.fixture
def tenant_client(suite: Suite, tenant: Tenant) -> Iterator[openai.OpenAI]:
    """The official client with the key of `tenant`."""
    with openai.OpenAI(base_url=suite.openai_url, api_key=tenant.key, max_retries=0, timeout=20) as running:
        yield running


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """RouterService's stubs, generated as a user would."""
    return generated_stubs(tmp_path_factory.mktemp("stubs"), "omnihub/router/v1/router_service.proto")
