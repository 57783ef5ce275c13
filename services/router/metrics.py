"""What the router measures, named by the GenAI semantic conventions.

Durations are histograms. Tokens and credits are sums kept here and read when somebody scrapes:
recording them one by one would cost the request path more than planning its route does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from services.common.telemetry import meter
from services.router.request import Request

_duration = meter.create_histogram("gen_ai.server.request.duration", unit="s")
_first_token = meter.create_histogram("gen_ai.server.time_to_first_token", unit="s")

# Operation, model, provider, state.
_Labels = tuple[str, str, str, str]
_input_tokens: defaultdict[_Labels, int] = defaultdict(int)
_output_tokens: defaultdict[_Labels, int] = defaultdict(int)
_nano_credits: defaultdict[_Labels, int] = defaultdict(int)


def _attributes(labels: _Labels) -> dict[str, str]:
    names = ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.provider.name", "omnihub.state")
    return dict(zip(names, labels, strict=True))


def _read_tokens(_: CallbackOptions) -> Iterable[Observation]:
    for kind, sums in (("input", _input_tokens), ("output", _output_tokens)):
        for labels, total in sums.copy().items():
            yield Observation(total, {**_attributes(labels), "gen_ai.token.type": kind})


def _read_credits(_: CallbackOptions) -> Iterable[Observation]:
    for labels, total in _nano_credits.copy().items():
        yield Observation(total / 1e9, _attributes(labels))


meter.create_observable_counter("gen_ai.client.token.usage", [_read_tokens], unit="{token}")
meter.create_observable_counter("omnihub.credits", [_read_credits], unit="{credit}")


def observe(request: Request, duration_s: float) -> None:
    """Take in one ended request."""
    labels = (
        request.asked.modality,
        request.plan.chain[0].target.name,
        request.target.provider if request.candidate else "",
        request.state,
    )
    attributes = _attributes(labels)
    _duration.record(duration_s, attributes)
    if request.first_token_at is not None:
        _first_token.record(request.first_token_at - request.started, attributes)
    if request.look.answer is not None:
        # No model wrote anything.
        return
    _input_tokens[labels] += request.usage.input_total
    _output_tokens[labels] += request.usage.output_total
    _nano_credits[labels] += request.cost
