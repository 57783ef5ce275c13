"""The rival of bench/jobs.py, run in its own virtual environment: no-op tasks of procrastinate.

    python procrastinate_noop.py postgresql://... COUNT CONCURRENCY

Prints one line of JSON: tasks per second, from the worker's start to the last task's end.
"""

import asyncio
import json
import sys
import time

import procrastinate

url, count, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


@app.task(name="nothing")
async def nothing(number: int) -> None:
    """Do nothing."""


async def main() -> None:
    """Queue the tasks, work them off, say how fast."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, count, 500):
            tasks = [{"number": number} for number in range(first, min(first + 500, count))]
            await nothing.batch_defer_async(*tasks)
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)
        print(json.dumps({"tasks_per_s": count / (time.perf_counter() - began)}))


asyncio.run(main())
