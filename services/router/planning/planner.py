"""Plans requests: gathers what the domain decides from, all of it in memory, and lets it decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from omnihub.common.v1.chat_pb2 import ChatInput

from services.common.rpc import Identity
from services.credits.money import limit_nano
from services.credits.rating import bound, bound_at
from services.formats.turns import Turns, needed_capabilities, read_turns
from services.router.accounting.prices import Prices, PriceTable, Wanted
from services.router.asked import Asked
from services.router.domain.catalogue import AUTO, Catalogue, Model
from services.router.domain.estimate import LARGEST
from services.router.domain.limits import OrganisationRules
from services.router.domain.policy import (
    Exclusion,
    Option,
    Paused,
    Plan,
    Question,
    Room,
    decide,
    exclude,
    room_of,
)
from services.router.domain.routing import DEFAULT_POLICY, RoutingPolicy, Wishes, resolve
from services.router.domain.shortlist import automatic, eligible, of_plan, options_of
from services.router.domain.state import hidden_input, keeping_state, pinned_to
from services.router.domain.tasks import UNASKED, Detection
from services.router.domain.wording import typed_capabilities, typed_turns
from services.router.health.latency import Latencies
from services.router.planning.detection import Detector
from services.router.planning.sticky import Sticky
from services.router.settings import RouterSettings

# Sets of options that are kept; callers can name any model of a provider.
SHORTLISTS = 1000
# Version of a policy that is only tried: two of them have nothing in common.
TRIED = "tried"
NO_RULES = OrganisationRules()

Plans = Callable[[str], OrganisationRules | None]
"""The limits and the plan of an organisation; None when it has none."""
Policies = Callable[[str], RoutingPolicy]
"""The routing policy of an organisation."""


Bounds = Sequence[Callable[[int, int], int] | None]
"""The most that so many tokens, in and out, cost at each option; None without a price."""


@dataclass(frozen=True, slots=True)
class Quotes:
    """The prices of a shortlist's options, for as long as this edition of the prices is in force."""

    edition: object
    prices: PriceTable
    bounds: dict[tuple[str, bool, str], Bounds] = field(default_factory=dict)
    """By organisation, media and service tier."""


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The options of a model, and what excludes them whatever is asked of them."""

    models: Sequence[Model]
    options: Sequence[Option]
    scored: bool
    exclusions: dict[tuple[object, ...], Sequence[Exclusion | None]]
    room: Room
    quotes: dict[Wanted | None, Quotes] = field(default_factory=dict)
    """Prices, by the baseline that is asked for beside."""
    split: bool = False
    """Some model has versions: each request falls to one of them."""


class Planned(NamedTuple):
    """A plan, and what it was made with."""

    plan: Plan
    prices: PriceTable
    sticky_key: bytes
    detection: Detection


class Draft(NamedTuple):
    """A request that is ready to be decided."""

    question: Question
    shortlist: Shortlist
    quotes: Quotes
    bound_tokens: int
    sticky_key: bytes
    detection: Detection
    organisation_id: str


class Planner:
    """Owns the way from a request to its plan."""

    def __init__(
        self,
        settings: RouterSettings,
        prices: Prices,
        latencies: Latencies,
        detector: Detector,
        paused: Paused,
        policies: Policies = lambda _: DEFAULT_POLICY,
        plans: Plans = lambda _: None,
    ) -> None:
        self._settings = settings
        self._prices = prices
        self._latencies = latencies
        self._detector = detector
        self._paused = paused
        self._policies = policies
        self._plans = plans
        self.sticky = Sticky(settings.sticky_s)
        self._catalogue = Catalogue({})
        self._meanings: dict[tuple[str, str, str, str], Wishes] = {}
        self._shortlists: dict[tuple[str, tuple[str, ...], str, tuple[str, ...]], Shortlist] = {}

    async def plan(
        self, asked: Asked, identity: Identity, catalogue: Catalogue, unit: str, baseline: Wanted | None
    ) -> Planned:
        """Return the plan of a request. `unit` is what versions of a model are split by.

        Raises routing errors of the domain.
        """
        draft = await self.draft(asked, identity, catalogue, unit, baseline)
        return Planned(self.decide(draft, asked), draft.quotes.prices, draft.sticky_key, draft.detection)

    async def draft(
        self,
        asked: Asked,
        identity: Identity,
        catalogue: Catalogue,
        unit: str,
        baseline: Wanted | None = None,
        policy: RoutingPolicy | None = None,
    ) -> Draft:
        """Return what a request asks of the planner. Raises routing errors of the domain."""
        chat = asked.chat
        requested = chat.model or AUTO
        rules = self._plans(identity.organisation_id) or NO_RULES
        shortlist = self._shortlist(requested, identity.allowed_models, rules, catalogue, unit)
        policy = policy or self._policies(identity.organisation_id)
        wishes = self._resolve(chat, policy)
        bound_tokens, likely = asked.input_sizes
        if shortlist.scored and asked.feature != "embed":
            detection, sticky_key = await self._read(asked, identity, wishes)
        else:
            # Nothing is read without need.
            detection, sticky_key = self._detector.said(chat, asked.task) or UNASKED, b""
        question = Question(
            requested=requested,
            scored=shortlist.scored,
            task=detection.task,
            task_confidence=detection.confidence,
            task_source=detection.source,
            priority=wishes.priority,
            latency_pref=wishes.latency_pref,
            mode=wishes.mode,
            weights=wishes.weights,
            policy_version=policy.version,
            max_cost=limit_nano(chat.max_cost) if chat.max_cost else None,
            required=_required(asked, wishes, shortlist),
            region=chat.region,
            tier=rules.plan,
            feature=asked.feature,
            input_tokens=likely,
            output_tokens=min(LARGEST, asked.max_tokens),
            sticky=self.sticky.find(sticky_key) if sticky_key else "",
        )
        quotes = await self._quotes(shortlist, baseline)
        return Draft(
            question, shortlist, quotes, bound_tokens, sticky_key, detection, identity.organisation_id
        )

    def _resolve(self, chat: ChatInput, policy: RoutingPolicy) -> Wishes:
        """Return what a caller's words mean. Raises ConflictingOptionsError."""
        words = (policy.version, chat.priority, chat.latency_pref, chat.mode)
        known = self._meanings.get(words)
        if known is None or policy.version == TRIED:
            known = resolve(chat.priority, chat.latency_pref, chat.mode, policy)
            if len(self._meanings) >= SHORTLISTS:
                self._meanings.clear()
            self._meanings[words] = known
        return known

    def decide(self, draft: Draft, asked: Asked) -> Plan:
        """Return the plan of a draft. Raises NoCandidateError, PriceUnknownError."""
        options = draft.shortlist.options
        plan = decide(
            draft.question,
            options,
            self._exclusions(draft),
            self._estimates(draft, asked),
            self._latencies.of_all([option.target for option in options]),
            self._paused,
            room=draft.shortlist.room,
        )
        if asked.pinned:
            return pinned_to(plan, asked.pinned)
        return keeping_state(plan, self._catalogue) if asked.vendor_bound else plan

    async def _quotes(self, shortlist: Shortlist, baseline: Wanted | None) -> Quotes:
        """Return the prices of a shortlist's options, asked for again only when they may have changed."""
        edition = self._prices.edition
        found = shortlist.quotes.get(baseline)
        if found is None or found.edition is not edition:
            prices = await self._prices.of(_wanted(shortlist.options, baseline))
            found = shortlist.quotes[baseline] = Quotes(edition, prices)
        return found

    def _estimates(self, draft: Draft, asked: Asked) -> list[int | None]:
        """Return the most a request can cost at each option."""
        options, media = draft.shortlist.options, asked.media
        if asked.stateful:
            return [self.estimate(draft, option, asked, media=media) for option in options]
        tokens, bounds = draft.bound_tokens, self._bounds(draft, media, asked.service_tier)
        if asked.max_tokens and asked.feature != "embed":
            most = min(LARGEST, asked.choices * asked.max_tokens)
            return [None if bound_of is None else bound_of(tokens, most) for bound_of in bounds]
        return [
            None if bound_of is None else bound_of(tokens, self.output_bound(asked, option.model))
            for option, bound_of in zip(options, bounds, strict=True)
        ]

    def _bounds(self, draft: Draft, media: bool, service_tier: str) -> Bounds:
        prices, known = draft.quotes.prices, draft.quotes.bounds
        margins = prices.margins
        key = draft.organisation_id if margins else "", media, service_tier
        found = known.get(key)
        if found is None:
            found = []
            for option in draft.shortlist.options:
                price = prices[option.target, option.model.priced_as]
                margin = margins.of(draft.organisation_id, option.target.name)
                at = (
                    None if price is None else bound_at(price, margin, media=media, service_tier=service_tier)
                )
                found.append(at)
            if len(known) >= SHORTLISTS:
                known.clear()
            known[key] = found
        return found

    def estimate(self, draft: Draft, option: Option, asked: Asked, *, media: bool) -> int | None:
        """Return the most a request can cost at an option, in nano-credits; None without a price."""
        price = draft.quotes.prices[option.target, option.model.priced_as]
        if price is None:
            return None
        tokens = draft.bound_tokens
        if asked.stateful:
            tokens = max(tokens, hidden_input(option.model, price))
        return bound(
            tokens,
            self.output_bound(asked, option.model),
            price,
            draft.quotes.prices.margins.of(draft.organisation_id, option.target.name),
            media=media,
            service_tier=asked.service_tier,
        )

    def output_bound(self, asked: Asked, model: Model) -> int:
        """Return for how many output tokens credits are reserved at first."""
        if asked.feature == "embed":
            return 0
        return min(LARGEST, asked.choices * (asked.max_tokens or self.output_cap(model)))

    def output_cap(self, model: Model) -> int:
        """Return the limit of output tokens of a model whose caller names none."""
        default = self._settings.default_output_tokens
        return min(default, model.max_output or default)

    def _shortlist(
        self,
        requested: str,
        allowed: tuple[str, ...],
        rules: OrganisationRules,
        catalogue: Catalogue,
        unit: str,
    ) -> Shortlist:
        """Return the options of what was requested. Raises ModelNotFoundError, ModelNotAllowedError."""
        if catalogue is not self._catalogue or len(self._shortlists) > SHORTLISTS:
            self._shortlists = {}
            self._catalogue = catalogue
        key = requested, allowed, rules.plan, rules.allowed_models
        found = self._shortlists.get(key)
        if found is None:
            models = of_plan(eligible(requested, catalogue, allowed), requested, rules)
            scored = automatic(requested, catalogue)
            split = any(model.versions for model in models)
            options = options_of(models, catalogue)
            found = Shortlist(models, options, scored, {}, room_of(options), split=split)
            self._shortlists[key] = found
        if found.split:
            models = [model.split(unit) for model in found.models]
            options = options_of(models, catalogue)
            return Shortlist(models, options, found.scored, {}, room_of(options), split=True)
        return found

    def _exclusions(self, draft: Draft) -> Sequence[Exclusion | None]:
        question, shortlist = draft.question, draft.shortlist
        key = (question.feature, question.required, question.region, question.tier)
        found = shortlist.exclusions.get(key)
        if found is None:
            found = [exclude(option, question) for option in shortlist.options]
            if len(shortlist.exclusions) < SHORTLISTS:
                shortlist.exclusions[key] = found
        return found

    async def _read(self, asked: Asked, identity: Identity, wishes: Wishes) -> tuple[Detection, bytes]:
        """Return the task, and what the conversation is remembered by."""
        said = self._detector.said(asked.chat, asked.task)
        turns = turns_of(asked)
        words = f"{wishes.priority}\0{wishes.latency_pref}\0{wishes.mode}"
        key = self.sticky.key(identity.organisation_id, words, turns.beginning)
        return said or await self._detector.detect(turns), key


def turns_of(asked: Asked) -> Turns:
    """Return what is read of a conversation."""
    return read_turns(asked.messages) if asked.raw_body else typed_turns(asked.chat)


def _required(asked: Asked, wishes: Wishes, shortlist: Shortlist) -> tuple[str, ...]:
    """Return the capabilities a model must have."""
    options, scored = shortlist.options, shortlist.scored
    implied: set[str] = set()
    if (scored or len(options) > 1) and asked.feature != "embed":
        if asked.raw_body:
            implied = needed_capabilities(asked.raw_body, tools=asked.tools, json=asked.json)
        else:
            implied = typed_capabilities(asked.chat, json=asked.json)
        if implied and not scored and not any(implied <= option.capabilities for option in options):
            # Who named the model has chosen: its providers judge.
            implied = set()
    if not (implied or asked.chat.require or wishes.require):
        return ()
    required = implied.union(asked.chat.require, wishes.require if scored else ())
    return tuple(sorted(required))


def _wanted(options: Sequence[Option], baseline: Wanted | None) -> list[Wanted]:
    wanted = [(option.target, option.model.priced_as) for option in options]
    if baseline is not None:
        wanted.append(baseline)
    return wanted
