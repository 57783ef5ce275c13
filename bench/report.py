"""The report of a run: Markdown tables, a JSON file with every sample, and a plot.

    python -m bench.report RESULTS.json      # the same tables once more, from the file

Its sections "In short" and "Targets" are the tables of README.md and docs/performance.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.install import HERE, find_program, first_line, python_home
from bench.measures import Chunks, ColdStart, FixedRate, IdleStreams, Measure, Plan, Saturation
from bench.results import Results, Spread
from bench.run import Sample
from bench.scenarios import SCENARIOS, Scenario
from bench.subjects import SUBJECTS
from bench.targets import OURS, verdicts

RESULTS = HERE / "results"
FLOOR = "envoy"
MARKS = {True: "met", False: "**missed**", None: "-"}


@dataclass(frozen=True)
class Column:
    """A value in a table; with `times` divided by that subject's, with `inverse` the other way round."""

    heading: str
    name: str
    digits: int = 0
    times: str = ""
    inverse: bool = False

    def cell(self, results: Results, scenario: str, subject: str) -> str:
        """Return the text of a cell."""
        found: Spread | None
        if not self.times:
            found = results.measure(scenario, 0, subject, self.name)
        elif subject == self.times:
            found = None
        else:
            pair = (self.times, subject) if self.inverse else (subject, self.times)
            found = results.ratio(scenario, self.name, *pair)
        return found.text(self.digits) if found else "-"


def times(name: str) -> tuple[Column, ...]:
    """Return a value as a multiple of the floor's, and ours as a part of it."""
    return (
        Column("times Envoy's", name, 2, times=FLOOR),
        Column("times ours", name, 2, times=OURS),
    )


CPU = (Column("CPU us", "cpu_us"), *times("cpu_us"))
COLUMNS: dict[type[Measure], tuple[Column, ...]] = {
    Saturation: (
        *CPU,
        Column("of it Envoy", "cpu_us_envoy"),
        Column("Python", "cpu_us_python"),
        Column("requests/s", "requests_per_s"),
        Column("memory MiB", "memory_mib"),
    ),
    Chunks: (
        Column("CPU us per chunk", "cpu_us_per_chunk", 1),
        *times("cpu_us_per_chunk"),
        Column("share of chunks passed in time", "chunks_passed_share", 2),
    ),
    IdleStreams: (
        Column("KiB per stream, Envoy's left out", "kib_per_stream"),
        Column("Envoy's KiB per stream", "envoy_kib_per_stream"),
        Column("memory MiB", "memory_mib"),
        Column("CPU ms per s", "idle_cpu_ms_per_s"),
        Column("opened/s", "opened_per_s"),
    ),
    ColdStart: (
        Column("s to the first answer", "start_s", 2),
        Column("CPU s", "start_cpu_s", 2),
        Column("memory MiB", "memory_mib"),
        *times("start_s"),
    ),
}


SHORT = (
    ("chat", Column("requests/s", "requests_per_s")),
    ("chat", Column("CPU us/request", "cpu_us")),
    ("chat", Column("of it Envoy", "cpu_us_envoy")),
    ("chat", Column("CPU, times ours", "cpu_us", 2, times=OURS)),
    ("latency", Column("added p50 ms at 50/s", "added_last_byte_p50_ms", 2)),
    ("latency", Column("added p99 ms at 50/s", "added_last_byte_p99_ms", 2)),
    ("chat", Column("memory MiB", "memory_mib")),
)


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latency_columns(series: str) -> tuple[Column, ...]:
    """Return the columns of added latency."""
    shown = [Column(f"added p{percent} ms", f"added_{series}_p{percent}_ms", 3) for percent in (50, 90, 99)]
    ratios = [
        Column(f"p{percent} times Envoy's", f"added_{series}_p{percent}_ms", 2, times=FLOOR)
        for percent in (50, 90, 99)
    ]
    return (Column("p50 ms", f"{series}_p50_ms", 3), *shown, *ratios)


