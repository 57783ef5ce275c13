"""The choice: which targets to ask, in which order, and why not the others. Pure and replayable.

Hard filters first, each exclusion with its reason, then

    score = w_cost * (1 - cost / dearest) + w_latency * (1 - latency / slowest) + w_task * task_match

over the candidates that are left. Nothing here reads a clock, a file or a random number: the same
question over the same options gives the same plan, for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, repeat
from operator import itemgetter
from typing import NamedTuple

from services.credits.money import LARGEST_NANO, format_nano
from services.router.domain.catalogue import Model, Target
from services.router.domain.errors import NoCandidateError, PriceUnknownError
from services.router.domain.estimate import LARGEST
from services.router.domain.routing import Weights

# Of the rules on this page; a stored decision names the one it was made by.
ALGORITHM = 1
# Of a model that nobody has judged: neither good nor bad.
UNKNOWN_MATCH = 0.5
UNLIMITED = LARGEST_NANO
_TASK_ALONE = Weights(0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a target before any request comes."""

    target: Target
    model: Model
    """The model that lists the target."""
    position: int = 0
    """Its place in the model's route."""
    features: frozenset[str] = frozenset()
    """What its provider offers: chat, stream, embed, ..."""
    capabilities: frozenset[str] = frozenset()
    """What the model can do."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """How good it is at each task, from 0 to 1."""
    usual_match: float = UNKNOWN_MATCH
    """The same for tasks that are not among its strengths."""
    context_length: int = 0
    """Tokens; 0 means unknown."""
    max_output: int = 0
    """Tokens; 0 means unknown."""
    regions: frozenset[str] = frozenset()
    """Where it runs; empty means unknown."""
    tiers: frozenset[str] = frozenset()
    """Plans that may use it; empty means all."""
    problem: str = ""
    """Why it cannot be asked at all."""


@dataclass(slots=True, kw_only=True)
class Question:
    """What one request asks of the planner. Not frozen: each request makes one, in a third of the time."""

    requested: str
    scored: bool
    """The model was left to us; otherwise the route's own order holds."""
    task: str = "chat"
    task_confidence: float = 1.0
    task_source: str = ""
    """Who said so: caller, request, local or model."""
    priority: str = ""
    latency_pref: str = ""
    mode: str = ""
    weights: Weights = _TASK_ALONE
    policy_version: str = ""
    max_cost: int | None = None
    """Nano-credits."""
    required: tuple[str, ...] = ()
    """Capabilities."""
    region: str = ""
    tier: str = ""
    """The organisation's plan; empty where there are no plans."""
    feature: str = "chat"
    input_tokens: int = 0
    """About how many."""
    output_tokens: int = 0
    """The caller's own limit; 0 without one."""
    sticky: str = ""
    """The target that has this conversation's beginning in its cache."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why a candidate is not considered."""

    constraint: str
    """The constraint's name, such as max_cost."""
    because: str


class Candidate(NamedTuple):
    """A target that was looked at. A tuple: there can be a thousand for one request."""

    option: Option
    estimate_nano: int | None
    latency_ms: int = 0
    """Measured; 0 when nothing was."""
    match: float = UNKNOWN_MATCH
    """How well it fits the task, from 0 to 1."""
    score: float = 0.0
    exclusion: Exclusion | None = None
    """Why it is not considered; None when it is."""

    @property
    def target(self) -> Target:
        """Return who is asked."""
        return self.option.target

    @property
    def model(self) -> Model:
        """Return the model that lists the target."""
        return self.option.model

    @property
    def excluded_because(self) -> str:
        """Return why it is not considered; empty when it is."""
        return "" if self.exclusion is None else self.exclusion.because


class Scale(NamedTuple):
    """What costs and latencies are measured against: the largest among the candidates left."""

    dearest: int
    slowest_ms: int
    typical_ms: float
    """Taken for a target that was never measured."""


class Room(NamedTuple):
    """Tokens that every one of some options has room for, as far as is known."""

    context: int
    output: int


@dataclass(slots=True)
class Plan:
    """What to ask, best first, and what was left out. Not frozen, as its candidates are not."""

    requested: str
    task: str
    chain: tuple[Candidate, ...]
    excluded: tuple[Candidate, ...]
    question: Question
    decided: tuple[Candidate, ...] = ()
    """The chain as it was decided, whatever a strategy makes of it."""
    scale: Scale | None = None
    paused: Mapping[Target, str] = field(default_factory=dict)
    """Candidates that were better left alone, and why: they stand last."""
    stuck: bool = False
    """The first one stands there because of the conversation's beginning."""


