"""The command line: `python -m services`, installed as `omnihub`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import importlib.metadata
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop

from services.common.late import late
from services.settings import MOST_WORKERS, Settings, SettingsError, load

if TYPE_CHECKING:
    from services import launcher
    from services.common import log, service, telemetry
else:
    # Commands that ask what runs need none of what it takes to run: that is most of a second.
    launcher, log, service, telemetry = (
        late(f"services.{name}") for name in ("launcher", "common.log", "common.service", "common.telemetry")
    )

SWITCH_INTERVAL_S = 0.0005

# Those who serve wait for no other command: modules of the others are imported only when one is named.
SERVING = ("serve", "config", "edge")
OTHERS = "services.tools"
# Commands that need no settings, and what they do.
APART = {"provider": ("services.providers.conformance.command", "judge a plugin")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in APART:
        module, _ = APART[given[0]]
        return int(importlib.import_module(module).main(given[1:]))
    options = _parser(given).parse_args(given)
    try:
        settings = load()
    except SettingsError as error:
        sys.stderr.write(f"the settings cannot be used:\n{error}\n")
        return 2
    return int(options.run(settings, options))


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnihub", description="Self-hosted AI platform.")
    commands = parser.add_subparsers(required=True, metavar="command")
    named = given[0] if given else ""
    serve = commands.add_parser("serve", help="run services until told to stop")
    known = ", ".join([*launcher.GROUPS, *launcher.TARGETS]) if named == "serve" else ""
    serve.add_argument("--target", default="all", help=f"comma-separated list of: {known}")
    serve.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help=f"processes that answer chat, at most {MOST_WORKERS}; more than one need PostgreSQL",
    )
    serve.set_defaults(run=_serve)
    config = commands.add_parser("config", help="print or verify the settings")
    config.add_argument("action", choices=["print", "verify"])
    config.set_defaults(run=_config)
    edge = commands.add_parser("edge", help="print the edge's configuration, for any Envoy fleet")
    edge.add_argument("action", choices=["config"])
    edge.set_defaults(run=_edge)
    if named not in SERVING:
        importlib.import_module(OTHERS).add_commands(commands, named)
    for name, (_, summary) in APART.items():
        commands.add_parser(name, help=summary)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_WORKERS}")
    return int(text)


def _config(settings: Settings, options: argparse.Namespace) -> int:
    if options.action == "print":
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    try:
        asyncio.run(launcher.Process(settings, launcher.resolve_targets(["all"])).verify())
    except (OSError, service.StartupError) as error:
        sys.stderr.write(f"the settings cannot be used:\n{error}\n")
        return 2
    sys.stdout.write("the settings are valid\n")
    return 0


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    try:
        targets = launcher.resolve_targets(options.target.split(","))
        if options.workers is not None:
            settings = settings.model_copy(update={"workers": options.workers})
        launcher.check_workers(settings, targets)
    except (ValueError, service.StartupError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    auto_json = settings.log.format == "auto" and not sys.stdout.isatty()
    log.configure(json=auto_json or settings.log.format == "json", level=settings.log.level)
    telemetry.configure(
        otlp_endpoint=settings.telemetry.otlp_endpoint,
        sample_ratio=settings.telemetry.sample_ratio,
        version=_version(),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, targets))


async def _run(settings: Settings, targets: Sequence[str]) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    try:
        process = launcher.Process(settings, targets)
    except OSError as error:
        sys.stderr.write(f"cannot start: internal_tls: {error}\n")
        return 1
    starting = asyncio.create_task(process.start())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    try:
        await starting
    except (OSError, LookupError, service.StartupError) as error:
        sys.stderr.write(f"cannot start: {error}\n")
        stopped.cancel()
        return 1
    _greet(settings, targets, process.announcements)
    _prefer_requests()
    await stopped
    await process.stop()
    return 0


def _greet(settings: Settings, targets: Sequence[str], announcements: Sequence[str]) -> None:
    """Tell the person who started this where to go. Secrets are shown here once, never logged."""
    lines = list(announcements)
    if "edge" in targets:
        scheme = "https" if settings.edge.certificate_file else "http"
        lines.insert(0, f"OmniHub is ready: {scheme}://127.0.0.1:{settings.port}/v1")
    if lines:
        sys.stdout.write("\n" + "\n".join(lines) + "\n\n")
        sys.stdout.flush()


def _prefer_requests() -> None:
    """Tune the interpreter for an event loop that must not wait."""
    # A thread that books or looks something up holds the interpreter for this long (5 ms by default) while a
    # request waits: the loop gives it away with each thing it writes.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What was made at start lives for ever: looking through it again and again only costs time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _version() -> str:
    try:
        return importlib.metadata.version("omnihub")
    except importlib.metadata.PackageNotFoundError:
        return "development"


def _edge(settings: Settings, options: argparse.Namespace) -> int:
    sys.stdout.write(launcher.edge_configuration(settings) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
