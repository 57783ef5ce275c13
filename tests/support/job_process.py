"""A process of its own that serves one target of the workflow service, for tests that kill it.

    python -m tests.support.job_process worker|workflow '{"router": "127.0.0.1:1", ...}'

It says `ready` once it works, and ends at SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from datetime import timedelta
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


def built(target: str, given: dict[str, Any]) -> tuple[Service, Connector]:
    """Return a target as the launcher builds it, with peers from `given`."""
    connector = Connector(Registry(), {"router": given["router"], "billing": given["billing"]})
    infrastructure = Infrastructure(
        connector=connector,
        data_dir=Path(given["folder"]),
        database_url=given["database"],
        amqp_url=given["broker"],
        instance_id=new_id("proc"),
        authenticator=Authenticator(Fake()),
    )
    settings = WorkflowSettings(**given["settings"])
    make = app.build_worker if target == "worker" else app.build
    return make(settings, infrastructure, public_url=""), connector


async def run(target: str, given: dict[str, Any]) -> None:
    """Serve until told to stop."""
    if ahead := given.get("ahead_s"):
        app.now = lambda: clock.now() + timedelta(seconds=ahead)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    service, connector = built(target, given)
    await service.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stopping.wait()
    await service.stop()
    await connector.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(sys.argv[1], json.loads(sys.argv[2])))
