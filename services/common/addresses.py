"""Which hosts are on the public internet, however their addresses are written or wrapped."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# The only IPv6 addresses that are given out to hosts of the internet.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# What an address inside another one means: IPv4 written as IPv6, and the ways through gateways.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_HOSTS = tuple(
    map(
        ipaddress.ip_network,
        (
            "100.64.0.0/10",  # carriers' own
            "192.0.0.0/24",
            "192.88.99.0/24",  # relays to IPv6
            "198.18.0.0/15",  # benchmarks
            "2001::/23",  # protocols, among them Teredo
            "2002::/16",  # IPv4 by way of relays
            "3fff::/20",  # documentation
        ),
    )
)
# The last 64 bits of an address that ISATAP makes from an IPv4 one.
_ISATAP = (0x00005EFE, 0x02005EFE)
# Where a number may stand in a host name: it is then an address, in some base.
_NUMBER = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")
_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\Z"
)


class RefusedHostError(OSError):
    """A host that must not be asked."""


def is_public(address: IpAddress) -> bool:
    """Tell whether an address is one of the public internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST or address.scope_id is not None:
            return False
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return False
    if any(address.version == network.version and address in network for network in _NOT_HOSTS):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def check_addresses(host: str, addresses: Sequence[str]) -> None:
    """Raise RefusedHostError unless every address is public: a name with one private address is a trap."""
    for text in addresses:
        if not is_public(ipaddress.ip_address(text)):
            raise RefusedHostError(f"{host} is {text}, which is not an address of the public internet")


def check_host(host: str) -> None:
    """Raise RefusedHostError for a host that is no name of the internet, and no address of it.

    Numbers in other forms than the usual one, such as 0x7f.1 or 2130706433, are refused: resolvers do not
    agree on what they mean.
    """
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        check_addresses(host, [host])
        # `::ffff:8.8.8.8` is public; nobody has a reason to write it.
        if isinstance(literal, ipaddress.IPv6Address) and literal not in _GLOBAL_UNICAST:
            raise RefusedHostError(f"{host} is not written as an address of the public internet") from None
        return
    name = host.lower()
    if name.endswith("."):
        raise RefusedHostError("the host ends in a dot; leave it out")
    if not _NAME.match(name):
        raise RefusedHostError("the host is neither a name nor an address")
    labels = name.split(".")
    if _NUMBER.match(labels[-1]):
        raise RefusedHostError("the host is an address in an unusual form; write a name")
    if len(labels) == 1 or labels[-1] in ("localhost", "local", "internal", "localdomain", "arpa", "onion"):
        raise RefusedHostError("the host is a name of a private network")


def checked_socket(address_info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """Return a socket for an address that is about to be connected to: the last gate, after all resolving."""
    family, kind, protocol, _, address = address_info
    check_addresses("it", [str(address[0])])
    return socket.socket(family, kind, protocol)
