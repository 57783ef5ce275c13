"""The choice: which targets to ask, in which order, and why not the others. Pure and replayable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omnihub.common.v1.chat_pb2 import ChatInput

from services.credits.money import limit_nano
from services.router.domain.catalogue import AUTO, Catalogue, Model, Target
from services.router.domain.errors import NoCandidateError, PriceUnknownError

# cost, latency, configured order: the parts of a score, by the caller's priority.
WEIGHTS = {
    "cheap": (0.8, 0.1, 0.1),
    "balanced": (0.4, 0.2, 0.4),
    "best": (0.0, 0.1, 0.9),
}
FAST_WEIGHTS = (0.2, 0.7, 0.1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target that was looked at."""

    target: Target
    model: Model
    """The model that lists the target."""
    score: float
    estimate_nano: int | None
    excluded_because: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask, best first, and what was left out."""

    requested: str
    task: str
    chain: tuple[Candidate, ...]
    excluded: tuple[Candidate, ...]


Estimate = Callable[[Target, Model], int | None]
"""The most a request can cost at a target of a model, in nano-credits; None without a price."""
Latency = Callable[[Target], int]
"""Milliseconds, smoothed; 0 when nothing was measured."""


def eligible(chat: ChatInput, catalogue: Catalogue, allowed: tuple[str, ...]) -> Sequence[Model]:
    """Return the models a request may be answered by. Raises ModelNotFoundError, ModelNotAllowedError."""
    requested = chat.model or AUTO
    if requested != AUTO or AUTO in catalogue.models:
        return [catalogue.find(requested, allowed)]
    models = catalogue.usable(allowed)
    # Real models before rules: `auto` uses a synthetic one only when there is nothing else.
    return [model for model in models if not catalogue.synthetic(model)] or models


def plan(
    chat: ChatInput,
    models: Sequence[Model],
    catalogue: Catalogue,
    feature: str,
    estimate: Estimate,
    latency: Latency,
) -> Plan:
    """Return the plan for a request that one of `models` is to answer and that needs `feature`.

    Raises NoCandidateError, PriceUnknownError.
    """
    requested = chat.model or AUTO
    if requested == AUTO and AUTO not in catalogue.models:
        candidates = _score(chat, models, estimate, latency)
    else:
        candidates = [
            Candidate(target, model, 1.0 - position / 100, estimate(target, model))
            for model in models
            for position, target in enumerate(model.targets)
        ]
    judged = [_judge(candidate, chat, catalogue, feature) for candidate in candidates]
    chain = tuple(candidate for candidate in judged if not candidate.excluded_because)
    excluded = tuple(candidate for candidate in judged if candidate.excluded_because)
    if not chain:
        raise _nothing_left(requested, excluded)
    return Plan(requested, "agent_step" if chat.agent_id else "chat", chain, excluded)


def _score(chat: ChatInput, models: Sequence[Model], estimate: Estimate, latency: Latency) -> list[Candidate]:
    cost_weight, latency_weight, order_weight = _weights(chat)
    pairs = [(model, target) for model in models for target in model.targets]
    estimates = [estimate(target, model) for model, target in pairs]
    latencies = [latency(target) for _, target in pairs]
    dearest = max([amount for amount in estimates if amount is not None], default=0) or 1
    slowest = max(latencies, default=0) or 1
    candidates = []
    for position, (model, target) in enumerate(pairs):
        amount = estimates[position]
        cost = 1.0 if amount is None else amount / dearest
        score = (
            cost_weight * (1 - cost)
            + latency_weight * (1 - latencies[position] / slowest)
            + order_weight * (1 - position / len(pairs))
        )
        candidates.append(Candidate(target, model, round(score, 6), amount))
    return sorted(candidates, key=lambda candidate: -candidate.score)


def _weights(chat: ChatInput) -> tuple[float, float, float]:
    if chat.latency_pref == "fast" or chat.mode == "flash":
        return FAST_WEIGHTS
    return WEIGHTS[chat.priority or ("best" if chat.mode else "balanced")]


def _judge(candidate: Candidate, chat: ChatInput, catalogue: Catalogue, feature: str) -> Candidate:
    """Apply the hard filters."""
    reason = ""
    provider = catalogue.providers.get(candidate.target.provider)
    if provider is None:
        reason = f"provider {candidate.target.provider} is not configured"
    elif feature not in provider.features:
        reason = f"provider {provider.name} does not offer {feature}"
    elif not candidate.model.offers(feature):
        reason = f"the model {candidate.model.name} does not offer {feature}"
    elif candidate.estimate_nano is None:
        reason = "price unknown"
    elif chat.max_cost and candidate.estimate_nano > limit_nano(chat.max_cost):
        reason = "may cost more than max_cost"
    return replace(candidate, excluded_because=reason) if reason else candidate


def _nothing_left(requested: str, excluded: Sequence[Candidate]) -> NoCandidateError | PriceUnknownError:
    if not excluded:
        return NoCandidateError("no model is configured that this key may use", model=requested)
    last = excluded[-1]
    if all(candidate.excluded_because == "price unknown" for candidate in excluded):
        return PriceUnknownError(
            f"the model {last.target.name} has no price; set `price` for it in omnihub.toml",
            model=last.target.name,
        )
    return NoCandidateError(
        f"no model is left for {requested!r}: {last.target.name}: {last.excluded_because}",
        model=requested,
        last_excluded=last.target.name,
        constraint=last.excluded_because,
    )
