"""`omnihub router evaluate`: is automatic routing worth it here? Asks a running suite, as any caller does.

Every model that takes part answers every prompt once; what each policy would have brought is read off
those answers. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from services.router.domain.evaluation import (
    Answered,
    Interval,
    Prompt,
    Result,
    Verdict,
    WorkloadError,
    always,
    judge,
    passes,
)
from services.router.domain.routing import PRIORITIES

WORKLOAD = Path(__file__).with_name("workload.json")
TIMEOUT_S = 120
# What a shell sees.
DONE, REFUSED, UNUSABLE = 0, 1, 2
# Answers that failed for want of a provider say nothing about models.
FAILURES_SHOWN = 5


class EvaluationError(Exception):
    """The evaluation cannot be done; the message says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--url", default="", help="of the suite; default: OMNIHUB_URL, else this machine's")
    parser.add_argument(
        "--key-file", default="", help="holds an API key; default: OMNIHUB_API_KEY, else the bootstrap key"
    )
    parser.add_argument("--workload", type=Path, default=WORKLOAD, help="JSON; default: what is shipped")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help=f"{', '.join(PRIORITIES)}, or a routing policy as JSON; repeatable; default: balanced",
    )
    parser.add_argument("--premium", default="", help="model to compare with; default: the dearest")
    parser.add_argument("--cheapest", default="", help="the same; default: the cheapest")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap")
    parser.add_argument("--parallel", type=int, default=4, help="requests at the same time")
    parser.add_argument("--enable", action="store_true", help="set the (one) policy, if it is proved")
    parser.add_argument("--force", action="store_true", help="set it even if it is not")
    parser.add_argument("--json", type=Path, help="write everything that was measured there")


def run(url: str, key: str, options: argparse.Namespace) -> int:
    """Evaluate, print the report, enable what is to be enabled, and return the exit status."""
    try:
        prompts = read_workload(options.workload)
        policies = [read_policy(each) for each in options.policy or ["balanced"]]
        if options.enable and len(policies) != 1:
            raise EvaluationError("--enable takes one --policy")
        return asyncio.run(_evaluate(url, key, prompts, policies, options))
    except (OSError, EvaluationError, WorkloadError, aiohttp.ClientError, TimeoutError) as error:
        sys.stderr.write(f"evaluate: {error or type(error).__name__}\n")
        return UNUSABLE


def read_workload(file: Path) -> list[Prompt]:
    """Read the prompts. Raises WorkloadError, OSError."""
    try:
        listed = json.loads(file.read_text())["prompts"]
    except (ValueError, LookupError, TypeError) as error:
        raise WorkloadError(f"{file} is no workload: {error}") from None
    prompts = [Prompt.read(each) for each in listed]
    if len({prompt.name for prompt in prompts}) < max(2, len(prompts)):
        raise WorkloadError(f"{file}: two prompts at least, each with a name of its own")
    return prompts


def read_policy(name: str) -> tuple[str, dict[str, Any]]:
    """Return a policy's name and document. Raises EvaluationError, OSError."""
    if name in PRIORITIES:
        return name, {"default_priority": name}
    file = Path(name)
    if not file.exists():
        raise EvaluationError(f"--policy {name}: none of {', '.join(PRIORITIES)}, and no such file")
    try:
        document = json.loads(file.read_text())
    except ValueError as error:
        raise EvaluationError(f"--policy {name}: {error}") from None
    return file.stem, document


async def _evaluate(
    url: str,
    key: str,
    prompts: Sequence[Prompt],
    policies: Sequence[tuple[str, dict[str, Any]]],
    options: argparse.Namespace,
) -> int:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session:
        suite = _Suite(session, asyncio.Semaphore(options.parallel))
        plans = {name: await suite.choices(prompts, document) for name, document in policies}
        premium, cheapest = _ends([each for plan in plans.values() for each in plan])
        premium, cheapest = options.premium or premium, options.cheapest or cheapest
        chosen = {name: [each["model"] for each in plan] for name, plan in plans.items()}
        models = sorted({premium, cheapest, *(model for each in chosen.values() for model in each)})
        answers = {model: await suite.ask_all(model, prompts) for model in models}
        fixed = [
            always(f"always {model}", model, prompts, answers, options.seed) for model in (premium, cheapest)
        ]
        verdicts = [
            judge(name, choices, premium, prompts, answers, options.seed) for name, choices in chosen.items()
        ]
        sys.stdout.write(report(prompts, fixed, verdicts, suite.failures))
        if options.json is not None:
            _write(options.json, prompts, answers, chosen, fixed, verdicts)
        if options.enable:
            return await _enable(suite, verdicts[0], policies[0][1], force=options.force)
    return DONE


