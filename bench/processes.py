"""Start a server, wait until it answers, stop it with everything it started."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from bench.errors import BenchError
from bench.measure import ProcessTree, read_stat

# Below the range from which the kernel takes ports for outgoing connections.
FIRST_PORT, LAST_PORT = 18400, 18899
STOP_LIMIT_S = 15
POLL_INTERVAL_S = 0.05


class Ports:
    """Hands out free ports of the loopback address, each one once."""

    def __init__(self) -> None:
        # Another checkout's run begins elsewhere: between taking a port and listening on it seconds may pass.
        begin = os.getpid() * 61 % (LAST_PORT - FIRST_PORT)
        ports = range(FIRST_PORT, LAST_PORT)
        self._candidates: Iterator[int] = iter([*ports[begin:], *ports[:begin]])

    def take(self) -> int:
        """Return a port on which nothing listens."""
        for port in self._candidates:
            with socket.socket() as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return port
        raise BenchError(f"no free port from {FIRST_PORT} to {LAST_PORT} on 127.0.0.1")


def clean_environment(home: Path, extra: dict[str, str]) -> dict[str, str]:
    """Return an environment without this shell's settings: its keys or proxies must not change a result."""
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/sbin", "/usr/bin", "/bin"]
    )
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **extra}


class Server:
    """A started process that leads its own session."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.tree = ProcessTree(process.pid)
        self._log = log
        self._started_at = time.monotonic()
        self.ready_after_s = 0.0

    def check(self) -> None:
        """Raise when the process has ended."""
        if self.process.returncode is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise BenchError(
                f"{self.name} ended with code {self.process.returncode}; {self._log} ends with:\n{tail}"
            )

    async def wait_ready(self, url: str, limit_s: float) -> None:
        """Return once GET `url` answers 200; raise when `limit_s` have passed or the process has ended."""
        deadline = asyncio.get_running_loop().time() + limit_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while asyncio.get_running_loop().time() < deadline:
                self.check()
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            self.ready_after_s = time.monotonic() - self._started_at
                            return
                await asyncio.sleep(POLL_INTERVAL_S)
        raise BenchError(
            f"{self.name}: {url} did not answer 200 within {limit_s:.0f} s; its log is {self._log}"
        )

    async def stop(self) -> None:
        """Ask the process to end, then kill what is left of its tree."""
        members = self.tree.members()
        with suppress(ProcessLookupError):
            self.process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_LIMIT_S)
        for member in members:
            now = read_stat(member.pid)
            # The same number with another start time is a stranger.
            if now and now.start_ticks == member.start_ticks:
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def running(
    name: str, command: list[str], *, environment: dict[str, str], directory: Path, log: Path
) -> AsyncIterator[Server]:
    """Run `command` in `directory` for the length of the context; its output goes to the file `log`."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C then reaches only this program, which stops the servers in order.
            start_new_session=True,
        )
    server = Server(name, process, log)
    try:
        yield server
    finally:
        await server.stop()
