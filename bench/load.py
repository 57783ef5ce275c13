"""Load for throughput: wrk, a closed loop over kept-alive connections. Every answer must be 200."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from bench.errors import BenchError
from bench.payload import VARIANT, Kind, Target

REQUEST_LIMIT_S = 30
MARKER = "wrk-summary "
# Long brackets need no escapes; JSON bodies hold no "]==]".
SCRIPT = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
{request}
function done(summary, latency, requests)
  io.write(string.format(
    '{marker}{{"requests":%d,"microseconds":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\\n',
    summary.requests, summary.duration, summary.errors.connect, summary.errors.read, summary.errors.write,
    summary.errors.status, summary.errors.timeout))
end
"""
# In order from a place of the run's own, so that all numbers come equally often.
VARYING = """
local count, step, at = {count}, {step}, {first}
function request()
  at = (at + 1) % count
  local digits = string.format("%06d", at * step)
  local headers = {{}}
  for name, value in pairs(wrk.headers) do headers[name] = (tostring(value):gsub("{variant}", digits)) end
  return wrk.format(nil, nil, headers, (wrk.body:gsub("{variant}", digits)))
end
"""


@dataclass(frozen=True)
class Load:
    """What was sent and answered."""

    requests: int
    seconds: float


def require_loopback(target: Target) -> None:
    """Refuse to send load anywhere but to this machine."""
    if urlsplit(target.url).hostname != "127.0.0.1":
        raise BenchError(f"load goes only to 127.0.0.1, not to {target.url}")


def lua_script(target: Target, first: int = 0) -> str:
    """Return the wrk script that POSTs the target's body, its variants in turn, and prints a summary."""
    headers = "\n".join(
        f"wrk.headers[ [==[{name}]==] ] = [==[{value}]==]" for name, value in target.headers.items()
    )
    request = ""
    if count := len(target.variants):
        step = target.variants[1] - target.variants[0] if count > 1 else 1
        request = VARYING.format(count=count, step=step, first=first % count, variant=VARIANT)
    return SCRIPT.format(body=target.body, headers=headers, request=request, marker=MARKER)


def write_script(script: Path, target: Target, first: int) -> None:
    """Write the wrk script."""
    script.write_text(lua_script(target, first))


async def saturate(
    wrk: str, target: Target, seconds: float, script: Path, *, connections: int, first: int = 0
) -> Load:
    """Run wrk with one thread for whole `seconds`; raise when any answer was an error."""
    require_loopback(target)
    write_script(script, target, first)
    command = [wrk, "-t1", f"-c{connections}", f"-d{round(seconds)}s", f"--timeout={REQUEST_LIMIT_S}s"]
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
    return Load(summary["requests"], summary["microseconds"] / 1e6)


async def ask(session: aiohttp.ClientSession, target: Target) -> str:
    """Send one request and return the body of its answer; raise when the status is not 200."""
    async with session.post(target.url, data=target.body.encode(), headers=target.headers) as response:
        body = await response.text()
        if response.status != 200:
            raise BenchError(f"{target.url} answered {response.status}: {body[:500]}")
        return body


async def check_answer(kind: Kind, target: Target) -> None:
    """Ask once and raise unless the whole known answer comes back."""
    first = target.variant(target.variants[0]) if target.variants else target
    timeout = aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        body = await ask(session, first)
    try:
        kind.check(body)
    except (ValueError, LookupError, TypeError) as error:
        raise BenchError(f"changed the answer: {error!r}") from error
