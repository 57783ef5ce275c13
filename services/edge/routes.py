"""What the public port leads to: public rpcs and REST bindings of the contracts, and the facade's table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import omnihub
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from omnihub.common.v1 import options_pb2

# Written by tools/build_protos.py beside the generated package.
DESCRIPTOR_FILE = Path(omnihub.__file__).parent.parent / "omnihub.binpb"
# Names of clusters are the areas of the contracts, and these.
FACADE_CLUSTER = "facade"
# The HTTP listener of the workflow service.
FILES_CLUSTER = "files"
# The process that knows whether all are ready: the gateway's, or the one that has started workers.
PROBES_CLUSTER = "probes"
# REST is proto JSON in lowerCamelCase, but below this prefix it keeps the names of the contracts.
SNAKE_CASE_PREFIX = "/v1/"

_VARIABLE = re.compile(r"\{[a-z0-9_.]+(?:=([^}]*))?\}")
_WILDCARDS = {"*": "[^/]+", "**": ".+"}


@dataclass(frozen=True, slots=True)
class PathMatch:
    """A set of paths: one, or those that a regular expression matches from end to end."""

    exact: str = ""
    regex: str = ""
    verb: bool = False
    """It ends in `:verb`, which a name in the path before it cannot swallow."""

    @property
    def pattern(self) -> str:
        """Return the regular expression, also of an exact path."""
        return self.regex or re.escape(self.exact)


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST form of an rpc."""

    method: str
    template: str
    body_field: str = ""
    """The field of the request that the body is; empty when it is the whole request, or there is none."""

    @property
    def path(self) -> PathMatch:
        """Return the paths the template stands for."""
        return match_template(self.template)

    @property
    def snake_case(self) -> bool:
        """Tell whether its JSON keeps the field names of the contract."""
        return self.template.startswith(SNAKE_CASE_PREFIX)


@dataclass(frozen=True, slots=True)
class PublicRpc:
    """One rpc the public port leads to."""

    path: str
    """`/omnihub.billing.v1.BillingService/ListUsage`."""
    area: str
    """`billing`: the service that owns it."""
    streams: bool
    bindings: tuple[Binding, ...]
    anonymous: bool = False
    """It takes no credential."""

    @property
    def service(self) -> str:
        """Return `omnihub.billing.v1.BillingService`."""
        return self.path[1:].partition("/")[0]


@dataclass(frozen=True, slots=True)
class FacadeRoute:
    """Methods and paths that the gateway, or another service, serves as plain HTTP."""

    methods: tuple[str, ...]
    path: PathMatch
    cluster: str = FACADE_CLUSTER


# The one table that is not in the contracts. Foreign wire formats, files, and the two probes.
FACADE: tuple[FacadeRoute, ...] = (
    FacadeRoute(("POST",), PathMatch(exact="/v1/chat/completions")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/responses")),
    FacadeRoute(("GET", "DELETE"), PathMatch(regex="/v1/responses/[^/]+")),
    FacadeRoute(("POST",), PathMatch(regex="/v1/responses/[^/]+/cancel")),
    FacadeRoute(("GET",), PathMatch(regex="/v1/responses/[^/]+/input_items")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/messages")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/messages/count_tokens")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/embeddings")),
    FacadeRoute(("GET",), PathMatch(exact="/api/usage/export")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/router/debug")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/images/generations")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/images/edits")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/audio/speech")),
    FacadeRoute(("POST",), PathMatch(exact="/v1/audio/transcriptions")),
    FacadeRoute(("GET", "POST"), PathMatch(exact="/v1/videos")),
    FacadeRoute(("GET", "DELETE"), PathMatch(regex="/v1/videos/[^/]+")),
    FacadeRoute(("GET",), PathMatch(regex="/v1/videos/[^/]+/content")),
    FacadeRoute(("POST",), PathMatch(regex="/v1/videos/[^/]+/remix")),
    FacadeRoute(("GET",), PathMatch(exact="/v1/models")),
    # The names of models contain slashes.
    FacadeRoute(("GET",), PathMatch(regex="/v1/models/.+")),
    FacadeRoute(("POST",), PathMatch(exact="/files"), FILES_CLUSTER),
    FacadeRoute(("GET", "HEAD"), PathMatch(regex="/files/[^/]+"), FILES_CLUSTER),
    FacadeRoute(("POST",), PathMatch(regex="/webhooks/[^/]+"), FILES_CLUSTER),
    FacadeRoute(("GET", "HEAD"), PathMatch(exact="/health"), PROBES_CLUSTER),
    FacadeRoute(("GET", "HEAD"), PathMatch(exact="/ready"), PROBES_CLUSTER),
)


def match_template(template: str) -> PathMatch:
    """Return the paths of a google.api.http template such as `/api/keys/{key_id}/rotate`."""
    # `{name=projects/*}` matches what `projects/*` does, and `{key_id}` what `*` does.
    plain = _VARIABLE.sub(lambda variable: variable.group(1) or "*", template)
    if "*" not in plain:
        return PathMatch(exact=plain)
    pieces = re.split(r"(\*\*|\*)", plain)
    regex = "".join(_WILDCARDS.get(piece) or re.escape(piece) for piece in pieces)
    return PathMatch(regex=regex, verb=":" in plain.rpartition("/")[2])


def _bindings(rule: http_pb2.HttpRule) -> Iterator[Binding]:
    kind = rule.WhichOneof("pattern")
    body_field = "" if rule.body == "*" else rule.body
    if kind == "custom":
        yield Binding(rule.custom.kind, rule.custom.path, body_field)
    elif kind is not None:
        yield Binding(kind.upper(), getattr(rule, kind), body_field)
    for additional in rule.additional_bindings:
        yield from _bindings(additional)


def read_descriptors(file: Path = DESCRIPTOR_FILE) -> descriptor_pb2.FileDescriptorSet:
    """Return the descriptor set of the contracts, without comments."""
    try:
        binary = file.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"{file} cannot be read ({error.strerror}): run `make protos`") from None
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(binary)
    for proto in descriptors.file:
        proto.ClearField("source_code_info")
    return descriptors


def public_rpcs(descriptors: descriptor_pb2.FileDescriptorSet) -> tuple[PublicRpc, ...]:
    """Return the rpcs marked `public`, in the order of the contracts."""
    return tuple(
        PublicRpc(
            path=f"/{proto.package}.{service.name}/{method.name}",
            area=proto.package.split(".")[1],
            streams=method.server_streaming,
            bindings=tuple(_bindings(method.options.Extensions[annotations_pb2.http])),
            anonymous=method.options.Extensions[options_pb2.anonymous],
        )
        for proto in descriptors.file
        for service in proto.service
        for method in service.method
        if method.options.Extensions[options_pb2.public]
    )


@cache
def contract() -> tuple[bytes, tuple[PublicRpc, ...]]:
    """Return the descriptor set as Envoy takes it, and the public rpcs in it."""
    descriptors = read_descriptors()
    return descriptors.SerializeToString(), public_rpcs(descriptors)