class _Suite:
    """The running suite, over its public port."""

    def __init__(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore) -> None:
        self._session = session
        self._gate = gate
        self.failures: Counter[str] = Counter()

    async def choices(self, prompts: Sequence[Prompt], policy: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return for each prompt the model that a policy chooses, and the prices of all. Nobody is asked."""
        return list(await asyncio.gather(*(self._choose(prompt, policy) for prompt in prompts)))

    async def _choose(self, prompt: Prompt, policy: Mapping[str, Any]) -> dict[str, Any]:
        # Without blanks: the edge does not read `+` as one.
        query = {"policy_json": json.dumps(policy, separators=(",", ":"))}
        document = await self._call("POST", "/v1/router/explain", _chat("auto", prompt), query)
        if not document["chain"]:
            raise EvaluationError(f"{prompt.name}: no model: {document['refusal']['message']}")
        standing = [each for each in document["candidates"] if not each["excluded_because"]]
        costs: dict[str, float] = {}
        for each in standing:
            costs.setdefault(each["facts"]["model"], float(each["estimated_cost"]))
        return {"model": standing[0]["facts"]["model"], "costs": costs}

    async def ask_all(self, model: str, prompts: Sequence[Prompt]) -> dict[str, Answered]:
        """Return what a model makes of every prompt."""
        answers = await asyncio.gather(*(self._ask(model, prompt) for prompt in prompts))
        return {prompt.name: answer for prompt, answer in zip(prompts, answers, strict=True)}

    async def _ask(self, model: str, prompt: Prompt) -> Answered:
        """Return a model's answer, judged. A failed request is a wrong answer that costs nothing."""
        try:
            document = await self._call("POST", "/v1/chat", _chat(model, prompt))
        except EvaluationError as error:
            self.failures[f"{model}: {error}"] += 1
            return Answered(False, 0.0, 0.0)
        right = passes(document["output"], prompt.check)
        return Answered(right, float(document["cost"]), float(document["latency_ms"]))

    async def enable(self, policy: Mapping[str, Any]) -> None:
        """Set the policy of the key's organisation. Raises EvaluationError."""
        await self._call("PUT", "/api/admin/routing-policy", {"policyJson": json.dumps(policy)})

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any], query: Mapping[str, str] | None = None
    ) -> Any:
        async with self._gate, self._session.request(method, path, json=body, params=query) as response:
            text = await response.text()
        try:
            document = json.loads(text)
        except ValueError:
            raise EvaluationError(f"{path}: {response.status} {text[:200]!r} is no JSON") from None
        if response.status != 200:
            error = document.get("error", {}) if isinstance(document, dict) else {}
            raise EvaluationError(f"{path}: {response.status} {error.get('message', document)}")
        return document


def _chat(model: str, prompt: Prompt) -> dict[str, Any]:
    message = {"role": "user", "content": prompt.text}
    return {"model": model, "messages": [message], "max_tokens": prompt.max_tokens, "temperature": 0}


def _ends(plans: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the dearest and the cheapest model that could have answered every prompt."""
    common = set.intersection(*(set(plan["costs"]) for plan in plans))
    if not common:
        raise EvaluationError("no model can answer every prompt; name --premium and --cheapest")
    totals = {model: sum(plan["costs"][model] for plan in plans) for model in sorted(common)}
    return max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)


async def _enable(suite: _Suite, verdict: Verdict, policy: Mapping[str, Any], *, force: bool) -> int:
    name = verdict.result.name
    if not verdict.proved and not force:
        sys.stdout.write(
            f"\n{name} is not enabled: its gain against the control may be nothing"
            f" ({_points(verdict.gain)}). A larger workload narrows it; --force enables it anyway.\n"
        )
        return REFUSED
    await suite.enable(policy)
    sys.stdout.write(f"\n{name} is enabled{'' if verdict.proved else ', although it is not proved'}.\n")
    return DONE


def report(
    prompts: Sequence[Prompt],
    fixed: Sequence[Result],
    verdicts: Sequence[Verdict],
    failures: Mapping[str, int],
) -> str:
    """Return what was found as Markdown."""
    lines = [
        f"{len(prompts)} prompts; means with 95 % intervals (bootstrap over prompts)",
        "",
        "| way to choose | right answers | credits per prompt | ms per prompt | models |",
        "|---|---|---|---|---|",
        *map(_row, fixed),
    ]
    for verdict in verdicts:
        lines += [_row(verdict.result), _row(verdict.control)]
    lines.append("")
    for verdict in verdicts:
        name = verdict.result.name
        lines += [
            f"{name}: quality against the control {_points(verdict.gain)}: "
            + ("proved" if verdict.proved else "not proved, the interval does not lie above zero"),
            f"{name}: costs {verdict.saving:.1%} less than {fixed[0].name}, "
            f"quality against it {_points(verdict.quality_change)}",
        ]
    if failures:
        shown = list(failures.items())[:FAILURES_SHOWN]
        lines += [
            "",
            "Requests that failed count as wrong:",
            *(f"- {count} x {text}" for text, count in shown),
        ]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    quality, cost, latency = result.quality, result.cost, result.latency_ms
    models = ", ".join(f"{model} {share:.0%}" for model, share in result.share.items())
    return (
        f"| {result.name} | {quality.mean:.1%} ({quality.low:.1%} to {quality.high:.1%})"
        f" | {cost.mean:.6f} ({cost.low:.6f} to {cost.high:.6f})"
        f" | {latency.mean:.0f} ({latency.low:.0f} to {latency.high:.0f}) | {models} |"
    )


def _points(interval: Interval) -> str:
    low, high = interval.low * 100, interval.high * 100
    return f"{interval.mean * 100:+.1f} points ({low:+.1f} to {high:+.1f})"


def _write(
    file: Path,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Mapping[str, Answered]],
    chosen: Mapping[str, Sequence[str]],
    fixed: Sequence[Result],
    verdicts: Sequence[Verdict],
) -> None:
    document = {
        "prompts": [prompt.name for prompt in prompts],
        "answers": {
            model: {name: answer._asdict() for name, answer in own.items()} for model, own in answers.items()
        },
        "choices": chosen,
        "fixed": [asdict(each) for each in fixed],
        "verdicts": [asdict(each) for each in verdicts],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")
