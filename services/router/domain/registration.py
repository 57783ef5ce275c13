"""Which definitions of models make sense: alone, and beside the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from services.router.domain.catalogue import AUTO
from services.router.domain.errors import Flaw
from services.router.domain.model import Target
from services.router.domain.options import schema_flaws
from services.router.settings import RouteSettings

ROOT = "model"
# A document's keys, where the contract calls them otherwise.
_FIELDS = {
    ("timeouts", "connect_s"): "connect_timeout_s",
    ("timeouts", "first_token_s"): "first_token_timeout_s",
    ("timeouts", "idle_s"): "idle_timeout_s",
    ("timeouts", "total_s"): "total_timeout_s",
}


class RegistryError(Exception):
    """A model cannot be changed like that. `reason` is a row of the error table."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = metadata


class InvalidModelError(RegistryError):
    """Fields of a definition are wrong."""

    def __init__(self, violations: Sequence[Flaw]) -> None:
        super().__init__("; ".join(f"{flaw.field}: {flaw.description}" for flaw in violations[:5]))
        self.violations = violations


class ModelExistsError(RegistryError):
    """The name has another definition."""

    reason = "ALREADY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the registry has another model {name!r}: update it, or choose another name", name=name
        )


class NoSuchModelError(RegistryError):
    """The registry has no such model."""

    reason = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"the registry has no model {name!r}; GET /api/admin/models lists them", name=name)


class NoSuchRevisionError(RegistryError):
    """The model has no such revision."""

    reason = "NOT_FOUND"

    def __init__(self, name: str, revision: int) -> None:
        path = f"GET /api/admin/models/{name}/revisions"
        super().__init__(f"{name!r} has no revision {revision}; {path} lists them", name=name)


class StaleRevisionError(RegistryError):
    """Somebody changed the model meanwhile."""

    reason = "CONFLICT"

    def __init__(self, name: str, expected: int, found: int) -> None:
        super().__init__(
            f"{name!r} is at revision {found}, not {expected}: read it again and repeat the change",
            name=name,
            revision=str(found),
        )


class NamesTakenError(RegistryError):
    """Another change took a name at the same moment."""

    reason = "CONFLICT"

    def __init__(self) -> None:
        super().__init__("another change took one of these names at the same moment: read the models again")


class ManagedByFileError(RegistryError):
    """What a file declares is changed in the file."""

    reason = "PRECONDITION_FAILED"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is declared by omnihub.toml and cannot be changed here: "
            f'change [models."{name}"] there, or choose another name',
            name=name,
            managed_by="file",
        )


