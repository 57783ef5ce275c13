"""A trial, not a feature: what Envoy alone costs for requests that would need no Python (docs/adr/0023).

    python -m bench.fast_lane

Two Envoys in front of nginx, loaded in turn: a bare one, and a lane that checks a key, limits requests,
routes by the model in the body, replaces the credential, reads the usage out of the answer and logs it.
Afterwards probes show what the lane does not keep.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import aiohttp

from bench.install import WORK, require_programs
from bench.load import check_answer, saturate
from bench.payload import KINDS, Target
from bench.processes import Ports, Server, clean_environment, running
from bench.run import prepare_folders, progress
from bench.subjects.bare_envoy import TYPES, configuration
from bench.upstream import Upstream, upstreams

Json = dict[str, Any]
KEYS = 1000
LANE = "lane"
READY_LIMIT_S = 20
LOGGED_WITHIN_S = 11


def key(number: int) -> str:
    """Return one of the keys that the lane knows."""
    return f"omni_sk_lane_{number:032d}"


def _filter(name: str, kind: str, **options: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.filters.http.{kind}", **options}}


def _rule(name: str, *path: str) -> Json:
    place = {"metadata_namespace": LANE, "key": name}
    return {
        "selectors": [{"key": step} for step in path],
        "on_present": place,
        "on_missing": {**place, "value": "none"},
    }


def lane(port: int, upstream: Upstream, log: Path) -> Json:
    """Return the lane's configuration: bare Envoy's, with filters, routes and a log."""
    document: Json = configuration(port, upstream.port, upstream.paced_port)
    listener = document["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    bucket = {"max_tokens": 10_000_000, "tokens_per_fill": 10_000_000, "fill_interval": "1s"}
    manager["http_filters"] = [
        _filter(
            "key",
            "api_key_auth.v3.ApiKeyAuth",
            credentials=[{"key": key(number), "client": f"client-{number}"} for number in range(KEYS)],
            key_sources=[{"header": "Authorization"}],
            forwarding={"header": "x-client", "hide_credentials": True},
        ),
        _filter(
            "limit",
            "local_ratelimit.v3.LocalRateLimit",
            stat_prefix=LANE,
            token_bucket=bucket,
            filter_enabled=always,
            filter_enforced=always,
        ),
        _filter(
            "facts",
            "json_to_metadata.v3.JsonToMetadata",
            request_rules={"rules": [_rule("model", "model")]},
            response_rules={"rules": [_rule("tokens", "usage", "total_tokens")]},
        ),
        *manager["http_filters"],
    ]
    known = {"filter": LANE, "path": [{"key": "model"}], "value": {"string_match": {"exact": "gpt-bench"}}}
    secret = {
        "header": {"key": "authorization", "value": "Bearer sk-upstream"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    paced, direct = manager["route_config"]["virtual_hosts"][0]["routes"]
    direct["match"]["dynamic_metadata"] = [known]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        paced,
        {**direct, "request_headers_to_add": [secret]},
        {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
    ]
    facts = {
        "client": "%REQ(X-CLIENT)%",
        "model": f"%DYNAMIC_METADATA({LANE}:model)%",
        "tokens": f"%DYNAMIC_METADATA({LANE}:tokens)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
    }
    manager["access_log"] = [
        {
            "name": "file",
            "typed_config": {
                "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
                "path": str(log),
                "log_format": {"json_format": facts},
            },
        }
    ]
    return document


def target(port: int, kind: str = "chat") -> Target:
    """Return a request with one of the lane's keys."""
    headers = {"Authorization": f"Bearer {key(7)}", "Content-Type": "application/json"}
    chosen = KINDS[kind]
    return Target(f"http://127.0.0.1:{port}/{kind}/v1{chosen.path}", chosen.body("gpt-bench"), headers)


