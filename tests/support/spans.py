"""Traces as they would be sent away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry


@contextmanager
def recorded_spans() -> Iterator[InMemorySpanExporter]:
    """Record every span of this process for the length of the context."""
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "recording", True)
        patch.setattr(telemetry, "tracer", tracers.get_tracer("test"))
        yield exporter
    tracers.shutdown()
