"""Starts the services of a process in the order of their needs, and stops them in reverse.

The table below is the whole composition: what the targets are and what each needs. Modules are
named as strings and imported only when targeted.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from omnihub.auth.v1.auth_service_api import AuthService

from services.common.authenticator import Authenticator
from services.common.ids import new_id
from services.common.rpc import Connector, Registry
from services.common.rpc.local import cancelled_handlers_ended
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure, Service, StartupError
from services.common.sockets import UNIX, make_folder, remove_folder, socket_folder
from services.edge.settings import EdgeSettings
from services.listener import HttpListener
from services.providers.adapters.known import complete, own_vendor
from services.settings import PeerSettings, Settings
from services.workers import Workers

_logger = logging.getLogger(__name__)
HTTP_SOCKET = "http.sock"
Build = Callable[[Any, Settings, Infrastructure], Service]


@dataclass(frozen=True, slots=True)
class Target:
    """A service that can be started: its module, what it calls, and how it is built."""

    module: str
    needs: tuple[str, ...]
    build: Build


def _auth(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    return module.build(  # type: ignore[no-any-return]
        settings.auth,
        infrastructure,
        bootstrap_api_key=settings.bootstrap_api_key,
        master_key=settings.master_key,
    )


def _billing(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    prices = {name: model.price for name, model in settings.models.items() if model.price is not None}
    return module.build(  # type: ignore[no-any-return]
        settings.billing,
        infrastructure,
        bootstrap_credits=settings.bootstrap_credits,
        configured_prices=prices,
    )


def _providers(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    return module.build(settings.providers, infrastructure)  # type: ignore[no-any-return]


def _router(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    known = {name: complete(name, provider) for name, provider in settings.providers.items()}
    vendors = {name: provider.vendor or provider.adapter for name, provider in known.items()}
    own_services = {name: own_vendor(provider) for name, provider in known.items()}
    return module.build(  # type: ignore[no-any-return]
        settings.router, infrastructure, routes=settings.models, vendors=vendors, own_services=own_services
    )


def _gateway(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    return module.build(settings.gateway, infrastructure)  # type: ignore[no-any-return]


def _workflow(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    public_url = settings.public_url or f"http://127.0.0.1:{settings.port}"
    return module.build(  # type: ignore[no-any-return]
        settings.workflow,
        infrastructure,
        public_url=public_url,
        storage_url=settings.storage_url,
        master_key=settings.master_key.get_secret_value() if settings.master_key is not None else "",
    )


def _worker(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    return module.build_worker(  # type: ignore[no-any-return]
        settings.workflow,
        infrastructure,
        public_url=settings.public_url,
        storage_url=settings.storage_url,
        master_key=settings.master_key.get_secret_value() if settings.master_key is not None else "",
    )


def _agents(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    return module.build(settings.agents, infrastructure)  # type: ignore[no-any-return]


def _edge(module: Any, settings: Settings, infrastructure: Infrastructure) -> Service:
    surroundings = _edge_surroundings(settings)
    return module.build(  # type: ignore[no-any-return]
        _edge_settings(settings), infrastructure, data_dir=settings.data_dir, **surroundings
    )


def _edge_settings(settings: Settings) -> EdgeSettings:
    """Return the edge's settings: it calls the services with this process's own certificate."""
    tls, edge = settings.internal_tls, settings.edge
    update: dict[str, Any] = {}
    if tls is not None and edge.upstream_ca_file is None:
        update = {
            "upstream_ca_file": tls.ca_file,
            "upstream_certificate_file": tls.certificate_file,
            "upstream_key_file": tls.key_file,
        }
    if not edge.concurrency and settings.peers.facade.startswith(UNIX):
        # The facade is beside it. One thread serves more than a Python process answers, and two find less to
        # do each time they wake.
        update["concurrency"] = min(settings.workers, os.cpu_count() or 1)
    return edge.model_copy(update=update)


def _edge_surroundings(settings: Settings) -> dict[str, Any]:
    peers = settings.peers.model_dump()
    # Areas of the contracts with public rpcs, and the services that own them.
    owners = {area: area for area in ("auth", "billing", "router", "workflow", "agents")}
    owners["provider"] = "providers"
    return {
        "addresses": {area: _address(peers[owner], settings.grpc_listen) for area, owner in owners.items()},
        "facade_address": _address(settings.peers.facade, settings.http_listen),
        "files_address": _address(settings.peers.files, settings.http_listen),
        # Who has started workers knows whether all of them are ready.
        "probes_address": settings.http_listen if settings.workers > 1 else "",
        "port": settings.port,
        "cors_origins": settings.cors_origins,
    }


def edge_configuration(settings: Settings) -> str:
    """Return the edge's configuration as JSON, for any Envoy fleet."""
    config = importlib.import_module("services.edge.config")
    return config.render(_edge_settings(settings), **_edge_surroundings(settings))  # type: ignore[no-any-return]


