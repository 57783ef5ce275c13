"""What the router measures, named by the GenAI semantic conventions.

Durations are histograms. Tokens and credits are sums kept here and read when somebody scrapes:
recording them one by one would cost the request path more than planning its route does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from services.common import telemetry
from services.common.telemetry import Durations, meter
from services.router.domain.policy import Candidate
from services.router.request import Request

_NAMES = ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.provider.name", "omnihub.state")
_PROMETHEUS_NAMES = [name.replace(".", "_") for name in _NAMES]
_duration = Durations("gen_ai_server_request_duration_seconds", _PROMETHEUS_NAMES)
_first_token = Durations("gen_ai_server_time_to_first_token_seconds", _PROMETHEUS_NAMES)

# Callers can name any model of a provider; names must not fill the memory, here or at who scrapes.
NAMED_DIRECTLY = 1000
OTHER = "other"
_named: set[str] = set()

_Labels = tuple[str, str, str, str]
_input_tokens: defaultdict[_Labels, int] = defaultdict(int)
_output_tokens: defaultdict[_Labels, int] = defaultdict(int)
_nano_credits: defaultdict[_Labels, int] = defaultdict(int)


def _attributes(labels: _Labels) -> dict[str, str]:
    return dict(zip(_NAMES, labels, strict=True))


def _read_tokens(_: CallbackOptions) -> Iterable[Observation]:
    for kind, sums in (("input", _input_tokens), ("output", _output_tokens)):
        for labels, total in sums.copy().items():
            yield Observation(total, {**_attributes(labels), "gen_ai.token.type": kind})


def _read_credits(_: CallbackOptions) -> Iterable[Observation]:
    for labels, total in _nano_credits.copy().items():
        yield Observation(total / 1e9, _attributes(labels))


meter.create_observable_counter("gen_ai.client.token.usage", [_read_tokens], unit="{token}")
meter.create_observable_counter("omnihub.credits", [_read_credits], unit="{credit}")


def _shown(candidate: Candidate) -> str:
    """Return a model's name as a label: configured ones always, those that callers make up to a number."""
    name = candidate.target.name
    if candidate.model.configured or name in _named:
        return name
    if len(_named) >= NAMED_DIRECTLY:
        return OTHER
    _named.add(name)
    return name


def observe(request: Request, duration_s: float) -> None:
    """Take in one ended request."""
    labels = (
        request.asked.modality,
        _shown(request.plan.chain[0]),
        request.target.provider if request.candidate else "",
        request.state,
    )
    if telemetry.recording:
        _trace(request, labels, duration_s)
    _duration.record(duration_s, labels)
    if request.first_token_at is not None:
        _first_token.record(request.first_token_at - request.started, labels)
    if request.look.answer is not None:
        # No model wrote anything.
        return
    _input_tokens[labels] += request.usage.input_total
    _output_tokens[labels] += request.usage.output_total
    _nano_credits[labels] += request.cost


def _trace(request: Request, labels: _Labels, duration_s: float) -> None:
    # A trace fills no memory here: it has the name itself.
    model = request.plan.chain[0].target.name
    attributes = {
        **_attributes(labels),
        "gen_ai.request.model": model,
        "gen_ai.response.model": request.target.name if request.candidate else "",
        "gen_ai.response.finish_reasons": [request.finish.reason] if request.finish.reason else (),
        "gen_ai.usage.input_tokens": request.usage.input_total,
        "gen_ai.usage.output_tokens": request.usage.output_total,
        "omnihub.decision_id": request.decision_id,
        "omnihub.attempts": len(request.attempts),
    }
    if request.state != "complete":
        attributes["error.type"] = request.reason or request.state
    name = f"{request.asked.modality} {model}"
    telemetry.note_span(name, request.call.traceparent, request.started_at, duration_s, attributes)
