"""Where a generation may be made."""

from __future__ import annotations

import pytest
from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.common.v1.media_pb2 import ImageInput, MediaInput, SpeechInput
from omnihub.provider.v1.media_provider_service_pb2 import KindModels, MediaCapabilities
from omnihub.router.v1 import media_router_service_pb2 as pb

from services.router.domain.catalogue import Catalogue, Model, Provider, Target
from services.router.domain.errors import (
    ModelNotAllowedError,
    ModelNotFoundError,
    NoCandidateError,
    PriceUnknownError,
)
from services.router.media.planning import candidates, plan
from services.router.settings import RouteSettings

MAKERS = {
    maker.provider: maker
    for maker in (
        MediaCapabilities(
            provider="local",
            kinds=["image"],
            immediate=["image"],
            synthetic=True,
            models=[KindModels(kind="image", patterns=["default"])],
        ),
        MediaCapabilities(
            provider="openai",
            kinds=["image", "speech"],
            streams_speech=True,
            models=[KindModels(kind="image", patterns=["gpt-image-*"])],
        ),
        MediaCapabilities(provider="eleven", kinds=["speech"], streams_speech=True),
    )
}
PRICE = Price(version="p1", image_pico=10**10, character_pico=10**7, source="configured")
FREE = Price(source="free")
MARGIN = Margin(version="m1", basis_points=2500)


def planned(
    kind: str = "image", routes: dict[str, list[str]] | None = None, **fields
) -> pb.PlanMediaResponse:
    settings = {name: RouteSettings(route=route) for name, route in (routes or {}).items()}
    settings.setdefault("local/echo", RouteSettings(route=["local/echo"]))
    known = [Provider(name, name, frozenset(), name == "local") for name in ("local", "openai", "wall")]
    catalogue = Catalogue.build(settings, known)
    given = (
        MediaInput(image=ImageInput(prompt="x"))
        if kind == "image"
        else MediaInput(speech=SpeechInput(text="x"))
    )
    request = pb.PlanMediaRequest(input=given, **fields)

    def price_of(target: Target, model: Model) -> Price | None:
        if target.model == "unpriced":
            return None
        return FREE if target.provider == "local" else PRICE

    def margin_of(target: Target) -> Margin | None:
        return MARGIN if target.model == "dearer" else None

    return plan(request, candidates(request, catalogue, MAKERS), MAKERS, price_of, margin_of)


def names(answer: pb.PlanMediaResponse) -> list[str]:
    return [f"{target.provider}/{target.model}" for target in answer.targets]


@pytest.mark.parametrize("model", ["", "auto"])
def test_auto_without_configured_models_is_this_machine(model: str) -> None:
    answer = planned(model=model)
    assert names(answer) == ["local/default"]
    assert (answer.targets[0].estimate_nano_credits, answer.targets[0].synthetic) == (0, True)
    assert [excluded.target for excluded in answer.excluded] == ["local/echo"]


def test_auto_takes_models_that_make_the_kind_first() -> None:
    routes = {"chat": ["openai/gpt-x"], "pictures": ["openai/gpt-image-1"], "other": ["wall/z"]}
    answer = planned(routes=routes, model="auto")
    assert names(answer) == ["openai/gpt-image-1", "local/default"]
    reasons = {excluded.target: excluded.because for excluded in answer.excluded}
    assert "not known to make image" in reasons["openai/gpt-x"]
    assert reasons["wall/z"] == "provider wall does not make image"


def test_a_named_model_is_taken_at_its_word() -> None:
    assert names(planned(routes={"mine": ["openai/odd-name"]}, model="mine")) == ["openai/odd-name"]
    assert names(planned(model="openai/odd-name")) == ["openai/odd-name"]


def test_a_provider_of_nothing_but_media_can_be_named() -> None:
    answer = planned("speech", model="eleven/v3")
    assert names(answer) == ["eleven/v3"]
    assert answer.targets[0].streams_speech
    with pytest.raises(ModelNotFoundError):
        planned("speech", model="nobody/v3")
    with pytest.raises(ModelNotAllowedError):
        planned("speech", model="eleven/v3", allowed_models=["openai/*"])


def test_what_nobody_makes_is_refused() -> None:
    with pytest.raises(NoCandidateError, match="does not make image"):
        planned(model="eleven/v3")
    with pytest.raises(NoCandidateError):
        planned("speech", model="auto")


def test_an_unknown_price_is_never_zero() -> None:
    with pytest.raises(PriceUnknownError, match="set `price`"):
        planned(model="openai/unpriced")


def test_a_key_uses_this_machine_only_when_it_may() -> None:
    assert names(planned(model="auto", allowed_models=["local/*"])) == ["local/default"]
    with pytest.raises(NoCandidateError):
        planned(model="auto", allowed_models=["openai/*"])


def test_max_cost_leaves_out_what_may_cost_more() -> None:
    assert names(planned(model="openai/gpt-image-1", max_cost="0.01")) == ["openai/gpt-image-1"]
    with pytest.raises(NoCandidateError, match="may cost more"):
        planned(model="openai/gpt-image-1", max_cost="0.009")


def test_a_margin_is_part_of_the_estimate_and_of_what_is_compared() -> None:
    (target,) = planned(model="openai/dearer").targets
    assert target.estimate_nano_credits == 12_500_000
    assert (target.margin.version, target.expected.images) == ("m1", 1)
    assert not planned(model="openai/gpt-image-1").targets[0].HasField("margin")
    assert names(planned(model="openai/dearer", max_cost="0.0125")) == ["openai/dearer"]
    with pytest.raises(NoCandidateError, match="may cost more"):
        planned(model="openai/dearer", max_cost="0.0124")
