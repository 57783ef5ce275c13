"""protoc plugin: for each service a typed Protocol, the same for servers and clients.

    class BillingService(Protocol):
        DESCRIPTOR: ClassVar[ServiceDescriptor]
        async def create_hold(self, request: CreateHoldRequest, call: Call) -> CreateHoldResponse: ...

A server implements it; `services.common.rpc.connect` returns an object that satisfies it.
"""

import re
import sys
from collections.abc import Mapping

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto


def snake_case(name: str) -> str:
    """Return CreateHold as create_hold."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def module_of(file: str) -> str:
    """Return the generated module of a .proto file."""
    return file.removesuffix(".proto").replace("/", ".") + "_pb2"


def alias_of(message: str, own: str, homes: Mapping[str, str]) -> str:
    """Return how a message is written: `pb.X` when it is of the same file, else by its module."""
    home = homes[message]
    prefix = "pb" if home == own else module_of(home).rsplit(".", 1)[1]
    return f"{prefix}.{message.rsplit('.', 1)[1]}"


def method_lines(method: MethodDescriptorProto, own: str, homes: Mapping[str, str]) -> list[str]:
    """Return one method of the Protocol."""
    request = alias_of(method.input_type, own, homes)
    response = alias_of(method.output_type, own, homes)
    name = snake_case(method.name)
    if method.client_streaming:
        raise ValueError(f"{method.name}: client streaming is not part of the transport")
    if method.server_streaming:
        signature = f"def {name}(self, request: {request}, call: Call) -> AsyncIterator[{response}]: ..."
    else:
        signature = f"async def {name}(self, request: {request}, call: Call) -> {response}: ..."
    return [f"    {signature}"]


def interface(file: FileDescriptorProto, homes: Mapping[str, str]) -> str:
    """Return the source of the *_api module of one file. `homes` names the file of each message."""
    package, module = module_of(file.name).rsplit(".", 1)
    used = {
        homes[name]
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    }
    others = [module_of(home).rsplit(".", 1) for home in sorted(used - {file.name})]
    lines = [
        f'"""Service interfaces of {file.name}. Generated; see tools/protoc_gen_interface.py."""',
        "",
        "from __future__ import annotations",
        "",
        "from collections.abc import AsyncIterator",
        "from typing import TYPE_CHECKING, ClassVar, Protocol",
        "",
        "from google.protobuf.descriptor import ServiceDescriptor",
        "",
        *(f"from {folder} import {other}" for folder, other in others),
        f"from {package} import {module} as pb",
        "",
        "if TYPE_CHECKING:",
        "    from services.common.rpc.call import Call",
    ]
    for service in file.service:
        lines += ["", "", f"class {service.name}(Protocol):"]
        lines += [f'    """{file.package}.{service.name}: its contract is in {file.name}."""', ""]
        lines += [
            f'    DESCRIPTOR: ClassVar[ServiceDescriptor] = pb.DESCRIPTOR.services_by_name["{service.name}"]'
        ]
        for method in service.method:
            lines += ["", *method_lines(method, file.name, homes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read protoc's request from standard input, write the answer to standard output."""
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    wanted = set(request.file_to_generate)
    homes = {
        f".{file.package}.{message.name}": file.name
        for file in request.proto_file
        for message in file.message_type
    }
    for file in request.proto_file:
        if file.name in wanted and file.service:
            name = file.name.removesuffix(".proto") + "_api.py"
            response.file.add(name=name, content=interface(file, homes))
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()