TARGETS: Mapping[str, Target] = {
    "auth": Target("services.auth.app", (), _auth),
    "billing": Target("services.billing.app", ("auth",), _billing),
    "providers": Target("services.providers.app", (), _providers),
    "router": Target("services.router.app", ("providers", "billing", "auth"), _router),
    "agents": Target("services.agents.app", ("router", "billing", "auth"), _agents),
    "workflow": Target("services.workflow.app", ("agents", "router", "billing", "auth"), _workflow),
    "worker": Target("services.workflow.app", ("router", "billing", "auth"), _worker),
    "gateway": Target("services.gateway.app", ("router", "billing", "workflow", "agents", "auth"), _gateway),
    "edge": Target("services.edge.app", (), _edge),
}

# Names for sets of targets. The table above is in order of needs, so `all` is too.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(TARGETS),
    "chat": ("providers", "router", "gateway"),
}


def resolve_targets(names: Sequence[str]) -> list[str]:
    """Return the targets of `--target=chat,edge`, in the order they start. Raises ValueError."""
    wanted: set[str] = set()
    for name in names:
        if name not in TARGETS and name not in GROUPS:
            known = ", ".join([*GROUPS, *TARGETS])
            raise ValueError(f"unknown target {name!r}; known: {known}")
        wanted.update(GROUPS.get(name, (name,)))
    return [name for name in TARGETS if name in wanted]


def check_workers(settings: Settings, targets: Sequence[str]) -> None:
    """Raise StartupError unless this process can have the workers it is told to start."""
    if settings.workers == 1:
        return
    if not settings.database_url:
        raise StartupError(
            f"{settings.workers} workers need PostgreSQL, a SQLite file belongs to one process: "
            "set OMNIHUB_DATABASE_URL, or serve with --workers 1"
        )
    if "edge" not in targets or "gateway" not in targets:
        raise StartupError(
            "workers answer chat behind this process's edge: --workers needs the targets chat and edge; "
            "elsewhere start several processes with --target=chat"
        )


def _workers(settings: Settings, targets: Sequence[str]) -> Workers | None:
    if settings.workers == 1:
        return None
    chat = GROUPS["chat"]
    peers = [name for name in targets if name not in chat and name in PeerSettings.model_fields]
    return Workers(settings.workers, [name for name in targets if name in chat], peers, settings.data_dir)


def _with_workers(settings: Settings, workers: Workers, targets: Sequence[str]) -> Settings:
    """Return the settings of an edge that sends chat to the workers."""
    addresses = {"facade": workers.http_addresses}
    addresses |= {name: workers.grpc_addresses for name in ("router", "providers") if name in targets}
    return settings.model_copy(update={"peers": settings.peers.model_copy(update=addresses)})


def _beside_edge(settings: Settings, targets: Sequence[str]) -> Path | None:
    """Return the Unix socket at which the edge of this process asks its HTTP listener.

    It saves both a part of what a request costs, and opens to this user only.
    """
    local = "local" in (settings.peers.facade, settings.peers.files)
    if "edge" not in targets or not local or settings.workers > 1:
        return None
    return socket_folder(settings.data_dir, "edge", HTTP_SOCKET) / HTTP_SOCKET


def _with_socket(settings: Settings, socket: Path) -> Settings:
    """Return the settings of an edge that asks our HTTP listener at a Unix socket."""
    peers = settings.peers
    addresses = {name: f"{UNIX}{socket}" for name in ("facade", "files") if getattr(peers, name) == "local"}
    return settings.model_copy(update={"peers": peers.model_copy(update=addresses)})


def _address(peer: str, own: str) -> str:
    return own if peer == "local" else peer


