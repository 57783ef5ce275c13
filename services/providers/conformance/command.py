"""`omnihub provider check HOST:PORT`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc.external import Tls
from services.common.rpc.probe import Probe
from services.providers.conformance import (
    answers,
    calls,
    capabilities,
    embeddings,
    failures,
    features,
    formats,
    inputs,
    streams,
    tools,
)
from services.providers.conformance.kit import QUICK_S, Check, Group, Result, Subject, run_check
from services.providers.conformance.report import line_of, summary_of, to_json, to_junit
from services.providers.domain.clauses import BreachError
from services.providers.domain.plugin import InvalidPluginError, check_address

# Those that could harm a provider come last.
GROUPS: Sequence[Group] = (
    capabilities.GROUP,
    answers.GROUP,
    streams.GROUP,
    failures.GROUP,
    tools.GROUP,
    features.GROUP,
    embeddings.GROUP,
    formats.GROUP,
    inputs.GROUP,
    calls.GROUP,
)
PASSED, FAILED, UNUSABLE = 0, 1, 2


class UnusableError(Exception):
    """Nothing can be judged; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Run `omnihub provider` with these arguments and return the exit status."""
    parser = argparse.ArgumentParser(prog="omnihub provider", description="Judge a plugin.")
    actions = parser.add_subparsers(required=True, metavar="action")
    check = actions.add_parser("check", help="test that a plugin keeps the provider contract")
    _add_arguments(check)
    return run(parser.parse_args(arguments))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="where the plugin's ProviderService listens")
    parser.add_argument("--provider", default="", help="judge only this provider of the plugin")
    parser.add_argument("--model", default="", help="ask this model instead of the first listed that answers")
    parser.add_argument("--embedding-model", default="", help="the same, for embeddings")
    parser.add_argument(
        "--only", default="", metavar="CHECK", help="only checks whose name begins so: streams"
    )
    parser.add_argument("--tls", action="store_true", help="speak TLS")
    parser.add_argument(
        "--ca-file", type=Path, help="PEM certificates of the authority that signed the plugin's"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the report as JUnit XML")


def run(options: argparse.Namespace) -> int:
    """Judge a plugin, print and write the report, and return the exit status."""
    try:
        results = asyncio.run(_print_all(options))
        if options.json is not None:
            options.json.write_text(to_json(options.address, results))
        if options.junit is not None:
            options.junit.write_text(to_junit(results))
    except (UnusableError, InvalidPluginError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    sys.stdout.write(summary_of(results) + "\n")
    return FAILED if any(result.state == "fail" for result in results) else PASSED


async def _print_all(options: argparse.Namespace) -> list[Result]:
    certificate = options.ca_file.read_text() if options.ca_file is not None else ""
    tls = Tls(certificate) if options.tls or certificate else None
    results = []
    async for result in judge(
        options.address,
        options.provider,
        options.model,
        options.embedding_model,
        tls=tls,
        only=options.only,
    ):
        sys.stdout.write(line_of(result) + "\n")
        sys.stdout.flush()
        results.append(result)
    return results


async def judge(
    address: str,
    provider: str = "",
    model: str = "",
    embedding_model: str = "",
    *,
    tls: Tls | None = None,
    only: str = "",
) -> AsyncIterator[Result]:
    """Run all checks, or those whose name begins with `only`, at each provider of a plugin or the one named.

    Raises UnusableError when there is nothing to judge, InvalidPluginError for what is no address.
    """
    check_address(address, "HOST:PORT")
    probe = Probe(ProviderService, address, tls)
    try:
        subject = Subject(probe, provider, model, embedding_model)
        try:
            offered = await _offered(probe, subject, address)
        except BreachError as breach:
            yield Result(provider, "capabilities/answer", "fail", (breach.clause,), breach.message, 0.0)
            return
        for each in _chosen(offered, provider, model or embedding_model):
            subject = Subject(probe, each.provider, model, embedding_model)
            subject.capabilities = each
            for check in _checks(only):
                yield await run_check(check, subject)
    finally:
        await probe.close()


def _checks(only: str) -> Sequence[Check]:
    checks = [check for group in GROUPS for check in group.checks if check.name.startswith(only)]
    if not checks:
        raise UnusableError(
            f"no check begins with {only!r}; groups: {', '.join(each.name for each in GROUPS)}"
        )
    return checks


async def _offered(probe: Probe, subject: Subject, address: str) -> Sequence[pb.ProviderCapabilities]:
    reply = await probe.call("get_capabilities", pb.GetCapabilitiesRequest(), QUICK_S)
    if reply.status.code == "UNAVAILABLE" and not reply.status.detailed:
        raise UnusableError(f"nothing answers at {address}: {reply.status.message}; start the plugin first")
    return await capabilities.ask_capabilities(subject)


def _chosen(
    offered: Sequence[pb.ProviderCapabilities], provider: str, model: str
) -> Sequence[pb.ProviderCapabilities]:
    served = ", ".join(each.provider for each in offered)
    if not provider:
        if model and len(offered) > 1:
            raise UnusableError(f"say with --provider whose model that is; the plugin serves {served}")
        return offered
    chosen = [each for each in offered if each.provider == provider]
    if not chosen:
        raise UnusableError(f"the plugin does not serve {provider!r}; it serves {served}")
    return chosen