class FallbackInUseError(RegistryError):
    """Another model falls back to this one."""

    reason = "PRECONDITION_FAILED"

    def __init__(self, name: str, users: Sequence[str]) -> None:
        super().__init__(
            f"{name!r} is a fallback of {', '.join(users[:5])}: change that first, or disable {name!r}",
            name=name,
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a definition must fit to."""

    models: Mapping[str, RouteSettings]
    """The models by name, those of the file and of the registry."""
    by_file: frozenset[str] = frozenset()
    """The names of the file's."""
    providers: frozenset[str] | None = None
    """Names that may stand before the slash; None: any."""
    fallbacks_exist: bool = True
    """A fallback must be one of the models."""
    owners: Mapping[str, str] = field(kw_only=True)
    """The model that has a name or an alias."""


def owners_of(models: Mapping[str, RouteSettings]) -> dict[str, str]:
    """Return the model that has each name and alias. Names win."""
    owners = {alias: name for name, settings in models.items() for alias in settings.aliases}
    owners.update({name: name for name in models})
    return owners


def write_document(settings: RouteSettings) -> str:
    """Return a definition as JSON, without what is usual. Equal definitions give equal texts."""
    document = settings.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def read_document(document: Mapping[str, Any]) -> RouteSettings:
    """Return the definition in a document. Raises InvalidModelError."""
    try:
        return RouteSettings.model_validate(document)
    except ValidationError as error:
        flaws = [
            Flaw(_path(problem["loc"], document), _say(problem["type"], problem["msg"]))
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidModelError(flaws) from None


def check(name: str, settings: RouteSettings, around: Surroundings) -> None:
    """Check a definition. Raises InvalidModelError naming all that is wrong."""
    flaws = [
        *_name_flaws(name, settings, around),
        *_provider_flaws(settings, around),
        *_fallback_flaws(name, settings, around),
        *(
            Flaw(f"{ROOT}.{flaw.field}", flaw.description)
            for flaw in schema_flaws(settings.options_schema, settings.options_defaults)
        ),
    ]
    if flaws:
        raise InvalidModelError(flaws)


def check_new_name(name: str) -> None:
    """Check the name of a model that is to be registered. Raises InvalidModelError."""
    if "/" in name:
        rule = "no slash: `provider/model` names a provider's model directly; an alias may have one"
        raise InvalidModelError([Flaw(f"{ROOT}.name", rule)])
    try:
        RouteSettings(route=["a/b"], aliases=[name])
    except ValidationError:
        rule = "1 to 128 characters, without white space and @ , * ? [ ]"
        raise InvalidModelError([Flaw(f"{ROOT}.name", rule)]) from None


def _name_flaws(name: str, settings: RouteSettings, around: Surroundings) -> Iterator[Flaw]:
    owner = around.owners.get(name)
    if owner not in (None, name):
        yield Flaw(f"{ROOT}.name", f"{name!r} is an alias of {owner!r}: choose another name")
    for position, alias in enumerate(settings.aliases):
        where = f"{ROOT}.aliases[{position}]"
        owner = around.owners.get(alias)
        if alias == name:
            yield Flaw(where, "is the model's own name")
        elif alias == AUTO:
            yield Flaw(where, f"{AUTO!r} asks the router to choose: choose another alias")
        elif alias in settings.aliases[:position]:
            yield Flaw(where, f"{alias!r} is there twice")
        elif owner not in (None, name):
            file = " of omnihub.toml" if owner in around.by_file else ""
            yield Flaw(where, f"{alias!r} belongs to the model {owner!r}{file}: choose another alias")


def _provider_flaws(settings: RouteSettings, around: Surroundings) -> Iterator[Flaw]:
    routes = [("endpoints", settings.route)]
    for position, (_, version) in enumerate(settings.versions.items()):
        routes.append((f"versions[{position}].endpoints", version.route))
    used = set()
    for where, route in routes:
        for position, target in enumerate(route):
            provider = Target.parse(target).provider
            used.add(provider)
            if around.providers is not None and provider not in around.providers:
                known = ", ".join(sorted(around.providers))
                yield Flaw(
                    f"{ROOT}.{where}[{position}].target",
                    f"no provider {provider!r} is configured; configured: {known}",
                )
    if settings.default_provider and settings.default_provider not in used:
        yield Flaw(f"{ROOT}.default_provider", f"{settings.default_provider!r} has none of the endpoints")


def _fallback_flaws(name: str, settings: RouteSettings, around: Surroundings) -> Iterator[Flaw]:
    for position, other in enumerate(settings.fallback):
        where = f"{ROOT}.fallback[{position}]"
        if other not in around.models and other != name:
            if around.fallbacks_exist:
                owner = around.owners.get(other)
                hint = f"it is an alias: name {owner!r}" if owner else "create it first"
                yield Flaw(where, f"there is no model {other!r}; {hint}")
            continue
        cycle = _path_to(name, other, around.models)
        if cycle:
            yield Flaw(where, f"goes round in a circle: {' -> '.join((name, *cycle))}")


def _path_to(wanted: str, start: str, models: Mapping[str, RouteSettings]) -> list[str]:
    """Return a way of fallbacks from `start` to `wanted`; empty when there is none."""
    waiting, seen = [[start]], {start}
    while waiting:
        way = waiting.pop()
        if way[-1] == wanted:
            return way
        settings = models.get(way[-1])
        for other in settings.fallback if settings is not None else ():
            if other not in seen:
                seen.add(other)
                waiting.append([*way, other])
    return []


def _say(kind: str, message: str) -> str:
    return "unknown field" if kind == "extra_forbidden" else message.removeprefix("Value error, ")


def _path(location: Sequence[Any], document: Mapping[str, Any]) -> str:
    """Return the field of the contract that a place in a document comes from."""
    steps = tuple(location)
    if steps in _FIELDS:
        return f"{ROOT}.{_FIELDS[steps]}"
    path, node = ROOT, document
    if steps[:1] == ("versions",) and len(steps) > 1:
        versions = document.get("versions") or {}
        names = list(versions)
        known = steps[1] in names
        path += f".versions[{names.index(steps[1])}]" if known else ".versions"
        node = versions[steps[1]] if known else {}
        steps = steps[2:]
    if steps[:1] == ("route",):
        return f"{path}.endpoints" + (f"[{steps[1]}].target" if len(steps) > 1 else "")
    route = node.get("route") if isinstance(node, Mapping) else None
    if steps[:1] == ("endpoints",) and len(steps) > 1 and isinstance(route, list) and steps[1] in route:
        rest = "".join(f".{step}" for step in steps[2:])
        return f"{path}.endpoints[{route.index(steps[1])}]{rest}"
    for step in steps:
        if step != "[key]":
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path
