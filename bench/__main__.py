"""The command line: `python -m bench`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

from bench.errors import BenchError
from bench.install import python_home
from bench.measures import Plan
from bench.report import Report, machine, write
from bench.run import execute
from bench.scenarios import SCENARIOS
from bench.subjects import SUBJECTS


def names_of(known: Iterable[str], always: tuple[str, ...] = ()) -> Callable[[str], list[str]]:
    """Return an argument type: some of the known names, in their order, with those that are always there."""
    ordered = list(known)

    def names(text: str) -> list[str]:
        asked = {name.strip() for name in text.split(",") if name.strip()}
        if unknown := asked - set(ordered):
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ordered)}"
            )
        return [name for name in ordered if name in asked or name in always]

    return names


def bounded(low: float, high: float) -> Callable[[str], float]:
    """Return an argument type: a number from `low` to `high`, so that no run is endless."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return value

    return number


EPILOG = """\
scenarios:
{scenarios}

The report (Markdown) goes to standard output; report, every sample (JSON) and a plot (PNG) to
bench/results/<time>.*. `python -m bench.report FILE.json` prints a report once more. Subjects are installed
into bench/.work/ when they are first needed. bench/README.md says how it is measured, and what is unfair.

Exit code: 0, or 1 when a subject failed at what it can do, 130 after Ctrl-C.

parts alone: python -m bench.scale (workers, split deployment), bench.billing, bench.jobs, bench.router_path,
bench.planning, bench.provider_call, bench.transport, bench.fast_lane
""".format(scenarios="\n".join(f"  {name:20}{each.title}" for name, each in SCENARIOS.items()))


def parse(arguments: list[str]) -> Plan:
    """Return the plan that the arguments ask for."""
    usual = Plan(list(SUBJECTS), list(SCENARIOS))
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures OmniHub's request path beside bare Envoy and its rivals, all on this machine "
        "and the same upstream, in interleaved rounds. Without options: everything, 35 to 45 minutes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--subjects",
        type=names_of(SUBJECTS, always=("direct",)),
        default=usual.subjects,
        metavar="NAME,NAME",
        help=f"who is measured: any of {', '.join(SUBJECTS)}; default all; `direct` always runs",
    )
    parser.add_argument(
        "--scenarios",
        type=names_of(SCENARIOS),
        default=usual.scenarios,
        metavar="NAME,NAME",
        help="what is asked of them: any of the scenarios below; default all",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        choices=range(1, 12),
        default=usual.rounds,
        metavar="1..11",
        help=f"how often each subject is measured in each scenario, in turns; default {usual.rounds}",
    )
    parser.add_argument(
        "--seconds",
        type=bounded(1, 60),
        default=usual.seconds,
        metavar="1..60",
        help=f"of full load in each sample; default {usual.seconds:g}",
    )
    parser.add_argument(
        "--constant-seconds",
        type=bounded(1, 120),
        default=usual.constant_seconds,
        metavar="1..120",
        help=f"of fixed rate in each sample of latencies; default {usual.constant_seconds:g}",
    )
    parser.add_argument(
        "--awake", action="store_true", help="let idle cores wait in a loop instead of asleep; needs root"
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 round of 1 s per sample: does it work, not how fast"
    )
    options = parser.parse_args(arguments)
    plan = Plan(
        subjects=options.subjects,
        scenarios=options.scenarios,
        rounds=options.rounds,
        seconds=options.seconds,
        constant_seconds=options.constant_seconds,
        awake=options.awake,
    )
    return replace(plan, rounds=1, seconds=1, constant_seconds=2) if options.quick else plan


async def run(plan: Plan) -> bool:
    """Measure, print the report and write the files; tell whether every subject did what it can do."""
    task = asyncio.current_task()
    if task is not None:
        # Like Ctrl-C: everything that was started is stopped.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # Before anything is measured: what cannot be installed is told now, not in half an hour.
    await asyncio.to_thread(python_home, "plot")
    samples = await execute(plan)
    report = Report(plan, samples, machine(plan))
    print(report.markdown())
    for path in write(report, samples):
        print(f"written to {path}", file=sys.stderr)
    return not report.results.failures


def main() -> int:
    """Run the command and return its exit code."""
    plan = parse(sys.argv[1:])
    try:
        return 0 if asyncio.run(run(plan)) else 1
    except (BenchError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
