"""Durations as Prometheus reads them."""

from __future__ import annotations

import prometheus_client
import pytest
from prometheus_client import REGISTRY

from services.common.telemetry import SECONDS, Durations


@pytest.fixture
def durations() -> Durations:
    return Durations("omnihub_test_duration_seconds", ["model", "state"])


def sample(suffix: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"omnihub_test_duration_seconds_{suffix}", labels)


def test_a_histogram(durations: Durations) -> None:
    try:
        for seconds in (0.001, 0.005, 0.006, 1000.0):
            durations.record(seconds, ("m", "complete"))
        durations.record(1.0, ("m", "failed"))
        text = prometheus_client.generate_latest().decode()
        buckets = {
            bound: sample("bucket", model="m", state="complete", le=bound)
            for bound in ("0.005", "0.01", "600", "+Inf")
        }
        # A bound belongs to its bucket.
        assert buckets == {"0.005": 2, "0.01": 3, "600": 3, "+Inf": 4}
        assert sample("count", model="m", state="complete") == 4
        assert sample("sum", model="m", state="complete") == pytest.approx(1000.012)
        assert sample("count", model="m", state="failed") == 1
        assert text.count("omnihub_test_duration_seconds_bucket{") == 2 * (len(SECONDS) + 1)
    finally:
        REGISTRY.unregister(durations)
