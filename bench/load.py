"""Load: wrk for saturation, an open-loop client for latency at a constant rate."""

import asyncio
import gc
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from bench.errors import BenchError
from bench.payload import CONTENT, Target

CONNECTIONS = 32
REQUEST_LIMIT_S = 30
# The event loop wakes up to a millisecond late; the last stretch before a send is spent polling.
POLL_BEFORE_S = 0.0015
MARKER = "wrk-summary "
SCRIPT = """
local request = {request}
wrk.method = "POST"
wrk.body = request.body
{headers}
function done(summary, latency, requests)
  io.write(string.format(
    '{marker}{{"requests":%d,"microseconds":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,' ..
    '"p50_us":%d,"p99_us":%d}}\\n',
    summary.requests, summary.duration, summary.errors.connect, summary.errors.read, summary.errors.write,
    summary.errors.status, summary.errors.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Saturation:
    """What wrk counted. Latencies in ms; at saturation they are mostly waiting in line."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class ConstantRate:
    """One constant-rate run; values in order of sending.

    `latencies_ms`: from the intended send time to the last byte of the answer.
    `lateness_ms`: from the intended to the real send time; the client's own share of the latency.
    """

    latencies_ms: list[float]
    lateness_ms: list[float]


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def require_loopback(target: Target) -> None:
    """Refuse to send load anywhere but to this machine."""
    if urlsplit(target.url).hostname != "127.0.0.1":
        raise BenchError(f"load goes only to 127.0.0.1, not to {target.url}")


def lua_script(target: Target) -> str:
    """Return the wrk script that POSTs the target's body and prints a summary that can be parsed."""
    # Long brackets need no escapes; JSON bodies hold no "]==]".
    request = f"{{ body = [==[{target.body}]==] }}"
    headers = "\n".join(
        f"wrk.headers[ [==[{name}]==] ] = [==[{value}]==]" for name, value in target.headers.items()
    )
    return SCRIPT.format(request=request, headers=headers, marker=MARKER)


def write_script(target: Target, script: Path) -> None:
    """Write the wrk script of a target."""
    script.write_text(lua_script(target))


async def saturate(wrk: str, target: Target, seconds: float, script: Path) -> Saturation:
    """Run wrk with one thread for whole `seconds`; raise when any answer was an error."""
    require_loopback(target)
    write_script(target, script)
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{round(seconds)}s", f"--timeout={REQUEST_LIMIT_S}s"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "-s",
        str(script),
        target.url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + REQUEST_LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    text = output.decode(errors="replace")
    summary = next(
        (json.loads(line[len(MARKER) :]) for line in text.splitlines() if line.startswith(MARKER)), None
    )
    if summary is None:
        raise BenchError(f"wrk printed no summary for {target.url}:\n{text}")
    if errors := {
        name: summary[name] for name in ("connect", "read", "write", "status", "timeout") if summary[name]
    }:
        raise BenchError(f"{target.url}: {errors} errors in {summary['requests']} requests")
    if not summary["requests"]:
        raise BenchError(f"{target.url}: no request was answered")
    return Saturation(
        summary["requests"],
        summary["microseconds"] / 1e6,
        summary["p50_us"] / 1000,
        summary["p99_us"] / 1000,
    )


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client without a limit on connections: an open loop never waits for a free one."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def ask(session: aiohttp.ClientSession, target: Target) -> bytes:
    """Send one request and return the body of its answer; raise when the status is not 200."""
    async with session.post(target.url, data=target.body.encode(), headers=target.headers) as response:
        body = await response.read()
        if response.status != 200:
            raise BenchError(f"{target.url} answered {response.status}: {body[:500]!r}")
        return body


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the client's own garbage collection out of the latencies."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until(due: float) -> None:
    """Return at the loop time `due`, or at once when it has passed."""
    loop = asyncio.get_running_loop()
    if (early := due - loop.time() - POLL_BEFORE_S) > 0:
        await asyncio.sleep(early)
    while loop.time() < due:  # noqa: ASYNC110 - answers are read between two looks at the clock
        await asyncio.sleep(0)


async def constant_rate(target: Target, rate: float, seconds: float) -> ConstantRate:
    """Send `rate` requests per second for `seconds`, on time whether or not earlier ones were answered."""
    require_loopback(target)
    loop = asyncio.get_running_loop()
    count = round(rate * seconds)
    latencies_ms = [0.0] * count
    lateness_ms = [0.0] * count

    async def send(session: aiohttp.ClientSession, due: float, index: int) -> None:
        lateness_ms[index] = (loop.time() - due) * 1000
        await ask(session, target)
        latencies_ms[index] = (loop.time() - due) * 1000

    async with client() as session:
        # Opens a few connections, so that the first samples do not measure connecting.
        await asyncio.gather(*(ask(session, target) for _ in range(4)))
        with collector_paused():
            start = loop.time() + 0.05
            async with asyncio.TaskGroup() as group:
                for index in range(count):
                    due = start + index / rate
                    await until(due)
                    group.create_task(send(session, due, index))
    return ConstantRate(latencies_ms, lateness_ms)


async def check_answers(chat: Target, stream: Target | None) -> None:
    """Ask once for JSON and once for a stream and raise unless the whole known answer comes back."""
    async with client() as session:
        answer = json.loads(await ask(session, chat))
        if answer["choices"][0]["message"]["content"] != CONTENT:
            raise BenchError(f"{chat.url} changed the answer: {answer}")
        if stream is None:
            return
        lines = (await ask(session, stream)).decode().splitlines()
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    events = [json.loads(text) for text in data if text != "[DONE]"]
    deltas = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    if "".join(deltas) != CONTENT or data[-1] != "[DONE]":
        raise BenchError(f"{stream.url} changed the stream of {len(data)} events, the last one {data[-1:]}")
