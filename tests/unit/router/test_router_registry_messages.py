"""Definitions between the contract's messages and documents."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.registration import read_document, write_document
from services.router.registry.messages import definition_message, document_of
from services.router.settings import CAPABILITIES, TASKS, RouteSettings

TARGETS = ("a/x", "b/y", "c/z/w")
# A value for every field, none of them the usual one.
FULL: dict[str, Any] = {
    "route": list(TARGETS),
    "endpoints": {"b/y": {"region": "eu", "enabled": False, "weight": 3}},
    "default_provider": "b",
    "fallback": ["other"],
    "versions": {"v1": {"route": ["a/x"], "weight": 2, "endpoints": {"a/x": {"region": "us"}}}},
    "aliases": ["fast", "openai/like"],
    "timeouts": {"connect_s": 1.5, "first_token_s": 2.5, "idle_s": 3.5, "total_s": 4.5},
    "retries": 0,
    "rescue": "off",
    "hold_back": 7,
    "strengths": {"coding": 0.5},
    "quality": 0.25,
    "capabilities": ["chat", "tools"],
    "context_length": 10,
    "max_output": 5,
    "regions": ["eu"],
    "tiers": ["pro"],
    "options_schema": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2}}},
    "options_defaults": {"n": 1, "list": [1, 2.5, None, True]},
    "enabled": False,
    "source": "a page",
    "source_date": "2026-01-02",
    "strategy": "race",
    "hedge_after_ms": 9,
    "race_width": 3,
    "cache": "on",
    "cache_ttl_s": 60,
}

routes = st.lists(st.sampled_from(TARGETS), min_size=1, unique=True)
endpoints = st.fixed_dictionaries(
    {},
    optional={
        "region": st.sampled_from(["eu", "us"]),
        "enabled": st.booleans(),
        "weight": st.integers(1, 9),
    },
)
documents = st.fixed_dictionaries(
    {"route": routes},
    optional={
        "quality": st.floats(0, 1),
        "retries": st.integers(0, 5),
        "enabled": st.booleans(),
        "capabilities": st.lists(st.sampled_from(CAPABILITIES), unique=True),
        "strengths": st.dictionaries(st.sampled_from(TASKS), st.floats(0, 1)),
        "versions": st.dictionaries(
            st.sampled_from(["v1", "v2"]),
            st.fixed_dictionaries({"route": routes, "weight": st.integers(1, 9)}),
        ),
    },
)


def there_and_back(document: dict[str, Any]) -> tuple[RouteSettings, RouteSettings]:
    settings = read_document(document)
    return settings, read_document(document_of(definition_message("m", settings)))


def test_the_contract_has_every_field_of_a_definition() -> None:
    """A change of some fields must not lose the others: what the file can say, the contract can."""
    assert set(FULL) == set(RouteSettings.model_fields), "give the new field a place in ModelDefinition"
    before, after = there_and_back(FULL)
    assert after == before
    assert set(FULL) == before.model_fields_set
    usual = RouteSettings(route=["a/x"])
    assert [name for name in FULL if getattr(before, name) == getattr(usual, name)] == []


@given(document=documents, particulars=st.dictionaries(st.sampled_from(TARGETS), endpoints))
def test_definitions_survive_the_contract(document: dict[str, Any], particulars: dict[str, Any]) -> None:
    document["endpoints"] = {
        name: own for name, own in particulars.items() if name in document["route"] and own
    }
    before, after = there_and_back(document)
    again = read_document(document_of(definition_message("m", after)))
    assert write_document(again) == write_document(after)
    assert definition_message("m", after) == definition_message("m", before)
