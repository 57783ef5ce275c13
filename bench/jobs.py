"""Jobs per second, memory of queued jobs, and the way back after a crash: `python -m bench.jobs`.

RabbitMQ and PostgreSQL run privately; the provider is a fake that answers at once, in this process, as do
the books. Procrastinate's no-op task runs on the same PostgreSQL in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg

from bench.install import HERE, WORK
from services.common import log
from tests.support.job_cluster import Cluster, ServedRouter, running_cluster
from tests.support.postgresql import KillableServer
from tests.support.rabbitmq import private_broker

TARGET_PER_S = 150.0
TARGET_SHARE = 0.25
TARGET_MEMORY_MIB = 200.0
TARGET_RESUME_S = 10.0
CALLERS = 16
LOOK_S = 0.2
# As jobs are run in production, not as in crash tests.
SETTINGS = {"lease_s": 5.0, "sweep_interval_s": 1.0, "late_concurrency": 32}


def procrastinate_home() -> Path:
    """Return procrastinate's own virtual environment, made when it is missing."""
    home = WORK / "procrastinate"
    if not (home / "ready").exists():
        print(f"installing procrastinate into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "-r", str(HERE / "requirements-procrastinate.in")], check=True)
        (home / "ready").touch()
    return home


def rival_per_s(database: str, count: int) -> float:
    """Return how many no-op tasks procrastinate does in a second."""
    command = [str(procrastinate_home() / "bin" / "python"), str(HERE / "procrastinate_noop.py")]
    done = subprocess.run(
        [*command, database, str(count), str(SETTINGS["late_concurrency"])],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout)["tasks_per_s"])


def resident_mib(*pids: int | str) -> float:
    """Return the memory of processes, in MiB."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0])
    return total / 1024


def succeeded(database: str) -> int:
    """Return how many jobs have succeeded."""
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM workflow.job WHERE state = 'succeeded'").fetchone()
    return int(row[0]) if row else 0


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float) -> float:
    """Wait for a condition and return the seconds it took."""
    began = time.perf_counter()
    async with asyncio.timeout(limit_s):
        while True:
            if await condition():
                return time.perf_counter() - began
            await asyncio.sleep(LOOK_S)


async def submit(cluster: Cluster, count: int) -> float:
    """Begin jobs from several callers at once; return how many a second."""
    began = time.perf_counter()
    await asyncio.gather(*(cluster.submit(count // CALLERS) for _ in range(CALLERS)))
    return len(cluster.jobs) / (time.perf_counter() - began)


async def measure(cluster: Cluster, database: str, count: int) -> dict[str, float]:
    """Queue jobs, crash everything on the way, work them off."""
    relay = await cluster.spawn("workflow", settings=SETTINGS)
    before = resident_mib("self", relay.pid)
    created_per_s = await submit(cluster, count)
    total = len(cluster.jobs)

    async def published() -> bool:
        with psycopg.connect(database) as connection:
            row = connection.execute("SELECT count(*) FROM workflow.outbox").fetchone()
        return row == (0,)

    await until(published, 300)
    memory_mib = resident_mib("self", relay.pid) - before
    worker = await cluster.spawn(settings=SETTINGS)

    async def some() -> bool:
        return await asyncio.to_thread(succeeded, database) > total // 20

    await until(some, 300)
    for process in (worker, relay):
        process.kill()
        await process.wait()
    known = succeeded(database)
    began = time.perf_counter()
    await asyncio.gather(cluster.spawn("workflow", settings=SETTINGS), cluster.spawn(settings=SETTINGS))

    async def more() -> bool:
        return await asyncio.to_thread(succeeded, database) > known

    await until(more, 60)
    resumed_s = time.perf_counter() - began
    first, began = succeeded(database), time.perf_counter()
    nearly = total - 2 * int(SETTINGS["late_concurrency"])

    async def most() -> bool:
        return await asyncio.to_thread(succeeded, database) >= nearly

    await until(most, 600)
    per_s = (succeeded(database) - first) / (time.perf_counter() - began)
    await cluster.until_all_ended(120)
    print(await cluster.check(), file=sys.stderr)
    return {
        "created_per_s": created_per_s,
        "completed_per_s": per_s,
        "memory_mib": memory_mib,
        "resumed_s": resumed_s,
    }


def verdict(found: dict[str, float], count: int) -> str:
    """Return the table of what was measured and what was wanted."""
    share = found["completed_per_s"] / found["rival_per_s"]
    rows = [
        ("jobs begun per second", f"{found['created_per_s']:.0f}", "", True),
        (
            "jobs completed per second",
            f"{found['completed_per_s']:.0f}",
            f">= {TARGET_PER_S:.0f}",
            found["completed_per_s"] >= TARGET_PER_S,
        ),
        ("procrastinate, no-op tasks per second", f"{found['rival_per_s']:.0f}", "", True),
        ("share of it", f"{share:.2f}", f">= {TARGET_SHARE}", share >= TARGET_SHARE),
        (
            f"memory of {count} queued jobs, MiB",
            f"{found['memory_mib']:.0f}",
            f"< {TARGET_MEMORY_MIB:.0f}",
            found["memory_mib"] < TARGET_MEMORY_MIB,
        ),
        (
            "seconds to the first job after a crash of all",
            f"{found['resumed_s']:.1f}",
            f"< {TARGET_RESUME_S:.0f}",
            found["resumed_s"] < TARGET_RESUME_S,
        ),
    ]
    lines = ["| what | measured | wanted | |", "|---|---|---|---|"]
    lines += [f"| {what} | {is_} | {wanted} | {'' if ok else 'MISSED'} |" for what, is_, wanted, ok in rows]
    return "\n".join(lines)


async def run(count: int) -> dict[str, float]:
    """Measure everything."""
    server = KillableServer()
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder, private_broker(Path(folder)) as broker:
            rival = await asyncio.to_thread(rival_per_s, server.url, min(count, 2000))
            files = Path(folder) / "files"
            files.mkdir()
            router = ServedRouter(pause_s=0.0)
            async with running_cluster(files, server.url, broker.url, router) as cluster:
                return {"rival_per_s": rival, **await measure(cluster, server.url, count)}
    finally:
        server.remove()


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="queued at once; default 10000")
    count = parser.parse_args().jobs
    log.configure(json=True, level="warning")
    found = asyncio.run(run(count))
    print(verdict(found, count))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "jobs.json").write_text(json.dumps({"jobs": count, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
