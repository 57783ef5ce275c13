"""The suite as it runs on several machines: one process with the money, and replicas that answer, each behind
an Envoy of its own. All over one PostgreSQL, or over files when there is one replica.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.ports import free_port
from tests.support.suite import Suite
from tests.support.upstream import Upstream

CORE = "auth,billing"
FIRST = "workflow,agents,chat,edge"
# Every answer of `toll` costs exactly this.
TOLL = "0.10"
CONFIG = f"""
[auth]
registration = "open"

[providers.toll]
adapter = "openai"
base_url = "{{upstream}}/v1"
api_key = "sk-toll"

[billing.prices]
"toll/*" = {{{{ per_request = "{TOLL}" }}}}
"""


class Fleet(Suite):
    """`CORE`, and `replicas` processes that answer: `urls` are their public addresses."""

    def __init__(
        self, folder: Path, upstream: Upstream, environment: Mapping[str, str], replicas: int
    ) -> None:
        self.replicas = [FIRST, *(f"chat,edge#{number}" for number in range(2, replicas + 1))]
        super().__init__(folder, CONFIG.format(upstream=upstream.url), environment, (CORE, *self.replicas))
        self._ports = {self.replicas[0]: self.port} | {name: free_port() for name in self.replicas[1:]}
        self.armed: dict[str, str] = {}
        """Settings of single processes: `{CORE: {...}}` becomes part of their environment when they start."""

    @property
    def urls(self) -> list[str]:
        """The public address of each replica."""
        return [f"http://127.0.0.1:{port}" for port in self._ports.values()]

    def arm(self, target: str, crash_at: str) -> None:
        """Let `target` crash at a place the next time it runs; an empty place disarms it."""
        self.armed[target] = crash_at

    def _peers_of(self, target: str) -> dict[str, str]:
        core, first = self.grpc_address(CORE), self.grpc_address(FIRST)
        if target == CORE:
            return dict.fromkeys(("router", "agents", "workflow", "providers"), first)
        elsewhere = {} if target == FIRST else {"agents": first, "workflow": first}
        return {"auth": core, "billing": core, **elsewhere}

    def _environment_of(self, target: str) -> dict[str, str]:
        environment = super()._environment_of(target)
        if target != CORE:
            environment["PORT"] = str(self._ports[target])
        if target not in (CORE, FIRST):
            # Envoy's own files; what counts is in the database.
            environment["OMNIHUB_DATA_DIR"] = str(self.folder / target.replace("#", "-"))
        if crash_at := self.armed.get(target, ""):
            service = "BILLING" if target == CORE else "ROUTER"
            environment[f"OMNIHUB_{service}__CRASH_AT"] = crash_at
        return environment

    def _problem(self, client: httpx.Client) -> str:
        for url in [*map(self.internal_url, self.processes), *self.urls]:
            try:
                answer = client.get(f"{url}/ready", timeout=3)
            except httpx.HTTPError as error:
                return f"{url}: {error!r}"
            if answer.status_code != 200:
                return f"{url}: {answer.text}"
        return ""

    def wait_until_dead(self, target: str, within_s: float = 30) -> None:
        """Wait for a process that is to end by itself, and end what it has left behind."""
        process = self.processes.pop(target)
        process.wait(within_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running_fleet(
    folder: Path, upstream: Upstream, environment: Mapping[str, str], replicas: int
) -> Iterator[Fleet]:
    """Run a fleet; stopped at the end, if it still runs."""
    fleet = Fleet(folder, upstream, environment, replicas)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
