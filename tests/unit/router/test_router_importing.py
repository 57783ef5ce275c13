"""Imports: what is new comes in, what somebody changed stays, and a repeat changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.importing import merge
from services.router.domain.registration import read_document, write_document
from services.router.registry.importing import Imported, Importer
from services.router.registry.sources import listed, read_catalogue, shipped
from services.router.registry.store import Stored
from services.router.settings import RouteSettings

Rows = dict[str, Stored]
NAMES = ("m", "n", "o", "p")

definitions = st.builds(
    lambda route, aliases, quality, tiers: RouteSettings(
        route=route, aliases=aliases, quality=quality, tiers=tiers
    ),
    st.lists(st.sampled_from(["a/x", "b/y", "c/z"]), min_size=1, unique=True),
    st.lists(st.sampled_from(["q", "r", "s"]), unique=True, max_size=2),
    st.one_of(st.none(), st.sampled_from([0.25, 0.5, 1.0])),
    st.lists(st.sampled_from(["free", "pro"]), unique=True),
)
catalogues = st.dictionaries(st.sampled_from(NAMES), definitions, max_size=4)


def bring(
    rows: Rows, models: Mapping[str, RouteSettings], force: bool = False
) -> tuple[Rows, list[Imported]]:
    importer = Importer(rows, force)
    done = importer.run(models)
    after = dict(rows)
    for change in importer.changes:
        revision = 1 if change.before is None else change.before.revision + 1
        after[change.name] = Stored(change.name, change.document, change.imported, revision, 0, "test")
    return after, done


def edited(rows: Rows, name: str, **fields: Any) -> Rows:
    row = rows[name]
    document = json.dumps({**json.loads(row.document or "{}"), **fields}, separators=(",", ":"))
    normal = write_document(read_document(json.loads(document)))
    return {**rows, name: Stored(name, normal, row.imported, row.revision + 1, 0, "somebody")}


@given(before=catalogues, models=catalogues, force=st.booleans())
def test_a_second_import_changes_nothing(
    before: dict[str, RouteSettings], models: dict[str, RouteSettings], force: bool
) -> None:
    rows, _ = bring({}, before)
    once, _ = bring(rows, models, force)
    twice, again = bring(once, models, force)
    assert twice == once
    assert {each.outcome for each in again} <= {"unchanged", "kept"}


@given(before=catalogues, models=catalogues, quality=st.sampled_from([0.1, 0.9]))
def test_what_somebody_changed_stays(
    before: dict[str, RouteSettings], models: dict[str, RouteSettings], quality: float
) -> None:
    rows, _ = bring({}, before)
    for name in rows:
        rows = edited(rows, name, quality=quality)
    after, _ = bring(rows, models)
    for name in rows:
        assert json.loads(after[name].document or "")["quality"] == quality


@given(models=catalogues, others=catalogues)
def test_no_name_belongs_to_two_models(
    models: dict[str, RouteSettings], others: dict[str, RouteSettings]
) -> None:
    rows, _ = bring({}, models)
    rows, _ = bring(rows, others)
    names = [
        each
        for name, row in rows.items()
        for each in (name, *read_document(json.loads(row.document or "{}")).aliases)
    ]
    assert len(names) == len(set(names))


def test_new_facts_come_in_beside_what_somebody_changed() -> None:
    rows, _ = bring({}, {"m": RouteSettings(route=["a/x"], quality=0.5, context_length=10)})
    rows = edited(rows, "m", quality=0.9)
    newer = {"m": RouteSettings(route=["a/x"], quality=0.6, context_length=20)}
    rows, [done] = bring(rows, newer)
    assert json.loads(rows["m"].document or "") == {"route": ["a/x"], "quality": 0.9, "context_length": 20}
    assert (done.outcome, done.differences) == ("updated", {"context_length": (10, 20)})
    assert done.notes == ("quality stays as somebody set it",)
    rows, [done] = bring(rows, newer, force=True)
    assert json.loads(rows["m"].document or "")["quality"] == 0.6


def test_what_an_administrator_made_or_deleted_is_left_alone() -> None:
    rows, _ = bring({}, {"m": RouteSettings(route=["a/x"])})
    deleted = {"m": Stored("m", None, rows["m"].imported, 2, 0, "somebody")}
    made = {"m": Stored("m", '{"route":["b/y"]}', None, 1, 0, "somebody")}
    for start, note in ((deleted, "an administrator deleted it"), (made, "an administrator made it")):
        after, [done] = bring(start, {"m": RouteSettings(route=["a/x"])})
        assert after == start
        assert (done.outcome, done.notes) == ("kept", (note,))
        forced, _ = bring(start, {"m": RouteSettings(route=["a/x"])}, force=True)
        assert forced["m"].document == '{"route":["a/x"]}'


def test_a_field_that_is_gone_goes() -> None:
    was = {"route": ["a/x"], "quality": 0.5}
    assert merge(was, was, {"route": ["a/x"]}, exists=True).document == {"route": ["a/x"]}


def test_the_shipped_catalogue() -> None:
    models = shipped()
    vendors = {provider.id for provider in get_snapshot().providers}
    assert len(models) > 40
    for name, settings in models.items():
        assert settings.source, name
        assert settings.source_date, name
        assert settings.capabilities, name
        for target in settings.route:
            assert target.partition("/")[0] in vendors, name
        if "chat" in settings.capabilities and "image" not in settings.capabilities:
            assert settings.context_length, name
            assert settings.strengths, name
    _, done = bring({}, models)
    assert all(each.outcome == "added" and not each.notes for each in done)


def test_the_list_prices() -> None:
    some = listed(["openai", "anthropic"])
    assert some["gpt-5"] == shipped()["gpt-5"]
    assert some["gpt-3.5-turbo"].capabilities == ["chat", "stream"]
    assert some["gpt-3.5-turbo"].source.startswith("genai-prices ")
    assert "whisper-1" not in some
    assert len(some) > 50
    with pytest.raises(ValueError, match="no vendor 'nobody'; known: anthropic"):
        listed(["nobody"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "is not JSON"),
        ("[]", r'expected \{"models"'),
        ('{"models": {"m": 1}}', "'m': model: expected an object"),
        ('{"models": {"a/b": {"route": ["a/x"]}}}', "no slash"),
        ('{"models": {"m": {"route": ["a/x"], "colour": 1}}}', "model.colour: unknown field"),
        ('{"models": {"m": {"route": ["a"]}}}', r"model.endpoints\[0\].target"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "models.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_catalogue(file)
    with pytest.raises(ValueError, match="cannot read"):
        read_catalogue(tmp_path / "missing.json")
