"""The suite with `--workers`: one process with everything, and further ones that answer chat."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.fleet import CONFIG
from tests.support.suite import Suite
from tests.support.upstream import Upstream

TARGET = "all"


class WorkerSuite(Suite):
    """A running OmniHub with `count` workers."""

    def __init__(self, folder: Path, upstream: Upstream, environment: dict[str, str], count: int) -> None:
        super().__init__(
            folder,
            CONFIG.format(upstream=upstream.url),
            {"OMNIHUB_WORKERS": str(count), **environment},
            (TARGET,),
        )
        self.numbers = range(1, count + 1)

    def pids(self) -> list[int]:
        """Return the ids of the workers' processes, the oldest first."""
        parent = self.processes[TARGET].pid
        found = []
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if b"--workers=1" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return sorted(found)

    def kill_worker(self) -> int:
        """`kill -9` of one worker. Returns its process id."""
        pid = self.pids()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def worker(self, number: int) -> httpx.Client:
        """Return a client that speaks to one worker, past the edge."""
        socket = self.folder / "data" / "workers" / f"{number}.http"
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://worker", timeout=20
        )

    def metrics(self) -> str:
        """Return the workers' metrics, as their operator reads them."""
        return httpx.get(f"{self.internal_url(TARGET)}/metrics/workers", timeout=10).raise_for_status().text


@contextmanager
def running_workers(
    folder: Path, upstream: Upstream, environment: dict[str, str], count: int = 2
) -> Iterator[WorkerSuite]:
    """Run the suite with workers; stopped at the end, if it still runs."""
    suite = WorkerSuite(folder, upstream, environment, count)
    try:
        suite.start()
        yield suite
    finally:
        suite.stop()