class Report:
    """One run as text."""

    def __init__(self, plan: Plan, samples: list[Sample], facts: dict[str, str]) -> None:
        self.plan = plan
        self.results = Results(samples)
        self.facts = facts

    def _subject_rows(
        self, scenario: str, size: int, cells: dict[str, list[str]], width: int
    ) -> list[list[str]]:
        """Return a row for each subject; one that did not do it has the reason in place of figures."""
        rows = []
        for subject in self.plan.subjects:
            reason = SUBJECTS[subject].unable.get(scenario) or self.results.failures.get(
                (scenario, size, subject)
            )
            if reason and not self.results.names(scenario, size, subject):
                failed = (scenario, size, subject) in self.results.failures
                text = f"{'failed' if failed else 'cannot'}: {reason}".replace("|", "/").replace("\n", " ")
                rows.append([subject, text, *[""] * (width - 1)])
            elif self.results.names(scenario, size, subject):
                rows.append([subject, *cells[subject]])
        return rows

    def _simple(self, scenario: Scenario, columns: tuple[Column, ...]) -> str:
        cells = {
            subject: [column.cell(self.results, scenario.name, subject) for column in columns]
            for subject in self.plan.subjects
        }
        rows = self._subject_rows(scenario.name, 0, cells, len(columns))
        return table(["", *(column.heading for column in columns)], rows)

    def _latency(self, scenario: Scenario) -> str:
        kind = scenario.measure(0)
        assert isinstance(kind, FixedRate)
        series = ["first_token", "last_byte"] if kind.kind.startswith("stream") else ["last_byte"]
        parts = []
        for name in series:
            columns = latency_columns(name)
            cells = {
                subject: [column.cell(self.results, scenario.name, subject) for column in columns]
                + [
                    f"{rare:.3f}"
                    if (rare := self.results.rare(scenario.name, subject, name)) is not None
                    else "-"
                ]
                for subject in self.plan.subjects
            }
            rows = self._subject_rows(scenario.name, 0, cells, len(columns) + 1)
            headings = ["", *(column.heading for column in columns), "added p99.9 ms, all rounds together"]
            title = "Time to the first token" if name == "first_token" else "Time to the last byte"
            parts.append(f"{title}:\n\n{table(headings, rows)}")
        cpu = (Column("CPU us at this rate", "cpu_us"), *times("cpu_us"))
        parts.append(self._simple(scenario, cpu))
        return "\n\n".join(parts)

    def _growth(self, scenario: Scenario) -> str:
        smallest = scenario.sizes[0]
        headings = ["", *(f"CPU us, {size:,} {scenario.unit}" for size in scenario.sizes)]
        headings += [f"{size:,}, times {smallest}" for size in scenario.sizes[1:]]
        cells = {subject: self._growing(scenario, subject) for subject in self.plan.subjects}
        return table(headings, self._subject_rows(scenario.name, smallest, cells, len(headings) - 1))

    def _growing(self, scenario: Scenario, subject: str) -> list[str]:
        """Return what each size costs, and how many times the smallest one's cost that is."""
        smallest, *larger = scenario.sizes
        cells = [self._value(scenario.name, size, subject) for size in scenario.sizes]
        for size in larger:
            ratio = self.results.growth(scenario.name, size, smallest, subject, "cpu_us")
            cells.append(ratio.text(2) if ratio else "-")
        return cells

    def _value(self, scenario: str, size: int, subject: str) -> str:
        found = self.results.measure(scenario, size, subject, "cpu_us")
        return (
            found.text(0) if found else f"failed: {self.results.failures.get((scenario, size, subject), '-')}"
        )

    def _scenario(self, scenario: Scenario) -> str:
        measure = scenario.measure(scenario.sizes[0] if scenario.sizes else 0)
        if scenario.sizes:
            return self._growth(scenario)
        if isinstance(measure, FixedRate):
            return self._latency(scenario)
        return self._simple(scenario, COLUMNS[type(measure)])

    def _features(self) -> str:
        names = ("authentication", "credits", "routing", "usage", "record")
        rows = [
            [name, SUBJECTS[name].what, *(getattr(SUBJECTS[name].features, feature) for feature in names)]
            for name in self.plan.subjects
        ]
        return table(["", "what", *names[:4], "durable record"], rows)

    def _targets(self) -> str:
        rows = [[each.label, each.wanted, each.measured, MARKS[each.met]] for each in verdicts(self.results)]
        return table(["target", "wanted", "measured", ""], rows) if rows else ""

    def short(self) -> str:
        """Return the table of README.md: cost of a small chat, what it adds at a fixed rate, memory."""
        rows = [
            [subject, *(column.cell(self.results, scenario, subject) for scenario, column in SHORT)]
            for subject in self.plan.subjects
            if self.results.names("chat", 0, subject)
        ]
        return table(["", *(column.heading for _, column in SHORT)], rows) if rows else ""

    def _failures(self) -> str:
        """Return what failed, and how many rounds its figures, if there are any, are of."""
        rows = []
        for (scenario, size, subject), failure in self.results.failures.items():
            number = self.results.failed_in[scenario, size, subject]
            case = f"{scenario} {size:,}" if size else scenario
            figures = f"of {number} of {self.plan.rounds} rounds" if number > 0 else "none"
            rows.append([subject, case, figures, failure.replace("|", "/").replace("\n", " ")])
        return table(["", "failed in", "its figures", "why"], rows) if rows else ""

    def noise(self) -> str:
        """Return how much others disturbed the run."""
        others, stolen = (self.results.largest(name) for name in ("other_programs_cores", "stolen_cores"))
        text = f"Noise, of the worst sample: other programs used {others:.2f} cores, stolen were {stolen:.2f}"
        if late := self.results.largest("client_late_p99_ms"):
            text += f"; the constant-rate client was {late:.2f} ms late (p99)"
        return f"{text}."

    def sections(self) -> Iterator[str]:
        """Yield the parts of the report."""
        plan = self.plan
        shown = f"medians of {plan.rounds} rounds (smallest to largest)" if plan.rounds > 1 else "one round"
        yield "Machine: " + ", ".join(f"{name} {value}" for name, value in self.facts.items()) + "."
        yield (
            f"Interleaved rounds, {shown}: {plan.seconds:g} s of load, {plan.constant_seconds:g} s at a "
            f"constant rate; idle cores {'kept awake' if plan.awake else 'asleep'}. Load, subjects and "
            "upstream share the machine. CPU is user and system time of all processes of a subject."
        )
        yield self.noise()
        if failures := self._failures():
            yield f"## Failed\n\nStarted anew, and not asked the same again.\n\n{failures}"
        if short := self.short():
            yield f"## In short\n\n{short}"
        if targets := self._targets():
            yield f"## Targets\n\n{targets}"
        yield f"## What each row does\n\n{self._features()}"
        for name in plan.scenarios:
            yield f"## {name}\n\n{SCENARIOS[name].title}.\n\n{self._scenario(SCENARIOS[name])}"

    def markdown(self) -> str:
        """Return the whole report."""
        return "\n\n".join(self.sections()) + "\n"

    def summary(self) -> dict[str, object]:
        """Return every value and its ratios by scenario, size and subject, ready for JSON."""
        found: dict[str, object] = {}
        for name in self.plan.scenarios:
            scenario = SCENARIOS[name]
            for size in scenario.sizes or (0,):
                for subject in self.plan.subjects:
                    key = f"{name}/{size}/{subject}" if size else f"{name}/{subject}"
                    values = self._summary(name, size, subject)
                    for series in ("last_byte", "first_token"):
                        if (rare := self.results.rare(name, subject, series)) is not None:
                            values[f"added_{series}_p99.9_ms"] = rare
                    if reason := SUBJECTS[subject].unable.get(name):
                        values["unable"] = reason
                    found[key] = values
        return found

    def _summary(self, scenario: str, size: int, subject: str) -> dict[str, object]:
        values: dict[str, object] = {}
        for name in self.results.names(scenario, size, subject):
            measured = self.results.measure(scenario, size, subject, name)
            values[name] = asdict(measured) if measured else None
            for baseline in (FLOOR, OURS) if not size else ():
                ratio = self.results.ratio(scenario, name, subject, baseline)
                if ratio and subject != baseline:
                    values[f"{name} / {baseline}"] = asdict(ratio)
        return values


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
    wrk = first_line([find_program("wrk") or "wrk", "-v"])
    facts = {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "wrk": wrk.split(" [")[0].removeprefix("wrk "),
    }
    return facts | {f"{name}:": SUBJECTS[name].version() for name in plan.subjects}


