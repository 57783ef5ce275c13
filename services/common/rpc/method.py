"""A service's methods, read from its generated descriptor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from omnihub.common.v1 import options_pb2


class ServiceInterface(Protocol):
    """What every generated service Protocol has."""

    DESCRIPTOR: ServiceDescriptor


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc."""

    name: str
    """The Python name, such as `create_hold`."""
    path: str
    """`/omnihub.billing.v1.BillingService/CreateHold`."""
    request: type[Message]
    response: type[Message]
    givable: frozenset[type[Message]]
    """What may pass through an outlet: the response, or the message that one of its fields holds."""
    streams: bool
    public: bool
    anonymous: bool
    scope: str
    body_field: str
    """The field a REST body is bound to; empty when it is the whole request, or there is no binding."""


def snake_case(name: str) -> str:
    """Return CreateHold as create_hold."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _givable(descriptor: MethodDescriptor) -> list[Descriptor]:
    response = descriptor.output_type
    held = [field.message_type for field in response.fields if field.message_type is not None]
    return [response, *held] if descriptor.server_streaming else []


def _method(descriptor: MethodDescriptor) -> Method:
    options = descriptor.GetOptions().Extensions
    return Method(
        name=snake_case(descriptor.name),
        path=f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        givable=frozenset(message_factory.GetMessageClass(each) for each in _givable(descriptor)),
        streams=descriptor.server_streaming,
        public=options[options_pb2.public],
        anonymous=options[options_pb2.anonymous],
        scope=options[options_pb2.scope],
        body_field=options[annotations_pb2.http].body.strip("*"),
    )


@cache
def methods_of(service: ServiceDescriptor) -> tuple[Method, ...]:
    """Return the methods of a service."""
    return tuple(_method(method) for method in service.methods)


def expected(message: Any, kind: type[Message], what: str) -> Message:
    """Return `message`. Raises TypeError when it is of another type than the contract says."""
    if not isinstance(message, kind):
        raise TypeError(f"{what} is a {type(message).__name__}, not a {kind.__name__}")
    return message


def copied(message: Any, kind: type[Message], what: str) -> Message:
    """Return a copy of `message`. Raises TypeError when it is of another type than the contract says."""
    copy = kind()
    copy.CopyFrom(expected(message, kind, what))
    return copy


async def close_stream(stream: Any) -> None:
    """Let a handler's stream clean up now; a plain iterator has nothing to close."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


def handler_of(implementation: Any, method: Method) -> Callable[..., Any]:
    """Return the function that serves `method`; a missing one is a fault of wiring, found at start."""
    handler = getattr(implementation, method.name, None)
    if handler is None:
        raise TypeError(f"{type(implementation).__name__} does not implement {method.path}")
    return handler  # type: ignore[no-any-return]
