"""Serves omnihub.router.v1.RegistryService: message in, registry, message out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from omnihub.router.v1 import registry_pb2 as messages
from omnihub.router.v1 import registry_service_pb2 as pb

from services.common.change_feed import ChangeFeed
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call
from services.router.admission import Admission
from services.router.domain.catalogue import FILE, Definition, Model, Target
from services.router.domain.errors import Flaw
from services.router.domain.options import option_flaws, with_defaults
from services.router.domain.registration import InvalidModelError, NoSuchModelError
from services.router.registry.listing import describe, shown
from services.router.registry.messages import (
    definition_message,
    document_of,
    plain,
    revision_message,
    to_struct,
)
from services.router.registry.registry import Edit, ModelRegistry, moment
from services.router.settings import RouteSettings

PAGE_SIZE = 100


class RegistryServer:
    """See the contract in omnihub/router/v1/registry_service.proto, which documents each rpc."""

    def __init__(self, registry: ModelRegistry, admission: Admission, feed: ChangeFeed) -> None:
        self._registry = registry
        self._admission = admission
        self._feed = feed

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        allowed = call.identity.allowed_models
        model = self._admission.catalogue.find(request.model_id, allowed)
        seen = [shown(model, allowed, request.model_id)]
        (described,) = await describe(seen, self._admission, call.identity.organisation_id)
        return pb.GetModelResponse(model=described)

    async def resolve_options(
        self, request: pb.ResolveOptionsRequest, call: Call
    ) -> pb.ResolveOptionsResponse:
        model = self._admission.catalogue.find(request.model, call.identity.allowed_models)
        settings = model.settings
        options = with_defaults(settings.options_defaults, plain(request.options))
        if settings.options_schema:
            flaws = list(option_flaws(settings.options_schema, options, "options"))
            if flaws:
                raise InvalidModelError(flaws)
        return pb.ResolveOptionsResponse(options=to_struct(options))

    async def list_registered_models(
        self, request: pb.ListRegisteredModelsRequest, call: Call
    ) -> pb.ListRegisteredModelsResponse:
        (after,) = decode_page_token(request.page_token, 1) if request.page_token else ("",)
        size = request.page_size or PAGE_SIZE
        wanted = [
            name
            for name, settings in self._definitions()
            if name > after and any(request.query in each for each in (name, *settings.aliases))
        ]
        page = sorted(wanted)[:size]
        return pb.ListRegisteredModelsResponse(
            models=[self._message(name) for name in page],
            next_page_token=encode_page_token(page[-1]) if len(wanted) > size else "",
        )

    async def get_registered_model(
        self, request: pb.GetRegisteredModelRequest, call: Call
    ) -> pb.GetRegisteredModelResponse:
        return pb.GetRegisteredModelResponse(model=self._message(request.name))

    async def create_model(self, request: pb.CreateModelRequest, call: Call) -> pb.CreateModelResponse:
        name = request.model.name
        await self._registry.create(name, document_of(request.model), actor_of(call))
        return pb.CreateModelResponse(model=self._message(name))

    async def update_model(self, request: pb.UpdateModelRequest, call: Call) -> pb.UpdateModelResponse:
        edit = _edit_by_mask(request) if request.update_mask.paths else _replace(request)
        await self._registry.update(request.name, request.revision, "update", actor_of(call), edit)
        return pb.UpdateModelResponse(model=self._message(request.name))

    async def delete_model(self, request: pb.DeleteModelRequest, call: Call) -> pb.DeleteModelResponse:
        await self._registry.delete(request.name, request.revision, actor_of(call))
        return pb.DeleteModelResponse()

    async def enable_model(self, request: pb.EnableModelRequest, call: Call) -> pb.EnableModelResponse:
        edit = _set(lambda _: {"enabled": True})
        await self._registry.update(request.name, request.revision, "enable", actor_of(call), edit)
        return pb.EnableModelResponse(model=self._message(request.name))

    async def disable_model(self, request: pb.DisableModelRequest, call: Call) -> pb.DisableModelResponse:
        edit = _set(lambda _: {"enabled": False})
        await self._registry.update(request.name, request.revision, "disable", actor_of(call), edit)
        return pb.DisableModelResponse(model=self._message(request.name))

    async def set_version_weights(
        self, request: pb.SetVersionWeightsRequest, call: Call
    ) -> pb.SetVersionWeightsResponse:
        edit = _set(lambda settings: {"versions": _weighted(settings, request.weights)})
        await self._registry.update(request.name, request.revision, "weights", actor_of(call), edit)
        return pb.SetVersionWeightsResponse(model=self._message(request.name))

    async def rollback_model(self, request: pb.RollbackModelRequest, call: Call) -> pb.RollbackModelResponse:
        await self._registry.rollback(request.name, request.to_revision, request.revision, actor_of(call))
        return pb.RollbackModelResponse(model=self._message(request.name))

    async def list_model_revisions(
        self, request: pb.ListModelRevisionsRequest, call: Call
    ) -> pb.ListModelRevisionsResponse:
        below = _number(decode_page_token(request.page_token, 1)[0]) if request.page_token else 0
        size = request.page_size or PAGE_SIZE
        found = await self._registry.revisions(request.name, below, size + 1)
        page = found[:size]
        return pb.ListModelRevisionsResponse(
            revisions=[revision_message(request.name, revision) for revision in page],
            next_page_token=encode_page_token(page[-1].revision) if len(found) > size else "",
        )

    async def watch_changes(
        self, request: pb.WatchChangesRequest, call: Call
    ) -> AsyncIterator[pb.WatchChangesResponse]:
        async with aclosing(self._feed.watch(request.after_seq)) as news:  # type: ignore[type-var]
            async for changes, seq in news:
                yield pb.WatchChangesResponse(changes=changes, seq=seq)

    def _definitions(self) -> Iterator[tuple[str, RouteSettings]]:
        yield from self._registry.routes.items()
        for name, definition in self._registry.definitions.items():
            if name not in self._registry.routes:
                yield name, definition.settings

    def _message(self, name: str) -> messages.RegisteredModel:
        """Return a model with what is known of its use. Raises NoSuchModelError."""
        catalogue = self._registry.catalogue
        if name in self._registry.routes:
            definition = Definition(name, self._registry.routes[name])
        elif name in self._registry.definitions:
            definition = self._registry.definitions[name]
        else:
            raise NoSuchModelError(name)
        provenance = definition.provenance
        message = messages.RegisteredModel(
            model=definition_message(name, definition.settings),
            managed_by=provenance.managed_by,
            revision=provenance.revision,
            edited=provenance.edited,
            problem=catalogue.problem(name),
            updated_by=provenance.updated_by,
        )
        if provenance.managed_by != FILE:
            message.updated_at.FromDatetime(moment(int(provenance.updated_at * 1000)))
        model = catalogue.models.get(name) or catalogue.dormant.get(name)
        for target in _all_targets(model) if model is not None else ():
            message.endpoint_states.add(
                target=target.name,
                configured=target.provider in catalogue.providers,
                latency_ms=self._admission.latencies.of(target),
            )
        return message


def actor_of(call: Call) -> str:
    """Return whose change it is, for the history."""
    identity = call.identity
    return identity.user_id or identity.key_id or identity.organisation_id or "internal"


def _all_targets(model: Model) -> list[Target]:
    several = (model, *(version.model for version in model.versions))
    return list(dict.fromkeys(endpoint.target for each in several for endpoint in each.endpoints))


def _replace(request: pb.UpdateModelRequest) -> Edit:
    _check_same_name(request)
    document = document_of(request.model)
    return lambda _: document


def _edit_by_mask(request: pb.UpdateModelRequest) -> Edit:
    _check_same_name(request)
    fields = messages.ModelDefinition.DESCRIPTOR.fields_by_name
    for path in request.update_mask.paths:
        if path not in fields or path == "name":
            known = ", ".join(name for name in fields if name != "name")
            raise InvalidModelError([Flaw("update_mask", f"{path!r} is none of {known}")])

    masked = set(request.update_mask.paths)
    changed = messages.ModelDefinition()
    changed.CopyFrom(request.model)
    for name in set(fields) - masked:
        changed.ClearField(name)  # type: ignore[arg-type]

    def edit(settings: RouteSettings) -> dict[str, Any]:
        message = definition_message(request.name, settings)
        for name in masked:
            message.ClearField(name)  # type: ignore[arg-type]
        message.MergeFrom(changed)
        return document_of(message)

    return edit


def _check_same_name(request: pb.UpdateModelRequest) -> None:
    if request.model.name not in ("", request.name):
        rule = "a model cannot be renamed: create another, or add an alias"
        raise InvalidModelError([Flaw("model.name", rule)])


def _set(values: Callable[[RouteSettings], Mapping[str, Any]]) -> Edit:
    def edit(settings: RouteSettings) -> dict[str, Any]:
        return {**settings.model_dump(mode="json", exclude_defaults=True), **values(settings)}

    return edit


def _weighted(settings: RouteSettings, weights: Mapping[str, int]) -> dict[str, Any]:
    unknown = sorted(set(weights) - set(settings.versions))
    if unknown:
        known = ", ".join(settings.versions) or "it has none"
        raise InvalidModelError([Flaw("weights", f"no version {unknown[0]!r}; versions: {known}")])
    return {
        name: {
            **version.model_dump(mode="json", exclude_defaults=True),
            "weight": weights.get(name, version.weight),
        }
        for name, version in settings.versions.items()
    }


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidModelError([Flaw("page_token", "not a page token: start from the first page")])
    return int(text)