def write(report: Report, samples: list[Sample]) -> Iterator[Path]:
    """Write JSON, Markdown and plot to files named after the time, and yield each path once it is there."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    data, text, plot = (RESULTS / f"{now:%Y-%m-%dT%H-%M-%SZ}{ending}" for ending in (".json", ".md", ".png"))
    content = {
        "time": now.isoformat(timespec="seconds"),
        "machine": report.facts,
        "plan": asdict(report.plan),
        "targets": [asdict(each) for each in verdicts(report.results)],
        "summary": report.summary(),
        "failures": [asdict(sample) for sample in samples if sample.failure],
        "samples": [asdict(sample) for sample in samples if not sample.failure],
    }
    data.write_text(json.dumps(content) + "\n")
    yield data
    text.write_text(report.markdown())
    yield text
    # The plot is drawn from the file alone, by a Python of its own: nothing else here needs matplotlib.
    python = python_home("plot") / "bin" / "python"
    subprocess.run([str(python), str(HERE / "plot.py"), str(data), str(plot)], check=True)
    yield plot


def read(file: Path) -> Report:
    """Return the report of a run from its file."""
    content = json.loads(file.read_text())
    samples = [Sample(**each) for each in (*content["failures"], *content["samples"])]
    return Report(Plan(**content["plan"]), samples, content["machine"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.report bench/results/<time>.json")
    print(read(Path(sys.argv[1])).markdown())
