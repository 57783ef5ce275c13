"""The guard for foreign addresses, against real servers and a real name server."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web

from services.common.foreign import ForeignClient, Limits
from services.common.rpc import RpcError
from tests.support.dns import NameServer
from tests.support.ports import free_port


class Host:
    """A server on loopback."""

    def __init__(self) -> None:
        self.port = free_port()
        self.seen: list[str] = []
        self.location = ""
        self.hold = asyncio.Event()

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.authority}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.path)
        match request.path:
            case "/ok":
                return web.Response(body=b"content")
            case "/redirect":
                return web.Response(status=302, headers={"Location": self.location})
            case "/loop":
                return web.Response(status=307, headers={"Location": "/loop"})
            case "/large":
                return web.Response(body=b"x" * 5000)
            case "/bomb":
                body = gzip.compress(b"\0" * 1_000_000)
                return web.Response(body=body, headers={"Content-Encoding": "gzip"})
            case "/endless" | "/drip" | "/silent":
                return await self._slowly(request)
        return web.Response(status=404)

    async def _slowly(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while not self.hold.is_set():
                if request.path == "/silent":
                    await self.hold.wait()
                await response.write(b"x" * 1000 if request.path == "/endless" else b"x")
                if request.path == "/drip":
                    await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        return response


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", host.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", host.port).start()
    yield host
    host.hold.set()
    await runner.cleanup()


@pytest_asyncio.fixture
async def client(host: Host) -> AsyncIterator[ForeignClient]:
    """May ask that one server, and nothing else that is private."""
    async with asking(host, Limits()) as client:
        yield client


@asynccontextmanager
async def asking(host: Host, limits: Limits) -> AsyncIterator[ForeignClient]:
    client = ForeignClient(private_hosts=[host.authority], limits=limits)
    await client.start()
    yield client
    await client.stop()


async def refused(client: ForeignClient, url: str, limit: int = 1000) -> RpcError:
    with pytest.raises(RpcError) as error:
        await client.download(url, limit)
    return error.value


async def test_content_is_returned(client, host):
    assert await client.download(host.url("/ok"), 1000) == b"content"
    assert (await refused(client, host.url("/none"))).reason == "PROVIDER_FAILED"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2130706433/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "http://example.com/",
        "https://u:p@example.com/",
        "https://[broken/",
    ],
)
async def test_redirects_are_checked_like_any_other_address(client, host, location):
    host.location = location
    assert (await refused(client, host.url("/redirect"))).reason == "URL_REFUSED"
    assert host.seen == ["/redirect"]


async def test_redirects_to_where_one_may_go_are_followed_for_a_while(client, host):
    host.location = "/ok"
    assert await client.download(host.url("/redirect"), 1000) == b"content"
    assert "redirects" in (await refused(client, host.url("/loop"))).message
    assert host.seen.count("/loop") == 4


async def test_sizes_are_limited_as_said_and_as_they_arrive(client, host):
    assert (await refused(client, host.url("/large"))).reason == "BODY_TOO_LARGE"
    assert (await refused(client, host.url("/endless"))).reason == "BODY_TOO_LARGE"
    bomb = await refused(client, host.url("/bomb"), 10_000_000)
    assert "compressed" in bomb.message


async def test_who_drips_or_falls_silent_is_left(host):
    limits = Limits(connect_s=2, silence_s=0.3, total_s=1)
    async with asking(host, limits) as client:
        for path in ("/drip", "/silent"):
            assert (await refused(client, host.url(path), 10**6)).reason == "PROVIDER_FAILED"


async def test_what_cannot_be_reached_is_no_secret(host):
    client = ForeignClient(allow_private=True)
    assert (await refused(client, host.url("/ok"))).reason == "UNAVAILABLE"
    await client.start()
    assert (await refused(client, f"http://127.0.0.1:{free_port()}/")).reason == "PROVIDER_FAILED"
    await client.stop()


@pytest_asyncio.fixture
async def names() -> AsyncIterator[NameServer]:
    server = NameServer()
    await server.start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def public(names: NameServer) -> AsyncIterator[ForeignClient]:
    client = ForeignClient(lookup=names.lookup)
    await client.start()
    yield client
    await client.stop()


async def test_a_name_with_a_private_address_is_refused(public, names):
    names.names["rebind.example.com"] = [["93.184.216.34", "127.0.0.1"]]
    assert "127.0.0.1" in (await refused(public, "https://rebind.example.com/")).message
    names.names["inner.example.com"] = [["10.1.2.3"]]
    for ask in (
        public.verify("https://inner.example.com/"),
        public.download("https://inner.example.com/", 9),
    ):
        with pytest.raises(RpcError, match="URL_REFUSED"):
            await ask
    with pytest.raises(RpcError, match="cannot be found"):
        await public.verify("https://nowhere.example.com/")


async def test_a_name_that_changes_its_address_after_the_check_is_refused(public, names):
    names.names["rebind.example.com"] = [["93.184.216.34"], ["127.0.0.1"]]
    await public.verify("https://rebind.example.com/hook")
    with pytest.raises(RpcError, match="URL_REFUSED"):
        await public.post("https://rebind.example.com/hook", b"{}", {})


async def test_a_name_is_asked_once_for_each_connection(names):
    """What was checked is what is connected to: there is no second answer that could differ."""
    client = ForeignClient(lookup=names.lookup)
    await client.start()
    names.names["rebind.example.com"] = [["192.0.2.1"], ["127.0.0.1"]]
    names.names["rebind.example.com"][0] = ["203.0.113.7"]
    error = await refused(client, "https://rebind.example.com/")
    assert error.reason == "URL_REFUSED"
    assert names.asked == ["rebind.example.com"]
    await client.stop()


async def test_the_last_gate_holds_when_resolving_is_deceived(names):
    """Even an address that came past every check is not connected to when it is private."""

    class Deceived(ForeignClient):
        def _excepted(self, host: str, port: int | None) -> bool:
            return False

    async def lookup(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    client = Deceived(lookup=lookup)
    await client.start()
    factory = client._public.connector._socket_factory
    with pytest.raises(OSError, match="not an address of the public internet"):
        factory((2, 1, 6, "", ("127.0.0.1", 443)))
    await client.stop()