class Process:
    """One operating system process with some of the services in it."""

    def __init__(self, settings: Settings, targets: Sequence[str]) -> None:
        self._settings = settings
        self._targets = targets
        self._workers = _workers(settings, targets)
        self._socket = _beside_edge(settings, targets)
        self._registry = Registry()
        self._connector = Connector(
            self._registry, settings.peers.model_dump(), _channel_credentials(settings)
        )
        self._infrastructure = Infrastructure(
            connector=self._connector,
            data_dir=settings.data_dir,
            database_url=settings.database_url,
            amqp_url=settings.amqp_url.get_secret_value() if settings.amqp_url is not None else "",
            instance_id=new_id("proc"),
        )
        self._started: list[Service] = []
        self._authenticator: Authenticator | None = None
        self._grpc: GrpcServer | None = None
        self._http: HttpListener | None = None
        self._ready = False
        self.announcements: list[str] = []

    async def start(self) -> None:
        """Start everything; returns once requests are answered. On failure what was started is stopped."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in self._targets:
            if name != "edge":
                if self._authenticator is None and name != "auth":
                    await self._follow_auth()
                await self._start_service(name)
        if self._authenticator is None and self._targets != ["edge"]:
            await self._follow_auth()
        workers = self._workers.service(self._settings.drain_timeout_s) if self._workers else None
        await self._listen(workers)
        if workers is not None:
            await self._start_built(workers)
        if "edge" in self._targets:
            await self._start_service("edge")
        self._ready = True

    async def _follow_auth(self) -> None:
        auth = self._connector.connect(AuthService, "auth")
        self._authenticator = Authenticator(auth)
        self._infrastructure.authenticator = self._authenticator
        await self._authenticator.start()

    async def verify(self) -> None:
        """Build every service, start none: finds settings that do not fit. Raises StartupError."""
        check_workers(self._settings, self._targets)
        for name in self._targets:
            if name != "auth" and self._infrastructure.authenticator is None:
                auth = self._connector.connect(AuthService, "auth")
                self._infrastructure.authenticator = Authenticator(auth)
            self._build(name)
        await self._connector.close()

    def _build(self, name: str) -> Service:
        target, settings = TARGETS[name], self._settings
        if name == "edge" and self._workers is not None:
            settings = _with_workers(settings, self._workers, self._targets)
        elif name == "edge" and self._socket is not None:
            settings = _with_socket(settings, self._socket)
        try:
            service = target.build(importlib.import_module(target.module), settings, self._infrastructure)
        except (ValueError, LookupError) as error:
            raise StartupError(f"{name}: {error}") from error
        for interface, implementation in service.interfaces:
            self._registry.add(interface, implementation)
        return service

    async def _start_service(self, name: str) -> None:
        await self._start_built(self._build(name))

    async def _start_built(self, service: Service) -> None:
        self._started.append(service)
        await service.start()
        self.announcements.extend(service.announce())
        _logger.info("service_started %s", service.name)

    async def _listen(self, workers: Service | None) -> None:
        settings = self._settings
        services = [service for service in self._started if service.interfaces]
        if services:
            self._grpc = GrpcServer(settings.grpc_listen, self._authenticator, _server_credentials(settings))
            if self._workers is not None:
                self._workers.make_folder()
                self._grpc.also_listen(self._workers.core_address)
            for service in services:
                for interface, implementation in service.interfaces:
                    self._grpc.add(interface, implementation)
            await self._grpc.start()
            await self._grpc.set_serving(True)
        serving = [*self._started, workers] if workers is not None else self._started
        routes = [route for service in serving for route in service.routes]
        self._http = HttpListener(settings.http_listen, routes, self._problems, settings.drain_timeout_s)
        if self._socket is not None:
            make_folder(self._socket.parent)
            self._http.also_listen(f"{UNIX}{self._socket}")
        await self._http.start()

    async def _problems(self) -> dict[str, str]:
        problems = {} if self._ready else {"process": "starting or stopping"}
        for service in self._started:
            try:
                await service.check()
            except Exception as error:  # noqa: BLE001 - whatever is wrong is the answer
                problems[service.name] = str(error) or type(error).__name__
        problems.update(await self._connector.problems())
        return problems

    async def stop(self) -> None:
        """Stop accepting, let requests under way finish within the drain limit, stop the services."""
        self._ready = False
        if self._grpc is not None:
            await self._grpc.set_serving(False)
        # Those that call in first: the edge, then the workers, who settle through our listener.
        while self._started and self._started[-1].name in ("edge", "workers"):
            await self._stop_service(self._started.pop())
        if self._http is not None:
            await self._http.stop()
        if self._socket is not None:
            remove_folder(self._socket.parent, self._settings.data_dir)
        if self._grpc is not None:
            await self._grpc.stop(self._settings.drain_timeout_s)
        if self._authenticator is not None:
            # Before the auth service, whose changes it follows.
            await self._authenticator.stop()
        while self._started:
            await cancelled_handlers_ended()
            await self._stop_service(self._started.pop())
        await self._connector.close()

    async def _stop_service(self, service: Service) -> None:
        try:
            await service.stop()
        except Exception:
            _logger.exception("service_stop_failed %s", service.name)


def _server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    tls = settings.internal_tls
    if tls is None:
        return None
    pair = (tls.key_file.read_bytes(), tls.certificate_file.read_bytes())
    return grpc.ssl_server_credentials([pair], tls.ca_file.read_bytes(), require_client_auth=True)


def _channel_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    tls = settings.internal_tls
    if tls is None:
        return None
    return grpc.ssl_channel_credentials(
        tls.ca_file.read_bytes(), tls.key_file.read_bytes(), tls.certificate_file.read_bytes()
    )
