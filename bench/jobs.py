"""Jobs per second, memory of queued jobs, and the way back after a crash: `python -m bench.jobs`.

RabbitMQ and PostgreSQL run privately; the provider is a fake that answers at once, in this process, as do
the books. Procrastinate's no-op task runs on the same PostgreSQL in the same run. A relay and a worker have
a process each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from bench.install import HERE, WORK
from bench.measure import ProcessTree
from services.common import log
from services.workflow.settings import WorkflowSettings
from tests.support.job_cluster import Cluster, ServedRouter, running_cluster
from tests.support.job_process import JobProcess
from tests.support.postgresql import KillableServer
from tests.support.rabbitmq import Broker, private_broker

TARGET_PER_S = 150.0
TARGET_SHARE = 0.25
TARGET_MEMORY_MIB = 200.0
TARGET_RESUME_S = 10.0
CALLERS = 16
LOOK_S = 0.5
# As jobs are run in production, not as in crash tests.
DEFAULTS = WorkflowSettings(late_concurrency=32)
SETTINGS = {name: getattr(DEFAULTS, name) for name in ("lease_s", "sweep_interval_s", "late_concurrency")}

UNPUBLISHED: LiteralString = "SELECT count(*) FROM workflow.outbox"
CLAIMED: LiteralString = "SELECT count(*) FROM workflow.attempt WHERE state = 'claimed'"
SUCCEEDED: LiteralString = "SELECT count(*) FROM workflow.job WHERE state = 'succeeded'"
HELD: LiteralString = "SELECT id FROM workflow.attempt WHERE state = 'claimed'"
LEFT: LiteralString = "SELECT count(*) FROM workflow.attempt WHERE id = ANY(%s) AND state <> 'succeeded'"
COMMITS: LiteralString = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

Processes = Mapping[str, JobProcess]
Meters = Callable[[], Mapping[str, float]]
"""CPU seconds by what used them."""


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
        [*command, database, str(count), str(DEFAULTS.late_concurrency)],
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


def ask(database: str, query: LiteralString, *given: object) -> int:
    """Return the number that a query finds."""
    with psycopg.connect(database) as connection:
        row = connection.execute(query, given).fetchone()
    return int(row[0]) if row else 0


async def until(wanted: Callable[[int], bool], limit_s: float, *asked: Any) -> float:
    """Look until a query finds what is wanted; return the seconds it took."""
    began = time.perf_counter()
    database, query, *given = asked
    # One connection: to open one costs PostgreSQL as much as several jobs.
    async with asyncio.timeout(limit_s), await psycopg.AsyncConnection.connect(database) as connection:
        await connection.set_autocommit(True)
        # Another process changes the database: there is no event to wait for.
        while not wanted(await number(connection, query, given)):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
    return time.perf_counter() - began


async def number(connection: psycopg.AsyncConnection[Any], query: LiteralString, given: list[Any]) -> int:
    """Return the number that a query finds."""
    row = await (await connection.execute(query, given)).fetchone()
    return int(row[0]) if row else 0


async def submit(cluster: Cluster, count: int) -> float:
    """Begin jobs from several callers at once; return how many a second."""
    began = time.perf_counter()
    await asyncio.gather(*(cluster.submit(count // CALLERS) for _ in range(CALLERS)))
    return len(cluster.jobs) / (time.perf_counter() - began)


async def spawn(cluster: Cluster) -> Processes:
    """Start a relay and a worker."""
    relay, worker = await asyncio.gather(
        cluster.spawn("workflow", fresh=True, settings=SETTINGS),
        cluster.spawn(fresh=True, settings=SETTINGS),
    )
    return {"relay": relay, "worker": worker}


async def queue_up(cluster: Cluster, database: str, count: int) -> tuple[Processes, dict[str, float]]:
    """Queue jobs before a provider that does not answer: the worker is full, all others are queued."""
    cluster.router.gate.clear()
    processes = await spawn(cluster)
    await cluster.submit(CALLERS)
    await until(lambda found: found == CALLERS, 60, database, CLAIMED)
    pids: list[int | str] = ["self", *(process.pid for process in processes.values())]
    before = resident_mib(*pids)
    created_per_s = await submit(cluster, count)
    await until(lambda found: found == 0, 300, database, UNPUBLISHED)
    room = DEFAULTS.late_concurrency
    await until(lambda found: found == room, 60, database, CLAIMED)
    return processes, {"created_per_s": created_per_s, "memory_mib": resident_mib(*pids) - before}


async def crash(cluster: Cluster, database: str, processes: Processes) -> tuple[Processes, float, list[str]]:
    """Kill relay and worker and start them again; return when work goes on, and what they held."""
    with psycopg.connect(database) as connection:
        held = [row[0] for row in connection.execute(HELD)]
    for process in processes.values():
        process.kill()
        await process.wait()
    began = time.perf_counter()
    cluster.router.gate.set()
    processes = await spawn(cluster)
    await until(bool, 60, database, SUCCEEDED)
    first_s = time.perf_counter() - began
    return processes, first_s, held


async def work_off(cluster: Cluster, database: str, meters: Meters) -> dict[str, float]:
    """Look how fast jobs end, and what one costs."""
    nearly = len(cluster.jobs) - 2 * DEFAULTS.late_concurrency
    first, commits, used = ask(database, SUCCEEDED), ask(database, COMMITS), meters()
    took = await until(lambda found: found >= nearly, 600, database, SUCCEEDED)
    done = ask(database, SUCCEEDED) - first
    cost = {f"{name}_ms_per_job": (now - used[name]) * 1000 / done for name, now in meters().items()}
    per_job = (ask(database, COMMITS) - commits) / done
    return {"completed_per_s": done / took, "commits_per_job": per_job, **cost}


async def measure(cluster: Cluster, server: KillableServer, broker: Broker, count: int) -> dict[str, float]:
    """Queue jobs, crash our processes, work the jobs off."""
    processes, queued = await queue_up(cluster, server.url, count)
    processes, first_s, held = await crash(cluster, server.url, processes)
    pids = {name: process.pid for name, process in processes.items()}
    pids |= {"provider_and_books": os.getpid(), "postgresql": server.pid, "rabbitmq": broker.pid}

    def meters() -> dict[str, float]:
        trees = {name: ProcessTree(pid).cpu_seconds() for name, pid in pids.items() if pid != os.getpid()}
        return {**trees, "provider_and_books": time.process_time()}

    # What was held comes back in the middle of the rest.
    worked, held_s = await asyncio.gather(
        work_off(cluster, server.url, meters),
        until(lambda found: found == 0, 120, server.url, LEFT, held),
    )
    await cluster.until_all_ended(120)
    print(await cluster.check(), file=sys.stderr)
    return {**queued, **worked, "resumed_s": first_s, "held_resumed_s": first_s + held_s}


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
        (
            "seconds until all is done that the killed worker held",
            f"{found['held_resumed_s']:.1f}",
            f"< {TARGET_RESUME_S:.0f}",
            found["held_resumed_s"] < TARGET_RESUME_S,
        ),
        ("commits per job", f"{found['commits_per_job']:.2f}", "", True),
        *(
            (f"CPU per job, {name}, ms", f"{found[f'{name}_ms_per_job']:.2f}", "", True)
            for name in ("worker", "relay", "provider_and_books", "postgresql", "rabbitmq")
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
                return {"rival_per_s": rival, **await measure(cluster, server, broker, count)}
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
