"""A service that exists for tests only, callable over either transport.

Its contract is compiled here rather than by `make protos`, so that nothing of it ships.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from grpc_tools import protoc

from services.common.rpc import Connector, Registry
from services.common.rpc.server import Gate, GrpcServer

ROOT = Path(__file__).resolve().parents[2]
FILE = "omnihubtest/v1/echo_service.proto"


def _descriptor() -> ServiceDescriptor:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "echo.binpb"
        code = protoc.main(
            [
                "protoc",
                f"-I{ROOT / 'tests' / 'protos'}",
                f"--descriptor_set_in={ROOT / 'gen' / 'omnihub.binpb'}",
                f"--descriptor_set_out={output}",
                FILE,
            ]
        )
        if code:
            raise RuntimeError(f"protoc failed with {code}")
        compiled = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    pool = descriptor_pool.Default()
    for file in compiled.file:
        pool.Add(file)
    return pool.FindServiceByName("omnihubtest.v1.EchoService")


_SERVICE = _descriptor()
_messages = _SERVICE.file.message_types_by_name
SayRequest: Any = message_factory.GetMessageClass(_messages["SayRequest"])
SayResponse: Any = message_factory.GetMessageClass(_messages["SayResponse"])
CountRequest: Any = message_factory.GetMessageClass(_messages["CountRequest"])
CountResponse: Any = message_factory.GetMessageClass(_messages["CountResponse"])
Share: Any = message_factory.GetMessageClass(_messages["Share"])
WhisperRequest: Any = message_factory.GetMessageClass(_messages["WhisperRequest"])
WhisperResponse: Any = message_factory.GetMessageClass(_messages["WhisperResponse"])


class EchoService(Protocol):
    """The interface, as tools/protoc_gen_interface.py would write it."""

    DESCRIPTOR = _SERVICE

    async def say(self, request: Any, call: Any) -> Any: ...

    def count(self, request: Any, call: Any) -> AsyncIterator[Any]: ...

    async def whisper(self, request: Any, call: Any) -> Any: ...


async def _echo(request: Any, _: Any) -> Any:
    return SayResponse(text=request.text, tags=request.tags, payload=request.payload)


async def _whisper(request: Any, _: Any) -> Any:
    return WhisperResponse(text=request.text)


async def _numbers(request: Any, _: Any) -> AsyncIterator[Any]:
    for number in range(request.until):
        yield CountResponse(number=number)


class Echo:
    """An implementation whose handlers the test gives; without one it echoes."""

    def __init__(
        self,
        say: Callable[[Any, Any], Awaitable[Any]] = _echo,
        count: Callable[[Any, Any], Any] = _numbers,
        whisper: Callable[[Any, Any], Awaitable[Any]] = _whisper,
    ) -> None:
        self.say = say
        self.count = count
        self.whisper = whisper


@asynccontextmanager
async def local_client(implementation: Echo, _: Gate | None = None) -> AsyncIterator[Any]:
    """A client in the same process."""
    registry = Registry()
    registry.add(EchoService, implementation)
    yield Connector(registry, {}).connect(EchoService, "echo")


@asynccontextmanager
async def grpc_client(implementation: Echo, gate: Gate | None = None) -> AsyncIterator[Any]:
    """A client over real gRPC on the loopback interface."""
    async with AsyncExitStack() as stack:
        server = GrpcServer("127.0.0.1:0", gate)
        server.add(EchoService, implementation)
        port = await server.start()
        stack.push_async_callback(server.stop, 5)
        connector = Connector(Registry(), {"echo": f"127.0.0.1:{port}"})
        stack.push_async_callback(connector.close)
        yield connector.connect(EchoService, "echo")


TRANSPORTS = {"local": local_client, "grpc": grpc_client}
