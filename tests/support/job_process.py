"""A process of its own that serves one target of the workflow service, for tests that kill it.

It says so once it works, and ends at SIGTERM. Such processes come from one that has loaded everything once:
they are as separate as others, and begin in a tenth of the time.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import uvloop

from services.common import clock
from services.common.authenticator import Authenticator
from services.common.ids import new_id
from services.common.rpc import Connector, Registry
from services.common.service import Infrastructure, Service
from services.workflow import app
from services.workflow.settings import WorkflowSettings
from tests.support.fakes import Fake
from tests.support.forks import importable, loaded


def built(target: str, given: dict[str, Any]) -> tuple[Service, Connector]:
    """Return a target as the launcher builds it, with peers from `given`."""
    connector = Connector(Registry(), {"router": given["router"], "billing": given["billing"]})
    infrastructure = Infrastructure(
        connector=connector,
        data_dir=Path(given["folder"]),
        database_url=given["database"],
        amqp_url=given["broker"],
        instance_id=given.get("name") or new_id("proc"),
        authenticator=Authenticator(Fake()),
    )
    settings = WorkflowSettings(**given["settings"])
    make = app.build_worker if target == "worker" else app.build
    return make(settings, infrastructure, public_url=""), connector


class JobProcess:
    """A running process, seen from the loop of a test."""

    def __init__(self, target: str, given: dict[str, Any], log: Path, *, fresh: bool = False) -> None:
        """`fresh`: begin with an empty interpreter, as a restarted container does."""
        # What it calls itself where it claims something.
        self.name = new_id("proc")
        given = {**given, "name": self.name}
        context = multiprocessing.get_context("spawn") if fresh else loaded()
        self._ready, told = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(target, given, str(log), told), daemon=True)
        with importable():
            self._process.start()
        told.close()

    @property
    def pid(self) -> int:
        """Return its id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Return how it has ended; None while it runs. Only one thread may ask: the answer comes once."""
        return self._process.exitcode

    async def until_ready(self, within_s: float) -> bool:
        """Wait until it works. Tells whether it does."""
        try:
            return await asyncio.to_thread(self._ready.poll, within_s) and bool(self._ready.recv())
        except EOFError:
            return False

    async def wait(self) -> int:
        """Wait for its end, and return how it was."""
        while (code := self.returncode) is None:
            # Only looks: two threads that ask how it has ended get the code and an invented 255.
            await asyncio.to_thread(wait, [self._process.sentinel], 0.1)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _main(target: str, given: dict[str, Any], log: str, told: Connection) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(target, given, told))


async def run(target: str, given: dict[str, Any], told: Connection) -> None:
    """Serve until told to stop."""
    if ahead := given.get("ahead_s"):
        app.now = lambda: clock.now() + timedelta(seconds=ahead)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    service, connector = built(target, given)
    await service.start()
    told.send(True)
    await stopping.wait()
    await service.stop()
    await connector.close()
