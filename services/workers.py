"""`serve --workers N`: further processes that answer chat, beside the one that runs everything.

Each is an ordinary `serve --target=providers,router,gateway` whose peers are in this process, reached through
Unix sockets in a folder of this user only. The edge spreads requests over them. They share nothing but the
database: credits and limits are leased as by replicas on other machines (docs/adr/0022).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import aiohttp
import prometheus_client
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.common import exec_with_parent
from services.common.service import Service, StartupError
from services.common.sockets import UNIX, make_folder, socket_folder
from services.common.telemetry import meter
from services.settings import child_environment

_logger = logging.getLogger(__name__)
_restarts = meter.create_counter(
    "omnihub.workers.restarts", description="Times a worker died and was restarted"
)

START_TIMEOUT_S = 60.0
POLL_S = 0.02
ASK_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
# Who has run for this long starts again with the first back-off.
STABLE_S = 30.0
# Beyond the time that requests under way get: what was answered is settled before a worker ends.
STOP_MARGIN_S = 30.0


class Worker:
    """One further process: started, watched, restarted, drained, never left behind."""

    def __init__(self, number: int, folder: Path, command: Sequence[str], peers: Mapping[str, str]) -> None:
        self.name = f"worker {number}"
        self.number = number
        self.restarts = 0
        self._grpc, self._http = folder / f"{number}.grpc", folder / f"{number}.http"
        self._command = command
        self._environment = {
            "OMNIHUB_GRPC_LISTEN": self.grpc_address,
            "OMNIHUB_HTTP_LISTEN": self.http_address,
            **{f"OMNIHUB_PEERS__{peer.upper()}": address for peer, address in peers.items()},
        }
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def grpc_address(self) -> str:
        """Return where it serves its rpcs."""
        return f"{UNIX}{self._grpc}"

    @property
    def http_address(self) -> str:
        """Return where it serves the facade."""
        return f"{UNIX}{self._http}"

    async def start(self) -> None:
        """Start it and return once it answers. Raises StartupError."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name=self.name)

    async def _launch(self) -> None:
        # The ready file of the one before must not be taken for this one's.
        self._http.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", exec_with_parent.__file__, str(os.getpid())),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            env=child_environment(self._environment),
            # Ctrl-C in the terminal is for us: workers stop after the edge has drained.
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while problem := await self._problem():
            if self._process.returncode is not None:
                raise StartupError(f"{self.name} ended with status {self._process.returncode} at its start")
            if time.monotonic() > deadline:
                raise StartupError(f"{self.name} was not ready within {START_TIMEOUT_S:g} s: {problem}")
            await asyncio.sleep(POLL_S)

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            assert self._process is not None
            started = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - started > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            self.restarts += 1
            _restarts.add(1)
            _logger.error(
                "worker_died number=%s code=%s restart=%s backoff_s=%s",
                *(self.number, code, self.restarts, backoff_s),
            )
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
            try:
                await self._launch()
            # Without memory or processes nothing starts, for a while.
            except (StartupError, OSError) as error:
                _logger.error("worker_restart_failed %s", error)
                if self._process.returncode is None:
                    self._process.kill()

    async def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of its internal HTTP listener's answer. Raises OSError."""
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        connector = aiohttp.UnixConnector(str(self._http))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(f"http://worker{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"{self.name} does not answer: {error}") from None

    async def _problem(self) -> str:
        """Return why it cannot be asked now; empty when it can."""
        try:
            status, text = await self.ask("/ready")
        except OSError as error:
            return str(error)
        return "" if status == 200 else text

    async def check(self) -> None:
        """Raise OSError when it does not answer requests."""
        if problem := await self._problem():
            raise OSError(f"{problem} (restart {self.restarts})")

    async def stop(self, limit_s: float) -> None:
        """Let it finish and settle within the limit, then end it."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._end(limit_s)

    async def _end(self, limit_s: float) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
        except TimeoutError:
            _logger.error("worker_killed number=%s: it did not stop within %s s", self.number, limit_s)
            process.kill()
            await process.wait()


class Workers:
    """All of them, as one service of the process that started them."""

    def __init__(self, count: int, targets: Sequence[str], peers: Iterable[str], data_dir: Path) -> None:
        """`targets` run in each worker; `peers` are the services of this process that they call."""
        self._folder = socket_folder(data_dir, "workers", f"{count}.grpc")
        self.core_address = f"{UNIX}{self._folder / 'core'}"
        command = [
            *(sys.executable, "-m", "services", "serve"),
            *("--workers=1", f"--target={','.join(targets)}"),
        ]
        addresses = dict.fromkeys(peers, self.core_address)
        self._workers = [Worker(number, self._folder, command, addresses) for number in range(1, count + 1)]

    @property
    def grpc_addresses(self) -> str:
        """Return where they serve their rpcs, as an address of the edge."""
        return ",".join(worker.grpc_address for worker in self._workers)

    @property
    def http_addresses(self) -> str:
        """Return where they serve the facade, as an address of the edge."""
        return ",".join(worker.http_address for worker in self._workers)

    def make_folder(self) -> None:
        """Make the folder of the sockets. Who can open it can call every rpc: this user only."""
        make_folder(self._folder)

    def service(self, drain_timeout_s: float) -> Service:
        """Return what the launcher starts and stops."""

        async def start() -> None:
            try:
                async with asyncio.TaskGroup() as starting:
                    for worker in self._workers:
                        starting.create_task(worker.start())
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None

        async def stop() -> None:
            limit_s = drain_timeout_s + STOP_MARGIN_S
            await asyncio.gather(*(worker.stop(limit_s) for worker in self._workers))
            shutil.rmtree(self._folder, ignore_errors=True)

        async def check() -> None:
            await asyncio.gather(*(worker.check() for worker in self._workers))

        return Service(
            name="workers",
            routes=[Route("/metrics/workers", self._metrics)],
            start=start,
            stop=stop,
            check=check,
        )

    async def _metrics(self, _: Request) -> Response:
        texts: dict[str, str] = {}
        for worker in self._workers:
            try:
                texts[str(worker.number)] = (await worker.ask("/metrics"))[1]
            except OSError as error:
                # The others' numbers are still worth having; that one is missing shows in /ready.
                _logger.warning("worker_metrics_missing %s", error)
        return PlainTextResponse(merged(texts), media_type=prometheus_client.CONTENT_TYPE_LATEST)


def merged(texts: Mapping[str, str]) -> bytes:
    """Return the metrics of several processes, by their number, as those of one."""
    return prometheus_client.generate_latest(_Merged(texts))


class _Merged:
    """Metrics of several processes as those of one, told apart by the label `worker`."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Return each metric once, with the samples of all."""
        merged: dict[str, Metric] = {}
        for number, text in self._texts.items():
            for metric in text_string_to_metric_families(text):
                into = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                into.samples.extend(
                    sample._replace(labels={**sample.labels, "worker": number}) for sample in metric.samples
                )
        return merged.values()
