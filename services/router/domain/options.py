"""Options of a model: their JSON Schema, and what a caller's come to. Nothing is fetched for a schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from services.common.late import late
from services.router.domain.errors import Flaw

if TYPE_CHECKING:
    import jsonschema
    import referencing.exceptions
else:
    # Only models with options of their own need them.
    jsonschema = late("jsonschema")
    referencing = late("referencing")

# More than this helps nobody.
LIMIT = 20


def schema_flaws(schema: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield what is wrong with a schema, or with defaults that do not satisfy it."""
    if not schema:
        return
    validator = jsonschema.Draft202012Validator
    meta = validator(validator.META_SCHEMA)
    wrong = sorted(meta.iter_errors(schema), key=_place)[:LIMIT]
    if wrong:
        yield from (Flaw(_path("options_schema", each), each.message) for each in wrong)
        return
    if schema.get("type", "object") != "object":
        yield Flaw("options_schema.type", "options are an object: say `object`")
        return
    yield from option_flaws(schema, defaults, "options_defaults", partial=True)


def option_flaws(
    schema: Mapping[str, Any], options: Mapping[str, Any], where: str, *, partial: bool = False
) -> Iterator[Flaw]:
    """Yield what is wrong with options. `partial` ones may lack required options."""
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    try:
        wrong = sorted(validator.iter_errors(options), key=_place)
    except referencing.exceptions.Unresolvable as error:
        yield Flaw("options_schema", f"{error.ref!r} is not in the schema; nothing else is looked up")
        return
    except RecursionError:
        yield Flaw("options_schema", "it refers to itself without an end")
        return
    for each in wrong[:LIMIT]:
        if not (partial and each.validator == "required" and not each.absolute_path):
            yield Flaw(_path(where, each), each.message)


def with_defaults(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a caller's options, with the defaults where it gave none."""
    return {**defaults, **options}


def _place(error: jsonschema.ValidationError) -> list[str]:
    return [str(step) for step in error.absolute_path]


def _path(where: str, error: jsonschema.ValidationError) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    return where + "".join(steps)
