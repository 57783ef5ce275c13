"""A plan as a decision keeps it, and the same plan decided again from what was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from omnihub.router.v1 import planning_pb2 as pb
from omnihub.router.v1.decision_pb2 import Candidate as CandidateRecord
from omnihub.router.v1.decision_pb2 import Decision

from services.credits.money import format_nano, parse_nano
from services.router.domain.catalogue import Model, Target
from services.router.domain.errors import RoutingError
from services.router.domain.policy import (
    ALGORITHM,
    Candidate,
    Exclusion,
    Option,
    Plan,
    Question,
    Scale,
    constraint_of,
    decide,
    exclude,
)
from services.router.domain.routing import Weights
from services.router.settings import RouteSettings

# What a decision keeps, so that its size does not grow with the catalogue.
CHAIN_LIMIT = 32
EXCLUDED_LIMIT = 16
LIST_LIMIT = 16
# Options whose description is kept between requests.
DESCRIPTIONS = 5000
# Added to a plan after it was decided, from facts of the request that are not kept.
GIVEN = frozenset({"state"})


def inputs_of(plan: Plan) -> pb.PlannerInputs:
    """Return what a plan was decided from, without its candidates."""
    question, scale = plan.question, plan.scale
    inputs = pb.PlannerInputs(
        algorithm=ALGORITHM,
        scored=question.scored,
        task=question.task,
        task_confidence=question.task_confidence,
        task_source=question.task_source,
        policy_version=question.policy_version,
        required=question.required,
        region=question.region,
        tier=question.tier,
        feature=question.feature,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
    )
    if question.max_cost is not None:
        inputs.max_cost = format_nano(question.max_cost)
    if question.scored:
        inputs.priority, inputs.latency_pref = question.priority, question.latency_pref
        inputs.mode, inputs.sticky, inputs.stuck = question.mode, question.sticky, plan.stuck
        weights = question.weights
        inputs.weights.cost, inputs.weights.latency = weights.cost, weights.latency
        inputs.weights.task = weights.task
    if scale is not None:
        inputs.dearest = format_nano(scale.dearest)
        inputs.slowest_ms, inputs.typical_ms = scale.slowest_ms, scale.typical_ms
    left_out = max(0, len(plan.chain) - CHAIN_LIMIT) + max(0, len(plan.excluded) - EXCLUDED_LIMIT)
    inputs.omitted = left_out
    return inputs


def add_candidates(
    add: Callable[[], CandidateRecord],
    plan: Plan,
    skipped: Mapping[Target, str],
    *,
    whole: bool = False,
) -> None:
    """Write a plan's candidates: the chain, then those excluded. `skipped` were left out in their turn.

    Into the places that `add` returns: messages made apart are written and read again to get there.
    """
    ranks = {id(candidate): rank for rank, candidate in enumerate(plan.decided, 1)}
    for candidate in islice(plan.chain, None if whole else CHAIN_LIMIT):
        record = add()
        _write(record, candidate, plan)
        record.rank = ranks.get(id(candidate), 0)
        if skipped and (objection := skipped.get(candidate.target)):
            record.skipped, record.excluded_because = True, objection
    for candidate in islice(_one_of_each_first(plan.excluded), None if whole else EXCLUDED_LIMIT):
        _write(add(), candidate, plan)


def _one_of_each_first(excluded: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return excluded candidates so that each constraint is among the first: those are kept."""
    if len(excluded) <= EXCLUDED_LIMIT:
        return excluded
    examples = {constraint_of(candidate): candidate for candidate in reversed(excluded)}
    return [*examples.values(), *(each for each in excluded if examples[constraint_of(each)] is not each)]


def _write(record: CandidateRecord, candidate: Candidate, plan: Plan) -> None:
    option, question = candidate.option, plan.question
    record.CopyFrom(_described(option))
    record.score = candidate.score
    if candidate.estimate_nano is not None:
        record.estimated_cost = format_nano(candidate.estimate_nano)
    if candidate.exclusion is not None:
        record.excluded_because = candidate.exclusion.because
        record.constraint = candidate.exclusion.constraint
    facts = record.facts
    facts.latency_ms = candidate.latency_ms
    facts.task_match = candidate.match
    facts.offered = question.feature in option.features
    if question.required:
        facts.capabilities.extend(each for each in question.required if each in option.capabilities)
    if plan.paused:
        facts.paused = plan.paused.get(option.target, "")
    if plan.scale is not None and candidate.exclusion is None:
        weights, scale = question.weights, plan.scale
        parts = record.parts
        parts.cost = weights.cost * (1 - (candidate.estimate_nano or 0) / (scale.dearest or 1))
        latency = candidate.latency_ms or scale.typical_ms
        parts.latency = weights.latency * (1 - latency / (scale.slowest_ms or 1))
        parts.task = weights.task * candidate.match


# What the record of an option says whatever is asked of it, by the option's identity: comparing options,
# which hold whole models, would cost more than writing it anew.
_descriptions: dict[int, tuple[Option, CandidateRecord]] = {}


