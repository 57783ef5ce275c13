"""The life of the Envoy process, and what only other settings show."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from starlette.applications import Starlette

from services.common.service import StartupError
from services.edge.config import bootstrap
from services.edge.envoy import EdgeError, Envoy, admin_socket
from services.edge.settings import EdgeSettings
from tests.support.edge import (
    AREAS,
    KEY,
    Backend,
    make_certificate,
    make_edge,
    running_backend,
    running_edge,
)
from tests.support.ports import free_port

HEADERS = {"x-api-key": KEY}
STREAM = {"stream": True}


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 60) -> None:
    """Return once `holds` does; what another process does can only be looked at again."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def make_envoy(folder: Path, port: int, backend: Backend | None = None, **settings: Any) -> Envoy:
    options = EdgeSettings(**{"listen_host": "127.0.0.1", "concurrency": 1, **settings})
    socket_path = admin_socket(folder)
    configuration = bootstrap(
        options,
        addresses=dict.fromkeys(AREAS, f"127.0.0.1:{backend.port if backend else 9}"),
        facade_address=f"127.0.0.1:{backend.facade_port if backend else 9}",
        files_address=f"127.0.0.1:{backend.facade_port if backend else 9}",
        port=port,
        cors_origins=(),
        admin_socket=socket_path,
    )
    return Envoy(options, configuration, socket=socket_path, data_dir=folder, port=port)


