"""What one call costs, in process and over gRPC: `python -m bench.transport`.

Sequential calls of one implementation over the loopback interface; both ends of the gRPC calls share this
process, so its time is that of client and server together. Prints the median of several rounds.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from services.common.rpc import Call
from tests.support.echo import TRANSPORTS, CountRequest, Echo, SayRequest

ROUNDS = 7
CALLS = 500
MESSAGES = 500
TEXT = "x" * 200
LARGE = bytes(200_000)

Measured = Callable[[Any], Awaitable[int]]


async def unary(client: Any) -> int:
    """Small unary calls."""
    call = Call("req_bench")
    for _ in range(CALLS):
        await client.say(SayRequest(text=TEXT), call)
    return CALLS


async def unary_with_deadline(client: Any) -> int:
    """Small unary calls that have a deadline."""
    for _ in range(CALLS):
        await client.say(SayRequest(text=TEXT), Call.internal(30))
    return CALLS


async def large_unary(client: Any) -> int:
    """Unary calls with 200 kB both ways."""
    call = Call("req_bench")
    for _ in range(CALLS // 5):
        await client.say(SayRequest(payload=LARGE), call)
    return CALLS // 5


async def streamed(client: Any) -> int:
    """Messages of one long stream."""
    async for _ in client.count(CountRequest(until=MESSAGES), Call("req_bench")):
        pass
    return MESSAGES


CASES: dict[str, Measured] = {
    "unary call": unary,
    "unary call with a deadline": unary_with_deadline,
    "unary call, 200 kB each way": large_unary,
    "streamed message": streamed,
}


async def microseconds(client: Any, case: Measured) -> float:
    """Return the median cost of one operation."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        count = await case(client)
        rounds.append((time.perf_counter() - started) / count * 1e6)
    return statistics.median(rounds)


async def main() -> None:
    """Print the table."""
    # The log line of each request is measured where requests enter, not here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    async with TRANSPORTS["local"](Echo()) as local, TRANSPORTS["grpc"](Echo()) as remote:
        await unary(remote)
        print(f"{'microseconds per':30}{'local':>10}{'gRPC':>10}{'ratio':>8}")
        for name, case in CASES.items():
            near, far = await microseconds(local, case), await microseconds(remote, case)
            print(f"{name:30}{near:10.1f}{far:10.1f}{far / near:8.0f}")


if __name__ == "__main__":
    asyncio.run(main())