Paused = Callable[[Target], str]
"""Why a target is better left alone now; empty when it may be asked."""


def never_paused(_: Target) -> str:
    """Say that every target may be asked."""
    return ""


def exclude(option: Option, question: Question) -> Exclusion | None:
    """Apply the filters that need neither price nor size. The answer can be kept for the next request."""
    if option.problem:
        return Exclusion("provider", option.problem)
    if question.feature not in option.features:
        return Exclusion("feature", f"{option.target.name} does not offer {question.feature}")
    if option.tiers and question.tier and question.tier not in option.tiers:
        plans = " or ".join(sorted(option.tiers))
        return Exclusion("plan", f"it needs the plan {plans}, not {question.tier}")
    if question.region and not runs_in(question.region, option.regions):
        where = ", ".join(sorted(option.regions)) or "no region that is known"
        return Exclusion("region", f"it runs in {where}, not in {question.region}")
    missing = [capability for capability in question.required if capability not in option.capabilities]
    if missing:
        return Exclusion("capabilities", f"it lacks {', '.join(missing)}")
    return None


def runs_in(region: str, known: frozenset[str]) -> bool:
    """Tell whether a target computes in a region and nowhere else. `eu` holds `eu-west-1`."""
    return bool(known) and all(each == region or each.startswith(f"{region}-") for each in known)


def room_of(options: Iterable[Option]) -> Room:
    """Return the tightest sizes among options. It can be kept for the next request."""
    contexts = [option.context_length for option in options if option.context_length]
    outputs = [option.max_output for option in options if option.max_output]
    return Room(min(contexts, default=LARGEST), min(outputs, default=LARGEST))


def _largest(exclusions: Sequence[Exclusion | None], estimates: Sequence[int | None]) -> int:
    """Return the largest estimate where nobody is excluded already, as is usual; else -1."""
    if any(exclusions) or None in estimates:
        return -1
    return max(estimates) if estimates else -1  # type: ignore[type-var, return-value]


def decide(
    question: Question,
    options: Sequence[Option],
    exclusions: Sequence[Exclusion | None],
    estimates: Sequence[int | None],
    latencies: Sequence[int],
    paused: Paused = never_paused,
    scale: Scale | None = None,
    room: Room | None = None,
) -> Plan:
    """Return the plan for a question. The sequences belong together, one entry for each option.

    `estimates` are the most a request can cost, in nano-credits, None without a price; `latencies`
    milliseconds, 0 where nothing was measured. `scale` is given when only a part of the options is at
    hand; `room` spares a look at the size of each. Raises NoCandidateError, PriceUnknownError.
    """
    task, scored = question.task, question.scored
    limit = UNLIMITED if question.max_cost is None else question.max_cost
    # What a caller named is asked even when it may be too small: its provider knows best.
    output = question.output_tokens if scored else 0
    needed = question.input_tokens + output if scored else 0
    matches = [option.strengths.get(task, option.usual_match) for option in options]
    excluded: tuple[Candidate, ...] = ()
    roomy = room is not None and needed <= room.context and output <= room.output
    largest = _largest(exclusions, estimates) if roomy else -1
    if not 0 <= largest <= limit:
        largest = -1
        fit = [
            exclusion is None
            and estimate is not None
            and estimate <= limit
            and not needed > option.context_length > 0
            and not (output and output > option.max_output > 0)
            for option, exclusion, estimate in zip(options, exclusions, estimates, strict=True)
        ]
        rows = zip(options, exclusions, estimates, latencies, matches, fit, strict=True)
        excluded = tuple(
            [
                Candidate(option, estimate, latency, match, 0.0, why or _sized(option, question, estimate))
                for option, why, estimate, latency, match, fits in rows
                if not fits
            ]
        )
        options, estimates = list(compress(options, fit)), list(compress(estimates, fit))
        latencies, matches = list(compress(latencies, fit)), list(compress(matches, fit))
    if not options:
        raise _nothing_left(Plan(question.requested, task, (), excluded, question))
    # None is left among the estimates of those that are kept.
    costs: Sequence[int] = estimates  # type: ignore[assignment]
    if not scored:
        places = [1.0 - position / 100 for position in range(len(options))]
        route = tuple(map(_candidate, zip(options, costs, latencies, matches, places, repeat(None))))
        return Plan(question.requested, task, route, excluded, question, route)
    scale = scale or _scale(max(costs) if largest < 0 else largest, latencies)
    chain = _scored(options, costs, latencies, matches, question.weights, scale)
    waiting = {} if paused is never_paused else _put_last(chain, paused)
    stuck = bool(question.sticky) and _stick(chain, question.sticky, waiting)
    order = tuple(chain)
    return Plan(question.requested, task, order, excluded, question, order, scale, waiting, stuck)


