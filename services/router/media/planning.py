"""Where a generation may be made: the targets of its model that make this kind and have a price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.common.v1.media_pb2 import MediaUsage
from omnihub.provider.v1.media_provider_service_pb2 import MediaCapabilities
from omnihub.router.v1 import media_router_service_pb2 as pb

from services.credits.media_rating import bound_media, covers_media, expected_of
from services.credits.money import parse_nano
from services.router.domain.catalogue import AUTO, Catalogue, Model, Provider, Target, may_use
from services.router.domain.errors import NoCandidateError, PriceUnknownError
from services.router.domain.limits import OrganisationRules
from services.router.domain.shortlist import of_plan
from services.router.settings import RouteSettings

PriceOf = Callable[[Target, Model], Price | None]
MarginOf = Callable[[Target], Margin | None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target of a model."""

    target: Target
    model: Model


def candidates(
    request: pb.PlanMediaRequest,
    catalogue: Catalogue,
    makers: Mapping[str, MediaCapabilities],
    rules: OrganisationRules | None = None,
) -> Sequence[Candidate]:
    """Return what may be asked, best first. Raises ModelNotFoundError, ModelNotAllowedError.

    `rules`: the organisation's plan, which may allow less than the key does.
    """
    allowed = tuple(request.allowed_models)
    if request.model and request.model != AUTO:
        models: Iterable[Model] = [_named(request.model, catalogue, makers, allowed)]
    else:
        models = [*catalogue.usable(allowed), *_of_this_machine(makers, allowed)]
    if rules is not None:
        models = of_plan(list(models), request.model or AUTO, rules)
    return [Candidate(target, model) for model in models for target in model.targets]


def _named(
    name: str, catalogue: Catalogue, makers: Mapping[str, MediaCapabilities], allowed: tuple[str, ...]
) -> Model:
    """Find a model by name, also at a provider that makes nothing but media."""
    others = {
        provider: Provider(provider, maker.adapter, frozenset(), maker.synthetic)
        for provider, maker in makers.items()
    }
    return replace(catalogue, providers={**others, **catalogue.providers}).find(name, allowed)


def _of_this_machine(makers: Mapping[str, MediaCapabilities], allowed: tuple[str, ...]) -> list[Model]:
    """Return what needs no configuration: the makers that are rules, when nothing else makes a kind."""
    found = []
    for name, maker in makers.items():
        target = Target(name, "default")
        if maker.synthetic and may_use(target.name, allowed):
            found.append(Model(target.name, (target,), RouteSettings(route=[target.name]), configured=False))
    return found


def plan(
    request: pb.PlanMediaRequest,
    given: Sequence[Candidate],
    makers: Mapping[str, MediaCapabilities],
    price_of: PriceOf,
    margin_of: MarginOf,
) -> pb.PlanMediaResponse:
    """Return the plan of a request. Raises NoCandidateError, PriceUnknownError."""
    kind = request.input.WhichOneof("kind") or ""
    limit = parse_nano(request.max_cost) if request.max_cost else None
    automatic = not request.model or request.model == AUTO
    response = pb.PlanMediaResponse(requested_model=request.model or AUTO)
    expected = expected_of(request.input)
    unpriced = 0
    for candidate in given:
        target = candidate.target
        maker = makers.get(target.provider)
        because = ""
        if maker is None or kind not in maker.kinds:
            because = f"provider {target.provider} does not make {kind}"
        elif automatic and not _known_to_make(maker, kind, target.model):
            because = f"not known to make {kind}: name the model to use it all the same"
        else:
            price = price_of(target, candidate.model)
            if price is None or not covers_media(price):
                because, unpriced = "price unknown", unpriced + 1
            else:
                planned = _target(candidate, maker, kind, price, margin_of(target), expected)
                if limit is None or planned.estimate_nano_credits <= limit:
                    response.targets.append(planned)
                    continue
                because = "may cost more than max_cost"
        response.excluded.append(pb.MediaExclusion(target=target.name, because=because))
    if not response.targets:
        raise _nothing_left(response, kind, unpriced)
    return response


def only_at(provider: str, planned: pb.PlanMediaResponse) -> pb.PlanMediaResponse:
    """Return a plan with the targets of one provider. Raises NoCandidateError when there are none."""
    able = [target for target in planned.targets if target.provider == provider]
    if not able:
        message = f"what this needs is at {provider}: name a model of {provider}"
        raise NoCandidateError(message, model=planned.requested_model)
    return pb.PlanMediaResponse(
        targets=able, excluded=planned.excluded, requested_model=planned.requested_model
    )


def _known_to_make(maker: MediaCapabilities, kind: str, model: str) -> bool:
    """Tell whether a model's name says that it makes `kind`; true where names say nothing."""
    patterns = [pattern for each in maker.models if each.kind == kind for pattern in each.patterns]
    return not patterns or any(fnmatchcase(model, pattern) for pattern in patterns)


def _target(
    candidate: Candidate,
    maker: MediaCapabilities,
    kind: str,
    price: Price,
    margin: Margin | None,
    expected: MediaUsage,
) -> pb.MediaTarget:
    return pb.MediaTarget(
        provider=candidate.target.provider,
        model=candidate.target.model,
        estimate_nano_credits=bound_media(expected, price, margin),
        price=price,
        margin=margin,
        expected=expected,
        immediate=kind in maker.immediate,
        cancels=maker.cancels,
        webhooks=maker.webhooks,
        idempotent=maker.idempotent,
        finds=maker.finds,
        synthetic=maker.synthetic,
        concurrency=maker.concurrency,
        streams_speech=maker.streams_speech and kind == "speech",
    )


def _nothing_left(
    response: pb.PlanMediaResponse, kind: str, unpriced: int
) -> NoCandidateError | PriceUnknownError:
    if not response.excluded:
        message = f"no model that makes {kind} is configured for this key"
        return NoCandidateError(message, model=response.requested_model)
    last = response.excluded[-1]
    if unpriced == len(response.excluded):
        return PriceUnknownError(
            f"{last.target} has no price; set `price` for it in omnihub.toml", model=last.target
        )
    return NoCandidateError(
        f"nothing is left to make {kind}: {last.target}: {last.because}",
        model=response.requested_model,
        last_excluded=last.target,
        constraint=last.because,
    )
