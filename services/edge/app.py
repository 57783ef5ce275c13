"""Wiring of the edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.common.service import Infrastructure, Service
from services.edge.config import bootstrap
from services.edge.envoy import EdgeError, Envoy, admin_socket
from services.edge.settings import EdgeSettings


def build(
    settings: EdgeSettings,
    infrastructure: Infrastructure,
    *,
    addresses: Mapping[str, str],
    facade_address: str,
    files_address: str,
    probes_address: str = "",
    port: int,
    cors_origins: Sequence[str],
    data_dir: Path,
) -> Service:
    """Return the edge. `addresses` maps each area to the gRPC target of the service that owns it.

    Raises ValueError for an address that is missing or not one.
    """
    socket = admin_socket(data_dir)
    configuration = bootstrap(
        settings,
        addresses=addresses,
        facade_address=facade_address,
        files_address=files_address,
        probes_address=probes_address,
        port=port,
        cors_origins=cors_origins,
        admin_socket=socket,
    )
    envoy = Envoy(settings, configuration, socket=socket, data_dir=data_dir, port=port)

    async def check() -> None:
        envoy.check()

    async def metrics(_: Request) -> Response:
        try:
            return PlainTextResponse(await envoy.admin.ask("GET", "/stats/prometheus"))
        except EdgeError as error:
            return PlainTextResponse(str(error), status_code=503)

    # On the internal listener: the edge itself has no route to it.
    routes = [Route("/metrics/edge", metrics)]
    return Service(name="edge", routes=routes, start=envoy.start, stop=envoy.stop, check=check)
