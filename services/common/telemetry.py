"""OpenTelemetry: metrics for Prometheus on the internal port, traces to an OTLP collector when configured.

Attribute names follow the GenAI semantic conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.common.late import late

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as otlp
else:
    # Only those who have a collector load what speaks to it.
    otlp = late("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

meter = metrics.get_meter("omnihub")
tracer = trace.get_tracer("omnihub")


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


class Traced:
    """A span around one request at the place where it enters; nothing at all when traces are off."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, name: str, traceparent: str) -> None:
        self._span: trace.Span | None = None
        self.traceparent = traceparent
        if isinstance(trace.get_tracer_provider(), TracerProvider):
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
