"""The guard for addresses that a user or a provider can influence.

The scheme is checked, the name is resolved once, every address it has is checked, and the connection
goes to an address that was checked. Redirects are followed by hand, each like a new address. Size and time
are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.common.rpc.errors import RpcError

CONNECT_LIMIT_S = 5.0
TOTAL_LIMIT_S = 120.0
MOST_REDIRECTS = 3
PIECE = 64 * 1024
# What an address inside another one means: IPv4 written as IPv6, and the ways through gateways.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: IpAddress) -> bool:
    """Tell whether an address is one of the public internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is not None:
            return is_public(inner)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address in _NAT64_LOCAL or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class _CheckedResolver(AbstractResolver):
    """Resolves names, and knows no address that is not public."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises RefusedHostError when one of them is not public."""
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM
        )
        addresses = [(entry[0], str(entry[4][0])) for entry in found]
        if not self._allow_private:
            check_addresses(host, [address for _, address in addresses])
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept."""


class RefusedHostError(OSError):
    """A host that must not be asked."""


def check_addresses(host: str, addresses: Sequence[str]) -> None:
    """Raise RefusedHostError unless every address is public: a name with one private address is a trap."""
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not is_public(address):
            raise RefusedHostError(f"{host} is {address}, which is not an address of the public internet")


def _refused(message: str) -> RpcError:
    return RpcError("URL_REFUSED", message)


class ForeignClient:
    """Asks foreign hosts. `allow_private` is for tests and for installations without a way out."""

    def __init__(self, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session: no cookies, no proxy of the environment, no credentials from files."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._allow_private), use_dns_cache=False, force_close=True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TOTAL_LIMIT_S, sock_connect=CONNECT_LIMIT_S),
            trust_env=False,
            headers={"User-Agent": "omnihub"},
        )

    async def stop(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def check(self, url: str) -> URL:
        """Return an address that may be asked, as far as it shows. Raises RpcError URL_REFUSED."""
        try:
            parsed = URL(url)
        except ValueError:
            raise _refused("it is not an address") from None
        schemes = ("https", "http") if self._allow_private else ("https",)
        if parsed.scheme not in schemes:
            raise _refused(f"expected {' or '.join(schemes)}, not {parsed.scheme[:20] or 'nothing'}")
        if not parsed.host:
            raise _refused("it names no host")
        if parsed.user is not None or parsed.password is not None:
            raise _refused("it carries a name or a password; leave them out")
        if not self._allow_private:
            if parsed.port != 443:
                raise _refused(f"the port {parsed.port} is not 443")
            try:
                literal = ipaddress.ip_address(parsed.host.partition("%")[0])
            except ValueError:
                return parsed
            if not is_public(literal):
                raise _refused(f"{literal} is not an address of the public internet")
        return parsed

    async def download(self, url: str, limit: int) -> bytes:
        """Return what is at an address. Raises RpcError URL_REFUSED, BODY_TOO_LARGE, PROVIDER_FAILED."""
        current = self.check(url)
        for _ in range(MOST_REDIRECTS + 1):
            async with await self._ask("GET", current) as response:
                location = response.headers.get("Location", "")
                if response.status in (301, 302, 303, 307, 308) and location:
                    current = self.check(str(current.join(URL(location))))
                    continue
                if response.status != 200:
                    raise RpcError("PROVIDER_FAILED", f"{current.host} answered {response.status}")
                return await _read(response, limit)
        raise _refused(f"more than {MOST_REDIRECTS} redirects")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a body to an address and return the status. Redirects are not followed. Raises RpcError."""
        async with await self._ask("POST", self.check(url), body, headers) as response:
            return response.status

    async def _ask(
        self, method: str, url: URL, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RpcError("UNAVAILABLE", "the service has not been started or is stopping")
        try:
            return await self._session.request(method, url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedHostError):
                raise _refused(str(error.os_error)) from None
            raise RpcError("PROVIDER_FAILED", f"{url.host} cannot be reached") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if isinstance(error, RefusedHostError):
                raise _refused(str(error)) from None
            raise RpcError("PROVIDER_FAILED", f"{url.host} does not answer: {type(error).__name__}") from None


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
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
