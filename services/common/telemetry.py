"""OpenTelemetry: metrics for Prometheus on the internal port, traces to an OTLP collector when configured.

Attribute names follow the GenAI semantic conventions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import REGISTRY
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from services.common.late import late

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as otlp
else:
    # Only those who have a collector load what speaks to it.
    otlp = late("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
NANO = 10**9
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

meter = metrics.get_meter("omnihub")
tracer = trace.get_tracer("omnihub")
recording = False
"""Traces are sent to a collector. Otherwise nothing about them may cost anything."""


def configure(*, otlp_endpoint: str, sample_ratio: float, version: str) -> None:
    """Set up the process-wide providers. Without an endpoint no trace is recorded."""
    resource = Resource.create({"service.name": "omnihub", "service.version": version})
    views = [
        View(instrument_unit="s", aggregation=ExplicitBucketHistogramAggregation(SECONDS)),
        View(instrument_unit="{token}", aggregation=ExplicitBucketHistogramAggregation(TOKENS)),
    ]
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()], resource=resource, views=views))
    if otlp_endpoint:
        provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio)))
        provider.add_span_processor(BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=otlp_endpoint)))
        trace.set_tracer_provider(provider)
        global recording
        recording = True


class Durations(Collector):
    """A histogram of seconds, for the path that every request takes.

    Recording in one of OpenTelemetry's costs ten times as much; names and buckets are the same. `name` and
    `labels` are written as Prometheus shows them.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name = name
        self._labels = labels
        # For each set of labels: how many fell into each bucket, and the sum of all.
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        REGISTRY.register(self)

    def record(self, seconds: float, labels: tuple[str, ...]) -> None:
        """Take in one duration."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = ([0] * (len(SECONDS) + 1), [0.0])
        counts, total = series
        counts[bisect_left(SECONDS, seconds)] += 1
        total[0] += seconds

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the name alone, which is all that registering needs."""
        yield HistogramMetricFamily(self._name, "", labels=self._labels)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return everything recorded so far."""
        family = HistogramMetricFamily(self._name, "", labels=self._labels)
        bounds = [*(str(bound) for bound in SECONDS), "+Inf"]
        for labels, (counts, total) in self._series.copy().items():
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total[0])
        yield family


class Traced:
    """A span around one request at the place where it enters; nothing at all when traces are off."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, name: str, traceparent: str, *, wanted: bool = True) -> None:
        self._span: trace.Span | None = None
        self.traceparent = traceparent
        if recording and wanted:
            context = extract({"traceparent": traceparent}) if traceparent else None
            self._span = tracer.start_span(name, context=context)
            carrier: dict[str, str] = {}
            inject(carrier, trace.set_span_in_context(self._span))
            self.traceparent = carrier.get("traceparent", traceparent)

    def end(self, outcome: str, attributes: Mapping[str, str | int]) -> None:
        """End the span with what became of the request."""
        if self._span is not None:
            self._span.set_attributes({**attributes, "omnihub.outcome": outcome})
            if outcome != "OK":
                self._span.set_status(trace.StatusCode.ERROR, outcome)
            self._span.end()


def note_span(
    name: str, traceparent: str, started_at: float, duration_s: float, attributes: Mapping[str, Any]
) -> None:
    """Record a span of something that has ended; `started_at` is in seconds since 1970."""
    begun = round(started_at * NANO)
    span = tracer.start_span(
        name, extract({"traceparent": traceparent}), trace.SpanKind.CLIENT, attributes, start_time=begun
    )
    if "error.type" in attributes:
        span.set_status(trace.StatusCode.ERROR, attributes["error.type"])
    span.end(begun + round(duration_s * NANO))