async def cost(server: Server, port: int, wrk: str, script: Path, seconds: float) -> float:
    """Return CPU us per request."""
    await server.tree.settle()
    before = server.tree.cpu_seconds()
    done = await saturate(wrk, target(port), seconds, script, connections=32)
    await server.tree.settle()
    return (server.tree.cpu_seconds() - before) * 1e6 / done.requests


async def probe(port: int, log: Path) -> list[str]:
    """Return what the lane does not keep, as seen."""
    found = []
    refused = Target(target(port).url, target(port).body, {"Authorization": "Bearer nobody"})
    async with aiohttp.ClientSession() as session:
        async with session.post(refused.url, data=refused.body, headers=refused.headers) as answer:
            found.append(f"an unknown key: {answer.status}, {answer.content_type}: not an error of ours")
        left, whole = target(port, "paced50"), target(port, "stream50")
        async with session.post(left.url, data=left.body, headers=left.headers) as answer:
            await answer.content.read(64)
            answer.close()
        # So that the log has them in this order.
        await asyncio.sleep(0.5)
        async with session.post(whole.url, data=whole.body, headers=whole.headers) as answer:
            await answer.read()
    # Envoy writes its log each 10 s at the latest, and tells nobody.
    await asyncio.sleep(LOGGED_WITHIN_S)
    lines = (await asyncio.to_thread(log.read_text)).splitlines()
    streams = [json.loads(line) for line in lines[-2:]]
    found.append(f"a caller who left: {json.dumps(streams[0])}")
    found.append(f"a stream that was read: {json.dumps(streams[1])}")
    return found


async def execute(rounds: int, seconds: float) -> tuple[dict[str, list[float]], list[str]]:
    """Run both Envoys and return CPU per request of each round, and what the probes saw."""
    programs = require_programs()
    data, logs = prepare_folders(WORK / "fast-lane")
    ports, log = Ports(), data / "access.json"
    program = str(Path(sys.executable).parent / "envoy")
    async with upstreams(programs["nginx"], data / "upstream", ports, logs) as upstream:
        bare_port, lane_port = ports.take(), ports.take()
        documents = {
            "bare": configuration(bare_port, upstream.port, upstream.paced_port),
            LANE: lane(lane_port, upstream, log),
        }
        for name, document in documents.items():
            (data / f"{name}.json").write_text(json.dumps(document))

        def envoy(name: str) -> Any:
            options = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
            return running(
                name,
                [program, "-c", str(data / f"{name}.json"), *options],
                environment=clean_environment(data, {}),
                directory=data,
                log=logs / f"{name}.log",
            )

        samples: dict[str, list[float]] = {"bare": [], LANE: []}
        async with envoy("bare") as bare, envoy(LANE) as fast:
            subjects = [("bare", bare, bare_port), (LANE, fast, lane_port)]
            await bare.wait_ready(f"http://127.0.0.1:{bare_port}/ready", READY_LIMIT_S)
            await _answers(fast, lane_port)
            for number in range(rounds + 1):
                for name, server, port in subjects if number % 2 else subjects[::-1]:
                    each = await cost(server, port, programs["wrk"], data / "wrk.lua", seconds)
                    # The first round warms up.
                    if number:
                        samples[name].append(each)
            return samples, await probe(lane_port, log)


async def _answers(server: Server, port: int) -> None:
    for _ in range(READY_LIMIT_S * 10):
        server.check()
        try:
            await check_answer(KINDS["chat"], target(port))
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
        else:
            return


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fast_lane")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    samples, seen = asyncio.run(execute(options.rounds, options.seconds))
    print("| Envoy | CPU us/request | ratio |\n| --- | --- | --- |")
    for name, values in samples.items():
        ratios = [value / base for value, base in zip(values, samples["bare"], strict=True)]
        print(
            f"| {name} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) "
            f"| {statistics.median(ratios):.2f} |"
        )
    print("", *(f"- {line}" for line in seen), sep="\n")
    progress("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
