"""The command line: `python -m bench`."""

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from bench.errors import BenchError
from bench.report import machine, markdown, write_json
from bench.run import Plan, execute
from bench.subjects import SUBJECTS

DEFAULT_SUBJECTS = "direct,envoy,omnihub,litellm"


def subject_list(text: str) -> list[str]:
    """Return the named subjects in the order of the table, with `direct`, to which all else is added."""
    named = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := named - SUBJECTS.keys():
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SUBJECTS)}"
        )
    return [name for name in SUBJECTS if name in named | {"direct"}]


def bounded(low: float, high: float) -> Callable[[str], float]:
    """Return an argument type: a number from `low` to `high`, so that no run is endless."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}")
        return value

    return number


def parse(arguments: list[str]) -> Plan:
    """Return the plan that the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks of the whole request path."
    )
    known = ", ".join(SUBJECTS)
    parser.add_argument(
        "--subjects", type=subject_list, default=DEFAULT_SUBJECTS, help=f"any of {known}; default all"
    )
    parser.add_argument(
        "--rounds", type=int, choices=range(1, 21), default=3, metavar="1..20", help="default 3"
    )
    parser.add_argument(
        "--seconds", type=bounded(1, 60), default=5, help="of saturation per sample; default 5"
    )
    parser.add_argument(
        "--constant-seconds", type=bounded(1, 120), default=10, help="at a constant rate; default 10"
    )
    parser.add_argument("--rate", type=bounded(1, 1000), default=50, help="constant requests/s; default 50")
    parser.add_argument("--no-streaming", action="store_true", help="leave out the stream scenario")
    parser.add_argument(
        "--quick", action="store_true", help="1 round of 2 s per scenario: does it work, not how fast"
    )
    options = parser.parse_args(arguments)
    plan = Plan(
        subjects=options.subjects,
        rounds=options.rounds,
        saturation_s=options.seconds,
        constant_s=options.constant_seconds,
        rate=options.rate,
        streaming=not options.no_streaming,
    )
    return replace(plan, rounds=1, saturation_s=2, constant_s=2, warm_up_s=1) if options.quick else plan


async def run(plan: Plan) -> None:
    """Measure, print the report and write the JSON file."""
    task = asyncio.current_task()
    if task is not None:
        # Like Ctrl-C: everything that was started is stopped.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    samples = await execute(plan)
    facts = machine(plan)
    print(markdown(plan, samples, facts))
    print(f"\nwritten to {write_json(plan, samples, facts)}", file=sys.stderr)


def main() -> int:
    """Run the command and return its exit code."""
    plan = parse(sys.argv[1:])
    try:
        asyncio.run(run(plan))
    except (BenchError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