def state_of(process_id: int) -> str:
    """Return the kernel's letter for the state of a process, Z for one that is gone."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def children_of(process_id: int) -> list[int]:
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(child) for child in children.split()]


class TestLife:
    async def test_it_starts_serves_and_ends(self, tmp_path: Path) -> None:
        port = free_port()
        envoy = make_envoy(tmp_path, port)
        with pytest.raises(EdgeError, match="Envoy is not running"):
            envoy.check()
        await envoy.start()
        envoy.check()
        process_id = envoy.process_id
        assert process_id is not None
        assert os.getpgid(process_id) != os.getpgid(0), "Ctrl-C in the terminal must not reach it"
        assert (tmp_path / "edge" / "admin.sock").stat().st_mode & 0o077 == 0
        await envoy.stop()
        assert state_of(process_id) == "Z"
        assert not await accepts(port)
        with pytest.raises(EdgeError, match="Envoy is not running"):
            envoy.check()

    async def test_a_long_data_dir_does_not_matter(self, tmp_path: Path) -> None:
        port = free_port()
        folder = tmp_path / ("long" * 30)
        socket_path = admin_socket(folder)
        assert len(str(socket_path)) < 100
        socket_path.parent.rmdir()
        envoy = make_envoy(folder, port)
        for _ in range(2):
            await envoy.start()
            assert await accepts(port)
            await envoy.stop()
        assert not envoy.admin.socket.parent.exists()

    async def test_killed_it_comes_back(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async with running_backend() as backend:
            port = free_port()
            envoy = make_envoy(tmp_path, port, backend)
            await envoy.start()
            try:
                for restart in (1, 2):
                    first = envoy.process_id
                    assert first is not None
                    os.kill(first, signal.SIGKILL)

                    async def came_back(wanted: int = restart) -> bool:
                        return envoy.restarts == wanted and envoy.process_id is not None

                    await eventually(came_back)
                    assert envoy.process_id != first
                    envoy.check()
                    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                        assert (await client.get("/v1/usage", headers=HEADERS)).status_code == 200
            finally:
                await envoy.stop()
        assert "edge_died" in caplog.text

    async def test_while_it_cannot_start_it_is_tried_again(self, tmp_path: Path) -> None:
        port = free_port()
        envoy = make_envoy(tmp_path, port)
        await envoy.start()
        try:
            first = envoy.process_id
            assert first is not None
            os.kill(first, signal.SIGKILL)
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

                async def stolen() -> bool:
                    try:
                        thief.bind(("127.0.0.1", port))
                    except OSError:
                        return False
                    thief.listen()
                    return True

                await eventually(stolen)

                async def failed_again() -> bool:
                    return envoy.restarts >= 2

                await eventually(failed_again)
                with pytest.raises(EdgeError, match="is being restarted"):
                    envoy.check()

            async def came_back() -> bool:
                return envoy.process_id is not None

            await eventually(came_back)
        finally:
            await envoy.stop()

    async def test_while_the_system_starts_no_process_it_is_tried_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        envoy = make_envoy(tmp_path, free_port())
        await envoy.start()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            first = envoy.process_id
            assert first is not None
            # Below what is open already: pipes to another process cannot be had.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, files[1]))
            os.kill(first, signal.SIGKILL)

            async def failed_again() -> bool:
                return envoy.restarts >= 2

            await eventually(failed_again)
            assert "edge_restart_failed [Errno 24]" in caplog.text
            with pytest.raises(EdgeError, match="is being restarted"):
                envoy.check()
            resource.setrlimit(resource.RLIMIT_NOFILE, files)

            async def came_back() -> bool:
                return envoy.process_id is not None

            await eventually(came_back)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, files)
            await envoy.stop()

    async def test_a_port_in_use_is_named(self, tmp_path: Path) -> None:
        async with running_edge(tmp_path / "first") as port:
            second = make_edge(tmp_path / "second", port)
            with pytest.raises(StartupError, match=f"port {port} is in use: stop what"):
                await second.start()
            with pytest.raises(EdgeError):
                await second.check()
            await second.stop()

    async def test_a_configuration_envoy_refuses_is_explained(self, tmp_path: Path) -> None:
        chain, key = make_certificate(tmp_path)
        chain.write_text("not a certificate")
        edge = make_edge(tmp_path, free_port(), certificate_file=chain, key_file=key)
        with pytest.raises(
            StartupError, match=r"refuses its configuration .*Failed to load.*certificate\.pem"
        ):
            await edge.start()

    async def test_no_envoy_is_left_behind(self, tmp_path: Path) -> None:
        port = free_port()
        parent = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.support.edge_parent", str(tmp_path), str(port)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert parent.stdout is not None
        try:
            async with asyncio.timeout(90):
                assert await parent.stdout.readline() == b"ready\n"
            (envoy,) = children_of(parent.pid)
        finally:
            parent.kill()
            await parent.wait()

        async def gone() -> bool:
            return state_of(envoy) == "Z"

        await eventually(gone)
        assert not await accepts(port)


class TestDrain:
    async def test_a_stream_under_way_ends_well_while_new_callers_are_refused(self, tmp_path: Path) -> None:
        async with running_backend() as backend, httpx.AsyncClient(timeout=20) as client:
            port = free_port()
            edge = make_edge(tmp_path, port, backend=backend, drain_timeout_s=120)
            await edge.start()
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with client.stream("POST", url, json=STREAM) as response:
                lines = response.aiter_lines()
                await anext(lines)
                stopping = asyncio.create_task(edge.stop())

                async def refused() -> bool:
                    return not await accepts(port)

                await eventually(refused)
                assert not stopping.done()
                backend.go_on.set()
                assert [line async for line in lines if line] == ["data: [DONE]"]
            async with asyncio.timeout(60):
                await stopping

    async def test_the_limit_ends_what_does_not_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running_backend() as backend, httpx.AsyncClient(timeout=20) as client:
            port = free_port()
            edge = make_edge(tmp_path, port, backend=backend, drain_timeout_s=0.2)
            await edge.start()
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with client.stream("POST", url, json=STREAM) as response:
                lines = response.aiter_lines()
                await anext(lines)
                async with asyncio.timeout(90):
                    await edge.stop()
                    with pytest.raises(httpx.RemoteProtocolError):
                        [line async for line in lines]
                    await backend.cancelled.wait()
        assert "edge_drain_timeout" in caplog.text

    async def test_idle_connections_do_not_hold_it_up(self, tmp_path: Path) -> None:
        async with running_backend() as backend, httpx.AsyncClient(timeout=20) as client:
            port = free_port()
            edge = make_edge(tmp_path, port, backend=backend, drain_timeout_s=60)
            await edge.start()
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
            async with asyncio.timeout(90):
                await edge.stop()


class TestTls:
    async def test_the_public_port_speaks_tls(self, tmp_path: Path) -> None:
        chain, key = make_certificate(tmp_path)
        options = {"certificate_file": chain, "key_file": key}
        async with running_backend() as backend, running_edge(tmp_path, backend=backend, **options) as port:
            context = ssl.create_default_context(cafile=chain)
            async with httpx.AsyncClient(verify=context, base_url=f"https://localhost:{port}") as client:
                assert (await client.get("/v1/usage", headers=HEADERS)).status_code == 200
            authority = grpc.ssl_channel_credentials(chain.read_bytes())
            async with grpc.aio.secure_channel(f"localhost:{port}", authority) as channel:
                call = channel.unary_unary("/omnihub.billing.v1.BillingService/ListUsage")
                assert await call(b"", metadata=tuple(HEADERS.items()))
            old = ssl.create_default_context(cafile=chain)
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):  # noqa: PT011 - refused by either side
                await asyncio.open_connection("localhost", port, ssl=old)

    async def test_services_are_called_with_mutual_tls(self, tmp_path: Path) -> None:
        chain, key = make_certificate(tmp_path)
        credentials = grpc.ssl_server_credentials(
            [(key.read_bytes(), chain.read_bytes())], chain.read_bytes(), require_client_auth=True
        )
        tls = {"upstream_ca_file": chain, "upstream_certificate_file": chain, "upstream_key_file": key}
        async with running_backend(credentials) as backend:
            for host in ("localhost", "127.0.0.1"):
                addresses = dict.fromkeys(AREAS, f"{host}:{backend.port}")
                async with (
                    running_edge(tmp_path, backend=backend, addresses=addresses, **tls) as port,
                    httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
                ):
                    assert (await client.get("/v1/usage")).status_code == 200
            async with (
                running_edge(tmp_path, backend=backend) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
            ):
                assert (await client.get("/v1/usage")).status_code == 503


class TestLimits:
    async def test_services_that_are_down(self, tmp_path: Path) -> None:
        async with (
            running_edge(tmp_path) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
        ):
            rest = await client.get("/v1/usage")
            assert rest.status_code == 503
            assert rest.json()["error"]["reason"] == "UNAVAILABLE"
            assert rest.json()["error"]["request_id"] == rest.headers["x-omnihub-request-id"]
            facade = await client.post("/v1/chat/completions", json={})
            assert facade.status_code == 503
            assert facade.json()["error"]["code"] == "service_unavailable"
            assert "retry" in facade.json()["error"]["message"]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/omnihub.billing.v1.BillingService/ListUsage")(b"")
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    async def test_requests_per_second(self, tmp_path: Path) -> None:
        async with running_backend() as backend:
            options = {"backend": backend, "requests_per_second": 1}
            async with (
                running_edge(tmp_path, **options) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
            ):
                answers = [await client.get("/v1/models") for _ in range(3)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"

    async def test_connections(self, tmp_path: Path) -> None:
        async with running_edge(tmp_path, max_connections=2) as port:
            writers = []
            served = 0
            for _ in range(6):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
                try:
                    async with asyncio.timeout(90):
                        served += (await reader.readline()).startswith(b"HTTP/1.1 404")
                except ConnectionResetError:
                    pass
            # The look whether it is ready may still count for one.
            assert 1 <= served <= 2
            for writer in writers:
                writer.close()

    async def test_slow_headers(self, tmp_path: Path) -> None:
        async with running_edge(tmp_path, request_headers_timeout_s=0.1) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow")
            async with asyncio.timeout(90):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 408")
            writer.close()

    async def test_large_headers(self, tmp_path: Path) -> None:
        async with (
            running_edge(tmp_path) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            answer = await client.get("/health", headers={"x-large": "x" * 70_000})
            assert answer.status_code == 431

    async def test_a_call_without_a_timeout_may_take_long(self, tmp_path: Path) -> None:
        # Envoy's own defaults cut at 15 s; the idle limit is the only one, and it is ours.
        async with running_backend() as backend:
            options = {"backend": backend, "stream_idle_timeout_s": 0.3}
            async with (
                running_edge(tmp_path, **options) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
            ):
                answer = await client.get("/api/balance")
                assert answer.status_code in (408, 504)
                assert answer.json()["error"]["reason"] == "DEADLINE_EXCEEDED"
                async with asyncio.timeout(90):
                    await backend.cancelled.wait()


class TestObservation:
    async def test_the_access_log_holds_no_secrets(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with running_backend() as backend:
            options = {"backend": backend, "access_log": True}
            async with (
                running_edge(tmp_path, **options) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
            ):
                answer = await client.get("/v1/usage?group_by=model")
                await client.post("/v1/chat/completions?secret=1", json={"prompt": "hidden"})
        output = capfd.readouterr().out
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert [(line["method"], line["path"], line["status"]) for line in lines] == [
            ("GET", "/v1/usage", 200),
            ("POST", "/v1/chat/completions", 200),
        ]
        assert lines[0]["request_id"] == answer.headers["x-omnihub-request-id"]
        assert not {KEY, "secret", "hidden", "model"} & set(output.replace('"', " ").split())

    async def test_metrics_for_the_internal_listener(self, tmp_path: Path) -> None:
        port = free_port()
        edge = make_edge(tmp_path, port)
        transport = httpx.ASGITransport(Starlette(routes=edge.routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://internal") as client:
            assert (await client.get("/metrics/edge")).status_code == 503
            await edge.start()
            try:
                answer = await client.get("/metrics/edge")
            finally:
                await edge.stop()
        assert answer.status_code == 200
        assert "envoy_http_downstream_rq_total" in answer.text

    async def test_a_trusted_proxy_may_name_the_request(self, tmp_path: Path) -> None:
        async with running_backend() as backend:
            options = {"backend": backend, "trust_request_id": True}
            async with (
                running_edge(tmp_path, **options) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client,
            ):
                answer = await client.get("/v1/usage", headers={"x-request-id": "from-proxy"})
        assert answer.headers["x-omnihub-request-id"] == "req_from-proxy"
        assert backend.calls[0].request_id == "req_from-proxy"

    async def test_envoys_words_reach_our_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with running_edge(tmp_path, log_level="info"):
            pass
        assert "starting workers" in caplog.text
