"""Whom a failed login is counted for: the email, and the network it came from."""

from __future__ import annotations

import hashlib
import ipaddress

# Whoever has one IPv6 address has all of its network.
IPV6_PREFIX = 64


def email_subject(email: str) -> str:
    """Return under what attempts for an email are counted. What was sent may be no email at all."""
    # In the form it would be looked up in.
    return hashlib.sha256(email.strip().lower().encode()).hexdigest()


def address_subject(address: str) -> str:
    """Return under what attempts from an address are counted. No hash of an email looks like it."""
    return f"address:{_network(address)}"[:64]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), IPV6_PREFIX), strict=False))