def _sized(option: Option, question: Question, estimate: int | None) -> Exclusion:
    """Return why an option is excluded by its price or its size."""
    needed, output = question.input_tokens + question.output_tokens, question.output_tokens
    if estimate is None:
        return Exclusion("price", "price unknown")
    if question.scored and needed > option.context_length > 0:
        text = f"about {needed} tokens do not fit its context of {option.context_length}"
        return Exclusion("context_length", text)
    if question.scored and output > option.max_output > 0:
        text = f"max_tokens {output} is more than its output limit of {option.max_output}"
        return Exclusion("max_tokens", text)
    text = f"may cost more than max_cost: {format_nano(estimate)} > {format_nano(question.max_cost or 0)}"
    return Exclusion("max_cost", text)


def _scale(dearest: int, latencies: Sequence[int]) -> Scale:
    total = sum(latencies)
    # Nobody is taken for the fastest, or the slowest, for want of a measurement.
    typical = total / (len(latencies) - latencies.count(0)) if total else 0.0
    return Scale(dearest, max(latencies), typical)


# From a tuple of its fields, without the detour of a call for each.
_candidate = partial(tuple.__new__, Candidate)


def _scored(
    options: Sequence[Option],
    estimates: Sequence[int],
    latencies: Sequence[int],
    matches: Sequence[float],
    weights: Weights,
    scale: Scale,
) -> list[Candidate]:
    """Return the candidates, the best first."""
    cost_weight, latency_weight, task_weight = weights.cost, weights.latency, weights.task
    dearest, slowest, typical = scale.dearest or 1, scale.slowest_ms or 1, scale.typical_ms
    scores = [
        cost_weight * (1 - estimate / dearest)
        + latency_weight * (1 - (latency or typical) / slowest)
        + task_weight * match
        for estimate, latency, match in zip(estimates, latencies, matches, strict=True)
    ]
    chain = list(map(_candidate, zip(options, estimates, latencies, matches, scores, repeat(None))))
    chain.sort(key=_by_score, reverse=True)
    if len({*scores}) < len(scores):
        # Whoever is cheaper, faster and better does not lose a draw that comes from rounding.
        chain.sort(key=lambda candidate: (-candidate.score, candidate.estimate_nano or 0))
    return chain


def _put_last(chain: list[Candidate], paused: Paused) -> dict[Target, str]:
    """Put those better left alone last. Returns why they are."""
    waiting = {each.target: objection for each in chain if (objection := paused(each.target))}
    if waiting:
        chain.sort(key=lambda candidate: candidate.target in waiting)
    return waiting


_by_score = itemgetter(4)


def _stick(chain: list[Candidate], sticky: str, waiting: Mapping[Target, str]) -> bool:
    """Let a conversation keep its model, if that can be asked. Tells whether it does."""
    for position, candidate in enumerate(chain):
        if candidate.target.name == sticky and candidate.target not in waiting:
            chain.insert(0, chain.pop(position))
            return True
    return False


# The order of the filters: who is excluded by a later one came further.
_ORDER = ("provider", "feature", "plan", "region", "capabilities", "price", "context_length", "max_tokens")


def _nothing_left(plan: Plan) -> NoCandidateError | PriceUnknownError:
    requested, excluded = plan.requested, plan.excluded
    if not excluded:
        return NoCandidateError("no model is configured that this key may use", model=requested)
    ranks = {name: rank for rank, name in enumerate(_ORDER)}
    last = max(excluded, key=lambda candidate: ranks.get(constraint_of(candidate), len(_ORDER)))
    name = last.target.name
    error: NoCandidateError | PriceUnknownError
    if all(constraint_of(candidate) == "price" for candidate in excluded):
        text = f"the model {name} has no price; set `price` for it in omnihub.toml"
        error = PriceUnknownError(text, model=name)
    else:
        counts = Counter(constraint_of(candidate) for candidate in excluded)
        others = ", ".join(f"{count} by {constraint}" for constraint, count in counts.most_common())
        text = f"no model is left for {requested!r}: {name}: {last.excluded_because}"
        text += f" (excluded: {others})" if len(excluded) > 1 else ""
        error = NoCandidateError(text, model=requested, last_excluded=name, constraint=constraint_of(last))
    error.plan = plan
    return error


def constraint_of(candidate: Candidate) -> str:
    """Return the name of the constraint that excludes a candidate; empty when none does."""
    return "" if candidate.exclusion is None else candidate.exclusion.constraint
