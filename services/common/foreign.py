"""The guard for addresses that a user or a provider can influence.

The scheme is checked, the name is resolved once, every address it has is checked, and the connection
goes to an address that was checked. Redirects are followed by hand, each like a new address. Size and time
are limited.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.common.addresses import RefusedHostError, check_addresses, check_host, checked_socket
from services.common.rpc.errors import RpcError

MOST_REDIRECTS = 3
LONGEST_URL = 4096
PIECE = 64 * 1024
NOT_STARTED = "the service has not been started or is stopping"

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a foreign host may take."""

    connect_s: float = 5.0
    silence_s: float = 30.0
    """Without a byte."""
    total_s: float = 120.0
    """From the connection to the last byte, however slowly they drip."""


async def system_lookup(host: str, port: int) -> list[str]:
    """Return the addresses that this machine knows for a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class _CheckedResolver(AbstractResolver):
    """Resolves names, and knows no address that is not public."""

    def __init__(self, lookup: Lookup, excepted: Callable[[str, int], bool]) -> None:
        self._lookup = lookup
        self._excepted = excepted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises RefusedHostError when one of them is not public."""
        addresses = await self._lookup(host, port)
        if not self._excepted(host, port):
            check_addresses(host, addresses)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def _refused(message: str) -> RpcError:
    return RpcError("URL_REFUSED", message)


class ForeignClient:
    """Asks foreign hosts.

    `allow_private` is for tests and for installations without a way out. `private_hosts` names `host:port`
    that may be asked although they are private, over http too.
    """

    def __init__(
        self,
        allow_private: bool = False,
        private_hosts: Collection[str] = (),
        limits: Limits | None = None,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._allow_private = allow_private
        self._private_hosts = frozenset(private_hosts)
        self._limits = limits or Limits()
        self._lookup = lookup
        self._public: aiohttp.ClientSession | None = None
        self._private: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the sessions: no cookies, no proxy of the environment, no credentials from files."""
        self._public = self._session(checked_socket)
        self._private = self._session(None)

    def _session(
        self, factory: Callable[[tuple[int, int, int, str, tuple[object, ...]]], socket.socket] | None
    ) -> aiohttp.ClientSession:
        limits = self._limits
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._lookup, self._excepted),
                use_dns_cache=False,
                force_close=True,
                socket_factory=factory,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=limits.total_s, sock_connect=limits.connect_s, sock_read=limits.silence_s
            ),
            trust_env=False,
            # What arrives is what is counted: nothing small becomes large.
            auto_decompress=False,
            headers={"User-Agent": "omnihub", "Accept-Encoding": "identity"},
        )

    async def stop(self) -> None:
        """Close the sessions."""
        for session in (self._public, self._private):
            if session is not None:
                await session.close()
        self._public = self._private = None

    def _excepted(self, host: str, port: int | None) -> bool:
        return self._allow_private or f"{host}:{port}" in self._private_hosts

    def check(self, url: str) -> URL:
        """Return an address that may be asked, as far as it shows. Raises RpcError URL_REFUSED."""
        if len(url) > LONGEST_URL or not url.isprintable() or "\\" in url or url != url.strip():
            raise _refused("it is too long, or holds characters that an address does not have")
        try:
            parsed = URL(url)
            port = parsed.port
        except ValueError:
            raise _refused("it is not an address") from None
        host = parsed.host or ""
        excepted = self._excepted(host, port)
        schemes = ("https", "http") if excepted else ("https",)
        if parsed.scheme not in schemes:
            raise _refused(f"expected {' or '.join(schemes)}, not {parsed.scheme[:20] or 'nothing'}")
        if not host:
            raise _refused("it names no host")
        if parsed.user is not None or parsed.password is not None or "@" in parsed.authority:
            raise _refused("it carries a name or a password; leave them out")
        if excepted:
            return parsed
        if port != 443:
            raise _refused(f"the port {port} is not 443")
        try:
            check_host(parsed.raw_host or "")
        except RefusedHostError as error:
            raise _refused(str(error)) from None
        return parsed

    async def verify(self, url: str) -> None:
        """Raise RpcError URL_REFUSED unless an address may be asked, as its name resolves now."""
        parsed = self.check(url)
        host, port = parsed.host or "", parsed.port or 443
        try:
            addresses = await self._lookup(host, port)
            if not self._excepted(host, port):
                check_addresses(host, addresses)
        except RefusedHostError as error:
            raise _refused(str(error)) from None
        except OSError:
            raise _refused(f"the host {host} cannot be found") from None

    async def download(self, url: str, limit: int) -> bytes:
        """Return what is at an address. Raises RpcError URL_REFUSED, BODY_TOO_LARGE, PROVIDER_FAILED."""
        current = self.check(url)
        try:
            async with asyncio.timeout(self._limits.total_s):
                for _ in range(MOST_REDIRECTS + 1):
                    async with self._asked("GET", current) as response:
                        location = response.headers.get("Location", "")
                        if response.status in (301, 302, 303, 307, 308) and location:
                            current = self._following(current, location)
                            continue
                        if response.status != 200:
                            raise RpcError("PROVIDER_FAILED", f"{current.host} answered {response.status}")
                        return await _read(response, limit)
        except TimeoutError:
            raise RpcError("PROVIDER_FAILED", f"{current.host} takes too long") from None
        raise _refused(f"more than {MOST_REDIRECTS} redirects")

    def _following(self, current: URL, location: str) -> URL:
        try:
            target = current.join(URL(location))
        except ValueError:
            raise _refused("it redirects to what is not an address") from None
        return self.check(str(target))

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a body to an address and return the status. Redirects are not followed. Raises RpcError."""
        async with self._asked("POST", self.check(url), body, headers) as response:
            return response.status

    @asynccontextmanager
    async def _asked(
        self, method: str, url: URL, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._private if self._excepted(url.host or "", url.port) else self._public
        if session is None:
            raise RpcError("UNAVAILABLE", NOT_STARTED)
        try:
            response = await session.request(method, url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _visible(url, error) from None
        async with response:
            yield response


def _visible(url: URL, error: BaseException) -> RpcError:
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, RefusedHostError):
        return _refused(str(inner))
    if isinstance(error, aiohttp.ClientConnectorError):
        return RpcError("PROVIDER_FAILED", f"{url.host} cannot be reached")
    return RpcError("PROVIDER_FAILED", f"{url.host} does not answer: {type(error).__name__}")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RpcError("PROVIDER_FAILED", "it is compressed, although that was not asked for")
    if (response.content_length or 0) > limit:
        raise RpcError("BODY_TOO_LARGE", f"it exceeds {limit} bytes")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in response.content.iter_chunked(PIECE):
            size += len(piece)
            if size > limit:
                raise RpcError("BODY_TOO_LARGE", f"it exceeds {limit} bytes")
            pieces.append(piece)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RpcError("PROVIDER_FAILED", f"broke off: {type(error).__name__}") from None
    return b"".join(pieces)
