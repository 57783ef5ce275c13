"""OpenTelemetry: metrics for Prometheus on the internal port, traces to an OTLP collector when configured.

Attribute names follow the GenAI semantic conventions.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.propagate import extract
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

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
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint)))
        trace.set_tracer_provider(provider)


def span(name: str, traceparent: str, attributes: Mapping[str, str]) -> trace.Span:
    """Start a span under the caller's trace. The caller ends it."""
    context = extract({"traceparent": traceparent}) if traceparent else None
    return tracer.start_span(name, context=context, attributes=dict(attributes))
