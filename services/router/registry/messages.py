"""Definitions of models between the contract's messages and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from omnihub.router.v1.registry_pb2 import ModelDefinition, ModelEndpoint, ModelRevision, ModelVersion

from services.router.domain.errors import Flaw
from services.router.domain.registration import InvalidModelError, read_document
from services.router.registry.registry import moment
from services.router.registry.store import Revision
from services.router.settings import EndpointSettings, RouteSettings

_TIMEOUTS = ("connect", "first_token", "idle", "total")
# Fields that have the same name and form in both.
_SAME = (
    *("default_provider", "context_length", "max_output", "rescue", "hold_back", "source", "source_date"),
    *("strategy", "hedge_after_ms", "race_width", "cache", "cache_ttl_s"),
)
_LISTS = ("aliases", "fallback", "capabilities", "regions", "tiers")
_OPTIONAL: tuple[Literal["quality", "enabled", "retries"], ...] = ("quality", "enabled", "retries")
_STRUCTS: tuple[Literal["options_schema", "options_defaults"], ...] = ("options_schema", "options_defaults")


def document_of(message: ModelDefinition) -> dict[str, Any]:
    """Return the document of a definition. Raises InvalidModelError for versions of one name."""
    document: dict[str, Any] = {name: getattr(message, name) for name in _SAME if getattr(message, name)}
    document.update({name: list(getattr(message, name)) for name in _LISTS if getattr(message, name)})
    document.update({name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)})
    document.update({name: plain(getattr(message, name)) for name in _STRUCTS if message.HasField(name)})
    if message.strengths:
        # Maps of messages have no order; the same definition is the same document.
        document["strengths"] = dict(sorted(message.strengths.items()))
    timeouts = {f"{name}_s": value for name in _TIMEOUTS if (value := getattr(message, f"{name}_timeout_s"))}
    if timeouts:
        document["timeouts"] = timeouts
    versions: dict[str, Any] = {}
    for position, version in enumerate(message.versions):
        if version.name in versions:
            raise InvalidModelError([Flaw(f"model.versions[{position}].name", "is there twice")])
        versions[version.name] = {"weight": version.weight, **_route(version.endpoints)}
    return {**document, **_route(message.endpoints), **({"versions": versions} if versions else {})}


def _route(endpoints: Sequence[ModelEndpoint]) -> dict[str, Any]:
    particulars: dict[str, Any] = {}
    for endpoint in endpoints:
        own: dict[str, Any] = {"region": endpoint.region} if endpoint.region else {}
        if endpoint.HasField("enabled") and not endpoint.enabled:
            own["enabled"] = False
        if endpoint.weight:
            own["weight"] = endpoint.weight
        if own:
            particulars[endpoint.target] = own
    route = {"route": [endpoint.target for endpoint in endpoints]}
    return {**route, "endpoints": particulars} if particulars else route


def definition_message(name: str, settings: RouteSettings) -> ModelDefinition:
    """Return a definition as the contract has it."""
    message = ModelDefinition(
        name=name,
        endpoints=_endpoints(settings.route, settings.endpoints),
        versions=[
            ModelVersion(
                name=each, weight=version.weight, endpoints=_endpoints(version.route, version.endpoints)
            )
            for each, version in settings.versions.items()
        ],
        strengths=settings.strengths,
        enabled=settings.enabled,
        retries=settings.retries,
    )
    for same in _SAME:
        setattr(message, same, getattr(settings, same))
    for several in _LISTS:
        getattr(message, several).extend(getattr(settings, several))
    if settings.quality is not None:
        message.quality = settings.quality
    for struct in _STRUCTS:
        if getattr(settings, struct):
            getattr(message, struct).CopyFrom(to_struct(getattr(settings, struct)))
    for timeout in _TIMEOUTS:
        setattr(message, f"{timeout}_timeout_s", getattr(settings.timeouts, f"{timeout}_s"))
    return message


def _endpoints(route: Sequence[str], particulars: Mapping[str, EndpointSettings]) -> list[ModelEndpoint]:
    endpoints = []
    for target in route:
        own = particulars.get(target, EndpointSettings())
        endpoints.append(
            ModelEndpoint(target=target, region=own.region, enabled=own.enabled, weight=own.weight)
        )
    return endpoints


def revision_message(name: str, revision: Revision) -> ModelRevision:
    """Return a row of the history as the contract has it."""
    message = ModelRevision(revision=revision.revision, actor=revision.actor, act=revision.act)
    message.at.FromDatetime(moment(revision.at))
    if revision.before is not None:
        message.before.CopyFrom(definition_message(name, read_document(json.loads(revision.before))))
    if revision.after is not None:
        message.after.CopyFrom(definition_message(name, read_document(json.loads(revision.after))))
    return message


def to_struct(values: Mapping[str, Any]) -> Struct:
    """Return values as a message."""
    struct = Struct()
    struct.update(dict(values))
    return struct


def plain(struct: Struct) -> dict[str, Any]:
    """Return a message's values; whole numbers, which it keeps as floats, as integers."""
    values: dict[str, Any] = _whole(MessageToDict(struct))
    return values


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
