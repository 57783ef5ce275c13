"""The registry of models over both databases: what administrators change, and what callers then get."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.router.v1 import registry_service_pb2 as pb
from omnihub.router.v1 import router_service_pb2 as router_pb

from services.common.rpc import Call, RpcError
from services.router.settings import RouteSettings
from tests.support.registry import PLATFORM, Running, admin, as_json, definition, running
from tests.support.router import IDENTITY, a_call, an_answer, bounded

VISIBLE_WITHIN_S = 5
VOICE: dict[str, Any] = {
    "versions": [
        {"name": "voice_v1", "weight": 1, "endpoints": [{"target": "a/x"}]},
        {"name": "avatar_pro", "weight": 3, "endpoints": [{"target": "b/y", "region": "eu"}]},
    ]
}


@pytest_asyncio.fixture
async def one(database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with bounded(30), running(database_url, tmp_path) as process:
        yield process


async def refused(awaitable: Any, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


def a_caller(*models: str) -> Call:
    return a_call(replace(IDENTITY, allowed_models=models))


async def chat(process: Running, model: str, call: Call | None = None, user: str = "") -> Any:
    request = router_pb.ChatRequest(
        chat=ChatInput(model=model, user=user, messages=[Message(role="user", content="hello")])
    )
    return await process.router.chat(request, call or a_call())


async def update(process: Running, name: str, mask: str = "", revision: int = 0, **fields: Any) -> Any:
    request = pb.UpdateModelRequest(
        name=name,
        model=definition("", *fields.pop("targets", ()), **fields),
        update_mask=FieldMask(paths=mask.split(",") if mask else []),
        revision=revision,
    )
    return as_json((await process.registry.update_model(request, admin())).model)


async def test_a_model_from_creation_to_deletion(one: Running) -> None:
    made = await one.create(
        "m", "a/x", "b/y", aliases=["fast"], capabilities=["chat", "tools"], strengths={"coding": 0.5}
    )
    assert (made["managed_by"], made["revision"], made["updated_by"]) == ("registry", 1, "key_root")
    assert [each["target"] for each in made["endpoint_states"]] == ["a/x", "b/y"]
    one.providers.answers["a/x"] = [an_answer(), an_answer()]
    assert (await chat(one, "fast")).model_used == "a/x"
    changed = await update(one, "m", "endpoints,quality", 1, targets=["b/y", "a/x"], quality=0.75)
    assert changed["revision"] == 2
    assert changed["model"]["aliases"] == ["fast"]
    assert changed["model"]["quality"] == 0.75
    one.providers.answers["b/y"] = [an_answer()]
    assert (await chat(one, "m")).model_used == "b/y"
    whole = await update(one, "m", revision=2, targets=["a/x"])
    assert "aliases" not in whole["model"]
    await refused(chat(one, "fast"), "MODEL_NOT_FOUND")
    await one.registry.delete_model(pb.DeleteModelRequest(name="m"), admin())
    await refused(chat(one, "m"), "MODEL_NOT_FOUND")
    await refused(one.get("m"), "NOT_FOUND")
    await refused(one.registry.delete_model(pb.DeleteModelRequest(name="m"), admin()), "NOT_FOUND")
    history = await one.revisions("m")
    assert [(each["revision"], each["act"], each["actor"]) for each in history] == [
        (4, "delete", "key_root"),
        (3, "update", "key_root"),
        (2, "update", "key_root"),
        (1, "create", "key_root"),
    ]
    assert history[0]["before"] == history[1]["after"]
    assert "after" not in history[0]
    assert "before" not in history[3]


async def test_a_repeat_changes_nothing(one: Running) -> None:
    await one.create("m", "a/x", aliases=["fast"])
    assert (await one.create("m", "a/x", aliases=["fast"]))["revision"] == 1
    assert (await update(one, "m", "aliases", aliases=["fast"]))["revision"] == 1
    enable = pb.EnableModelRequest(name="m")
    assert (await one.registry.enable_model(enable, admin())).model.revision == 1
    error = await refused(one.create("m", "a/y"), "ALREADY_EXISTS")
    assert "update it" in error.message


async def test_nobodys_change_is_lost(one: Running) -> None:
    await one.create("m", "a/x")
    await update(one, "m", "quality", 1, quality=0.5)
    error = await refused(update(one, "m", "quality", 1, quality=0.6), "CONFLICT")
    assert error.metadata["revision"] == "2"
    delete = pb.DeleteModelRequest(name="m", revision=1)
    await refused(one.registry.delete_model(delete, admin()), "CONFLICT")
    assert (await one.get("m"))["model"]["quality"] == 0.5


async def test_changes_at_the_same_time_queue_up(one: Running) -> None:
    await one.create("m", "a/x")
    done = await asyncio.gather(
        *(update(one, "m", "quality", 1, quality=0.1 * number) for number in range(1, 6)),
        return_exceptions=True,
    )
    assert sorted(getattr(each, "reason", "done") for each in done) == ["CONFLICT"] * 4 + ["done"]
    assert len(await one.revisions("m")) == 2


async def test_a_disabled_model_says_so(one: Running) -> None:
    await one.create("m", "a/x")
    disabled = await one.registry.disable_model(pb.DisableModelRequest(name="m", revision=1), admin())
    assert disabled.model.problem == "it is disabled"
    error = await refused(chat(one, "m"), "MODEL_NOT_FOUND")
    assert "it is disabled" in error.message
    await one.registry.enable_model(pb.EnableModelRequest(name="m"), admin())
    one.providers.answers["a/x"] = [an_answer()]
    await chat(one, "m")
    assert [each["act"] for each in await one.revisions("m")] == ["enable", "disable", "create"]


async def test_versions_split_pin_weigh_and_roll_back(one: Running) -> None:
    await one.create("voice", **VOICE)
    one.providers.answers = {"a/x": [an_answer() for _ in range(90)], "b/y": [an_answer() for _ in range(90)]}
    counted = Counter([(await chat(one, "voice")).model_used for _ in range(40)])
    assert counted["b/y"] > counted["a/x"] > 0
    sticky = {(await chat(one, "voice", user="somebody")).model_used for _ in range(5)}
    assert len(sticky) == 1
    answer = await chat(one, "voice@voice_v1")
    decision = router_pb.GetDecisionRequest(decision_id=answer.outcome.decision_id)
    found = (await one.router.get_decision(decision, a_call())).decision
    assert (answer.model_used, found.model_version) == ("a/x", "voice_v1")
    weights = pb.SetVersionWeightsRequest(name="voice", weights={"avatar_pro": 0})
    assert (await one.registry.set_version_weights(weights, admin())).model.revision == 2
    assert {(await chat(one, "voice")).model_used for _ in range(20)} == {"a/x"}
    back = pb.RollbackModelRequest(name="voice", to_revision=1, revision=2)
    rolled = as_json((await one.registry.rollback_model(back, admin())).model)
    assert (rolled["revision"], [each["weight"] for each in rolled["model"]["versions"]]) == (3, [1, 3])
    await one.registry.delete_model(pb.DeleteModelRequest(name="voice"), admin())
    again = pb.RollbackModelRequest(name="voice", to_revision=2)
    assert (await one.registry.rollback_model(again, admin())).model.revision == 5
    gone = pb.RollbackModelRequest(name="voice", to_revision=4)
    assert (
        "choose an earlier one"
        in (await refused(one.registry.rollback_model(gone, admin()), "INVALID_ARGUMENT")).message
    )
    missing = pb.RollbackModelRequest(name="voice", to_revision=99)
    await refused(one.registry.rollback_model(missing, admin()), "NOT_FOUND")
    wrong = pb.SetVersionWeightsRequest(name="voice", weights={"v9": 1})
    assert (
        "versions: voice_v1, avatar_pro"
        in (await refused(one.registry.set_version_weights(wrong, admin()), "INVALID_ARGUMENT")).message
    )
    none = pb.SetVersionWeightsRequest(name="voice", weights={"voice_v1": 0, "avatar_pro": 0})
    await refused(one.registry.set_version_weights(none, admin()), "INVALID_ARGUMENT")


SCHEMA = {"type": "object", "properties": {"speed": {"type": "number", "maximum": 2}}, "required": ["voice"]}


@pytest.mark.parametrize(
    ("name", "targets", "fields", "where", "text"),
    [
        (
            "m",
            ["nobody/x"],
            {},
            "model.endpoints[0].target",
            "no provider 'nobody' is configured; configured: a,",
        ),
        ("m", ["a"], {}, "model.endpoints[0].target", "match"),
        ("m", ["a/x", "a/x"], {}, "model", "there twice"),
        ("m", [], {}, "model", "at least one"),
        ("a b", ["a/x"], {}, "model.name", "white space"),
        ("a/b", ["a/x"], {}, "model.name", "no slash"),
        ("taken-alias", ["a/x"], {}, "model.name", "an alias of 'taken'"),
        ("file-alias", ["a/x"], {}, "model.name", "an alias of 'from-file'"),
        ("m", ["a/x"], {"aliases": ["ok", "taken"]}, "model.aliases[1]", "belongs to the model 'taken'"),
        ("m", ["a/x"], {"aliases": ["from-file"]}, "model.aliases[0]", "of omnihub.toml"),
        ("m", ["a/x"], {"aliases": ["m"]}, "model.aliases[0]", "own name"),
        ("m", ["a/x"], {"aliases": ["n", "n"]}, "model.aliases[1]", "twice"),
        ("m", ["a/x"], {"aliases": ["auto"]}, "model.aliases[0]", "asks the router to choose"),
        ("m", ["a/x"], {"fallback": ["nobody"]}, "model.fallback[0]", "there is no model 'nobody'"),
        ("m", ["a/x"], {"fallback": ["taken-alias"]}, "model.fallback[0]", "name 'taken'"),
        ("m", ["a/x"], {"fallback": ["m"]}, "model.fallback[0]", "m -> m"),
        (
            "m",
            ["a/x"],
            {"capabilities": ["chat", "fly"]},
            "model.capabilities[1]",
            "unknown capability 'fly'",
        ),
        ("m", ["a/x"], {"strengths": {"cooking": 1}}, "model.strengths.cooking", "unknown task"),
        ("m", ["a/x"], {"strengths": {"coding": 2}}, "model.strengths.coding", "less than or equal to 1"),
        ("m", ["a/x"], {"default_provider": "b"}, "model.default_provider", "none of the endpoints"),
        ("m", ["a/x"], {"retries": 99}, "model.retries", "less than or equal to 5"),
        ("m", ["a/x"], {"idle_timeout_s": -1}, "model.idle_timeout_s", "greater than 0"),
        ("m", ["a/x"], {"source_date": "yesterday"}, "model.source_date", "match"),
        (
            "m",
            [],
            {"versions": [{"name": "v1", "weight": 0, "endpoints": [{"target": "a/x"}]}]},
            "model",
            "a weight above 0",
        ),
        (
            "m",
            [],
            {"versions": [{"name": "v1", "weight": 2_000_000, "endpoints": [{"target": "a/x"}]}]},
            "model.versions[0].weight",
            "less than or equal to 1000000",
        ),
        (
            "m",
            [],
            {"versions": [{"name": "v1", "weight": 1, "endpoints": [{"target": "nobody/x"}]}]},
            "model.versions[0].endpoints[0].target",
            "no provider 'nobody'",
        ),
        (
            "m",
            [],
            {"versions": [{"name": "v1", "weight": 1, "endpoints": [{"target": "a/x"}]}] * 2},
            "model.versions[1].name",
            "twice",
        ),
        ("m", ["a/x"], {"options_schema": {"type": "nonsense"}}, "model.options_schema.type", "is not valid"),
        ("m", ["a/x"], {"options_schema": {"type": "array"}}, "model.options_schema.type", "say `object`"),
        (
            "m",
            ["a/x"],
            {"options_schema": SCHEMA, "options_defaults": {"speed": 3}},
            "model.options_defaults.speed",
            "greater than the maximum",
        ),
        (
            "m",
            ["a/x"],
            {"options_schema": {"$ref": "http://127.0.0.1:9/schema"}, "options_defaults": {"a": 1}},
            "model.options_schema",
            "nothing else is looked up",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, targets: list[str], fields: dict[str, Any], where: str, text: str
) -> None:
    async with bounded(10), running(f"sqlite:///{tmp_path / 'm.db'}", tmp_path) as process:
        await process.create("taken", "a/x", aliases=["taken-alias"])
        error = await refused(process.create(name, *targets, **fields), "INVALID_ARGUMENT")
        violations = {violation.field: violation.description for violation in error.violations}
        assert where in violations, violations
        assert text in violations[where]


async def test_circles_of_fallbacks_are_refused(one: Running) -> None:
    await one.create("m", "a/x")
    await one.create("n", "a/y", fallback=["m"])
    await one.create("o", "b/x", fallback=["n"])
    error = await refused(update(one, "m", "fallback", fallback=["o"]), "INVALID_ARGUMENT")
    assert "m -> o -> n -> m" in error.message
    error = await refused(
        one.registry.delete_model(pb.DeleteModelRequest(name="m"), admin()), "PRECONDITION_FAILED"
    )
    assert "fallback of n" in error.message
    one.providers.answers = {
        "b/x": [RpcError("PROVIDER_FAILED", "no")],
        "a/y": [RpcError("PROVIDER_FAILED", "no")],
        "a/x": [an_answer()],
    }
    assert (await chat(one, "o")).model_used == "a/x"


async def test_what_the_file_declares_is_shown_and_stays(one: Running) -> None:
    found = await one.get("from-file")
    assert (found["managed_by"], found.get("revision", 0), found["model"]["aliases"]) == (
        "file",
        0,
        ["file-alias"],
    )
    changes = [
        one.create("from-file", "a/x"),
        update(one, "from-file", "quality", quality=0.1),
        one.registry.delete_model(pb.DeleteModelRequest(name="from-file"), admin()),
        one.registry.disable_model(pb.DisableModelRequest(name="from-file"), admin()),
        one.registry.rollback_model(pb.RollbackModelRequest(name="from-file", to_revision=1), admin()),
    ]
    for change in changes:
        error = await refused(change, "PRECONDITION_FAILED")
        assert "omnihub.toml" in error.message
    one.providers.answers["a/file"] = [an_answer()]
    assert (await chat(one, "file-alias")).model_used == "a/file"


async def test_masks_and_names_that_cannot_be_changed(one: Running) -> None:
    await one.create("m", "a/x")
    for mask in ("name", "nonsense", "endpoints.target"):
        error = await refused(update(one, "m", mask), "INVALID_ARGUMENT")
        assert error.violations[0].field == "update_mask"
    request = pb.UpdateModelRequest(name="m", model=definition("n", "a/x"))
    error = await refused(one.registry.update_model(request, admin()), "INVALID_ARGUMENT")
    assert error.violations[0].field == "model.name"
    await refused(update(one, "nobody", "quality", quality=1), "NOT_FOUND")
    await refused(one.revisions("nobody"), "NOT_FOUND")


async def test_lists_come_in_pages(one: Running) -> None:
    for number in range(5):
        await one.create(f"m{number}", "a/x")
        await update(one, "m0", "quality", quality=number / 10)
    names, token = [], ""
    while True:
        request = pb.ListRegisteredModelsRequest(page_size=2, page_token=token, query="m")
        page = await one.registry.list_registered_models(request, admin())
        names += [each.model.name for each in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == ["from-file", "m0", "m1", "m2", "m3", "m4"]
    numbers, token = [], ""
    while True:
        history = pb.ListModelRevisionsRequest(name="m0", page_size=2, page_token=token)
        revisions = await one.registry.list_model_revisions(history, admin())
        numbers += [each.revision for each in revisions.revisions]
        token = revisions.next_page_token
        if not token:
            break
    assert numbers == list(range(len(numbers), 0, -1))
    assert len(numbers) > 4
    broken = pb.ListModelRevisionsRequest(name="m0", page_token="nonsense")
    await refused(one.registry.list_model_revisions(broken, admin()), "INVALID_ARGUMENT")


async def test_callers_see_what_their_key_may_use(one: Running) -> None:
    await one.create("m", "a/x", aliases=["fast", "slow"], **{"options_schema": SCHEMA})
    listed = await one.router.list_models(router_pb.ListModelsRequest(), a_call())
    assert [(each.model_id, list(each.aliases)) for each in listed.models] == [
        ("from-file", ["file-alias"]),
        ("local/echo", []),
        ("m", ["fast", "slow"]),
    ]
    some = await one.router.list_models(router_pb.ListModelsRequest(), a_caller("fast"))
    assert [(each.model_id, list(each.aliases)) for each in some.models] == [("fast", [])]
    found = await one.registry.get_model(pb.GetModelRequest(model_id="fast"), a_caller("fast"))
    assert (found.model.model_id, found.model.route) == ("fast", ["a/x"])
    await refused(
        one.registry.get_model(pb.GetModelRequest(model_id="m"), a_caller("fast")), "MODEL_NOT_ALLOWED"
    )
    direct = await one.registry.get_model(pb.GetModelRequest(model_id="a/other"), a_call())
    assert direct.model.route == ["a/other"]


async def test_options_are_checked_and_completed(one: Running) -> None:
    defaults = {"speed": 1, "format": {"kind": "mp3"}}
    await one.create("voice", "a/x", options_schema=SCHEMA, options_defaults=defaults)

    def resolve(**options: Any) -> Any:
        given = Struct()
        given.update(options)
        return one.registry.resolve_options(pb.ResolveOptionsRequest(model="voice", options=given), a_call())

    resolved = as_json((await resolve(voice="anna", speed=2)).options)
    assert resolved == {"voice": "anna", "speed": 2, "format": {"kind": "mp3"}}
    error = await refused(resolve(voice="anna", speed=5), "INVALID_ARGUMENT")
    assert error.violations[0].field == "options.speed"
    error = await refused(resolve(), "INVALID_ARGUMENT")
    assert "'voice' is a required property" in error.message


async def test_another_process_sees_changes_within_5_s(database_url: str, tmp_path: Path) -> None:
    async with (
        bounded(30),
        running(database_url, tmp_path) as first,
        running(database_url, tmp_path) as second,
    ):
        await first.create("m", "a/x")
        await _until(second, "m", ["a/x"])
        await update(first, "m", "endpoints", targets=["b/y"])
        await _until(second, "m", ["b/y"])
        await first.registry.delete_model(pb.DeleteModelRequest(name="m"), admin())
        await _until(second, "m", [])
        # The second process changes what the first made.
        await first.create("n", "a/x")
        await _until(second, "n", ["a/x"])
        await update(second, "n", "endpoints", revision=1, targets=["b/x"])
        await _until(first, "n", ["b/x"])


async def _until(process: Running, name: str, route: list[str]) -> None:
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        listed = await process.router.list_models(router_pb.ListModelsRequest(), a_call())
        found = next((list(each.route) for each in listed.models if each.model_id == name), [])
        if found == route:
            return
        assert time.monotonic() < deadline, f"{name}: {found} instead of {route}"
        await asyncio.sleep(0.05)


async def test_changes_can_be_followed(one: Running) -> None:
    await one.create("m", "a/x")
    stream = one.registry.watch_changes(pb.WatchChangesRequest(), a_call(PLATFORM))
    async for news in stream:
        assert [(change.topic, change.key) for change in news.changes] == [("model", "m")]
        break
    await stream.aclose()


async def test_an_empty_registry_is_filled_once(database_url: str, tmp_path: Path) -> None:
    services = {"a": "openai"}
    async with bounded(60):
        async with (
            running(database_url, tmp_path, own_services=services, seed_models=True) as first,
            running(database_url, tmp_path, own_services=services, seed_models=True) as second,
        ):
            for process in (first, second):
                found = await process.registry.get_model(
                    pb.GetModelRequest(model_id="gpt-4.1-mini"), a_call()
                )
                assert found.model.route == ["a/gpt-4.1-mini"]
                assert found.model.context_length > 1_000_000
                assert "tools" in found.model.capabilities
                assert found.model.source_date
                # Without a provider of its vendor a model is known to administrators alone.
                error = await refused(chat(process, "claude-sonnet-4-5"), "MODEL_NOT_FOUND")
                assert "no provider of it is configured (anthropic)" in error.message
                # It cannot be chosen for what it cannot do.
                error = await refused(chat(process, "text-embedding-3-small"), "NO_CANDIDATE")
                assert "does not offer chat" in error.message
            [revision] = await first.revisions("gpt-4.1-mini")
            assert (revision["act"], revision["actor"]) == ("import", "first start")
            await first.registry.delete_model(pb.DeleteModelRequest(name="gpt-4.1-mini"), admin())
        async with running(database_url, tmp_path, own_services=services, seed_models=True) as third:
            await refused(third.get("gpt-4.1-mini"), "NOT_FOUND")


@pytest.mark.new_database
async def test_two_first_starts_at_the_same_time(database_url: str, tmp_path: Path) -> None:
    async def start() -> None:
        async with running(database_url, tmp_path, seed_models=True) as process:
            assert (await process.get("gpt-4o"))["revision"] == 1

    async with bounded(60):
        await asyncio.gather(start(), start())


def test_models_of_the_file_must_fit_together(tmp_path: Path) -> None:
    routes = {
        "m": RouteSettings(route=["a/x"], aliases=["n"]),
        "n": RouteSettings(route=["a/x"]),
    }

    async def start() -> None:
        async with running(f"sqlite:///{tmp_path / 'm.db'}", tmp_path, routes=routes):
            pass

    with pytest.raises(ValueError, match=r'models\."m": model\.aliases\[0\]: .n. belongs to the model .n.'):
        asyncio.run(start())