def _described(option: Option) -> CandidateRecord:
    known = _descriptions.get(id(option))
    if known is not None and known[0] is option:
        return known[1]
    record = CandidateRecord(target=option.target.name)
    facts = record.facts
    facts.model = option.model.name
    facts.context_length, facts.max_output = option.context_length, option.max_output
    facts.problem = option.problem
    facts.regions.extend(sorted(option.regions)[:LIST_LIMIT])
    facts.tiers.extend(sorted(option.tiers)[:LIST_LIMIT])
    if len(_descriptions) >= DESCRIPTIONS:
        _descriptions.clear()
    _descriptions[id(option)] = option, record
    return record


# Who is asked how does not matter to a decision.
_SETTINGS = RouteSettings(route=["replayed/model"])


def replay(decision: Decision) -> list[str]:
    """Decide again from what a decision has kept. Returns how the outcome differs; nothing when it agrees.

    Raises ValueError for a decision that was made by other rules, or that kept no inputs.
    """
    inputs = decision.inputs
    if not decision.HasField("inputs"):
        raise ValueError("it was refused before there was anything to plan, or made before inputs were kept")
    if inputs.algorithm != ALGORITHM:
        raise ValueError(f"it was made by rules {inputs.algorithm}; this program has rules {ALGORITHM}")
    chain = sorted((each for each in decision.candidates if each.rank), key=lambda each: each.rank)
    recorded = [*chain, *(each for each in decision.candidates if not each.rank)]
    question = _question(decision)
    options = [_option(each, question) for each in recorded]
    exclusions = [
        Exclusion(each.constraint, each.excluded_because)
        if each.constraint in GIVEN
        else exclude(option, question)
        for each, option in zip(recorded, options, strict=True)
    ]
    paused = {
        option.target: each.facts.paused
        for each, option in zip(recorded, options, strict=True)
        if each.facts.paused
    }
    scale = None
    if inputs.dearest:
        scale = Scale(parse_nano(inputs.dearest), inputs.slowest_ms, inputs.typical_ms)
    try:
        plan = decide(
            question,
            options,
            exclusions,
            [parse_nano(each.estimated_cost) if each.estimated_cost else None for each in recorded],
            [each.facts.latency_ms for each in recorded],
            lambda target: paused.get(target, ""),
            scale,
        )
    except RoutingError as error:
        if error.plan is None or decision.reason != error.reason:
            return [f"recorded {decision.reason or 'a chain'}, replayed {error.reason}"]
        plan = error.plan
    return list(_differences(chain, recorded[len(chain) :], plan, inputs))


def _question(decision: Decision) -> Question:
    inputs = decision.inputs
    weights = inputs.weights
    return Question(
        requested=decision.requested_model,
        scored=inputs.scored,
        task=inputs.task,
        weights=Weights(weights.cost, weights.latency, weights.task),
        max_cost=parse_nano(inputs.max_cost) if inputs.max_cost else None,
        required=tuple(inputs.required),
        region=inputs.region,
        tier=inputs.tier,
        feature=inputs.feature,
        input_tokens=inputs.input_tokens,
        output_tokens=inputs.output_tokens,
        sticky=inputs.sticky,
    )


def _option(record: CandidateRecord, question: Question) -> Option:
    facts = record.facts
    target = Target.parse(record.target)
    return Option(
        target=target,
        model=Model(facts.model, (target,), _SETTINGS),
        features=frozenset({question.feature}) if facts.offered else frozenset(),
        capabilities=frozenset(facts.capabilities),
        usual_match=facts.task_match,
        context_length=facts.context_length,
        max_output=facts.max_output,
        regions=frozenset(facts.regions),
        tiers=frozenset(facts.tiers),
        problem=facts.problem,
    )


def _differences(
    chain: list[CandidateRecord],
    excluded: list[CandidateRecord],
    plan: Plan,
    inputs: pb.PlannerInputs,
) -> Iterator[str]:
    targets, replayed_targets = _names(chain), [candidate.target.name for candidate in plan.chain]
    if targets != replayed_targets:
        yield f"recorded chain {', '.join(targets)}; replayed {', '.join(replayed_targets)}"
        return
    for record, candidate in zip(chain, plan.chain, strict=True):
        if record.score != candidate.score:
            yield f"{record.target}: recorded score {record.score}, replayed {candidate.score}"
    replayed = {candidate.target.name: candidate for candidate in plan.excluded}
    for record in excluded:
        other = replayed.get(record.target)
        if other is None:
            yield f"{record.target}: recorded as excluded, replayed in the chain"
        elif (record.constraint, record.excluded_because) != (constraint_of(other), other.excluded_because):
            before, after = record.excluded_because, other.excluded_because
            yield f"{record.target}: recorded {before!r}, replayed {after!r}"
    if inputs.scored and chain and inputs.stuck != plan.stuck:
        yield f"recorded stuck={inputs.stuck}, replayed {plan.stuck}"


def _names(records: Iterable[CandidateRecord]) -> list[str]:
    return [record.target for record in records]
