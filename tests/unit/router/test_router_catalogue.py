"""Models of the file and of the registry, by every name callers can use."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.catalogue import (
    REGISTRY,
    Catalogue,
    Definition,
    Model,
    Provenance,
    Provider,
    Target,
)
from services.router.domain.errors import ModelNotAllowedError, ModelNotFoundError
from services.router.domain.split import choose
from services.router.settings import RouteSettings

FEATURES = frozenset({"chat", "stream"})
PROVIDERS = [
    Provider("a", "openai", FEATURES, False),
    Provider("b", "openai", FEATURES, False, vendor="acme"),
    Provider("c", "openai", FEATURES, False, vendor="acme"),
]


def registered(name: str, *route: str, **settings: Any) -> Definition:
    return Definition(name, RouteSettings(route=list(route), **settings), Provenance(REGISTRY))


def catalogue(*definitions: Definition, **routes: list[str]) -> Catalogue:
    named = {name: RouteSettings(route=route) for name, route in routes.items()}
    return Catalogue.build(named, PROVIDERS, definitions)


def target_names(model: Model) -> list[str]:
    return [target.name for target in model.targets]


@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=6),
    salt=st.text(max_size=8),
    unit=st.text(max_size=40),
)
def test_a_unit_always_falls_to_the_same_weight(weights: list[int], salt: str, unit: str) -> None:
    position = choose(weights, salt, unit)
    assert position == choose(list(weights), salt, unit)
    assert weights[position] > 0 or not any(weights)


@given(weights=st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(any), salt=st.text(max_size=4))
def test_a_split_keeps_its_proportions(weights: list[int], salt: str) -> None:
    units = 2000
    counted = Counter(choose(weights, salt, f"req_{number}") for number in range(units))
    for position, weight in enumerate(weights):
        share = weight / sum(weights)
        # Six standard deviations of a binomial count: chance does not reach that in all these examples.
        spread = 6 * (units * share * (1 - share)) ** 0.5
        assert abs(counted[position] - units * share) <= spread + 1


@given(before=st.integers(0, 100), more=st.integers(1, 100), unit=st.text(max_size=20))
def test_raising_a_weight_moves_units_to_it_only(before: int, more: int, unit: str) -> None:
    first = choose([50, before], "m", unit)
    then = choose([50, before + more], "m", unit)
    assert then == first or then == 1


def test_aliases_and_versions_are_names() -> None:
    known = catalogue(
        registered(
            "voice",
            aliases=["speech", "say"],
            versions={
                "voice_v1": {"route": ["a/v1"], "weight": 3},
                "voice_v2": {"route": ["b/v2", "a/v1"], "weight": 1},
            },
        )
    )
    model = known.find("say", ())
    assert (model.name, model.version) == ("voice", "")
    pinned = known.find("voice@voice_v2", ())
    assert (pinned.name, pinned.version, target_names(pinned)) == ("voice", "voice_v2", ["b/v2", "a/v1"])
    counted = Counter(model.split(f"req_{number}").version for number in range(400))
    assert counted["voice_v1"] > counted["voice_v2"] > 50
    assert model.split("one").split("one") == model.split("one")
    # Who ignores versions gets the one with the largest share.
    assert target_names(model) == ["a/v1"]


def test_the_file_wins_over_the_registry() -> None:
    known = catalogue(registered("m", "b/y", aliases=["n"]), registered("o", "b/z", aliases=["m"]), m=["a/x"])
    assert target_names(known.find("m", ())) == ["a/x"]
    with pytest.raises(ModelNotFoundError):
        known.find("n", ())
    assert [model.name for model in known.usable(())] == ["m", "o"]


def test_a_vendor_stands_for_its_providers() -> None:
    known = catalogue(registered("m", "acme/x", "a/x"))
    assert target_names(known.find("m", ())) == ["b/x", "c/x", "a/x"]
    own = Catalogue.build(
        {}, [*PROVIDERS, Provider("acme", "openai", FEATURES, False)], [registered("m", "acme/x")]
    )
    assert target_names(own.find("m", ())) == ["acme/x"]


def test_endpoints_are_left_out_and_moved_up() -> None:
    known = catalogue(
        registered(
            "m",
            *("a/x", "b/x", "c/x"),
            endpoints={"b/x": {"enabled": False}, "c/x": {"region": "eu", "weight": 5}},
            default_provider="c",
        )
    )
    model = known.find("m", ())
    assert target_names(model) == ["c/x", "a/x"]
    assert [(each.target.name, each.region, each.weight, each.enabled) for each in model.endpoints] == [
        ("c/x", "eu", 5, True),
        ("a/x", "", 0, True),
        ("b/x", "", 0, False),
    ]


def test_weights_of_endpoints() -> None:
    known = catalogue(
        registered("m", "a/x", "b/y", endpoints={"a/x": {"weight": 3}}, fallback=["n"]),
        registered("n", "a/z", "b/z"),
    )
    assert [known.find("m", ()).weight_of(target) for target in known.find("m", ()).targets] == [3, 0, 0, 0]
    assert [known.find("n", ()).weight_of(target) for target in known.find("n", ()).targets] == [1, 1]


def test_fallbacks_are_asked_last_and_each_once() -> None:
    known = catalogue(
        registered("m", "a/x", fallback=["n", "gone", "off"]),
        registered("n", "b/y", "a/x", fallback=["m", "o"]),
        registered("o", "c/z"),
        registered("off", "c/off", enabled=False),
    )
    assert target_names(known.find("m", ())) == ["a/x", "b/y", "c/z"]


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        (registered("m", "a/x", enabled=False), "it is disabled"),
        (registered("m", "gone/x"), r"no provider of it is configured \(gone\)"),
        (registered("m", "a/x", endpoints={"a/x": {"enabled": False}}), "none of its endpoints is enabled"),
    ],
)
def test_models_that_cannot_be_used_say_why(definition: Definition, why: str) -> None:
    known = catalogue(definition)
    assert known.usable(()) == []
    with pytest.raises(ModelNotFoundError, match=why):
        known.find("m", ("m",))
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        known.find("m", ("other",))


def test_hints_tell_only_what_the_key_may_use() -> None:
    known = catalogue(
        registered("secret-project", "a/x", aliases=["secret-alias"]), registered("open", "a/x")
    )
    for wrong in ("secret-projekt", "secret-alia"):
        with pytest.raises(ModelNotFoundError, match="did you mean secret-"):
            known.find(wrong, ())
        with pytest.raises(ModelNotFoundError) as caught:
            known.find(wrong, ("open",))
        assert "did you mean" not in str(caught.value)
    with pytest.raises(ModelNotFoundError, match=r"did you mean secret-alias\?"):
        known.find("secret-alia", ("secret-alias",))


def test_a_key_may_list_an_alias() -> None:
    known = catalogue(registered("m", "a/x", aliases=["fast"]))
    assert known.find("fast", ("fast",)).name == "m"
    assert known.find("fast", ("m",)).name == "m"
    with pytest.raises(ModelNotAllowedError):
        known.find("m", ("fast",))
    assert [model.name for model in known.usable(("fast",))] == ["m"]


def test_a_direct_name_has_the_facts_of_the_model_that_lists_it() -> None:
    known = catalogue(registered("m", "a/x", context_length=9, max_output=3, capabilities=["chat", "tools"]))
    direct = known.find("a/x", ())
    assert (direct.name, direct.priced_as, direct.targets) == ("a/x", "", (Target("a", "x"),))
    assert (direct.context_length, direct.max_output) == (9, 3)
    assert direct.offers("tools")
    assert not direct.offers("embed")
    assert known.find("a/other", ()).offers("embed")
    assert known.find("a/a b", ()).targets == (Target("a", "a b"),)


def test_the_file_need_not_say_what_its_provider_can() -> None:
    named = {"m": RouteSettings(route=["a/x"], capabilities=["tools"], strengths=["coding"])}
    model = Catalogue.build(named, PROVIDERS).find("m", ())
    assert model.offers("chat")
    assert not model.offers("vision")
    assert model.strengths == {"coding": 1.0}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "name at least one `provider/model`"),
        ({"route": ["x"]}, "route.0"),
        ({"route": ["a/x", "a/x"]}, "an entry is there twice"),
        ({"route": ["a/x"], "endpoints": {"b/y": {}}}, "'b/y' is not in the route"),
        ({"route": ["a/x"], "capabilities": ["fly"]}, "unknown capability 'fly'; known: chat, "),
        ({"route": ["a/x"], "strengths": {"cooking": 1}}, "unknown task 'cooking'; known: chat, "),
        ({"route": ["a/x"], "strengths": {"coding": 1.5}}, "strengths.coding"),
        ({"versions": {"v1": {"route": ["a/x"]}}}, "a weight above 0"),
        ({"versions": {"v1": {"route": ["a/x"], "weight": -1}}}, "versions.v1.weight"),
        ({"route": ["a/x"], "aliases": ["a b"]}, "aliases.0"),
    ],
)
def test_wrong_definitions(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=r"[\s\S]*" + complaint.replace("(", r"\(")):
        RouteSettings(**settings)


def test_building_grows_with_the_models_and_not_with_their_square() -> None:
    def built(count: int) -> float:
        definitions = [
            registered(
                f"model-{number}",
                *(f"a/{number}", f"b/{number}"),
                aliases=[f"alias-{number}"],
                capabilities=["chat", "tools"],
                strengths={"coding": 0.5},
            )
            for number in range(count)
        ]
        started = time.process_time()
        known = catalogue(*definitions)
        spent = time.process_time() - started
        assert known.find(f"alias-{count - 1}", ()).name == f"model-{count - 1}"
        return spent

    # Ten times as many: a hundred times the work would be a look at each pair.
    assert min(built(2000) for _ in range(3)) < 40 * min(built(200) for _ in range(3))
