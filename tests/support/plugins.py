"""Processes and servers that speak the provider contract, well or badly."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Connector, Registry
from services.common.rpc.call import Call
from services.common.rpc.errors import to_rpc_error
from services.common.rpc.method import methods_of
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure
from services.providers.adapters.local import LocalAdapter
from services.providers.app import build
from services.providers.conformance.command import judge
from services.providers.conformance.kit import Result
from services.providers.http import Upstream
from services.providers.server import ProviderServer
from services.providers.settings import ProviderSettings
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "gen" / "omnihub.binpb"
START_S = 60
_SAMPLES = ROOT / "samples"
_CACHE = ROOT / ".setup" / "typescript-provider"


class GoodProvider(ProviderServer):
    """A provider called `good` that keeps the contract. Subclasses break it in one place."""

    def __init__(self) -> None:
        super().__init__({"good": LocalAdapter("good", ProviderSettings(), Upstream())})


@asynccontextmanager
async def serving(implementation: Any, port: int = 0) -> AsyncIterator[str]:
    """Serve a provider on a port of 127.0.0.1 and return its address."""
    address = f"127.0.0.1:{port or free_port()}"
    server = GrpcServer(address, gate=None)
    server.add(ProviderService, implementation)
    await server.start()
    await server.set_serving(True)
    try:
        yield address
    finally:
        await server.stop(0)


@asynccontextmanager
async def serving_suite(database_url: str = "", **providers: ProviderSettings) -> AsyncIterator[str]:
    """Serve the suite's own providers service over gRPC and return its address."""
    with TemporaryDirectory() as folder:
        infrastructure = Infrastructure(
            connector=Connector(Registry(), {}), data_dir=Path(folder), database_url=database_url
        )
        service = build(providers, infrastructure)
        address = f"127.0.0.1:{free_port()}"
        server = GrpcServer(address, gate=None)
        for interface, implementation in service.interfaces:
            server.add(interface, implementation)
        await service.start()
        await server.start()
        await server.set_serving(True)
        try:
            yield address
        finally:
            await server.stop(0)
            await service.stop()


@asynccontextmanager
async def serving_bare(implementation: Any) -> AsyncIterator[str]:
    """Serve a provider as grpc alone does: no details in errors, no constraints, small messages."""
    server = grpc.aio.server()
    handlers = {}
    for method in methods_of(ProviderService.DESCRIPTOR):
        make = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        serve = _bare_stream if method.streams else _bare_unary
        handlers[method.path.rsplit("/", 1)[1]] = make(
            serve(getattr(implementation, method.name)),
            request_deserializer=method.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
    name = ProviderService.DESCRIPTOR.full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{free_port()}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _bare_unary(handler: Any) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        try:
            return await handler(request, Call.internal())
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)

    return serve


def _bare_stream(handler: Any) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        try:
            async for message in handler(request, Call.internal()):
                yield message
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)

    return serve


async def _abort(context: Any, error: Exception) -> None:
    row = to_rpc_error(error).row
    code = next(code for code in grpc.StatusCode if code.value[0] == row.grpc)
    await context.abort(code, str(error))


async def verdict(address: str, only: str = "", **options: Any) -> list[Result]:
    """Return what the kit says of a plugin."""
    return [result async for result in judge(address, only=only, **options)]


def broken_clauses(results: Sequence[Result]) -> set[str]:
    """Return the clauses that are said to be broken."""
    return {result.clauses[0] for result in results if result.state == "fail"}


def shown_failures(results: Sequence[Result]) -> str:
    """Return what failed, for the message of an assertion."""
    return "\n".join(f"{r.provider} {r.check} {r.clauses}: {r.detail}" for r in results if r.state == "fail")


@asynccontextmanager
async def running_process(command: Sequence[str], environment: dict[str, str]) -> AsyncIterator[None]:
    """Run a sample until it says that it listens."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], **environment},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            said = b""
            while b"listens on" not in (line := await process.stdout.readline()):
                said += line
                assert line, f"it ended before it listened: {said.decode()}"
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def running_python_sample(folder: Path) -> AsyncIterator[str]:
    """Run samples/python-provider with stubs in `folder` and return its address."""
    sample = _SAMPLES / "python-provider"
    make = [sys.executable, str(sample / "make_stubs.py"), str(CONTRACT), str(folder)]
    await asyncio.to_thread(subprocess.run, make, check=True, timeout=120)
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(sample / "provider.py"), address]
    async with running_process(command, {"PYTHONPATH": str(folder)}):
        yield address


@asynccontextmanager
async def running_typescript_sample() -> AsyncIterator[str]:
    """Compile and run samples/typescript-provider and return its address."""
    program = await asyncio.to_thread(_build_typescript_sample)
    address = f"127.0.0.1:{free_port()}"
    async with running_process(["node", str(program), address, str(CONTRACT)], {}):
        yield address


def _build_typescript_sample() -> Path:
    """Install the pinned packages and compile into a folder of the project, once for all test processes."""
    names = ("package.json", "package-lock.json", "tsconfig.json", "provider.ts")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = b"".join((_SAMPLES / "typescript-provider" / name).read_bytes() for name in names)
        done = _CACHE / "built"
        if not done.exists() or done.read_bytes() != wanted:
            for name in names:
                shutil.copy(_SAMPLES / "typescript-provider" / name, _CACHE / name)
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            for command in (install, ["npm", "run", "--silent", "build"]):
                subprocess.run(command, cwd=_CACHE, check=True, timeout=250)
            done.write_bytes(wanted)
    return _CACHE / "dist" / "provider.js"
