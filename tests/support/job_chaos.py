"""What is killed under load, as often as a test says: workers, relays, the broker, the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from tests.support.fault_proxy import fault_proxy
from tests.support.job_cluster import Cluster

IN_FLIGHT = 200
CALLERS = 10


async def keep_submitting(cluster: Cluster, pause_s: float, done: asyncio.Event) -> None:
    """Begin jobs, of both kinds, below what the workers can do."""
    while not done.is_set():
        await cluster.submit(1, priority="batch" if len(cluster.jobs) % 3 == 0 else "")
        await asyncio.sleep(pause_s)


async def kill_workers(
    cluster: Cluster, rounds: int, in_flight: int = IN_FLIGHT, lease_s: float = 1.0
) -> str:
    """Kill a worker `rounds` times with so many jobs begun and none of them ended; a second one lives on.

    Every third time it dies while the provider has all it holds, otherwise in the midst of its work.
    """
    await cluster.spawn("workflow")
    await cluster.spawn(settings={"lease_s": lease_s})
    router, held_by_all, slowest_s = cluster.router, 0, 0.0
    for number in range(rounds):
        router.immediate = number % 2 == 0
        router.gate.clear()
        victim = await cluster.spawn(settings={"lease_s": lease_s})
        await asyncio.gather(*(cluster.submit(in_flight // CALLERS) for _ in range(CALLERS)))
        await cluster.until_claimed_by(victim)
        answers = router.answers
        if number % 3:
            router.gate.set()
            await router.until_answered(answers + 1 + 7 * number % (in_flight // 4))
        victim.kill()
        await victim.wait()
        held, began = await cluster.held_by(victim), time.monotonic()
        router.gate.set()
        await cluster.until_ended(held)
        held_by_all, slowest_s = held_by_all + len(held), max(slowest_s, time.monotonic() - began)
    assert held_by_all >= rounds, "they died without work"
    return (
        f"{rounds} workers killed with {in_flight} jobs begun each; what they held, {held_by_all} attempts, "
        f"had ended within {slowest_s:.1f} s: {await cluster.check()}"
    )


async def kill_relays(cluster: Cluster, rounds: int) -> str:
    """Let a relay die between the broker's confirmation and the removal from the outbox."""
    await cluster.spawn()
    for _ in range(rounds):
        relay = await cluster.spawn("workflow", settings={"crash_at": "after_confirm"})
        await cluster.submit(10)
        await relay.wait()
        assert relay.returncode == 86
    await cluster.spawn("workflow")
    return f"{rounds} relays died before they noted a confirmation: {await cluster.check()}"


async def break_wires(cluster: Cluster, port: int, rounds: int) -> str:
    """Break the wire between the broker and us in every way, with jobs on both sides of it."""
    async with fault_proxy(port) as proxy:
        through = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
        await cluster.spawn("workflow", broker=through)
        await cluster.spawn(broker=through)
        faults: dict[str, Callable[[], int]] = {
            "cut": proxy.cut,
            "closed towards us": partial(proxy.end, towards_client=True),
            "closed towards the broker": partial(proxy.end, towards_client=False),
            "stalled": proxy.stall,
        }
        for number in range(rounds):
            cluster.router.immediate = number % 2 == 0
            for name, inject in faults.items():
                # The relay and the worker.
                await proxy.until_connected(2)
                await cluster.submit(10)
                assert inject() >= 2, f"nothing was {name}"
                await cluster.submit(10)
                if name == "stalled":
                    await proxy.until_held()
                    assert proxy.flow() > 0
        return f"wires broken {rounds * len(faults)} times: {await cluster.check()}"


async def restart_under_load(
    cluster: Cluster,
    rounds: int,
    kill: Callable[[], None],
    start: Callable[[], None],
    what: str,
    between_s: float,
    pause_s: float = 0.05,
) -> str:
    """Kill something and start it again, while jobs go on coming."""
    done = asyncio.Event()
    await cluster.spawn("workflow")
    await cluster.spawn()
    await cluster.spawn()
    load = asyncio.create_task(keep_submitting(cluster, pause_s, done))
    for _ in range(rounds):
        await asyncio.sleep(between_s)
        await asyncio.to_thread(kill)
        await asyncio.to_thread(start)
    done.set()
    await load
    return f"{what} killed {rounds} times: {await cluster.check()}"
