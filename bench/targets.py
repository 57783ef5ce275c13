"""What OmniHub is held to, judged on the figures of one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import Results, Spread
from bench.scenarios import SCENARIOS

OURS = "omnihub"


@dataclass(frozen=True)
class Ratio:
    """Our value divided by a rival's, or the other way round with `inverse`."""

    scenario: str
    name: str
    rival: str
    limit: float
    label: str
    inverse: bool = False


RATIOS = (
    Ratio("chat", "cpu_us", "litellm", 25, "LiteLLM's CPU per request, times ours", inverse=True),
    Ratio("chat", "cpu_us", "portkey", 3, "Portkey's CPU per request, times ours", inverse=True),
    Ratio("chat", "cpu_us", "envoy", 6, "CPU per request, times bare Envoy's"),
    Ratio("latency", "added_last_byte_p50_ms", "envoy", 3, "added p50, times bare Envoy's"),
    Ratio("latency", "added_last_byte_p99_ms", "envoy", 5, "added p99, times bare Envoy's"),
    Ratio(
        "latency", "added_last_byte_p99_ms", "litellm", 10, "LiteLLM's added p99, times ours", inverse=True
    ),
    Ratio(
        "first-token", "added_first_token_p50_ms", "envoy", 3, "first token, added p50, times bare Envoy's"
    ),
    Ratio(
        "first-token", "added_first_token_p99_ms", "envoy", 5, "first token, added p99, times bare Envoy's"
    ),
    Ratio("chunks", "cpu_us_per_chunk", "relay", 2, "CPU per chunk, times the relay's"),
)
VALUES = (
    ("cold-start", "start_s", 3.0, "s to the first answer after a cold start"),
    ("cold-start", "memory_mib", 300.0, "MiB after the first answer, Envoy included"),
    ("idle-streams", "kib_per_stream", 60.0, "KiB per open stream in our processes"),
)
FLAT = 1.2
"""A growth row may cost so many times its smallest size."""


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that is enough."""

    label: str
    wanted: str
    measured: str
    met: bool | None
    """None: not measured in this run, or drowned in noise."""


def _verdict(label: str, wanted: str, found: Spread | None, met: bool) -> Verdict:
    return Verdict(label, wanted, found.text(2) if found else "not measurable", met if found else None)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield every target whose scenario has been run."""
    for each in RATIOS:
        pair = (each.rival, OURS) if each.inverse else (OURS, each.rival)
        if all(results.names(each.scenario, 0, subject) for subject in pair):
            found = results.ratio(each.scenario, each.name, *pair)
            enough = found is not None and (
                found.median >= each.limit if each.inverse else found.median <= each.limit
            )
            yield _verdict(
                each.label, f"at {'least' if each.inverse else 'most'} {each.limit:g}", found, enough
            )
    for scenario, name, limit, label in VALUES:
        if (found := results.measure(scenario, 0, OURS, name)) is not None:
            yield _verdict(label, f"at most {limit:g}", found, found.median <= limit)
    for grown in SCENARIOS.values():
        for size in grown.sizes[1:]:
            if results.names(grown.name, size, OURS):
                found = results.growth(grown.name, size, grown.sizes[0], OURS, "cpu_us")
                label = f"CPU per request with {size:,} {grown.unit}, times that with {grown.sizes[0]}"
                yield _verdict(label, f"at most {FLAT:g}", found, found is not None and found.median <= FLAT)
