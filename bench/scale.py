"""What more than one process costs: CPU per request in one process, and spread over several.

    python -m bench.scale                      # one process, two workers; each pinned to a core
    python -m bench.scale one chat split       # one process; chat beside its core; the chat path fully split
    python -m bench.scale --rate 300 one two   # 300 requests a second for each process that answers

All shapes run at the same time, over a PostgreSQL of their own and nginx as the provider, and are loaded
one after the other, each round beginning with another one. Counted is the CPU of all processes of a shape,
Envoy included; PostgreSQL is reported beside it, because it is the same for all. Without --rate as many
requests are sent as are answered, which fills the machine and compares shapes that want for cores. With it
each answering process has as much to do in every shape, and cores are left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.client import OPEN_BEFORE, constant_rate
from bench.install import HERE, WORK, require_programs
from bench.load import Load, check_answer, saturate
from bench.measure import TICKS_PER_SECOND, ProcessStat, ProcessTree, proportional_set_size
from bench.payload import KINDS, Target
from bench.processes import Ports, Server, clean_environment, running
from bench.run import prepare_folders, progress
from bench.subjects.base import Setup, by_model
from bench.subjects.omnihub import KEY, configuration, set_limits
from bench.upstream import upstreams
from tests.support.postgresql import Server as Postgresql
from tests.support.postgresql import running_server

READY_LIMIT_S = 120
CONNECTIONS = 32
MEBIBYTE = 1024 * 1024
CORE = "auth,billing,workflow,worker,agents"
# The processes of each shape: the name of the role, and its targets. The first has the public port.
SHAPES: dict[str, dict[str, str]] = {
    "one": {"all": "all"},
    "two": {"all": "all"},
    "chat": {"chat": "chat,edge", "core": CORE},
    "split": {"gateway": "gateway,edge", "router": "router", "providers": "providers", "core": CORE},
}
WORKERS = {"two": 2}
WHAT = {
    "one": "all in one process, and its Envoy",
    "two": "`--workers 2`: all in one process, chat in two further ones, and Envoy",
    "chat": "chat and Envoy in one process, the rest in another",
    "split": "gateway and Envoy, router, providers and the rest each in a process of its own",
}


@dataclass
class Shape:
    """A running shape: its process trees by role, and where it is asked."""

    name: str
    url: str = ""
    servers: dict[str, Server] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[str, ProcessStat]]:
        """Yield every process with its role."""
        for role, server in self.servers.items():
            for stat in server.tree.members():
                yield _role(role, stat), stat

    def cpu(self) -> dict[str, float]:
        """Return CPU seconds by role."""
        seconds: dict[str, float] = {}
        for role, stat in self.members():
            seconds[role] = seconds.get(role, 0) + stat.cpu_ticks / TICKS_PER_SECOND
        return seconds

    def memory_mib(self) -> float:
        """Return the proportional set size of all."""
        return sum(proportional_set_size(stat.pid) for _, stat in self.members()) / MEBIBYTE

    def pin(self) -> None:
        """Give each process that answers a core of its own; the rest runs where it likes."""
        answering = [stat.pid for role, stat in self.members() if role.startswith("worker")]
        answering = answering or [server.process.pid for server in self.servers.values()][:1]
        for number, pid in enumerate(sorted(answering)):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {number % (os.cpu_count() or 1)})

    async def settle(self) -> None:
        """Wait until everything is idle."""
        await asyncio.gather(*(server.tree.settle() for server in self.servers.values()))


def _role(role: str, stat: ProcessStat) -> str:
    if stat.program == "envoy":
        return "envoy"
    command = Path(f"/proc/{stat.pid}/cmdline")
    return "worker" if command.exists() and b"--workers=1" in command.read_bytes() else role


def _peers(roles: dict[str, str], grpc: dict[str, str], http: dict[str, str], own: str) -> dict[str, str]:
    """Return where a process finds the services of the others."""
    at = {
        target: role for role, targets in roles.items() if targets != "all" for target in targets.split(",")
    }
    at |= dict.fromkeys(("gateway", "router", "providers"), at["chat"]) if "chat" in at else {}
    called = ("auth", "billing", "providers", "router", "workflow", "agents")
    peers = {name: grpc[at[name]] for name in called if name in at and at[name] != own}
    if "workflow" in at and at["workflow"] != own:
        peers["files"] = http[at["workflow"]]
    return {f"OMNIHUB_PEERS__{name.upper()}": address for name, address in peers.items()}


@asynccontextmanager
async def started(
    name: str, ports: Ports, database_url: str, folder: Path, logs: Path
) -> AsyncIterator[Shape]:
    """Run a shape over an empty database."""
    file = folder / "omnihub.toml"
    roles, public = SHAPES[name], ports.take()
    grpc = {role: f"127.0.0.1:{ports.take()}" for role in roles}
    http = {role: f"127.0.0.1:{ports.take()}" for role in roles}
    shape = Shape(name, f"http://127.0.0.1:{public}")
    async with AsyncExitStack() as stack:
        for role, targets in roles.items():
            settings = {
                "PORT": str(public),
                "OMNIHUB_GRPC_LISTEN": grpc[role],
                "OMNIHUB_HTTP_LISTEN": http[role],
                "OMNIHUB_DATA_DIR": str(folder / role),
                "OMNIHUB_DATABASE_URL": database_url,
                "OMNIHUB_CONFIG": str(file),
                "OMNIHUB_BOOTSTRAP_API_KEY": KEY,
                "OMNIHUB_BOOTSTRAP_CREDITS": "100000",
                "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "gen")]),
                **_peers(roles, grpc, http, role),
            }
            command = [sys.executable, "-m", "services", "serve", f"--target={targets}"]
            command.append(f"--workers={WORKERS.get(name, 1)}")
            shape.servers[role] = await stack.enter_async_context(
                running(
                    f"{name} {role}",
                    command,
                    environment=clean_environment(folder, settings),
                    directory=HERE.parent,
                    log=logs / f"{name}-{role}.log",
                )
            )
        for role, server in shape.servers.items():
            await server.wait_ready(f"http://{http[role]}/ready", READY_LIMIT_S)
        await next(iter(shape.servers.values())).wait_ready(f"{shape.url}/ready", READY_LIMIT_S)
        await set_limits(shape.url)
        yield shape


@dataclass(frozen=True)
class Asking:
    """How a shape is loaded: as much as it answers, or with so many requests a second for each process."""

    wrk: str
    script: Path
    rate: float

    async def __call__(self, shape: Shape, target: Target, seconds: float) -> Load:
        """Load it."""
        if not self.rate:
            return await saturate(self.wrk, target, seconds, self.script, connections=CONNECTIONS)
        rate, began = self.rate * WORKERS.get(shape.name, 1), time.monotonic()
        found = await constant_rate(target, rate, seconds)
        return Load(len(found.last_byte) + OPEN_BEFORE, time.monotonic() - began)


async def load(shape: Shape, ask: Asking, seconds: float, database: ProcessTree) -> dict[str, float]:
    """Load a shape and return its figures."""
    target = by_model(KINDS["chat"], shape.url, KEY, Setup())
    await check_answer(KINDS["chat"], target)
    await shape.settle()
    before, stored, began = shape.cpu(), database.cpu_seconds(), time.monotonic()
    done = await ask(shape, target, seconds)
    # What was put off until after the answers belongs to them.
    await shape.settle()
    after, stored = shape.cpu(), database.cpu_seconds() - stored
    figures = {f"{role}_us": (cpu - before.get(role, 0)) * 1e6 / done.requests for role, cpu in after.items()}
    total = sum(figures.values())
    return {
        **figures,
        "total_us": total,
        "postgresql_us": stored * 1e6 / done.requests,
        "requests_per_second": done.requests / done.seconds,
        "memory_mib": shape.memory_mib(),
        "seconds": time.monotonic() - began,
    }


async def execute(
    names: Sequence[str], rounds: int, seconds: float, rate: float
) -> dict[str, list[dict[str, float]]]:
    """Start the shapes, load them round after round, and return what each round saw."""
    programs = require_programs()
    data, logs = prepare_folders(WORK / "scale")
    ports, samples = Ports(), {name: list[dict[str, float]]() for name in names}
    with running_server() as server:
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(
                upstreams(programs["nginx"], data / "upstream", ports, logs)
            )
            shapes: list[Shape] = []
            for name in names:
                url = stack.enter_context(server.database())
                (data / name).mkdir()
                (data / name / "omnihub.toml").write_text(configuration(upstream, Setup()))
                running_shape = started(name, ports, url, data / name, logs)
                shapes.append(await stack.enter_async_context(running_shape))
                shapes[-1].pin()
                progress(f"{name} is ready")
            tree = ProcessTree(_postmaster(server))
            ask = Asking(programs["wrk"], data / "wrk.lua", rate)
            for shape in shapes:
                await load(shape, ask, 2, tree)
            for number in range(rounds):
                for shape in [*shapes[number % len(shapes) :], *shapes[: number % len(shapes)]]:
                    samples[shape.name].append(await load(shape, ask, seconds, tree))
                    progress(f"round {number + 1}: {shape.name} {samples[shape.name][-1]['total_us']:.0f} us")
    return samples


def _postmaster(server: Postgresql) -> int:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        stat = Path(f"/proc/{row[0]}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def table(samples: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians with their spread, and ratios to the first shape of the same round."""
    first = next(iter(samples))
    lines = [
        "| shape | requests/s | CPU us/request | ratio | of it, by process | PostgreSQL us | memory MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in samples.items():
        totals = [row["total_us"] for row in rows]
        ratios = [row["total_us"] / base["total_us"] for row, base in zip(rows, samples[first], strict=True)]
        roles = sorted(
            {key for row in rows for key in row if key.endswith("_us")} - {"total_us", "postgresql_us"}
        )
        by_role = ", ".join(
            f"{role.removesuffix('_us')} {statistics.median(row[role] for row in rows):.0f}" for role in roles
        )
        lines.append(
            f"| {name} | {statistics.median(row['requests_per_second'] for row in rows):,.0f} "
            f"| {statistics.median(totals):.0f} ({min(totals):.0f} to {max(totals):.0f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {by_role} "
            f"| {statistics.median(row['postgresql_us'] for row in rows):.0f} "
            f"| {statistics.median(row['memory_mib'] for row in rows):.0f} |"
        )
    return "\n".join([*lines, "", *(f"{name}: {WHAT[name]}" for name in samples)])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; default: one two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rate", type=float, default=0, help="requests a second for each answering process")
    options = parser.parse_args()
    names = options.shapes or ["one", "two"]
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"no shape is called {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    samples = asyncio.run(execute(names, options.rounds, options.seconds, options.rate))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    file = results / f"scale-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(samples, indent=1))
    print(table(samples))
    progress(f"samples: {file}; logs: {WORK / 'scale' / 'logs'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
