"""Draws a run: `python plot.py RESULTS.json PLOT.png`. Runs in an environment of its own, for matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

COSTS = (
    "chat",
    "large",
    "stream-50",
    "stream-500",
    "embeddings",
    "tools",
    "translated",
    "cache-hit",
    "new-keys",
)
GROWTH = {"growth-connections": "connections", "growth-models": "models", "growth-keys": "keys"}
PERCENTILES = ("50", "90", "99", "99.9")
# Told apart without red and green, and by shape too.
STYLES = {
    "direct": ("#888888", "x"),
    "envoy": ("#000000", "D"),
    "relay": ("#56B4E9", "v"),
    "omnihub": ("#D55E00", "o"),
    "smg": ("#009E73", "P"),
    "portkey": ("#0072B2", "s"),
    "litellm": ("#E69F00", "h"),
}
FLAT = 1.2


class Run:
    """The file of a run."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.summary: dict[str, dict[str, Any]] = content["summary"]
        self.subjects: list[str] = content["plan"]["subjects"]

    def value(self, key: str, name: str) -> dict[str, float] | None:
        """Return median, low and high of a value."""
        found = self.summary.get(key, {}).get(name)
        return {"median": found, "low": found, "high": found} if isinstance(found, int | float) else found


def plain(number: float, _: object = None) -> str:
    """Return a number as a person writes it."""
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"


def readable(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as numbers."""
    axis.set_major_formatter(FuncFormatter(plain))


def costs(axes: Axes, run: Run) -> None:
    """Draw CPU per request by scenario."""
    shown = [name for name in COSTS if any(run.value(f"{name}/{each}", "cpu_us") for each in run.subjects)]
    # Lines apart, so that the marks of one scenario do not cover each other.
    step = 0.8 / max(1, len(run.subjects))
    for place, subject in enumerate(run.subjects):
        colour, mark = STYLES[subject]
        points = [
            (row - 0.4 + step * (place + 0.5), found)
            for row, name in enumerate(shown)
            if (found := run.value(f"{name}/{subject}", "cpu_us"))
        ]
        if points:
            middle = [found["median"] for _, found in points]
            errors = [
                [found["median"] - found["low"] for _, found in points],
                [found["high"] - found["median"] for _, found in points],
            ]
            rows = [row for row, _ in points]
            axes.errorbar(
                middle,
                rows,
                xerr=errors,
                fmt=mark,
                color=colour,
                label=subject,
                markersize=6,
                capsize=2,
                lw=1,
            )
    for row in range(1, len(shown)):
        axes.axhline(row - 0.5, color="#dddddd", lw=0.8, zorder=0)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xscale("log")
    readable(axes.xaxis)
    axes.set_xlabel(
        "CPU per request of all processes of a subject, microseconds (logarithmic; less is better)"
    )
    axes.set_title("Cost of a request: median of the rounds, bars from smallest to largest")
    axes.grid(axis="x", which="both", color="#eeeeee")


def latencies(axes: Axes, run: Run, scenario: str, series: str, title: str) -> None:
    """Draw added latency by percentile."""
    for subject in run.subjects:
        colour, mark = STYLES[subject]
        points = [
            (place, found["median"])
            for place, percent in enumerate(PERCENTILES)
            if (
                found := run.value(
                    f"{scenario}/{subject}",
                    f"added_{series}_p{percent}_ms",
                )
            )
            and found["median"] > 0
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker=mark, color=colour, label=subject, lw=1.2)
    axes.set_xticks(range(len(PERCENTILES)), [f"p{percent}" for percent in PERCENTILES])
    axes.set_xlim(-0.3, len(PERCENTILES) - 0.7)
    axes.set_yscale("log")
    readable(axes.yaxis)
    axes.set_ylabel("added, ms (logarithmic)")
    axes.set_title(f"{title}\nadded to that without a gateway, constant rate")
    axes.grid(axis="y", which="both", color="#eeeeee")


def starts(axes: Axes, run: Run) -> None:
    """Draw time and memory of a cold start."""
    shown = [subject for subject in run.subjects if run.value(f"cold-start/{subject}", "start_s")]
    for row, subject in enumerate(shown):
        time = run.value(f"cold-start/{subject}", "start_s")
        memory = run.value(f"cold-start/{subject}", "memory_mib")
        if time and memory:
            axes.barh(row, time["median"], color=STYLES[subject][0], alpha=0.8, height=0.6)
            axes.text(
                time["median"], row, f" {time['median']:.1f} s, {memory['median']:.0f} MiB", va="center"
            )
    longest = max(
        (run.value(f"cold-start/{each}", "start_s") or {"median": 1})["median"] for each in shown or [""]
    )
    axes.set_xlim(0, longest * 1.7)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel("seconds to the first answer")
    axes.set_title("Cold start, and memory after it")


def growth(axes: Axes, run: Run, scenario: str, unit: str) -> None:
    """Draw cost by size, as a multiple of the smallest."""
    sizes = sorted({int(key.split("/")[1]) for key in run.summary if key.startswith(f"{scenario}/")})
    for subject in run.subjects:
        points = [
            (int(key.split("/")[1]), found["median"])
            for key in run.summary
            if key.startswith(f"{scenario}/")
            and key.endswith(f"/{subject}")
            and (found := run.value(key, "cpu_us"))
        ]
        if len(points) > 1:
            colour, mark = STYLES[subject]
            smallest = points[0][1]
            axes.plot(
                [size for size, _ in points],
                [cost / smallest for _, cost in points],
                marker=mark,
                color=colour,
                label=subject,
                lw=1.2,
            )
    axes.axhspan(0, FLAT, color="#f0f0f0", zorder=0)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [plain(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{unit} (logarithmic)")
    axes.set_ylabel("CPU per request, times the smallest")
    axes.set_title(f"Growth by {unit}; grey: flat within {FLAT - 1:.0%}")


def blank_unmeasured(axes: Axes) -> None:
    """Say so where a run has nothing to draw; an empty frame would look like a result."""
    if not axes.lines and not axes.containers:
        axes.clear()
        axes.axis("off")
        axes.text(0.5, 0.5, "not measured in this run", ha="center", va="center", color="#888888")


def draw(run: Run, path: Path) -> None:
    """Write the picture."""
    figure = plt.figure(figsize=(16, 19), layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=(2.4, 1, 1))
    upper = figure.add_subplot(grid[0, :])
    costs(upper, run)
    latencies(figure.add_subplot(grid[1, 0]), run, "latency", "last_byte", "Small chat, 50/s, whole answer")
    latencies(figure.add_subplot(grid[1, 1]), run, "first-token", "first_token", "Stream, 20/s, first token")
    starts(figure.add_subplot(grid[1, 2]), run)
    for place, (scenario, unit) in enumerate(GROWTH.items()):
        growth(figure.add_subplot(grid[2, place]), run, scenario, unit)
    for axes in figure.axes:
        blank_unmeasured(axes)
    handles = [
        plt.Line2D([], [], color=STYLES[each][0], marker=STYLES[each][1], label=each) for each in run.subjects
    ]
    plan, facts = run.content["plan"], run.content["machine"]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=12)
    figure.suptitle(
        f"{run.content['time']}, {facts['cpu']}; {plan['rounds']} interleaved rounds; load, subjects and "
        "upstream share the machine; a latency that is not above `direct` is not drawn",
        fontsize=10,
        y=-0.01,
    )
    figure.savefig(path, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    draw(Run(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
